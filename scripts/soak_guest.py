"""A guest of soak: its monitors, how long they take to answer, and its end.

Imported by soak, not a program.
SPDX-License-Identifier: GPL-2.0-or-later
"""
import json
import socket
import subprocess
import threading
import time

from guest import Guest
from qms import PATCHED, STOCK, Error

SIDES = {'stock': STOCK, 'patched': PATCHED}
PATIENCE = 60                   # seconds without progress: a hang
PULSE = 0.005                   # seconds between two questions
BINS = (10, 100, 1000)          # ms, of the histogram of answers


class Hang(Error):
    """Something does not go on."""


class Crash(Error):
    """A QEMU has ended that should not have."""


class Mismatch(Error):
    """A guest's memory or disk is not what it wrote."""


class Refused(Error):
    """A command's error."""


class Lost(Error):
    """A guest is gone, and the soak itself is to blame."""


class Monitor:
    """A QMP connection that gets events and replies in a thread of its own."""

    def __init__(self, path, name):
        self.name = name
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(path)
        self.file = self.sock.makefile('rb')
        self.changed = threading.Condition()
        self.replies, self.count, self.gone = {}, 0, False
        self.status = 'none'        # of migration, as events say
        self.states = []            # all of them
        try:
            self.file.readline()
        except OSError as e:
            raise Hang(f'{name}: its monitor does not greet') from e
        self.sock.settimeout(None)
        threading.Thread(target=self._read, daemon=True).start()
        self.ask('qmp_capabilities', enable=['oob'])

    def _read(self):
        try:
            for line in self.file:
                message = json.loads(line)
                with self.changed:
                    if message.get('event') == 'MIGRATION':
                        self.status = message['data']['status']
                        self.states.append(self.status)
                    elif 'id' in message:
                        self.replies[message['id']] = message
                    self.changed.notify_all()
        except (OSError, ValueError):
            pass
        with self.changed:
            self.gone = True
            self.changed.notify_all()

    def send(self, command, oob=False, **arguments):
        """Returns a number for take()."""
        self.count += 1
        message = {'exec-oob' if oob else 'execute': command,
                   'arguments': {k.replace('_', '-'): v
                                 for k, v in arguments.items()},
                   'id': self.count}
        try:
            self.sock.sendall(json.dumps(message).encode() + b'\n')
        except OSError:
            pass                    # take() says it
        return self.count

    def take(self, number, what='a command', timeout=PATIENCE):
        with self.changed:
            self.changed.wait_for(
                lambda: number in self.replies or self.gone, timeout)
            reply = self.replies.pop(number, None)
        if reply is None:
            if self.gone:
                raise Crash(f'{self.name}: {what}: QEMU has ended')
            raise Hang(f'{self.name}: {what}: no answer for {timeout} s')
        if 'error' in reply:
            raise Refused(f'{self.name}: {what}: {reply["error"]["desc"]}')
        return reply['return']

    def ask(self, command, oob=False, **arguments):
        return self.take(self.send(command, oob, **arguments), command)

    def close(self):
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()


class Pulse(threading.Thread):
    """Asks query-status all the time; keeps how long answers took.

    times  {phase: [<10 ms, <100, <1000, more, longest in seconds]}, shared
    """

    def __init__(self, monitor, times):
        super().__init__(daemon=True)
        self.monitor, self.times = monitor, times
        self.phase = 'idle'
        self.start()

    def run(self):
        while True:
            phase, start = self.phase, time.monotonic()
            number = self.monitor.send('query-status')
            try:
                self.monitor.take(number, timeout=600)
            except Error:
                return
            took = time.monotonic() - start
            row = self.times.setdefault(phase, [0] * (len(BINS) + 1) + [0.0])
            row[sum(took * 1000 >= b for b in BINS)] += 1
            row[-1] = max(row[-1], took)
            time.sleep(PULSE)


class Side(Guest):
    """One QEMU of the soak.

    side    stock or patched
    config  dict(memory=MiB, cpus=, load=(...), disk=path or None, balloon=)
    held    do not run the guest before it is told to
    """

    def __init__(self, side, folder, name, config, initrd, times,
                 incoming=False, held=False):
        self.side, self.config = side, config
        self.killed = False
        self.monitors = []
        paths = [str(folder / f'{name}.{n}') for n in ('main', 'pulse')]
        args = ['-no-reboot', '-name', f'{name},debug-threads=on']
        for path in paths:
            args += ['-qmp', f'unix:{path},server=on,wait=off']
        if held:
            args += ['-S']
        if config['disk']:
            args += ['-blockdev', 'file,node-name=disk,filename='
                     f'{config["disk"]}', '-device', 'virtio-blk-pci,drive=disk']
        if config['balloon']:
            args += ['-object', 'iothread,id=io0', '-device',
                     'virtio-balloon-pci,free-page-hint=on,iothread=io0']
        super().__init__(SIDES[side] / 'out/qemu-system-x86_64', folder, name,
                         config['memory'], config['load'], incoming, None,
                         initrd, args, cpus=config['cpus'])
        self.monitors = [Monitor(path, name) for path in paths]
        self.monitor = self.monitors[0]
        self.pulse = Pulse(self.monitors[1], times)
        self.set_caps(events=True)
        self.known_caps = {c['capability']
                           for c in self.qmp('query-migrate-capabilities')}
        self.known_params = set(self.qmp('query-migrate-parameters'))

    def qmp(self, command, **arguments):
        return self.monitor.ask(command, **arguments)

    def oob(self, command, **arguments):
        """Where the main loop waits for a page, only these are answered."""
        return self.monitor.ask(command, oob=True, **arguments)

    def read_memory(self, r, path):
        """Send a command, chosen by r, that reads guest memory, to a file even;
        its number."""
        address = r.randrange(self.config['memory'] * 256 - 8) * 4096
        command, arguments = r.choice([
            ('pmemsave', {'val': address, 'size': 16384, 'filename': path}),
            # the kernel's text, as the vCPU sees it
            ('memsave', {'val': 0xffffffff81000000, 'size': 8192,
                         'filename': path}),
            ('human-monitor-command',
             {'command-line': f'xp /64xb {address:#x}'})])
        return self.monitor.send(command, **arguments)

    def must_live(self):
        if not self.vm.is_running() and not self.killed:
            raise Crash(f'{self.name} ({self.side}): exit status '
                        f'{self.vm.exitcode()}: {self.last_words()}')

    def last_words(self):
        try:
            with open(self.vm._qemu_log_path,   # pylint: disable=W0212
                      encoding='utf-8', errors='replace') as f:
                return ' | '.join(f.read().strip().splitlines()[-6:])
        except (OSError, TypeError):
            return 'it said nothing'

    def kill(self):
        self.killed = True
        if self.vm.is_running():
            self.vm._popen.kill()               # pylint: disable=W0212
            self.vm._popen.wait(60)             # pylint: disable=W0212

    def crashed(self):
        """Whether a signal that was not ours ended it.

        Its monitors end before it does, more so if it leaves a core.
        """
        end = time.monotonic() + 30
        while self.monitor.gone and self.vm.is_running() and \
                time.monotonic() < end:
            time.sleep(0.05)
        code = self.vm.exitcode()
        return code is not None and code < 0 and not self.killed

    def backtrace(self):
        """Of all its threads."""
        if not self.vm.is_running():
            return f'{self.name}: has ended\n'
        try:
            result = subprocess.run(
                ['gdb', '-p', str(self.vm.get_pid()), '-batch', '-nx', '-ex',
                 'set pagination off', '-ex', 'thread apply all bt'],
                capture_output=True, text=True, timeout=120, check=False)
        except (OSError, subprocess.TimeoutExpired) as e:
            return f'{self.name}: no backtrace: {e}\n'
        return f'==== {self.name} ({self.side})\n{result.stdout}\n'

    def wait_text(self, pattern, timeout, start=0):
        try:
            return super().wait_text(pattern, timeout, start)
        except (Hang, Crash):
            raise
        except Error as e:
            self.must_live()
            raise Hang(str(e)) from e

    def verify(self):
        match = self.say('v', r'VERIFY pages=(\d+) bad=(\d+) writes=(\d+)\r?\n',
                         120)
        if match[2] != '0':
            lines = [ln for ln in self.text.splitlines()
                     if ln.startswith('MISMATCH')]
            raise Mismatch(f'{self.name}: {match[2]} of {match[1]} pages of the'
                           ' guest are wrong: ' + '; '.join(lines[:8]))
        return int(match[3])

    def close(self):
        self.killed = True
        super().close()
        try:
            self.vm._qmp.close()                # pylint: disable=W0212
        except Exception:               # pylint: disable=broad-except
            pass                        # QEMU had ended before
        for monitor in self.monitors:
            monitor.close()
