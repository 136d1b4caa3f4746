"""A small Linux guest under load, for the demo and the benchmarks.

Imported, not a program.  Built from the tree's own python/qemu; the guest is
Debian's cloud kernel, busybox and tests/guest/load.c.
SPDX-License-Identifier: GPL-2.0-or-later
"""
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from qms import CACHE, STOCK, TOP, Error

# The tree's own machine.py, and the QMP library that it imports
sys.path[:0] = [str(STOCK / 'src/python'),
                *map(str, (STOCK / 'src/python/wheels').glob('qemu_qmp-*.whl')),
                str(CACHE / 'python/usr/lib/python3/dist-packages')]


def accelerator():
    """kvm where it is usable; PVM is not (see scripts/no-pvm)."""
    usable = os.access('/dev/kvm', os.R_OK | os.W_OK)
    return 'kvm' if usable and not os.path.exists('/sys/module/kvm_pvm') \
        else 'tcg'


def guest_modules():
    """What the guest's kernel needs for virtio-balloon and virtio-blk, in the
    order in which it can be loaded."""
    drivers = 'lib/modules/*/kernel/drivers'
    found = []
    for name in ('virtio/virtio', 'virtio/virtio_ring',
                 'virtio/virtio_pci_modern_dev',
                 'virtio/virtio_pci_legacy_dev', 'virtio/virtio_pci',
                 'virtio/virtio_balloon', 'block/virtio_blk'):
        paths = list((CACHE / 'guest').glob(f'{drivers}/{name}.ko'))
        if not paths:
            raise Error(f'the guest\'s kernel has no module {name} (scripts/'
                        'deps guest)')
        found.append(paths[0])
    return found


def make_initrd(busybox, out, modules=()):
    """busybox, init, the load program and modules in a cpio archive."""
    root = out.parent / 'initrd'
    for d in ('bin', 'dev', 'proc'):
        (root / d).mkdir(parents=True, exist_ok=True)
    load = root / 'load'
    cc = os.environ.get('CC', 'cc')
    result = subprocess.run(
        [cc, '-O2', '-static', '-pthread', '-o', str(load),
         str(TOP / 'tests/guest/load.c')],
        capture_output=True, text=True, check=False)
    if result.returncode:
        raise Error('the guest\'s load program does not compile: '
                    + (result.stderr.strip().splitlines() or ['?'])[-1])
    (root / 'bin/busybox').write_bytes(Path(busybox).read_bytes())
    (root / 'init').write_bytes((TOP / 'tests/guest/init').read_bytes())
    (root / 'modules').mkdir(exist_ok=True)
    for i, module in enumerate(modules):
        (root / f'modules/{i:02}-{module.name}').write_bytes(
            module.read_bytes())
    for f in ('bin/busybox', 'init', 'load'):
        (root / f).chmod(0o755)
    (root / 'bin/sh').unlink(missing_ok=True)
    (root / 'bin/sh').symlink_to('busybox')
    names = sorted(str(p.relative_to(root)) for p in root.rglob('*'))
    with open(out, 'wb') as f:
        subprocess.run(['cpio', '--quiet', '-o', '-H', 'newc', '-R', '0:0'],
                       cwd=root, input='\n'.join(names).encode() + b'\n',
                       stdout=f, check=True)


class Guest:
    """One QEMU process with the guest in it.

    binary    qemu-system-x86_64
    folder    for its sockets and logs
    name      tells the processes of a migration apart
    memory    of the guest, MiB
    load      (MiB, hot MiB, pages per second[, mode]) of the load program
    append    more for the kernel's command line
    incoming  wait for a migration instead of booting
    kernel    Debian's, unless told otherwise
    initrd    what make_initrd() made
    wrapper   words to put before the command
    cpus      how many it has
    """

    def __init__(self, binary, folder, name, memory, load, incoming=False,
                 kernel=None, initrd=None, args=(), append='', wrapper=(),
                 cpus=1):
        from qemu.machine import QEMUMachine   # the tree's own
        self.name = name
        self.text = ''
        self.serial_path = str(folder / f'{name}.serial')
        accel = accelerator()
        options = [
            '-nodefaults', '-run-with', 'exit-with-parent=on', '-machine', 'pc-q35-10.2', '-accel', accel,
            '-cpu', 'host' if accel == 'kvm' else 'max', '-smp', str(cpus),
            '-m', str(memory),
            '-kernel', str(kernel or CACHE / 'guest/vmlinuz'),
            '-initrd', str(initrd), '-append',
            'console=ttyS0 quiet panic=1 rdinit=/init mitigations=off '
            f'tsc=reliable load={",".join(map(str, load))} {append}'.strip(),
            '-chardev', f'socket,id=s0,path={self.serial_path},server=on,'
            'wait=off', '-serial', 'chardev:s0', *args]
        if incoming:
            options += ['-incoming', 'defer']
        self.vm = QEMUMachine(str(binary), options, wrapper, name=name,
                              base_temp_dir=str(folder), qmp_timer=60)
        self.serial = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.vm.launch()
            # A monitor that hangs is an error, and not the end of a run.
            self.vm._qmp.settimeout(300)    # pylint: disable=protected-access
            self.serial.connect(self.serial_path)
        except Exception as e:
            self.close()
            words = (self.vm.get_log() or '').strip().splitlines() or [str(e)]
            raise Error(f'{name}: QEMU does not start: {words[-1]}') from e
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        while True:
            try:
                data = self.serial.recv(4096)
            except OSError:
                return
            if not data:
                return
            self.text += data.decode('utf-8', 'replace')

    def qmp(self, command, **arguments):
        """Run a QMP command; an error is an Error with its text."""
        from qemu.qmp.legacy import QMPError
        from qemu.qmp import ExecuteError
        try:
            return self.vm.cmd(command, **arguments)
        except (ExecuteError, QMPError) as e:
            raise Error(f'{self.name}: {command}: {e}') from e
        except TimeoutError as e:
            raise Error(f'{self.name}: {command}: no answer') from e

    def wait_text(self, pattern, timeout, start=0):
        """Wait for a line on the serial console; returns its match."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            match = re.search(pattern, self.text[start:])
            if match:
                return match
            if not self.vm.is_running():
                raise Error(f'{self.name}: QEMU has ended: '
                            f'{(self.vm.get_log() or "").strip()[-200:]}')
            time.sleep(0.01)
        raise Error(f'{self.name}: the guest does not answer ({pattern}) in '
                    f'{timeout} s; its last words: {self.text[-200:]!r}')

    def say(self, line, pattern, timeout=60):
        start = len(self.text)
        self.serial.sendall(line.encode() + b'\n')
        return self.wait_text(pattern, timeout, start)

    def verify(self):
        """Does the guest run, and is its memory right?  Returns writes."""
        match = self.say('v', r'VERIFY pages=(\d+) bad=(\d+) writes=(\d+)\r?\n')
        if match[2] != '0':
            raise Error(f'{self.name}: {match[2]} of {match[1]} pages of the '
                        'guest have wrong contents')
        return int(match[3])

    def writes(self):
        """How many pages it has written to so far."""
        return int(self.say('w', r'WRITES (\d+)\r?\n')[1])

    def set_caps(self, **caps):
        self.qmp('migrate-set-capabilities', capabilities=[
            {'capability': k.replace('_', '-'), 'state': v}
            for k, v in caps.items()])

    def set_params(self, **params):
        self.qmp('migrate-set-parameters',
                 **{k.replace('_', '-'): v for k, v in params.items()})

    def migration(self):
        return self.qmp('query-migrate')

    def wait_migration(self, done, timeout, what):
        """Poll query-migrate until done(info); returns info."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            info = self.migration()
            if info.get('status') == 'failed':
                raise Error(f'{self.name}: migration failed: '
                            f'{info.get("error-desc", "no reason given")}')
            if done(info):
                return info
            time.sleep(0.02)
        raise Error(f'{self.name}: {what} not within {timeout} s')

    def wait_completed(self, timeout=120):
        return self.wait_migration(lambda i: i.get('status') == 'completed',
                                   timeout, 'migration completed')

    def close(self):
        try:
            if self.vm.is_running():
                self.vm.shutdown(hard=True)
        except Exception:               # pylint: disable=broad-except
            pass                        # a hard shutdown says it was one
        self.serial.close()
        if os.path.exists(self.serial_path):
            os.unlink(self.serial_path)
