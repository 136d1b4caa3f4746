"""bench preempt: what a page fault of postcopy waits for.

Imported by bench, not a program.  A Linux guest that writes to its memory is
switched to postcopy; how long its faults took is what the destination's
query-migrate says, what it got done is counted in the guest.  With huge pages
both QEMUs need a guest's worth of free ones (2 MiB each).
SPDX-License-Identifier: GPL-2.0-or-later
"""
import os
import tempfile
import time
from pathlib import Path

from qms import CACHE, PATCHED, STOCK, Error, say
from results import result_case

MIB = 1 << 20
SIDES = {'stock': STOCK, 'patched': PATCHED}
MEMORY = 512                    # of the guest, MiB
FILL = 384                      # MiB that are written to, in random order
RATE = 2000                     # pages per second
TIME_MS = 64                    # a fault that took longer waited for a nap


class Case:
    """huge: pages of 2 MiB; limit: max-postcopy-bandwidth, MB/s"""

    def __init__(self, title, huge, preempt, limit):
        self.title, self.huge = title, huge
        self.preempt, self.limit = preempt, limit


CASES = {
    'preempt-2m-20': Case('random, 2M pages, preempt, 20 MB/s', True, True,
                          20),
    'preempt-2m-1': Case('random, 2M pages, preempt, 1 MB/s', True, True, 1),
    'vanilla-4k-20': Case('random, 4K pages, vanilla, 20 MB/s', False, False,
                          20),
    'preempt-4k-0': Case('random, 4K pages, preempt, no limit', False, True,
                         0),
}


def huge_pages():
    try:
        with open('/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages',
                  encoding='ascii') as f:
            return int(f.read())
    except OSError:
        return 0


def thread_ticks(pid, name):
    """CPU time of a thread of QEMU, in s; 0 if there is none."""
    for task in Path(f'/proc/{pid}/task').iterdir():
        try:
            line = (task / 'stat').read_text(encoding='ascii')
        except OSError:
            continue
        head, fields = line.rsplit(')', 1)
        if head.endswith(f'({name}'):
            fields = fields.split()
            return (int(fields[11]) + int(fields[12])) \
                / os.sysconf('SC_CLK_TCK')
    return 0


class Bench:
    def __init__(self, folder, quick):
        from guest import make_initrd
        self.folder = Path(folder)
        self.quick = quick
        self.open = []
        self.count = 0
        self.images = {}
        self.initrd = self.folder / 'initrd.cpio'
        if not (CACHE / 'guest/vmlinuz').exists():
            raise Error('no kernel for the guest (scripts/deps guest)')
        make_initrd(CACHE / 'guest/busybox', self.initrd)

    def guest(self, side, role, huge):
        from guest import Guest
        self.count += 1
        args = ['-name', f'{role},debug-threads=on']
        if huge:
            args += ['-object', 'memory-backend-memfd,id=ram,share=on,hugetlb='
                     f'on,hugetlbsize=2M,size={MEMORY}M',
                     '-machine', 'memory-backend=ram']
        g = Guest(SIDES[side] / 'out/qemu-system-x86_64', self.folder,
                  f'{side}-{role}-{self.count}', MEMORY, (FILL, FILL, RATE),
                  role != 'boot', None, self.initrd, args)
        self.open.append(g)
        return g

    def close(self):
        while self.open:
            self.open.pop().close()

    def image(self, huge):
        """Booted once, with stock; every run starts from that state."""
        if huge not in self.images:
            path = self.folder / f'{"huge" if huge else "small"}.img'
            g = self.guest('stock', 'boot', huge)
            g.wait_text('READY', 300)
            g.wait_text('TICK', 60)
            g.qmp('stop')
            g.set_params(max_bandwidth=0)
            g.qmp('migrate', uri=f'file:{path}')
            g.wait_completed()
            self.close()
            self.images[huge] = path
        return self.images[huge]

    def run(self, side, case):
        image = self.image(case.huge)
        seconds = 3 if self.quick else 6
        try:
            src = self.guest(side, 'src', case.huge)
            src.qmp('migrate-incoming', uri=f'file:{image}')
            src.wait_completed()
            src.qmp('cont')
            src.wait_text('TICK', 60)
            dst = self.guest(side, 'dst', case.huge)
            for g in (src, dst):
                g.set_caps(postcopy_ram=True, postcopy_preempt=case.preempt,
                           postcopy_blocktime=True)
            uri = f'unix:{self.folder}/mig{self.count}'
            dst.qmp('migrate-incoming', uri=uri)
            src.set_params(max_bandwidth=(case.limit or 256) * 1000000,
                           downtime_limit=1,
                           max_postcopy_bandwidth=case.limit * 1000000)
            src.qmp('migrate', uri=uri)
            src.wait_migration(
                lambda i: i.get('ram', {}).get('transferred', 0) > 8 * MIB,
                60, '8 MiB sent')
            src.vm.get_qmp_events()
            start = time.monotonic()
            src.qmp('migrate-start-postcopy')
            if not src.vm.event_wait('STOP', timeout=60):
                raise Error('no switchover in 60 s')
            stop = time.monotonic() - start
            pid = src.vm.get_pid()
            dst.wait_text('TICK', 60)
            writes, cpu = dst.writes(), thread_ticks(pid, 'mig/src/main')
            start = time.monotonic()
            time.sleep(seconds)
            writes = dst.writes() - writes
            # it is gone when everything was sent in that time
            cpu = max(thread_ticks(pid, 'mig/src/main') - cpu, 0)
            took = time.monotonic() - start
            src.set_params(max_postcopy_bandwidth=0)
            src.wait_completed()
            info = dst.wait_completed()
            dst.verify()
        finally:
            self.close()
        dist = info['postcopy-latency-dist']
        longest = max((i for i, n in enumerate(dist) if n), default=0)
        return {'average': info['postcopy-latency'] / 1000,
                # no more than that
                'longest': 2 ** (longest + 1) / 1000,
                'slow': sum(n for i, n in enumerate(dist)
                            if 2 ** i >= TIME_MS * 1024),
                'rate': writes / took,
                'cpu': 100 * cpu / took,
                'switchover': stop}, dist


def side_by_side(faults):
    """The histograms as text, as upstream's series have them."""
    lines = []
    for name, sides in faults.items():
        lines += [f'{CASES[name].title}: faults of all runs', '',
                  f'{"latency (us)":>23}  {"stock":>8}  {"patched":>8}']
        counts = [sides[s]['qemu'] for s in SIDES]
        last = max(i for h in counts for i, n in enumerate(h) if n)
        for i in range(last + 1):
            lines.append(f'[{2 ** i:>9} - {2 ** (i + 1):>9})  '
                         + '  '.join(f'{h[i]:>8}' for h in counts))
        lines.append('')
    return '\n'.join(lines)


def bench_preempt(pairs, quick, only=None):
    """The cases as results has them, the accelerator, and histograms of the
    faults."""
    from guest import accelerator
    names = only or list(CASES)
    need = 2 * MEMORY // 2
    if any(CASES[n].huge for n in names) and huge_pages() < need:
        if quick and not only:
            names = [n for n in names if not CASES[n].huge]
            say('without huge pages, as there are not enough free ones')
        else:
            raise Error(f'{need} free huge pages of 2 MiB are needed '
                        '(/proc/sys/vm/nr_hugepages)')
    values, faults = {}, {}
    with tempfile.TemporaryDirectory(prefix='qms-bench.') as folder:
        bench = Bench(folder, quick)
        try:
            for name in names:
                say(f'{name}, {pairs} pairs')
                for _ in range(pairs):
                    for side in SIDES:
                        found, dist = bench.run(side, CASES[name])
                        for key, value in found.items():
                            values.setdefault((name, key), {}).setdefault(
                                side, []).append(round(value, 3))
                        total = faults.setdefault(name, {}).setdefault(
                            side, {}).setdefault('qemu', [0] * 40)
                        for i, n in enumerate(dist):
                            total[i] += n
                        say(f'  {name}, {side}: ' + ', '.join(
                            f'{k} {v:.4g}' for k, v in found.items()))
        finally:
            bench.close()

    goals = {
        ('preempt-2m-20', 'longest'): ('patched', '<=', 10),
        ('preempt-2m-20', 'slow'): ('patched', '<=', 0),
        ('preempt-2m-20', 'switchover'): ('patched', '<=', 0.2),
        ('preempt-2m-1', 'longest'): ('ratio', '<=', 0.02),
        ('vanilla-4k-20', 'average'): ('ratio', '<=', 0.1),
        ('vanilla-4k-20', 'rate'): ('patched', '>=', 1900),
        ('vanilla-4k-20', 'cpu'): ('patched', '<=', 10),
        ('preempt-4k-0', 'average'): ('ratio', '<=', 1)}
    what = {'average': ('average fault', 'us', 'lower'),
            'longest': ('longest fault, no more than', 'ms', 'lower'),
            'slow': (f'faults of {TIME_MS} ms and more', 'faults', 'lower'),
            'rate': (f'guest\'s writes, of {RATE} pages/s', 'pages/s',
                     'higher'),
            'cpu': ('migration thread while the limit holds', '% of a CPU',
                    'lower'),
            'switchover': ('migrate-start-postcopy to STOP', 's', 'lower')}
    cases = []
    for (name, key), v in values.items():
        text, unit, better = what[key]
        goal = goals.get((name, key))
        cases.append(result_case(
            f'{name}-{key}', f'{CASES[name].title}: {text}', unit, better,
            v['stock'], v['patched'],
            goal and dict(zip(('on', 'op', 'value'), goal)),
            'from the destination\'s histogram'
            if key in ('longest', 'slow') else ''))
    return cases, accelerator(), faults
