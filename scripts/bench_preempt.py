"""bench preempt: what a page fault of postcopy waits for.

Imported by bench, not a program.  A Linux guest that writes to its memory is
switched to postcopy; how long its faults took is what the destination's
query-migrate says, what it got done is counted in the guest.  With huge pages
both QEMUs need a guest's worth of free ones (2 MiB each).  The slow links and
the long ones are network namespaces, for which root is needed;
tests/preempt/rawlink.c says in the same run what a request takes there without
QEMU, with as many in flight as the guest has vCPUs on a long one.
SPDX-License-Identifier: GPL-2.0-or-later
"""
import os
import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import netns
from qms import CACHE, PATCHED, STOCK, Error, say
from results import result_case

MIB = 1 << 20
SIDES = {'stock': STOCK, 'patched': PATCHED}
MEMORY = 512                    # of the guest, MiB
FILL = 384                      # MiB that are written to, in random order
RATE = 2000                     # pages per second
TIME_MS = 64                    # a fault that took longer waited for a nap
LINK_MEMORY, LINK_FILL = 1024, 768      # of the guest on a slow link
RTT_LIMIT = 50                  # MB/s of the background on a long link
PORT = 4444
# A router without a configuration of its own puts this code point first: its
# bits are those of the old "low delay".  DSCP 46 it does not.
DSCP = 44


class Case:
    """huge: pages of 2 MiB; limit: max-postcopy-bandwidth, MB/s; link: rate in
    Mbit/s and whether a router has it, not the sending host; rtt: of a link
    without a limit of its own, ms; mode: of the load program; cpus: of the
    guest; rate: of its writes, pages per s and CPU;
    to_end: wait so many s for the end, instead of some with the limit;
    alone: what read-ahead does by itself, patched QEMUs without and with it"""

    def __init__(self, title, huge, preempt, limit, link=None, mode='',
                 cpus=1, rate=RATE, to_end=0, alone=False, rtt=None):
        self.title, self.huge = title, huge
        self.preempt, self.limit, self.rtt = preempt, limit, rtt
        self.link = link if rtt is None else (0, False, rtt)
        self.mode, self.cpus = mode, cpus
        self.to_end, self.alone = to_end, alone
        self.guest = (huge, mode, cpus, rate)


CASES = {
    'preempt-2m-20': Case('random, 2M pages, preempt, 20 MB/s', True, True,
                          20),
    # so slow that the background stream begins a page before it is wanted
    'preempt-2m-1': Case('random, 200 pages/s, 2M pages, preempt, 1 MB/s',
                         True, True, 1, rate=200),
    'vanilla-4k-20': Case('random, 4K pages, vanilla, 20 MB/s', False, False,
                          20),
    'preempt-4k-0': Case('random, 4K pages, preempt, no limit', False, True,
                         0),
    # the guest wants more than the limit
    'preempt-4k-5': Case('random, 4K pages, preempt, 5 MB/s', False, True, 5,
                         to_end=60),
    'seq-4k-20': Case('sequential, 4K pages, preempt, 20 MB/s', False, True,
                      20, mode='seq'),
    'seq-4k-20-fast': Case('sequential, 20000 pages/s, 4K pages, preempt, '
                           '20 MB/s', False, True, 20, mode='seq', rate=20000),
    'seq-2m-20': Case('sequential, 2M pages, preempt, 20 MB/s', True, True, 20,
                      mode='seq'),
    'seq-2m-20-fast': Case('sequential, 20000 pages/s, 2M pages, preempt, '
                           '20 MB/s', True, True, 20, mode='seq', rate=20000),
    'seq-4k-0': Case('sequential, 4K pages, preempt, no limit', False, True, 0,
                     mode='seq'),
    **{f'vcpus-{n}': Case(f'random, 4K pages, preempt, no limit, {n} vCPUs',
                          False, True, 0, mode='par', cpus=n)
       for n in (1, 2, 4)},
    'mixed-200m': Case('200 Mbit sending host, a vCPU sequential, another '
                       'random, 4K, preempt, read-ahead on against off', False,
                       True, 0, (200, False), 'mixed', 2, alone=True),
    'link-1g-host': Case('1 Gbit sending host, random 4K, preempt', False,
                         True, 0, (1000, False)),
    'link-1g-router': Case('1 Gbit router hop, random 4K, preempt', False,
                           True, 0, (1000, True)),
    'link-200m-host': Case('200 Mbit sending host, random 4K, preempt', False,
                           True, 0, (200, False)),
    **{f'rtt-{rtt}-{n}': Case(f'{rtt} ms round trip, random, 4K pages, '
                              f'preempt, {RTT_LIMIT} MB/s, '
                              f'{n} vCPU{"s" if n > 1 else ""}', False, True,
                              RTT_LIMIT, mode='par', cpus=n, rtt=rtt)
       for rtt in (0.2, 1, 3, 20) for n in (1, 2, 4)},
}
QUICK_LINKS = ['link-1g-host', 'rtt-3-2']


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


def percentile(dist, share):
    """Of a histogram with buckets [2^N, 2^(N+1)), as if within a bucket all
    were spread evenly."""
    want = sum(dist) * share
    for i, n in enumerate(dist):
        if n and want <= n:
            return 2 ** i * (1 + want / n)
        want -= n
    return 0


def fault_times(path, start, end):
    """The latencies, in us, of the vCPUs' faults that began and ended between
    these times of the monotonic clock, in s; from a destination's trace."""
    began, took = {}, []
    line = re.compile(r'postcopy_blocktime_(begin|end) addr: (\w+), '
                      r'time: (\d+)(?:, cpu: (-?\d+))?')
    for what, addr, when, cpu in line.findall(
            path.read_text(encoding='utf-8', errors='replace')):
        when = int(when) / 1e9
        if what == 'begin':
            if cpu != '-1' and when >= start:
                began.setdefault(addr, []).append(when)
        else:
            took += [(when - t) * 1e6 for t in began.pop(addr, ())
                     if when <= end]
    return took


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

    def guest(self, side, role, kind, size=(MEMORY, FILL), wrapper=(),
              more=()):
        from guest import Guest
        huge, mode, cpus, rate = kind
        self.count += 1
        memory, fill = size
        args = ['-name', f'{role},debug-threads=on', *more]
        if huge:
            args += ['-object', 'memory-backend-memfd,id=ram,share=on,hugetlb='
                     f'on,hugetlbsize=2M,size={memory}M',
                     '-machine', 'memory-backend=ram']
        g = Guest(SIDES[side] / 'out/qemu-system-x86_64', self.folder,
                  f'{side}-{role}-{self.count}', memory,
                  (fill, fill, rate, mode) if mode else (fill, fill, rate),
                  role != 'boot', None, self.initrd, args, wrapper=wrapper,
                  cpus=cpus)
        self.open.append(g)
        return g

    def close(self):
        while self.open:
            self.open.pop().close()

    def image(self, kind, size=(MEMORY, FILL)):
        """Booted once, with stock; every run starts from that state."""
        if (kind, size) not in self.images:
            path = self.folder / f'{len(self.images)}.img'
            g = self.guest('stock', 'boot', kind, size)
            g.wait_text('READY', 300)
            g.wait_text('TICK', 60)
            g.qmp('stop')
            g.set_params(max_bandwidth=0)
            g.qmp('migrate', uri=f'file:{path}')
            g.wait_completed()
            self.close()
            self.images[kind, size] = path
        return self.images[kind, size]

    def precopy(self, side, case, link=None, src_args=(), dst_args=()):
        """Migrate, with more arguments for each QEMU, and do not end that.
        Returns source and destination."""
        size = (LINK_MEMORY, LINK_FILL) if link and case.rtt is None and \
            not self.quick else (MEMORY, FILL)
        image = self.image(case.guest, size)
        code = 'patched' if case.alone else side
        src = self.guest(code, 'src', case.guest, size,
                         link.enter(link.src) if link else (), src_args)
        src.qmp('migrate-incoming', uri=f'file:{image}')
        src.wait_completed()
        src.qmp('cont')
        src.wait_text('TICK', 60)
        dst = self.guest(code, 'dst', case.guest, size,
                         link.enter(link.dst) if link else (), dst_args)
        for g in (src, dst):
            g.set_caps(postcopy_ram=True, postcopy_preempt=case.preempt,
                       postcopy_blocktime=True)
            if case.preempt and side == 'patched':
                g.set_caps(postcopy_readahead=True)
        uri = f'tcp:{netns.DST}:{PORT}' if link else \
            f'unix:{self.folder}/mig{self.count}'
        dst.qmp('migrate-incoming', uri=uri)
        src.set_params(max_bandwidth=(case.limit or 256) * 1000000,
                       downtime_limit=1,
                       max_postcopy_bandwidth=case.limit * 1000000)
        if link and link.router and side == 'patched':
            src.set_params(postcopy_preempt_dscp=DSCP)
        src.qmp('migrate', uri=uri)
        src.wait_migration(
            lambda i: i.get('ram', {}).get('transferred', 0) > 8 * MIB,
            60, '8 MiB sent')
        return src, dst

    def postcopy(self, side, case, link=None, dst_args=()):
        """Migrate up to the switchover, with more arguments for the
        destination.  Returns source, destination, and how long it took from
        the command on, s."""
        src, dst = self.precopy(side, case, link, (), dst_args)
        src.vm.get_qmp_events()
        start = time.monotonic()
        src.qmp('migrate-start-postcopy')
        if not src.vm.event_wait('STOP', timeout=60):
            raise Error('no switchover in 60 s')
        return src, dst, time.monotonic() - start

    def run(self, side, case):
        seconds = 3 if self.quick else 6
        try:
            src, dst, stop = self.postcopy(side, case)
            pid = src.vm.get_pid()
            dst.wait_text('TICK', 60)
            writes, cpu = dst.writes(), thread_ticks(pid, 'mig/src/main')
            start = time.monotonic()
            if case.to_end:
                found = self.wait_end(src, case, start)
            else:
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
        if case.to_end:
            return found, dist
        longest = max((i for i, n in enumerate(dist) if n), default=0)
        return {'average': info['postcopy-latency'] / 1000,
                # no more than that
                'longest': 2 ** (longest + 1) / 1000,
                'slow': sum(n for i, n in enumerate(dist)
                            if 2 ** i >= TIME_MS * 1024),
                'faults': sum(dist),
                'waited': info['postcopy-latency'] * sum(dist) / 1e9,
                'p99': percentile(dist, 0.99),
                'rate': writes / took,
                'cpu': 100 * cpu / took,
                'switchover': stop}, dist

    def wait_end(self, src, case, start):
        """What came of it in that time."""
        to_end = 10 if self.quick else case.to_end
        info = src.wait_migration(
            lambda i: i['status'] == 'completed' or
            time.monotonic() > start + to_end, to_end + 60, 'an end')
        took = time.monotonic() - start
        ram = info['ram']
        return {'ended': int(info['status'] == 'completed'), 'took': took,
                # a page that was asked for: with its header
                'background': (ram['postcopy-bytes'] -
                               ram['postcopy-requests'] * 4104) / took / 1e6}

    def run_link(self, side, case, link):
        """All of postcopy through a slow link."""
        try:
            src, dst, _ = self.postcopy(side, case, link)
            sent = []

            def look(info):
                if info.get('status') == 'postcopy-active':
                    sent.append((time.monotonic(),
                                 info['ram']['postcopy-bytes']))
                return info.get('status') == 'completed'

            src.wait_migration(look, 180, 'migration completed')
            info = dst.wait_completed()
            dst.verify()
        finally:
            self.close()
        if len(sent) < 10:
            raise Error('postcopy was over too soon')
        dist = info['postcopy-latency-dist']
        (t0, b0), (t1, b1) = sent[0], sent[-1]
        found = {'link-average': info['postcopy-latency'] / 1000,
                 'link-p99': percentile(dist, 0.99),
                 'throughput': (b1 - b0) / (t1 - t0) / 1e6}
        if case.mode == 'mixed':
            ahead, random = info['postcopy-vcpu-latency']
            found.update(sequential=ahead / 1000, random=random / 1000)
        return found, dist

    def run_rtt(self, side, case, link):
        """Some seconds of postcopy through a long link."""
        seconds = 3 if self.quick else 5
        trace = ('-D', str(self.folder / 'trace'),
                 '-trace', 'postcopy_blocktime_begin',
                 '-trace', 'postcopy_blocktime_end')
        try:
            src, dst, _ = self.postcopy(side, case, link, dst_args=trace)
            start = time.monotonic()
            time.sleep(seconds)
            end = time.monotonic()
            src.set_params(max_postcopy_bandwidth=0)
            src.wait_completed()
            info = dst.wait_completed()
            dst.verify()
        finally:
            self.close()
        took = fault_times(self.folder / 'trace', start, end)
        if len(took) < 10:
            raise Error(f'only {len(took)} faults in {seconds} s')
        return {'rtt-average': statistics.mean(took),
                'rtt-p50': statistics.median(took),
                'rtt-p99': statistics.quantiles(took, n=100)[-1]}, \
            info['postcopy-latency-dist']

    def raw(self, case, link):
        """The same link without QEMU: average, p50 and p99 of a request."""
        program = netns.build('rawlink', self.folder)
        seconds = 1 if self.quick else 5
        stream, in_flight = 0, 0
        if case.rtt is not None:
            stream, in_flight = case.limit, case.cpus
        with subprocess.Popen(
                [*link.enter(link.dst), str(program), 'ask', netns.SRC,
                 str(PORT), str(seconds), str(in_flight)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True) as ask, \
            subprocess.Popen(
                [*link.enter(link.src), str(program), 'serve', netns.SRC,
                 str(PORT), str(DSCP if link.router else 0), str(stream)],
                stderr=subprocess.DEVNULL) as serve:
            try:
                out, words = ask.communicate(timeout=seconds + 30)
            except subprocess.TimeoutExpired as e:
                raise Error('rawlink: no answer') from e
            finally:
                ask.kill()
                serve.kill()
        if ask.returncode:
            raise Error(f'rawlink: {words.strip()}')
        average, p50, p99, rate = map(float, out.split())
        if case.rtt is not None:
            return {'rtt-average': average, 'rtt-p50': p50, 'rtt-p99': p99}
        return {'link-average': average, 'link-p99': p99,
                'throughput': rate / 1e6}


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
    for n in list(names):
        why = CASES[n].link and netns.missing(CASES[n].rtt)
        if why and only:
            raise Error(f'no link for {n}: {why}')
        if why:
            say(f'without {n}, as {why}')
            names.remove(n)
    if quick and not only:
        names = [n for n in names if not CASES[n].link or n in QUICK_LINKS]
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
        def keep(name, side, found, dist=()):
            for key, value in found.items():
                values.setdefault((name, key), {}).setdefault(
                    side, []).append(round(value, 3))
            if dist:
                total = faults.setdefault(name, {}).setdefault(
                    side, {}).setdefault('qemu', [0] * 40)
                for i, n in enumerate(dist):
                    total[i] += n
            say(f'  {name}, {side}: ' + ', '.join(
                f'{k} {v:.4g}' for k, v in found.items()))

        try:
            for name in names:
                case = CASES[name]
                say(f'{name}, {pairs} pairs')
                for _ in range(pairs):
                    if not case.link:
                        for side in SIDES:
                            keep(name, side, *bench.run(side, case))
                        continue
                    with netns.Link(*case.link) as link:
                        run = bench.run_link if case.rtt is None else \
                            bench.run_rtt
                        for side in SIDES:
                            keep(name, side, *run(side, case, link))
                        if not case.alone:
                            keep(name, 'raw', bench.raw(case, link))
                        if case.rtt is not None and link.lost():
                            say(f'{name}: {link.lost()} packets did not fit')
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
        ('preempt-4k-5', 'ended'): ('patched', '>=', 1),
        # of the limit
        ('preempt-4k-5', 'background'): ('patched', '>=', 4.5),
        ('preempt-4k-0', 'average'): ('ratio', '<=', 1),
        ('preempt-4k-0', 'p99'): ('ratio', '<=', 1),
        **{(n, 'faults'): ('ratio', '<=', 0.25)
           for n in ('seq-4k-20', 'seq-4k-20-fast', 'seq-2m-20',
                     'seq-2m-20-fast')},
        **{(n, 'average'): ('ratio', '<=', 1)
           for n in ('seq-4k-20', 'seq-4k-20-fast', 'seq-2m-20',
                     'seq-2m-20-fast')},
        **{(f'vcpus-{n}', 'p99'): ('ratio', '<=', 1) for n in (1, 2, 4)},
        ('link-1g-host', 'link-average'): ('ratio', '<=', 0.2),
        ('link-1g-router', 'link-average'): ('ratio', '<=', 0.1),
        ('link-200m-host', 'link-average'): ('ratio', '<=', 0.07),
        **{(n, 'link-p99'): ('ratio', '<=', 0.2) for n in CASES
           if not CASES[n].alone},
        **{(n, 'throughput'): ('ratio', '>=', 0.97) for n in CASES},
        **{(n, 'rtt-average'): ('ratio', '<=', 1) for n in CASES},
        **{(n, 'rtt-p50'): ('ratio', '<=', 1) for n in CASES},
        ('link-1g-router', 'raw'): ('ratio', '<=', 2),
        ('link-200m-host', 'raw'): ('ratio', '<=', 2)}
    what = {'average': ('average fault', 'us', 'lower'),
            'longest': ('longest fault, no more than', 'ms', 'lower'),
            'slow': (f'faults of {TIME_MS} ms and more', 'faults', 'lower'),
            'faults': ('faults', 'faults', 'lower'),
            'p99': ('99 % of the faults, no more than', 'us', 'lower'),
            'waited': ('the guest\'s time in all faults', 's', 'lower'),
            'rate': ('guest\'s writes', 'pages/s', 'higher'),
            'cpu': ('migration thread while the limit holds', '% of a CPU',
                    'lower'),
            'switchover': ('migrate-start-postcopy to STOP', 's', 'lower'),
            'link-average': ('average fault', 'us', 'lower'),
            'link-p99': ('99 % of the faults, no more than', 'us', 'lower'),
            'throughput': ('pages in the background and on request', 'MB/s',
                           'higher'),
            'ended': ('ends within a minute', 'yes=1', 'higher'),
            'took': ('from the switchover to the end, or a minute', 's',
                     'lower'),
            'background': ('background stream', 'MB/s', 'higher'),
            'sequential': ('average fault of the sequential vCPU', 'us',
                           'lower'),
            'random': ('average fault of the random vCPU', 'us', 'lower'),
            'rtt-average': ('average fault', 'us', 'lower'),
            'rtt-p50': ('half of the faults, no more than', 'us', 'lower'),
            'rtt-p99': ('99 % of the faults, no more than', 'us', 'lower'),
            'rtt-average-raw': ('average fault, of raw TCP\'s',
                                'times', 'lower'),
            'rtt-p50-raw': ('half of the faults, of raw TCP\'s',
                            'times', 'lower'),
            'raw': ('average fault against raw TCP', 'us', 'lower')}
    in_flight = 'raw TCP is a request of 20 B and an answer of 4104 B, with ' \
        'as many in flight as the guest has vCPUs, beside a stream of the ' \
        'limit, in the same run'
    rtt = 'from a trace of the destination, while the limit holds'
    notes = {'rtt-average': rtt, 'rtt-p50': rtt, 'rtt-p99': rtt,
             'rtt-average-raw': in_flight, 'rtt-p50-raw': in_flight,
             'longest': 'from the destination\'s histogram',
             'slow': 'from the destination\'s histogram',
             'p99': 'from the destination\'s histogram, interpolated within a '
                    'bucket',
             'link-p99': 'from the destination\'s histogram, interpolated '
                         'within a bucket',
             'throughput': 'both together, for what is sent on request is not '
                           'sent in the background',
             'background': 'what was sent less 4104 bytes for each request',
             'raw': 'the column of stock is a request of 20 B and an answer of '
                    '4104 B over TCP beside a greedy stream, with the same '
                    'socket options, in the same run'}
    for name in names:
        if CASES[name].rtt is not None:
            for key in 'rtt-average', 'rtt-p50':
                found = values[name, key]
                values[name, f'{key}-raw'] = {
                    side: [round(a / b, 3)
                           for a, b in zip(found[side], found['raw'])]
                    for side in SIDES}
        elif CASES[name].link and not CASES[name].alone:
            found = values[name, 'link-average']
            values[name, 'raw'] = {'stock': found['raw'],
                                   'patched': found['patched']}
    cases = []
    for (name, key), v in values.items():
        text, unit, better = what[key]
        goal = goals.get((name, key))
        cases.append(result_case(
            f'{name}-{key}', f'{CASES[name].title}: {text}', unit, better,
            v['stock'], v['patched'],
            goal and dict(zip(('on', 'op', 'value'), goal)),
            notes.get(key, '')))
    return cases, accelerator(), faults
