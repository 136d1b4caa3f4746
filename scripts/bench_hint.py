"""bench hint: free page hints of a Linux guest.

Imported by bench, not a program.  The guest fills much memory and frees it
before it is migrated, so that most of what has data in it is free.  It runs
from a state that was booted once, with stock.  What hangs counts with the time
that was waited for it, and its QEMU is killed.
SPDX-License-Identifier: GPL-2.0-or-later
"""
import logging
import random
import tempfile
import threading
import time
from pathlib import Path

from bench_preempt import huge_pages
from bench_snapshot import Figure, Monitor
from guest import Guest, accelerator, guest_modules, make_initrd
from qms import CACHE, PATCHED, STOCK, Error, say
from results import result_case

MIB = 1 << 20
SIDES = {'stock': STOCK, 'patched': PATCHED}
MEMORY, FREED = 2048, 1500      # of the guest, and what it frees, MiB
KEPT = 16                       # MiB that the guest keeps and verifies
PATTERN = 320, 64, 150          # MiB: a guest, what it keeps, and what comes
                                # and goes, which is nearly all that it has
MIGRATIONS = 40                 # of it, per pair
SWITCH = 0.7, 3.5               # s, to postcopy: before the guest has hinted
                                # all, and after, at the latest

# Otherwise the guest's balloon driver keeps the only vCPU for as long as it
# hints, and that is what who reads from the disk would see.
PREEMPTIBLE = 'preempt=full'

HUNG = 10                       # s without an answer
SINK = 'exec:exec cat >/dev/null'
MAIN_THREAD = 'qemu-system-x86'     # as long as a thread's name can be

CASES = {}                      # name: (function, {figure: Figure}, quick)


def case(figures, quick=True):
    """A function of (bench, side) is a case; it returns {figure: value}."""
    def add(function):
        CASES[function.__name__.replace('_', '-')] = function, figures, quick
        return function
    return add


class Threads(threading.Thread):
    """CPU time of threads of QEMU from now on, by name, in s.

    The kernel counts it in ns; the last look, every few ms, counts for those
    that end before finish().
    """

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.folder = Path(f'/proc/{pid}/task')
        self.first, self.last, self.names = {}, {}, {}
        self.look(self.first)
        self.ending = threading.Event()
        self.start()

    def look(self, into):
        for path in self.folder.iterdir():
            try:
                name = self.names.get(path.name)
                if not name or name == MAIN_THREAD:
                    # a new thread is named by itself
                    name = (path / 'comm').read_text(encoding='ascii').strip()
                ns = (path / 'schedstat').read_text(encoding='ascii').split()
                into[path.name], self.names[path.name] = int(ns[0]), name
            except OSError:
                continue            # it has just ended

    def run(self):
        while not self.ending.wait(0.005):
            try:
                self.look(self.last)
            except OSError:
                return

    def finish(self):
        self.ending.set()
        self.join(5)
        found = {}
        for tid, ns in self.last.items():
            name = self.names[tid]
            found[name] = found.get(name, 0) + \
                (ns - self.first.get(tid, 0)) / 1e9
        return found


def hint_note(info):
    """What query-migrate of the patched QEMU has about hints."""
    return ', '.join(f'{k} {v}' for k, v in sorted(
        info.get('free-page-hint', {}).items()) if not k.endswith('bytes')) \
        or 'no figures of hints'


def migration_thread(times):
    return sum(s for name, s in times.items() if name.startswith('mig/src'))


class Bench:
    """What the cases share, and what is to be tidied up after a run."""

    def __init__(self, folder, quick):
        self.folder = Path(folder)
        self.quick = quick
        self.hung = 3 if quick else HUNG
        self.open = []
        self.count = 0
        self.images = {}
        self.notes = {}             # what a side says about a case
        self.sums = {}              # figures of hints, of case pattern
        self.random = random.Random(1)
        self.memory, self.freed = (768, 400) if quick else (MEMORY, FREED)
        self.initrd = self.folder / 'initrd.cpio'
        if not (CACHE / 'guest/vmlinuz').exists():
            raise Error('no kernel for the guest (scripts/deps guest)')
        make_initrd(CACHE / 'guest/busybox', self.initrd, guest_modules())

    def guest(self, side, role, memory=None, init=1, hints=True, kept=KEPT,
              cpu=None, append='', shared=False, huge=False, args=()):
        """A QEMU; shared: virtio-blk has the balloon's iothread."""
        self.count += 1
        name = f'{side}-{role}-{self.count}'
        memory = memory or self.memory
        backend = 'memory-backend-memfd,share=on,hugetlb=on,hugetlbsize=2M' \
            if huge else 'memory-backend-ram'
        g = Guest(SIDES[side] / 'out/qemu-system-x86_64', self.folder, name,
                  memory, (kept, 16, 0), role != 'boot', None, self.initrd, [
                      '-no-reboot',
                      '-name', f'{role},debug-threads=on',
                      '-object', f'{backend},id=ram,size={memory}M',
                      '-machine', 'memory-backend=ram',
                      '-object', 'iothread,id=io0',
                      '-object', 'iothread,id=io1',
                      '-device', 'virtio-balloon-pci,iothread=io0,'
                      f'free-page-hint={"on" if hints else "off"}',
                      '-blockdev', 'null-co,node-name=disk,size=1073741824,'
                      'read-zeroes=on',
                      '-device', 'virtio-blk-pci,drive=disk,iothread='
                      + ('io0' if shared else 'io1'),
                      '-qmp', f'unix:{self.monitor_path(name)},server=on,'
                      'wait=off', *(['-cpu', cpu] if cpu else []), *args],
                  f'init_on_alloc={init} {append}')
        self.open.append(g)
        return g

    def monitor_path(self, name):
        return str(self.folder / f'{name}.qmp2')

    def monitor(self, guest):
        monitor = Monitor(self.monitor_path(guest.name))
        self.open.append(monitor)
        return monitor

    def close(self):
        while self.open:
            self.open.pop().close()

    def image(self, memory, init, hints, kept, cpu, append):
        """Booted once, with stock; every run starts from that state."""
        key = memory or self.memory, init, hints, kept, cpu, append
        if key not in self.images:
            path = self.folder / f'{len(self.images)}.img'
            g = self.guest('stock', 'boot', memory, init, hints, kept,
                           cpu, append)
            g.wait_text('READY', 300)
            g.wait_text('TICK', 60)
            g.qmp('stop')
            g.set_params(max_bandwidth=0)
            g.qmp('migrate', uri=f'file:{path}')
            g.wait_completed()
            g.close()
            self.open.remove(g)
            self.images[key] = path
        return self.images[key]

    def source(self, side, memory=None, init=1, hints=True, kept=KEPT,
               cpu=None, append='', freed=None, **kw):
        """A guest that runs, and has filled and freed memory."""
        if self.quick:
            append = PREEMPTIBLE    # one to boot less
        image = self.image(memory, init, hints, kept, cpu, append)
        src = self.guest(side, 'src', memory, init, hints, kept, cpu, append,
                         **kw)
        src.qmp('migrate-incoming', uri=f'file:{image}')
        src.wait_completed()
        src.qmp('cont')
        freed = self.freed if freed is None else freed
        if freed:
            match = src.say(f'f {freed}', r'FREED (\d+)\r?\n', 120)
            if int(match[1]) != freed:
                raise Error(f'{src.name}: the guest has no {freed} MiB')
        return src

    def precopy(self, side, init=1, limit=0, hints=True, postcopy=False,
                switch=None, cpu=None):
        """Migrate the guest, limit in MB/s; returns figures.

        postcopy: the capability is set; switch: to postcopy, so many seconds
        after the beginning, or when nearly all that was freed is hinted, if
        that is known.
        """
        try:
            src = self.source(side, init=init, hints=hints, cpu=cpu)
            dst = self.guest(side, 'dst', init=init, hints=hints, cpu=cpu)
            for g in (src, dst):
                g.set_caps(postcopy_ram=postcopy)
            uri = f'unix:{self.folder}/mig{self.count}'
            dst.qmp('migrate-incoming', uri=uri)
            src.set_params(max_bandwidth=limit * 1000000, downtime_limit=300)
            threads = Threads(src.vm.get_pid())
            src.qmp('migrate', uri=uri)
            if switch is not None:
                end = time.monotonic() + switch
                while time.monotonic() < end and src.migration().get(
                        'free-page-hint', {}).get('hinted-bytes', 0) < \
                        0.9 * self.freed * MIB:
                    time.sleep(0.02)
                src.qmp('migrate-start-postcopy')
            info = src.wait_completed()
            times = threads.finish()
            dst.wait_completed()
            dst.verify()
        finally:
            self.close()
        seconds = info['total-time'] / 1000
        say('    ' + hint_note(info))
        return {'mib': info['ram']['transferred'] / MIB, 'seconds': seconds,
                'iothread': 100 * times.get('IO io0', 0) / seconds}


def unlimited(b, side, init):
    found = b.precopy(side, init)
    return {f'unlimited-{init}-mib': found['mib'],
            f'unlimited-{init}-time': found['seconds']}


@case({'unlimited-1-mib': Figure(
           'unlimited, init_on_alloc=1: transferred', 'MiB',
           ('ratio', '<=', 0.5)),
       'unlimited-1-time': Figure(
           'unlimited, init_on_alloc=1: total time', 's')})
def unlimited_1(b, side):
    """The guest zeroes the pages that it hints, Debian's default."""
    return unlimited(b, side, 1)


FAST_CPU = 'max,erms=off,fsrm=off'


@case({'unlimited-1-fast-mib': Figure(
           'unlimited, init_on_alloc=1, guest that zeroes faster: transferred',
           'MiB', note='the CPU without ERMS: TCG does `rep stosb`, with '
           'which the guest zeroes pages, byte by byte, which takes 10 us '
           'per page'),
       'unlimited-1-fast-time': Figure(
           'unlimited, init_on_alloc=1, guest that zeroes faster: total time',
           's')}, quick=False)
def unlimited_1_fast(b, side):
    """How fast the guest is against the migration thread decides."""
    if accelerator() != 'tcg':
        raise Error('for TCG only')
    found = b.precopy(side, cpu=FAST_CPU)
    return {'unlimited-1-fast-mib': found['mib'],
            'unlimited-1-fast-time': found['seconds']}


@case({'unlimited-0-mib': Figure(
           'unlimited, init_on_alloc=0: transferred', 'MiB',
           ('ratio', '<=', 1)),
       'unlimited-0-time': Figure(
           'unlimited, init_on_alloc=0: total time', 's')}, quick=False)
def unlimited_0(b, side):
    return unlimited(b, side, 0)


@case({'off-mib': Figure('unlimited, without hints: transferred', 'MiB'),
       'off-time': Figure('unlimited, without hints: total time', 's')},
      quick=False)
def off(b, side):
    """For reference: free-page-hint=off."""
    found = b.precopy(side, hints=False)
    return {'off-mib': found['mib'], 'off-time': found['seconds']}


@case({'limited-mib': Figure(
           '100 MB/s, init_on_alloc=1: transferred', 'MiB',
           ('ratio', '<=', 1)),
       'limited-time': Figure(
           '100 MB/s, init_on_alloc=1: total time', 's', ('ratio', '<=', 1)),
       'limited-iothread': Figure(
           '100 MB/s, init_on_alloc=1: iothread', '% of a CPU',
           ('patched', '<=', 5)),
       'postcopy-set-mib': Figure(
           '100 MB/s, postcopy-ram set, not switched: transferred', 'MiB'),
       'postcopy-set-share': Figure(
           '100 MB/s, postcopy-ram set, not switched: transferred, of the '
           'figure without it', 'x', ('patched', '<=', 1.3)),
       'postcopy-switched-mib': Figure(
           '100 MB/s, switched to postcopy in the bulk stage, when the guest '
           'has hinted: transferred', 'MiB'),
       'postcopy-switched-share': Figure(
           '100 MB/s, switched to postcopy in the bulk stage, when the guest '
           'has hinted: transferred, of the figure of precopy', 'x',
           ('patched', '<=', 1.3)),
       'postcopy-early-mib': Figure(
           f'100 MB/s, switched to postcopy after {SWITCH[0]} s: transferred',
           'MiB', note='what the guest has not hinted by then is sent')},
      quick=False)
def limited(b, side):
    """A limit, and postcopy under the same."""
    plain = b.precopy(side, limit=100)
    unswitched = b.precopy(side, limit=100, postcopy=True)
    switched = b.precopy(side, limit=100, postcopy=True, switch=SWITCH[1])
    early = b.precopy(side, limit=100, postcopy=True, switch=SWITCH[0])
    return {'limited-mib': plain['mib'], 'limited-time': plain['seconds'],
            'limited-iothread': plain['iothread'],
            'postcopy-set-mib': unswitched['mib'],
            'postcopy-set-share': unswitched['mib'] / plain['mib'],
            'postcopy-switched-mib': switched['mib'],
            'postcopy-switched-share': switched['mib'] / plain['mib'],
            'postcopy-early-mib': early['mib']}


def cancel(guest):
    guest.qmp('migrate_cancel')
    guest.wait_migration(lambda i: i['status'] in ('cancelled', 'completed'),
                         30, 'cancelled')
    end = time.monotonic() + 30
    while any(i['type'] == 'migration' for i in guest.qmp('query-yank')):
        if time.monotonic() > end:
            raise Error(f'{guest.name}: the migration does not end')
        time.sleep(0.01)


def stops(b, side, tries, limit, earliest, latest, **kw):
    """How long `stop` took while the guest was asked for hints, each try.

    A QEMU that does not answer is killed, and it was the last one.
    """
    took = []
    src = b.source(side, **kw)
    src.set_params(max_bandwidth=limit * 1000000, downtime_limit=1)
    monitor = b.monitor(src)
    if kw.get('shared'):
        src.say('d', r'READS begin')
    for _ in range(tries):
        src.qmp('migrate', uri=SINK)
        time.sleep(b.random.uniform(earliest, latest))
        start = time.monotonic()
        try:
            answer = monitor.ask('stop', b.hung)
        except TimeoutError:
            return took + [b.hung]
        took.append(time.monotonic() - start)
        if 'error' in answer:
            raise Error(f'{src.name}: stop: {answer["error"]["desc"]}')
        if src.migration()['status'] != 'active':
            raise Error(f'{src.name}: it was over before the stop')
        cancel(src)
        src.qmp('cont')
    return took


@case({'stop-disk': Figure(
           'stop during hinting, iothread shared with virtio-blk: longest, '
           f'{HUNG} s is for ever', 's', worst=HUNG),
       'stop-disk-returned': Figure(
           'stop during hinting, iothread shared with virtio-blk: returned',
           '%', ('patched', '>=', 100), 'higher')})
def stop_disk(b, side):
    """The guest reads from the disk all the time."""
    took = stops(b, side, 3 if b.quick else 20, 100, 0.02, 0.8, shared=True,
                 append=PREEMPTIBLE)
    hung = sum(t >= b.hung for t in took)
    b.notes['stop-disk', side] = f'{side}: {len(took)} tries per pair' \
        if not hung else f'{side}: no more tries after one that hung'
    return {'stop-disk': max(took),
            'stop-disk-returned': 100 * (len(took) - hung) / len(took)}


@case({'stop-huge': Figure(
    'stop during hinting, 2M pages, 20 MB/s: longest', 's',
    ('patched', '<=', 0.2), worst=HUNG)}, quick=False)
def stop_huge(b, side):
    return {'stop-huge': max(stops(b, side, 5, 20, 0.3, 1.5, huge=True))}


@case({'reads': Figure(
           'guest\'s block reads during hinting, shared iothread, 100 MB/s: '
           'longest', 'ms', ('patched', '<=', 100), worst=1000 * HUNG),
       'reads-before': Figure(
           'guest\'s block reads before, for as long: longest', 'ms')})
def reads(b, side):
    """The longest that the guest saw, until just before the switchover."""
    answer = r'READS n=(\d+) longest_us=(\d+)\r?\n'
    src = b.source(side, shared=True, append=PREEMPTIBLE)
    monitor = b.monitor(src)
    src.say('d', r'READS begin')
    src.say('d', answer)
    time.sleep(2)
    before = int(src.say('d', answer)[2]) / 1000
    src.set_params(max_bandwidth=100 * 1000000, downtime_limit=300)
    src.qmp('migrate', uri=SINK)
    longest, began = 0, time.monotonic()
    while True:
        start, text = time.monotonic(), len(src.text)
        src.serial.sendall(b'd\n')
        while True:
            try:
                info = monitor.ask('query-migrate', b.hung)['return']
            except TimeoutError:
                return {'reads': 1000 * b.hung, 'reads-before': before}
            try:
                match = src.wait_text(answer, 0.05, text)
                longest = max(longest, int(match[2]) / 1000)
                break
            except Error:
                pass
            if info['status'] == 'completed':
                break
            if time.monotonic() > start + b.hung:
                return {'reads': 1000 * b.hung, 'reads-before': before}
        if info['status'] == 'completed':
            break
        if time.monotonic() > began + 60:
            raise Error(f'{src.name}: no end of the migration')
        time.sleep(0.05)
    return {'reads': longest, 'reads-before': before}


def growth_figures():
    figures = {}
    goal = ('ratio', '<=', 0.1)
    for gib in (1, 2, 4):
        figures[f'growth-{gib}g'] = Figure(
            'iothread, main loop and migration thread per GiB, '
            f'{gib} GiB free, 100 MB/s', 's of CPU', goal)
        figures[f'growth-{gib}g-hints'] = Figure(
            f'of this the iothread and the main loop, {gib} GiB free',
            's of CPU', goal)
        figures[f'growth-{gib}g-main'] = Figure(
            f'of this the main loop, {gib} GiB free', 's of CPU')
    for what, title in ('', 'the same'), ('-hints', 'iothread and main loop'):
        figures[f'growth-flat{what}'] = Figure(
            f'{title} per GiB, 4 GiB against 1 GiB free', 'x',
            ('patched', '<=', 1.2))
    return figures


@case(growth_figures(), quick=False)
def growth(b, side):
    """What is filled and freed grows, and the guest with it."""
    found = {}
    for gib in (1, 2, 4):
        src = b.source(side, memory=1024 * gib + 512, freed=1024 * gib)
        src.set_params(max_bandwidth=100 * 1000000, downtime_limit=300)
        # to poll would take the main loop's time
        src.set_caps(events=True)
        threads = Threads(src.vm.get_pid())
        src.qmp('migrate', uri=SINK)
        if not src.vm.event_wait('MIGRATION', timeout=180, match={
                'data': {'status': 'completed'}}):
            raise Error('no end in 180 s')
        times = threads.finish()
        b.close()
        main = times.get(MAIN_THREAD, 0)
        hints = times.get('IO io0', 0) + main
        found[f'growth-{gib}g'] = (hints + migration_thread(times)) / gib
        found[f'growth-{gib}g-hints'] = hints / gib
        found[f'growth-{gib}g-main'] = main / gib
    for what in '', '-hints':
        found[f'growth-flat{what}'] = (found[f'growth-4g{what}'] /
                                       found[f'growth-1g{what}'])
    return found


class Chain:
    """A guest that is migrated again and again, and verifies its memory."""

    def __init__(self, b, side, init):
        self.b, self.side, self.init = b, side, init
        self.src = None
        self.sums = {}              # of the figures of hints

    def pause(self, least, most):
        time.sleep(self.b.random.uniform(least, most))

    def begin(self):
        memory, kept, churned = PATTERN
        src = self.b.source(self.side, memory, self.init, kept=kept, freed=0)
        src.say(f'p {churned}', r'PIECES')
        src.say('r 500', r'RATE')
        return src

    def disturb(self, src):
        """Let the guest's answers come later, or in the next round."""
        r = self.b.random
        for _ in range(r.choice([0, 1, 1, 2])):
            self.pause(0, 0.3)
            if r.random() < 0.6:
                src.serial.sendall(b'z %d\n' % r.choice([30, 100, 300, 700]))
            elif src.migration()['status'] == 'active':
                src.qmp('stop')
                self.pause(0, 0.2)
                # it can be over now, and the guest stopped over there
                if src.migration()['status'] == 'active':
                    src.qmp('cont')

    def migrate(self):
        """Pages with wrong contents after one migration, and what it was."""
        r = self.b.random
        memory, kept, _ = PATTERN
        self.src = self.src or self.begin()
        src = self.src
        dst = self.b.guest(self.side, 'dst', memory, self.init, kept=kept)
        postcopy = r.random() < 0.3
        what = 'postcopy' if postcopy else 'precopy'
        for g in (src, dst):
            g.set_caps(postcopy_ram=postcopy)
        uri = f'unix:{self.b.folder}/mig{self.b.count}'
        dst.qmp('migrate-incoming', uri=uri)
        if r.random() < 0.25:
            # one that is cancelled before, to nowhere
            what += ' after one that was cancelled'
            src.set_params(max_bandwidth=r.choice([10, 50]) * MIB,
                           downtime_limit=1)
            src.qmp('migrate', uri=SINK)
            self.disturb(src)
            self.pause(0, 0.5)
            cancel(src)
            if src.qmp('query-status')['status'] != 'running':
                src.qmp('cont')
        src.set_params(max_bandwidth=r.choice([10, 20, 50, 100, 0]) * MIB,
                       downtime_limit=1)
        src.qmp('migrate', uri=uri)
        self.disturb(src)
        self.pause(0, 1)
        if postcopy:
            src.qmp('migrate-start-postcopy')
        # now it converges, whatever the guest does
        src.set_params(max_bandwidth=0, downtime_limit=20000)
        info = src.wait_completed()
        dst.wait_completed()
        if dst.qmp('query-status')['status'] == 'paused':
            dst.qmp('cont')
        for key, value in info.get('free-page-hint', {}).items():
            self.sums[key] = self.sums.get(key, 0) + value
        match = dst.say('v', r'VERIFY pages=(\d+) bad=(\d+)', 120)
        src.close()
        self.b.open.remove(src)
        self.src = dst
        if int(match[2]):
            # what is wrong stays so
            dst.close()
            self.b.open.remove(dst)
            self.src = None
        return int(match[2]), what


@case({'pattern-wrong': Figure(
           'kept and churned memory after each migration: with wrong pages',
           'migrations', ('patched', '<=', 0)),
       'pattern-pages': Figure('the same: wrong pages', 'pages',
                               ('patched', '<=', 0)),
       'pattern-migrations': Figure('the same: migrations', 'migrations',
                                    better='higher')})
def pattern(b, side):
    """Bandwidth, delays, cancels and switchovers by chance."""
    count = 2 if b.quick else MIGRATIONS
    found = {'pattern-wrong': 0, 'pattern-pages': 0, 'pattern-migrations': 0}
    sums = {}
    for init in (0,) if b.quick else (0, 1):
        chain = Chain(b, side, init)
        for n in range(count if b.quick else count // 2):
            wrong, what = chain.migrate()
            found['pattern-migrations'] += 1
            if wrong:
                say(f'  pattern, {side}, init_on_alloc={init}, migration {n}: '
                    f'{wrong} pages are wrong; {what}')
                found['pattern-wrong'] += 1
                found['pattern-pages'] += wrong
        for key, value in chain.sums.items():
            sums[key] = sums.get(key, 0) + value
        b.close()
    total = b.sums.setdefault(side, {})
    for key, value in sums.items():
        total[key] = total.get(key, 0) + value
    b.notes['pattern', side] = f'{side}, all pairs: ' + hint_note(
        {'free-page-hint': total})
    return found


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
        notes[name, side] = f'{side} failed, which counts as its worst: ' \
            + text.replace(str(b.folder), '')
    finally:
        b.close()
    for key, figure in figures.items():
        values[key][side].append(round(float(found.get(key, figure.worst)),
                                       6))
    say(f'  {name}, {side}, {time.monotonic() - start:.0f} s: '
        + ', '.join(f'{k} {v:.4g}' for k, v in found.items()))


def bench_hint(pairs, quick, only=None):
    """The cases as results has them, and the accelerator."""
    for tree in SIDES.values():
        if not (tree / 'out/qemu-system-x86_64').exists():
            raise Error(f'{tree}/out is not built (scripts/build)')
    names = only or [n for n, c in CASES.items() if c[2] or not quick]
    need = MEMORY // 2
    if 'stop-huge' in names and huge_pages() < need:
        say(f'stop-huge is left out: {need} free huge pages of 2 MiB are '
            'needed (/proc/sys/vm/nr_hugepages)')
        names = [n for n in names if n != 'stop-huge']
        if not names:
            raise Error('no case is left')
    # It would report that a QEMU ended that was meant to.
    for logger in ('qemu', 'asyncio'):
        logging.getLogger(logger).setLevel(logging.CRITICAL + 1)
    values = {key: {side: [] for side in SIDES}
              for name in names for key in CASES[name][1]}
    notes = {}
    with tempfile.TemporaryDirectory(prefix='qms-bench.') as folder:
        b = Bench(folder, quick)
        try:
            for name in names:
                say(f'{name}, {pairs} {"pairs" if pairs > 1 else "pair"}')
                for _ in range(pairs):
                    for side in SIDES:
                        run_case(b, name, side, values, notes)
        finally:
            b.close()
    cases = []
    for name in names:
        for key, figure in CASES[name][1].items():
            note = [figure.note] if figure.note else []
            note += [n[name, side] for n in (b.notes, notes)
                     for side in SIDES if (name, side) in n]
            cases.append(result_case(
                key, figure.title, figure.unit, figure.better,
                values[key]['stock'], values[key]['patched'], figure.goal,
                '; '.join(note)))
    return cases, accelerator()
