"""bench snapshot: what a background snapshot costs the guest.

Imported by bench, not a program.  A QEMU per measurement, with a guest that
does nothing but write to its memory (tests/snapshot/guest.S), and storage that
is a reader on a socket (tests/snapshot/reader.py) or a file on tmpfs.  How
long the guest waits is seen from the kernel's side.  What hangs counts with
the time that was waited for it.
SPDX-License-Identifier: GPL-2.0-or-later
"""
import hashlib
import json
import logging
import os
import re
import select
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from guest import accelerator
from qms import PATCHED, STOCK, TOP, Error, say
from results import result_case

MIB = 1 << 20
GIB = 1 << 30
PAGE = 4096
TESTS = TOP / 'tests/snapshot'
BINARY = {side: tree / 'out/qemu-system-x86_64'
          for side, tree in (('stock', STOCK), ('patched', PATCHED))}

# In the guest's memory, as guest.S has it
PARAMS, STATUS = 0x200000, 0x201000
FILL = 4 * MIB                  # where the filled range begins
LOW = 3 * GIB                   # RAM below the PCI hole of a large guest

LARGE_POOL = 256 * MIB          # more than any guest here writes
SMALL_POOL = 32 * MIB
DEFAULT_POOL = 64 * MIB
SIZES = 1, 4, 16                # GiB


def run(*cmd, timeout=120, **kw):
    try:
        result = subprocess.run([str(c) for c in cmd], capture_output=True,
                                text=True, timeout=timeout, check=False,
                                **kw)
    except subprocess.TimeoutExpired as e:
        raise Error(f'{Path(cmd[0]).name}: no end after {timeout} s') from e
    if result.returncode:
        words = (result.stderr.strip().splitlines() or ['no message'])[-1]
        raise Error(f'{Path(cmd[0]).name}: {words}')
    return result.stdout


def build_guest(folder):
    """The guest as a 32-bit ELF file, which is what multiboot takes."""
    run(os.environ.get('CC', 'cc'), '-m64', '-c', '-o', folder / 'guest.o',
        TESTS / 'guest.S')
    run('ld', '-m', 'elf_x86_64', '-n', '--build-id=none',
        '-z', 'max-page-size=4096', '-Ttext-segment=0x100000',
        '-o', folder / 'guest.64', folder / 'guest.o')
    run('objcopy', '-O', 'elf32-i386', folder / 'guest.64', folder / 'guest')


def build_probe(folder):
    run(os.environ.get('CC', 'cc'), '-O2', '-o', folder / 'probe',
        TESTS / 'probe.c', '-lpthread')


def percentile(values, share):
    """The value below which this share of them is; 0 when there is none."""
    values = sorted(values)
    return values[min(int(len(values) * share), len(values) - 1)] \
        if values else 0


class Monitor:
    """A second QMP connection, so that a hang of QEMU is only a number."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(path)
        self.data = b''
        self.line(30)
        self.ask('qmp_capabilities', 30)

    def line(self, timeout):
        end = time.monotonic() + timeout
        while b'\n' not in self.data:
            self.sock.settimeout(max(end - time.monotonic(), 0.001))
            more = self.sock.recv(65536)
            if not more:
                raise Error('QEMU has ended')
            self.data += more
        line, self.data = self.data.split(b'\n', 1)
        return json.loads(line)

    def ask(self, command, timeout, **arguments):
        self.sock.sendall(json.dumps(
            {'execute': command, 'arguments': arguments}).encode() + b'\n')
        while True:
            answer = self.line(timeout)
            if 'return' in answer or 'error' in answer:
                return answer

    def close(self):
        self.sock.close()


class Prober(threading.Thread):
    """How long does query-status take, asked every 20 ms?"""

    def __init__(self, path, timeout):
        super().__init__(daemon=True)
        self.monitor = Monitor(path)
        self.timeout = timeout
        self.times = []
        self.ending = threading.Event()
        self.start()

    def run(self):
        while not self.ending.wait(0.02):
            start = time.monotonic()
            try:
                self.monitor.ask('query-status', self.timeout)
            except (OSError, Error):    # a time-out, too, is an OSError
                self.times.append(self.timeout)
                return
            self.times.append(time.monotonic() - start)

    def finish(self):
        """The longest time, ms."""
        self.ending.set()
        self.join(self.timeout + 5)
        self.monitor.close()
        return 1000 * max(self.times, default=self.timeout)


class Reader:
    """tests/snapshot/reader.py as a process of its own."""

    def __init__(self, folder, plan='fast', keep=None):
        self.path = folder / 'stream'
        self.path.unlink(missing_ok=True)
        self.uri = f'unix:{self.path}'
        self.data = b''
        self.seen = {}
        self.process = subprocess.Popen(
            [sys.executable, str(TESTS / 'reader.py'), str(self.path), plan,
             *([str(keep)] if keep else [])], stdout=subprocess.PIPE)
        try:
            self.wait('listening', 20)
        except Error:
            self.close()
            raise

    def wait(self, what, timeout):
        """(time, bytes) of what the reader says."""
        end = time.monotonic() + timeout
        fd = self.process.stdout.fileno()
        while what not in self.seen:
            left = end - time.monotonic()
            if left <= 0:
                raise Error(f'the reader does not get to "{what}" in '
                            f'{timeout:.0f} s')
            if not select.select([fd], [], [], left)[0]:
                continue
            more = os.read(fd, 4096)
            if not more:
                raise Error('the reader has died')
            self.data += more
            *lines, self.data = self.data.split(b'\n')
            for line in lines:
                word, at, count = line.decode().split()
                self.seen[word] = float(at), int(count)
        return self.seen[what]

    def close(self):
        self.process.kill()
        self.process.wait(10)
        self.process.stdout.close()


class KernelView:
    """When was a thread of QEMU in handle_userfault?  (seconds, seconds)...

    perf's context switch events with the kernel's stack: from the switch out
    of it to the switch in.  Without perf, where the thread sleeps is looked
    up every millisecond.
    """

    how = None

    def __init__(self, folder, pid, tid):
        self.file = folder / 'perf.data'
        self.where = f'/proc/{pid}/task/{tid}/wchan'
        self.tid = tid
        self.samples = []
        self.ending = threading.Event()
        self.perf = self.start_perf(folder)
        if not self.perf:
            self.sampler = threading.Thread(target=self.sample, daemon=True)
            self.sampler.start()
        KernelView.how = ('perf record -e cs --switch-events' if self.perf
                          else 'a look at /proc/PID/task/TID/wchan every ms')

    def start_perf(self, folder):
        if not shutil.which('perf') or os.environ.get('BENCH_NO_PERF'):
            return None
        self.file.unlink(missing_ok=True)
        log = folder / 'perf.log'
        with open(log, 'wb') as f:
            perf = subprocess.Popen(
                ['perf', 'record', '-q', '-k', 'CLOCK_MONOTONIC', '-e', 'cs',
                 '-c', '1', '-g', '-m', '2048', '--switch-events',
                 '-t', str(self.tid), '-o', str(self.file)],
                stdout=f, stderr=f)
        # It says nothing when it has begun; the file is made before that.
        end = time.monotonic() + 10
        while time.monotonic() < end and perf.poll() is None:
            if self.file.exists():
                time.sleep(0.5)
                break
            time.sleep(0.05)
        if perf.poll() is not None or not self.file.exists():
            perf.kill()
            perf.wait()
            return None
        return perf

    def sample(self):
        while not self.ending.wait(0.001):
            try:
                with open(self.where, encoding='ascii') as f:
                    inside = 'userfault' in f.read()
            except OSError:
                return
            self.samples.append((time.monotonic(), inside))

    def close(self):
        self.ending.set()
        if self.perf and self.perf.poll() is None:
            self.perf.kill()
            self.perf.wait()

    def finish(self):
        if not self.perf:
            self.ending.set()
            self.sampler.join(5)
            return self.from_samples()
        self.perf.send_signal(signal.SIGINT)
        try:
            self.perf.wait(30)
        except subprocess.TimeoutExpired as e:
            self.close()
            raise Error('perf does not end') from e
        return self.from_perf()

    def from_samples(self):
        faults, start = [], None
        for at, inside in self.samples:
            if inside and start is None:
                start = at
            elif not inside and start is not None:
                faults.append((start, at))
                start = None
        return faults

    def from_perf(self):
        out = run('perf', 'script', '-i', self.file, '--ns',
                  '--show-switch-events', '-F', 'tid,time,event,ip,sym')
        head = re.compile(r'\s*(\d+)\s+(\d+\.\d+):\s+(.*)')
        faults, start, stack = [], None, None
        for line in out.splitlines():
            match = head.match(line)
            if not match:
                # one frame of the stack of the switch out before it
                if stack is not None and 'handle_userfault' in line:
                    start = stack
                continue
            at, what = float(match[2]), match[3]
            if not what.startswith('PERF_RECORD_SWITCH'):
                stack, start = at, None
            elif 'IN' in what.split():
                if start is not None:
                    faults.append((start, at))
                start = stack = None
        return faults


class Vm:
    """One QEMU with the guest in it, running once its memory is filled.

    memory    of the guest, MiB
    fill      how much of it the guest fills, MiB, or None for all
    write     how much of that it writes to, again and again, MiB
    rate      pages per second, 0 for as many as it can
    shared    a memfd that is shared, which is in pages of 4 KiB, instead of
              anonymous memory in huge pages
    """

    def __init__(self, bench, side, memory=150, fill=100, write=0, rate=0,
                 shared=False, incoming=False, args=()):
        from qemu.machine import QEMUMachine    # the tree's own
        bench.count += 1
        self.name = f'{side}-{bench.count}'
        self.side = side
        self.folder = bench.folder
        self.memory = memory * MIB
        self.monitor_path = str(bench.folder / f'{self.name}.qmp')
        params = bench.folder / f'{self.name}.params'
        top = self.memory if self.memory <= LOW else LOW
        end = FILL + fill * MIB if fill is not None else top - 2 * MIB
        above = self.memory - LOW if fill is None else 0
        params.write_bytes(struct.pack(
            '<7Q', FILL, max(end, FILL), 4 * GIB, 4 * GIB + max(above, 0),
            FILL, FILL + write * MIB, rate))
        self.fill = fill
        options = [
            '-nodefaults', '-run-with', 'exit-with-parent=on',
            '-name', 'guest,debug-threads=on', '-accel', bench.accel,
            '-cpu', 'host' if bench.accel == 'kvm' else 'max',
            '-machine', f'pc,max-ram-below-4g={LOW}'
            + (',memory-backend=ram' if shared else ''),
            '-m', str(memory), '-kernel', str(bench.folder / 'guest'),
            '-device', f'loader,file={params},addr={PARAMS},force-raw=on',
            '-qmp', f'unix:{self.monitor_path},server=on,wait=off', *args]
        if shared:
            options += ['-object', 'memory-backend-memfd,id=ram,share=on,'
                        f'size={self.memory}']
        if incoming:
            options += ['-incoming', 'defer', '-S']
        self.vm = QEMUMachine(str(BINARY[side]), options, name=self.name,
                              base_temp_dir=str(bench.folder), qmp_timer=60)
        bench.open.append(self)
        try:
            self.vm.launch()
        except Exception as e:
            words = (self.vm.get_log() or '').strip().splitlines() or [str(e)]
            raise Error(f'{side}: QEMU does not start: {words[-1]}') from e
        self.pid = self.vm.get_pid()
        self.tid = self.qmp('query-cpus-fast')[0]['thread-id']
        if incoming:
            return
        # The status page, read from outside: this needs nothing of QEMU
        answer = self.qmp('human-monitor-command',
                          command_line=f'gpa2hva {STATUS:#x}')
        match = re.search(r'is (0x[0-9a-f]+)', answer)
        if not match:
            raise Error(f'{side}: {answer.strip()}')
        self.status = int(match[1], 16)
        end = time.monotonic() + 120
        while self.word(0) != 1:
            if time.monotonic() > end:
                raise Error(f'{side}: the guest is not ready in 120 s')
            time.sleep(0.02)

    def word(self, n):
        with open(f'/proc/{self.pid}/mem', 'rb', 0) as f:
            return struct.unpack('<Q', os.pread(f.fileno(), 8,
                                                self.status + 8 * n))[0]

    def written(self):
        """Pages that the guest has written so far."""
        return self.word(1)

    def rate(self, seconds):
        """Pages per second, during the next seconds."""
        start, before = time.monotonic(), self.written()
        time.sleep(seconds)
        return (self.written() - before) / (time.monotonic() - start)

    def qmp(self, command, **arguments):
        from qemu.qmp import ExecuteError
        from qemu.qmp import QMPError
        try:
            return self.vm.cmd(command, **arguments)
        except ExecuteError as e:
            raise Error(f'{self.side}: {command}: {e}') from e
        except (QMPError, EOFError) as e:
            # the last words of a QEMU that gave up
            with open(self.vm._qemu_log_path, encoding='utf-8') as f:
                words = f.read().strip().splitlines() or [str(e)]
            raise Error(f'{self.side}: {command}: {words[-1]}') from e
        except TimeoutError as e:
            raise Error(f'{self.side}: {command}: no answer') from e

    def prepare(self, pool=None, bandwidth=0, **caps):
        """Ask for a snapshot; what stock does not know is left out."""
        self.set_caps(background_snapshot=True, **caps)
        params = {'max-bandwidth': bandwidth}
        if pool and 'x-snapshot-staging-size' in \
                self.qmp('query-migrate-parameters'):
            params['x-snapshot-staging-size'] = pool
        self.qmp('migrate-set-parameters', **params)

    def set_caps(self, **caps):
        self.qmp('migrate-set-capabilities', capabilities=[
            {'capability': k.replace('_', '-'), 'state': v}
            for k, v in caps.items()])

    def migrate(self, uri):
        self.vm.get_qmp_events()        # forgets those before
        self.began = time.time()
        self.qmp('migrate', uri=str(uri))

    def wait(self, done=('completed',), timeout=60):
        """Poll until the migration has this status; returns its figures."""
        end = time.monotonic() + timeout
        pause = 0.01
        while time.monotonic() < end:
            info = self.qmp('query-migrate')
            if info.get('status') in done:
                return info
            if info.get('status') in ('failed', 'cancelled'):
                raise Error(f'{self.side}: snapshot {info["status"]}: '
                            f'{info.get("error-desc", "no reason given")}')
            time.sleep(pause)
            pause = min(pause * 1.5, 0.2)
        raise Error(f'{self.side}: snapshot not {done[0]} in {timeout} s')

    def wait_scan(self, timeout=30):
        """Until the first page is saved: the memory is protected by then."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            info = self.qmp('query-migrate')
            ram = info.get('ram', {})
            if info.get('status') == 'completed' or \
                    ram.get('normal', 0) + ram.get('duplicate', 0):
                return
            time.sleep(0.002)
        raise Error(f'{self.side}: no page saved in {timeout} s')

    def event(self, name, timeout=60):
        event = self.vm.event_wait(name, timeout)
        if not event:
            raise Error(f'{self.side}: no {name} in {timeout} s')
        return (event['timestamp']['seconds']
                + event['timestamp']['microseconds'] / 1e6)

    def proc(self, file, *keys):
        """The sum of lines `KEY: N kB` of a file in /proc/PID, KiB."""
        with open(f'/proc/{self.pid}/{file}', encoding='ascii') as f:
            return sum(int(line.split()[1]) for line in f
                       if line.split(':')[0] in keys)

    def rss(self):
        return self.proc('status', 'RssAnon', 'RssShmem')

    def save(self, path):
        """All of the guest's memory to a file; returns its hash."""
        self.qmp('pmemsave', val=0, size=self.memory, filename=str(path))
        with open(path, 'rb') as f:
            value = hashlib.file_digest(f, 'sha256').hexdigest() \
                if hasattr(hashlib, 'file_digest') else \
                hashlib.sha256(f.read()).hexdigest()
        os.unlink(path)
        return value

    def close(self):
        try:
            self.vm.shutdown(hard=True)
        except Exception:               # pylint: disable=broad-except
            pass                        # a hard shutdown says it was one


class Peak(threading.Thread):
    """The most of something, looked up every 5 ms."""

    def __init__(self, look):
        super().__init__(daemon=True)
        self.look = look
        self.before = self.most = look()
        self.ending = threading.Event()
        self.start()

    def run(self):
        while not self.ending.wait(0.005):
            try:
                self.most = max(self.most, self.look())
            except OSError:
                return

    def finish(self):
        """How much more it was than in the beginning."""
        self.ending.set()
        self.join(5)
        return max(self.most, self.look()) - self.before


class ThreadTime(threading.Thread):
    """CPU time of threads that came with the migration, % of one CPU."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.folder = Path(f'/proc/{pid}/task')
        self.old = {p.name for p in self.folder.iterdir()}
        self.seen = {}              # tid: [first time, last time, ticks]
        self.ending = threading.Event()
        self.start()

    def run(self):
        while not self.ending.wait(0.02):
            for path in self.folder.iterdir():
                try:
                    line = (path / 'stat').read_text(encoding='ascii')
                except OSError:
                    continue            # it has just ended
                name, fields = line.rsplit(')', 1)
                # the thread pool's come and go by themselves
                if path.name in self.old or name.endswith('(worker'):
                    continue
                fields = fields.split()
                ticks = int(fields[11]) + int(fields[12])
                now = time.monotonic()
                self.seen.setdefault(path.name, [now, now, 0])[1:] = \
                    now, ticks

    def finish(self):
        self.ending.set()
        self.join(5)
        first = min((s[0] for s in self.seen.values()), default=0)
        last = max((s[1] for s in self.seen.values()), default=0)
        ticks = sum(s[2] for s in self.seen.values())
        return 100 * ticks / os.sysconf('SC_CLK_TCK') / \
            max(last - first, 0.05)


class QTest:
    """The qtest protocol: port and memory accesses from the main loop."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(path))
        self.file = self.sock.makefile('rw')

    def do(self, *words):
        print(*words, file=self.file, flush=True)
        answer = self.file.readline().split()
        if not answer or answer[0] != 'OK':
            raise Error(f'qtest: {" ".join(words)}: {" ".join(answer)}')
        return int(answer[1], 16) if len(answer) > 1 else 0

    def close(self):
        self.sock.close()


class Dma(threading.Thread):
    """The device `edu` writes to a page of the guest every 100 ms."""

    SLOT = 5

    def __init__(self, qtest, top):
        super().__init__(daemon=True)
        self.qtest = qtest
        self.top = top              # writes below it
        config = 0x80000000 | self.SLOT << 11
        qtest.do('outl', '0xcf8', hex(config | 4))
        # it may write to memory, whatever the firmware thinks
        qtest.do('outl', '0xcfc', '0x6')
        qtest.do('outl', '0xcf8', hex(config | 0x10))
        self.bar = qtest.do('inl', '0xcfc') & ~0xf
        if not self.bar:
            raise Error('the device edu has no address')
        self.ending = threading.Event()
        self.count = 0
        self.start()

    def run(self):
        while not self.ending.is_set():
            # One that was not written before, from the end, where the scan
            # comes last; edu itself waits 100 ms.
            page = self.top - (self.count + 1) * PAGE
            try:
                for register, value in ((0x80, 0x40000), (0x88, page),
                                        (0x90, 64), (0x98, 3)):
                    self.qtest.do('writeq', hex(self.bar + register),
                                  hex(value))
            except (OSError, Error):
                return
            self.count += 1
            self.ending.wait(0.11)

    def finish(self):
        self.ending.set()
        self.join(35)
        self.qtest.close()
        return self.count


def bucket(us):
    """Bucket N of a histogram is [2^N, 2^(N+1)) us; below 1 us is 0."""
    return max(int(us).bit_length() - 1, 0)


def compare_histograms(b, side, case_name, info, faults):
    """By how many buckets QEMU's own p50, p99 and maximum are off.

    Both histograms are kept, summed over the runs, to be drawn.
    """
    stats = info.get('background-snapshot', {})
    counts = stats.get('fault-latency-dist', [])
    kernel = [0] * 32
    for fault in faults:
        kernel[min(bucket(1e6 * fault), 31)] += 1
    kept = b.histograms.setdefault(case_name, {}).setdefault(
        side, {'kernel': [0] * 32, 'qemu': [0] * 32})
    kept['kernel'] = [x + y for x, y in zip(kept['kernel'], kernel)]
    kept['qemu'] = [x + y for x, y in zip(
        kept['qemu'], counts + [0] * (32 - len(counts)))]
    if not any(counts) or not faults:
        return {}
    total, result = sum(counts), {}
    for name, share in (('p50', 0.5), ('p99', 0.99)):
        seen, own = 0, 0
        for own, count in enumerate(counts):
            seen += count
            if seen > total * share:
                break
        result[f'{case_name}-histogram-{name}'] = abs(
            own - bucket(1e6 * percentile(faults, share)))
    result[f'{case_name}-histogram-max'] = abs(
        bucket(stats.get('fault-latency-max', 0) / 1000)
        - bucket(1e6 * max(faults)))
    return result


class Figure:
    """What one number of a case is, and what a failed run counts as."""

    def __init__(self, title, unit, goal=None, better='lower', worst=None,
                 note=''):
        self.title = title
        self.unit = unit
        self.better = better
        self.goal = dict(zip(('on', 'op', 'value'), goal)) if goal else None
        self.worst = worst if worst is not None else \
            0 if better == 'higher' else 1e6
        self.note = note


CASES = {}                      # name: (function, {figure: Figure}, quick)


def case(figures, quick=True):
    """A function of (bench, side) is a case; it returns {figure: value}."""
    def add(function):
        CASES[function.__name__.replace('_', '-')] = function, figures, quick
        return function
    return add


class Bench:
    """What the cases share, and what is to be tidied up after a run."""

    def __init__(self, quick, folder, tmpfs):
        self.quick = quick
        self.folder = Path(folder)
        self.tmpfs = Path(tmpfs)
        self.accel = accelerator()
        self.count = 0
        self.open = []
        self.histograms = {}        # see compare_histograms
        self.probed = []            # what the bare probe printed, per run
        self.stall = 2 if quick else 10
        self.sizes = sizes(quick)
        self.large = 256 if quick else 1024     # MiB, of a large guest
        build_guest(self.folder)
        build_probe(self.folder)

    def close(self):
        while self.open:
            self.open.pop().close()
        for path in self.tmpfs.iterdir():
            path.unlink()

    def vm(self, *args, **kw):
        return Vm(self, *args, **kw)

    def reader(self, *args):
        reader = Reader(self.folder, *args)
        self.open.append(reader)
        return reader

    def kernel_view(self, vm):
        view = KernelView(self.folder, vm.pid, vm.tid)
        self.open.append(view)
        return view

    def probe(self):
        file = self.tmpfs / 'probe'
        out = run(self.folder / 'probe', file, 128 if self.quick else 512)
        file.unlink()
        values = dict(line.split() for line in out.splitlines())
        self.probed.append({k: float(v) for k, v in values.items()})
        return self.probed[-1]


@case({'syscalls-per-page': Figure(
    'syscalls per saved page, a-b guest to file:', 'syscalls',
    ('patched', '<=', 0.2),
    note='strace -f -c: of all threads')})
def syscalls(b, side):
    """strace counts while a guest that writes without end is saved."""
    if not shutil.which('strace'):
        raise Error('strace is not installed')
    vm = b.vm(side, fill=8 if b.quick else 100, write=8 if b.quick else 100)
    vm.prepare()
    counts = b.folder / 'strace'
    log = b.folder / 'strace.log'
    with open(log, 'wb') as f:
        strace = subprocess.Popen(['strace', '-f', '-c', '-o', str(counts),
                                   '-p', str(vm.pid)], stderr=f)
    try:
        end = time.monotonic() + 10
        while b'attached' not in log.read_bytes():
            if time.monotonic() > end or strace.poll() is not None:
                raise Error('strace: ' + log.read_text().strip()[-200:])
            time.sleep(0.05)
        vm.migrate(f'file:{b.tmpfs / "snapshot"}')
        ram = vm.wait(timeout=120)['ram']
        strace.send_signal(signal.SIGINT)
        strace.wait(20)
    except subprocess.TimeoutExpired as e:
        raise Error('strace does not end') from e
    finally:
        if strace.poll() is None:
            strace.kill()
            strace.wait()
    total = re.search(r'^\s*100\.00\s+\S+\s+\S+\s+(\d+).*total$',
                      counts.read_text(), re.M)
    if not total:
        raise Error('strace counted nothing')
    return {'syscalls-per-page':
            int(total[1]) / (ram['normal'] + ram['duplicate'])}


@case({'file-total-time': Figure(
           '1 GiB touched guest to a file on tmpfs, total time', 's',
           ('ratio', '<=', 0.25), note='as query-migrate has it'),
       'file-wall-time': Figure(
           '1 GiB to tmpfs, from the command to "completed"', 's'),
       'file-share-of-probe': Figure(
           '1 GiB to tmpfs, share of the bare probe\'s scan rate', '%',
           ('patched', '>=', 60), 'higher')})
def file_throughput(b, side):
    """An idle guest to a file, and the probe right before it."""
    limit = b.probe()['scan-2m-gb-per-s']
    vm = b.vm(side, memory=b.large, fill=None)
    vm.prepare()
    start = time.monotonic()
    vm.migrate(f'file:{b.tmpfs / "snapshot"}')
    info = vm.wait()
    wall = time.monotonic() - start
    rate = info['ram']['normal'] * PAGE / (info['total-time'] / 1000) / 1e9
    return {'file-total-time': info['total-time'] / 1000,
            'file-wall-time': wall,
            'file-share-of-probe': 100 * rate / limit}


@case({'multifd-total-time': Figure(
    '1 GiB touched guest to a mapped-ram file on tmpfs through 4 multifd '
    'channels, total time', 's', ('ratio', '<=', 0.25),
    note='stock refuses multifd, so its side is without')})
def multifd_throughput(b, side):
    """An idle guest to a file, through as many threads as there are."""
    vm = b.vm(side, memory=b.large, fill=None)
    if side == 'stock':
        vm.prepare(mapped_ram=True)
    else:
        vm.prepare(mapped_ram=True, multifd=True)
        vm.qmp('migrate-set-parameters', multifd_channels=4)
    vm.migrate(f'file:{b.tmpfs / "snapshot"}')
    return {'multifd-total-time': vm.wait()['total-time'] / 1000}


@case({'stall-longest-fault': Figure(
           'reader stalls 10 s, written set smaller than the pool: longest '
           'vCPU fault', 'ms', ('patched', '<=', 5)),
       'stall-progress': Figure(
           'stalled 10 s, set smaller than the pool: the guest\'s rate late '
           'in the stall, of that without a snapshot', '%',
           ('patched', '>=', 90), 'higher',
           note='10000 pages/s in 100 MiB; measured in the last 4 of the 10 '
           's, when all of it has been touched')}, quick=False)
def stall(b, side):
    """Nothing is read for 10 s; all that the guest writes fits the pool."""
    vm = b.vm(side, write=20 if b.quick else 100, rate=10000)
    vm.prepare(pool=LARGE_POOL)
    normal = vm.rate(0.5 if b.quick else 2)
    view = b.kernel_view(vm)
    reader = b.reader(f'stall:{b.stall}')
    vm.migrate(reader.uri)
    reader.wait('stall', 30)
    time.sleep(b.stall * 0.55)
    late = vm.rate(b.stall * 0.4)
    reader.wait('go', b.stall + 20)
    vm.wait(timeout=90)
    faults = view.finish()
    return {'stall-longest-fault':
            1000 * max((e - s for s, e in faults), default=0),
            'stall-progress': 100 * late / normal}


@case({'stall-2x-query-status': Figure(
           'reader stalls 10 s, written set twice the pool: longest '
           'query-status', 'ms', ('patched', '<=', 100), worst=60000),
       'stall-2x-longest-fault': Figure(
           'stalled 10 s, set twice the pool: longest vCPU fault', 'ms',
           note='no goal: with a full pool the guest has to wait'),
       'stall-2x-pool-used': Figure(
           'stalled 10 s, set twice the pool: what the guest could write, of '
           'the pool\'s size', '%',
           ('patched', '>=', 75), 'higher',
           note='not 100: a part of the pool is kept for other threads'),
       'stall-2x-nothing-lost': Figure(
           'stalled 10 s, set twice the pool: loads, memory equal to the '
           'snapshot point', 'yes=1',
           ('patched', '>=', 1), 'higher')})
def stall_2x(b, side):
    """Nothing is read for 10 s; the guest writes twice what fits the pool."""
    size = 2 * SMALL_POOL // MIB
    vm = b.vm(side, write=size)
    vm.prepare(pool=SMALL_POOL)
    stream = b.tmpfs / 'stream'
    view = b.kernel_view(vm)
    reader = b.reader(f'stall:{b.stall}', stream)
    vm.qmp('stop')
    memory = vm.save(b.tmpfs / 'memory')
    vm.migrate(reader.uri)
    reader.wait('stall', 30)
    before = vm.written()
    prober = Prober(vm.monitor_path, 6 * b.stall)
    vm.qmp('cont')
    time.sleep(b.stall * 0.8)
    written = vm.written() - before
    reader.wait('go', b.stall + 20)
    slowest = prober.finish()
    vm.wait(timeout=90)
    faults = view.finish()
    reader.wait('end', 30)
    vm.close()
    return {'stall-2x-query-status': slowest,
            'stall-2x-longest-fault':
            1000 * max((e - s for s, e in faults), default=0),
            'stall-2x-pool-used':
            100 * min(written * PAGE / SMALL_POOL, 2),
            'stall-2x-nothing-lost':
            loads(b, side, f'file:{stream}', memory)}


def loads(b, side, uri, memory, **caps):
    """1 if a new QEMU loads this and has just that memory, else 0."""
    try:
        vm = b.vm(side, incoming=True)
        vm.set_caps(**caps) if caps else None
        vm.qmp('migrate-incoming', uri=uri)
        vm.wait()
        return int(vm.save(b.tmpfs / 'memory') == memory)
    except Error as e:
        say(f'  {e}')
        return 0


@case({'dma-query-status': Figure(
    'a device writes to memory every 100 ms, reader stalls 10 s: longest '
    'query-status', 'ms', ('patched', '<=', 100), worst=60000,
    note='device edu, from its timer in the main loop')})
def dma(b, side):
    """The main loop writes to protected memory while nothing is read."""
    path = b.folder / 'qtest'
    path.unlink(missing_ok=True)
    vm = b.vm(side, args=(
        '-device', f'edu,addr={Dma.SLOT:#x}',
        '-qtest', f'unix:{path},server=on,wait=off', '-qtest-log', 'none'))
    vm.prepare(pool=LARGE_POOL)
    reader = b.reader(f'stall:{b.stall}')
    qtest = QTest(path)
    vm.migrate(reader.uri)
    reader.wait('stall', 30)
    prober = Prober(vm.monitor_path, 6 * b.stall)
    writes = Dma(qtest, FILL + 100 * MIB)
    reader.wait('go', b.stall + 20)
    slowest = prober.finish()
    writes.finish()
    vm.wait(timeout=90)
    if not writes.count:
        raise Error('the device did not write')
    return {'dma-query-status': slowest}


@case({'paced-time-in-fault': Figure(
           '5 MB/s with 1 s pauses, pool not smaller than the written set: '
           'time in fault', '%', ('patched', '<=', 2), worst=100),
       **{f'paced-histogram-{p}': Figure(
           f'5 MB/s with pauses: {p} of QEMU\'s own histogram and of the '
           'kernel\'s view differ by', 'buckets', ('patched', '<=', 1),
           note='stock has none, which is written as 0')
          for p in ('p50', 'p99', 'max')}}, quick=False)
def paced(b, side):
    """A slow reader, and a guest that writes to all of its memory."""
    vm = b.vm(side, write=100)
    vm.prepare(pool=LARGE_POOL)
    view = b.kernel_view(vm)
    reader = b.reader('pace:5000000:2:1')
    start = time.monotonic()
    vm.migrate(reader.uri)
    info = vm.wait(timeout=120)
    length = time.monotonic() - start
    faults = [e - s for s, e in view.finish()]
    return {'paced-time-in-fault': 100 * sum(faults) / length,
            **compare_histograms(b, side, 'paced', info, faults)}


@case({'fast-fault-p50': Figure(
           'unlimited stream: fault latency, p50', 'us', ('ratio', '<=', 2)),
       'fast-fault-p99': Figure(
           'unlimited stream: fault latency, p99', 'us', ('ratio', '<=', 1)),
       'fast-fault-max': Figure(
           'unlimited stream: fault latency, maximum', 'us',
           ('ratio', '<=', 0.2)),
       'fast-time-in-fault': Figure(
           'unlimited stream: total time in fault', 's',
           ('ratio', '<=', 0.5)),
       'fast-faults': Figure('unlimited stream: faults', 'faults'),
       'fast-total-time': Figure('unlimited stream: total time', 's'),
       **{f'fast-histogram-{p}': Figure(
           f'unlimited stream: {p} of QEMU\'s own histogram and of the '
           'kernel\'s view differ by', 'buckets', ('patched', '<=', 1),
           note='stock has none, which is written as 0')
          for p in ('p50', 'p99', 'max')}})
def fast(b, side):
    """A reader that is as fast as it can, and a guest that writes."""
    vm = b.vm(side, write=100)
    vm.prepare()
    view = b.kernel_view(vm)
    reader = b.reader('fast')
    vm.migrate(reader.uri)
    info = vm.wait()
    faults = [e - s for s, e in view.finish()]
    if not faults:
        raise Error('no fault was seen')
    return {'fast-fault-p50': 1e6 * percentile(faults, 0.5),
            'fast-fault-p99': 1e6 * percentile(faults, 0.99),
            'fast-fault-max': 1e6 * max(faults),
            'fast-time-in-fault': sum(faults),
            'fast-faults': len(faults),
            'fast-total-time': info['total-time'] / 1000,
            **compare_histograms(b, side, 'fast', info, faults)}


@case({'bandwidth-deviation': Figure(
           'max-bandwidth 10 MB/s set before: rate is off by', '%',
           ('patched', '<=', 10)),
       'bandwidth-cpu': Figure(
           'max-bandwidth 10 MB/s: CPU time of the migration\'s threads',
           '% of a CPU',
           ('patched', '<=', 20))})
def bandwidth(b, side):
    """An idle guest with a limit; what arrives in 5 s is counted."""
    limit, length = 10_000_000, 2 if b.quick else 5
    vm = b.vm(side)
    vm.prepare(bandwidth=limit)
    reader = b.reader('count:0.5:{length}'.format(length=length))
    cpu = ThreadTime(vm.pid)
    vm.migrate(reader.uri)
    reader.wait('last', length + 30)
    used = cpu.finish()
    (start, before), (end, after) = reader.seen['first'], reader.seen['last']
    rate = (after - before) / (end - start)
    return {'bandwidth-deviation': 100 * abs(rate - limit) / limit,
            'bandwidth-cpu': used}


@case({'untouched-memfd-growth': Figure(
    'untouched 1 GiB shared memfd: growth of QEMU\'s memory', '% of guest',
    ('patched', '<=', 5))})
def untouched_memfd_growth(b, side):
    """What was never touched does not get allocated by a snapshot."""
    vm = b.vm(side, memory=b.large, fill=0, shared=True)
    vm.prepare()
    reader = b.reader('fast')
    peak = Peak(vm.rss)
    vm.migrate(reader.uri)
    vm.wait()
    return {'untouched-memfd-growth':
            100 * peak.finish() * 1024 / vm.memory}


@case({'huge-pages-left': Figure(
    'AnonHugePages after a snapshot of a mostly idle guest, of before', '%',
    ('patched', '>=', 80), 'higher')})
def huge_pages_left(b, side):
    """Transparent huge pages that are not written to stay whole."""
    vm = b.vm(side, memory=b.large, fill=None)
    before = vm.proc('smaps_rollup', 'AnonHugePages')
    if before * 1024 < vm.memory / 2:
        raise Error('this host gives the guest no transparent huge pages')
    vm.prepare()
    reader = b.reader('fast')
    vm.migrate(reader.uri)
    vm.wait()
    return {'huge-pages-left':
            100 * vm.proc('smaps_rollup', 'AnonHugePages') / before}


def pause(b, side, what, memory, fill, shared):
    """Pause, set-up and QEMU's own memory, of one snapshot."""
    vm = b.vm(side, memory=memory, fill=fill, shared=shared)
    vm.prepare(pool=DEFAULT_POOL)
    reader = b.reader('fast')
    peak = Peak(vm.rss)
    vm.migrate(reader.uri)
    stop = vm.event('STOP', 120)
    resume = vm.event('RESUME', 120)
    # to the end, or long enough to see what it takes
    try:
        vm.wait(timeout=4)
    except Error:
        if vm.qmp('query-migrate')['status'] not in ('active', 'completed'):
            raise
    return {f'{what}-pause': 1000 * (resume - stop),
            f'{what}-setup': 1000 * (stop - vm.began),
            f'{what}-memory': max(peak.finish(), 0)}


@case({'untouched-huge-pause': Figure(
    'pause (STOP to RESUME), untouched 1 GiB, anonymous memory', 'ms',
    ('ratio', '<=', 1))})
def pause_untouched_huge(b, side):
    """The guest stops for the protection of anonymous memory, none in use."""
    found = pause(b, side, 'untouched-huge', b.large, 0, False)
    return {'untouched-huge-pause': found['untouched-huge-pause']}


@case({'untouched-4k-pause': Figure(
    'pause (STOP to RESUME), untouched 1 GiB, shared memfd', 'ms',
    ('ratio', '<=', 1))})
def pause_untouched_4k(b, side):
    """The guest stops for the protection of a memfd, none of it in use."""
    found = pause(b, side, 'untouched-4k', b.large, 0, True)
    return {'untouched-4k-pause': found['untouched-4k-pause']}


def sizes(quick=False):
    """GiB: no more than this machine has memory for."""
    with open('/proc/meminfo', encoding='ascii') as f:
        free = [int(line.split()[1]) for line in f
                if line.startswith('MemAvailable')][0] >> 20
    return [s for s in SIZES[:1 if quick else None] if s + 2 <= free]


def growth_figures(kind, title):
    figures = {}
    for size in SIZES:
        what = f'{size}g-{kind}'
        figures[f'{what}-pause'] = Figure(
            f'pause (STOP to RESUME), {size} GiB, {title}', 'ms',
            ('ratio', '<=', 1))
        figures[f'{what}-setup'] = Figure(
            f'set-up (command to STOP), {size} GiB, {title}', 'ms',
            ('ratio', '<=', 1))
        figures[f'{what}-memory'] = Figure(
            f'QEMU\'s own extra memory, {size} GiB, {title}', 'KiB',
            ('patched', '<=', (DEFAULT_POOL + size * GIB // 10000) // 1024),
            note='the goal is the default pool and 0.01 % of the guest; peak '
            'of the first 4 s')
    return figures


def growth(b, side, kind):
    found = {}
    for size in b.sizes:
        found.update(pause(b, side, f'{size}g-{kind}', size * 1024, None,
                           kind == '4k'))
        b.close()
    return found


@case(growth_figures('huge', 'huge pages'), quick=False)
def growth_huge(b, side):
    """Does what a snapshot costs grow with the guest, in huge pages?"""
    return growth(b, side, 'huge')


@case(growth_figures('4k', '4 KiB pages'), quick=False)
def growth_4k(b, side):
    """Does what a snapshot costs grow with the guest, in small pages?"""
    return growth(b, side, '4k')


@case({'cancel-exec': Figure(
    'cancel while exec: reads nothing', 's', ('patched', '<=', 1),
    worst=60)})
def cancel_exec(b, side):
    """From migrate_cancel to the status "cancelled", nobody reading."""
    length = 3 if b.quick else 15
    vm = b.vm(side)
    vm.prepare()
    monitor = Monitor(vm.monitor_path)
    vm.migrate(f'exec:sleep {length}')
    vm.event('RESUME')
    time.sleep(1)
    start = time.monotonic()
    try:
        monitor.ask('migrate_cancel', 60)
        while time.monotonic() < start + 60:
            status = monitor.ask('query-migrate', 60)['return']['status']
            if status in ('cancelled', 'completed', 'failed'):
                return {'cancel-exec': time.monotonic() - start}
            time.sleep(0.01)
    except TimeoutError:
        pass
    finally:
        monitor.close()
    return {'cancel-exec': 60}


def mapped(b, side, name, **caps):
    """A guest that writes on once its snapshot has begun; is that loaded?"""
    file = b.tmpfs / 'mapped'
    vm = b.vm(side, write=100)
    vm.qmp('stop')
    memory = vm.save(b.tmpfs / 'memory')
    try:
        vm.prepare(mapped_ram=True, **caps)
        vm.migrate(f'file:{file}')
    except Error as e:
        say(f'  {e}')
        return {name: 0}
    vm.wait_scan()
    vm.qmp('cont')
    vm.wait()
    vm.close()
    return {name: loads(b, side, f'file:{file}', memory, mapped_ram=True,
                        **caps)}


@case({'mapped-ram': Figure(
    'mapped-ram: loads, memory equal to the snapshot point', 'yes=1',
    ('patched', '>=', 1), 'higher')})
def mapped_ram(b, side):
    """A snapshot with mapped-ram is loaded again."""
    return mapped(b, side, 'mapped-ram')


@case({'mapped-ram-multifd': Figure(
    'mapped-ram and multifd: loads, memory equal to the snapshot point',
    'yes=1', ('patched', '>=', 1), 'higher')})
def mapped_ram_multifd(b, side):
    """The same through multifd channels."""
    return mapped(b, side, 'mapped-ram-multifd', multifd=True)


def median_of(values, key):
    return statistics.median(v[key] for v in values)


def probe_note(probed):
    """What the bare probe found, for the note of a case."""
    return 'the probe in the same run: ' + ', '.join(
        f'{key} {median_of(probed, key):.3g}' for key in probed[0]) \
        if probed else ''


def run_case(b, name, side, values, notes):
    """One case on one side; what fails counts as its worst."""
    function, figures, _ = CASES[name]
    start = time.monotonic()
    try:
        found = function(b, side)
    except Exception as e:              # pylint: disable=broad-except
        # Whatever it is, the other cases go on.
        found = {}
        text = str(e) or type(e).__name__
        say(f'  {name}, {side}: {text}')
        # the last of several is enough
        notes[name, side] = f'{side} failed, which counts as its worst: ' \
            + text.replace(str(b.folder), '').replace(str(b.tmpfs), '')
    finally:
        b.close()
    for key, figure in figures.items():
        failed = not found
        if key in found:
            value = found[key]
        elif side == 'stock' and not failed:
            value = 0                   # it has no such figure
        elif side == 'stock' and figure.goal and \
                figure.goal['on'] == 'ratio':
            value = 0                   # such a pair gives no ratio
        else:
            value = figure.worst
            notes.setdefault((name, side), f'{side} has no {key}, which '
                             'counts as the worst')
        values[key][side].append(round(float(value), 6))
    shown = ', '.join(f'{k} {v:.4g}' for k, v in found.items())
    say(f'  {name}, {side}, {time.monotonic() - start:.0f} s: {shown}')


def bench_snapshot(pairs, quick, only=None):
    """All cases, or some; returns them as results has them, the
    accelerator, and fault histograms."""
    if os.geteuid() and not os.access('/dev/userfaultfd', os.W_OK):
        raise Error('root is needed, or access to /dev/userfaultfd')
    for binary in BINARY.values():
        if not binary.exists():
            raise Error(f'{binary} is not built (scripts/build)')
    names = only or [n for n, c in CASES.items() if c[2] or not quick]
    # It would report that a QEMU ended that was meant to.
    for logger in ('qemu', 'asyncio'):
        logging.getLogger(logger).setLevel(logging.CRITICAL + 1)
    tmpfs = '/dev/shm' if os.access('/dev/shm', os.W_OK) else None
    need = 1 if quick else 2
    if shutil.disk_usage(tmpfs or tempfile.gettempdir()).free < need * GIB:
        raise Error(f'{need} GiB are needed in {tmpfs or "TMPDIR"}')
    here = {f'{s}g' for s in sizes(quick)}
    values, notes = {}, {}
    for name in names:
        figures = CASES[name][1]
        for key in [k for k in figures if re.match(r'\d+g-', k)
                    and k.split('-')[0] not in here]:
            if not quick:
                say(f'{key} is left out: not enough memory')
            del figures[key]
        values.update({key: {'stock': [], 'patched': []} for key in figures})
    with tempfile.TemporaryDirectory(prefix='qms-bench.') as folder, \
            tempfile.TemporaryDirectory(prefix='qms-bench.', dir=tmpfs) as t:
        b = Bench(quick, folder, t)
        try:
            for name in names:
                say(f'{name}, {pairs} {"pairs" if pairs > 1 else "pair"}')
                for _ in range(pairs):
                    for side in BINARY:
                        run_case(b, name, side, values, notes)
        finally:
            b.close()
    cases = []
    for name in names:
        for key, figure in CASES[name][1].items():
            note = [figure.note] if figure.note else []
            if key == 'file-share-of-probe':
                note.append(probe_note(b.probed))
            if 'fault' in key or 'histogram' in key:
                note.append(f'seen by {KernelView.how}')
            note += [notes[name, side] for side in BINARY
                     if (name, side) in notes]
            stock, patched = values[key]['stock'], values[key]['patched']
            if figure.goal and figure.goal['on'] == 'ratio' and \
                    not any(stock):
                # No ratio at all: the goal is then not met.
                stock = [1e-6] * len(stock)
            cases.append(result_case(key, figure.title, figure.unit,
                                     figure.better, stock, patched,
                                     figure.goal, '; '.join(note)))
    return cases, b.accel, b.histograms
