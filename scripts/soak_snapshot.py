"""Background snapshots of soak's guest.

Imported by soak, not a program.
SPDX-License-Identifier: GPL-2.0-or-later
"""
import os
import random
import shutil
import socket
import threading
import time
from pathlib import Path

from qms import Error
from soak_guest import Hang, Refused
from soak_migration import CAPS, MIB


class Reader(threading.Thread):
    """Reads a file descriptor; may be slow, stall, or die."""

    def __init__(self, fd, keep=None):
        super().__init__(daemon=True)
        self.fd, self.keep = fd, keep
        self.rate = self.total = 0
        self.stalled = threading.Event()
        self.die = threading.Event()
        self.start()

    def run(self):
        if isinstance(self.fd, Path):
            # waits for who writes; without one there would be no data at all
            self.fd = os.open(self.fd, os.O_RDONLY)
        out = open(self.keep, 'wb') if self.keep else None
        while not self.die.is_set():
            if self.stalled.is_set():
                time.sleep(0.01)
                continue
            try:
                data = os.read(self.fd, 256 << 10)
            except OSError:
                break
            if not data:
                break
            if out:
                out.write(data)
            self.total += len(data)
            if self.rate:
                time.sleep(len(data) / self.rate)
        if out:
            out.close()
        os.close(self.fd)


class Snapshot:
    """One background snapshot of soak.guest, and what happens to it."""

    def __init__(self, soak, number):
        self.soak, self.src = soak, soak.guest
        self.r = random.Random(f'{soak.seed}:{number}:snapshot')
        self.keep = soak.folder / 'snapshot.img'

    def channel(self, kind):
        """A URI and its reader, None if there is none to interfere with."""
        keep = self.keep
        if kind == 'file':
            return f'file:{keep}', None
        path = self.soak.path('snapshot')
        if kind == 'unix':
            server = socket.socket(socket.AF_UNIX)
            server.bind(str(path))
            server.listen(1)
            box = []

            def accept():
                server.settimeout(30)
                conn, _ = server.accept()
                server.close()
                box.append(Reader(conn.detach(), keep))

            thread = threading.Thread(target=accept, daemon=True)
            thread.start()
            return f'unix:{path}', lambda: (thread.join(30), box[0])[1]
        os.mkfifo(path)
        if kind == 'exec':
            return f'exec:exec cat > {path}', lambda: Reader(path, keep)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(fd, True)
        # fd: the pipe's other end is handed to QEMU
        end = os.open(path, os.O_WRONLY)
        self.src.vm._qmp.send_fd_scm(end)   # pylint: disable=protected-access
        self.src.vm.cmd('getfd', fdname=path.name)
        os.close(end)
        return f'fd:{path.name}', lambda: Reader(fd, keep)

    def wait(self, what, timeout=90):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            self.src.must_live()
            info = self.src.migration()
            if info.get('status') in what:
                return info
            time.sleep(0.01)
        raise Hang(f'{self.now}: no {"/".join(what)} within {timeout} s, but '
                   f'{info}')

    def idle(self):
        """Only then can the next one begin."""
        end = time.monotonic() + 30
        while any(i['type'] == 'migration'
                  for i in self.src.qmp('query-yank')):
            if time.monotonic() > end:
                raise Hang('the migration does not end')
            time.sleep(0.01)

    def hold_disk(self, hold):
        if self.src.config['disk']:
            self.src.say(f'h {hold}', r'HELD')

    def run(self):
        """Returns how it ended."""
        r, src = self.r, self.src
        self.keep.unlink(missing_ok=True)
        kind = r.choice(['file', 'unix', 'exec', 'fd'])
        fate = r.choice(['complete', 'complete', 'limited', 'stall', 'cancel',
                         'stall-cancel', 'reader-dies'])
        if kind == 'file' and fate in ('stall', 'stall-cancel', 'reader-dies'):
            fate = r.choice(['complete', 'cancel'])
        self.now = f'{kind}, {fate}'
        self.hold_disk(1)
        # and none of those that an earlier round has set
        src.qmp('migrate-set-capabilities', capabilities=[
            {'capability': c, 'state': c == 'background-snapshot'}
            for c in CAPS if c in src.known_caps])
        src.set_params(
            max_bandwidth=r.choice([20, 50]) * MIB if fate == 'limited' else 0,
            x_snapshot_staging_size=r.choice([4, 8, 64, 256]) * MIB)
        src.pulse.phase = 'snapshot'
        uri, connect = self.channel(kind)
        # fd: is known to that monitor only
        (src.vm.cmd if kind == 'fd' else src.qmp)('migrate', uri=uri)
        reader = connect() if connect else None
        if fate in ('stall', 'stall-cancel', 'reader-dies', 'cancel'):
            if reader:
                reader.rate = 60 * MIB
            time.sleep(r.random() * 0.5)
            self.soak.count('memory reads')
            number = src.read_memory(r, f'{self.soak.folder}/mem')
            try:
                src.monitor.take(number, 'a read of memory')
            except Refused:
                pass
            if reader and fate.startswith('stall'):
                reader.stalled.set()
                time.sleep(r.random() * 3)
        want = ['completed']
        if fate in ('cancel', 'stall-cancel'):
            src.qmp('migrate_cancel')
            want = ['cancelled'] if fate == 'stall-cancel' else \
                ['cancelled', 'completed']
        elif fate == 'reader-dies':
            reader.die.set()
            want = ['failed', 'completed']
        elif fate == 'stall':
            reader.stalled.clear()
            reader.rate = 0
        if fate == 'stall-cancel' and src.migration()['status'] == \
                'completed':
            want = ['completed']        # it was over before the stall
        info = self.wait(want)
        self.idle()
        if reader:
            reader.stalled.clear()
            reader.die.set() if info['status'] != 'completed' else None
            reader.join(30)
        self.count(info.get('background-snapshot') or {})
        status = src.qmp('query-status')['status']
        if status != 'running':
            raise Error(f'{self.now}: the guest is {status}')
        writes = src.verify()
        if info['status'] == 'completed' and r.random() < 0.4:
            self.load(writes)
        src.set_caps(background_snapshot=False)
        self.hold_disk(0)
        return f'{self.now}, {info["status"]}'

    def count(self, stats):
        soak = self.soak
        soak.count('faults of vCPUs', stats.get('vcpu-faults', 0))
        soak.count('faults of other threads', stats.get('other-faults', 0))
        soak.count('full staging rings', stats.get('staging-full', 0) > 0)
        if not stats.get('staging-full', 0):
            soak.longest = max(soak.longest, stats.get('fault-latency-max', 0))

    def load(self, writes):
        config = dict(self.src.config)
        if config['disk']:
            copy = Path(f'{config["disk"]}.copy')
            shutil.copyfile(config['disk'], copy)
            config['disk'] = copy
        dst = self.soak.new_guest('patched', incoming=True, config=config)
        try:
            dst.pulse.phase = 'load'
            dst.qmp('migrate-incoming', uri=f'file:{self.keep}')
            dst.wait_completed()
            dst.wait_text('TICK', 60)
            rate = config['load'][2] * config['cpus'] + 200
            if dst.verify() > writes + rate * 60:
                raise Error('the snapshot is not of its time')
            self.soak.count('snapshots that were loaded')
        except Exception:
            # both are looked at, and ended, by whom this is told
            self.soak.other = dst
            raise
        dst.close()
