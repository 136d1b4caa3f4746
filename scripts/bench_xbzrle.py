"""bench xbzrle: the encoder, the page cache, and Linux guests.

Imported by bench, not a program.  The encoder and the cache are compared
without a QEMU, stock's and ours in one program each (tests/xbzrle).  For
guests there is a QEMU per measurement, source and destination on this machine,
with a limit to the bandwidth that makes XBZRLE worth while.
SPDX-License-Identifier: GPL-2.0-or-later
"""
import json
import math
import shlex
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from qms import CACHE, PATCHED, STOCK, TOP, WORK, Error, say
from results import result_case

MIB = 1 << 20
SIDES = {'stock': STOCK, 'patched': PATCHED}


# ---- programs without a QEMU ------------------------------------------------

def compile_flags(side, source):
    """How ninja compiles a file, without its own output options."""
    path = SIDES[side] / 'out/compile_commands.json'
    if not path.exists():
        raise Error(f'{side} is not built (scripts/build {side})')
    for entry in json.loads(path.read_text(encoding='utf-8')):
        if entry['file'].endswith(source):
            words = shlex.split(entry['command'])
            out, skip = [], False
            for word in words:
                if skip:
                    skip = False
                elif word in ('-o', '-MQ', '-MF'):
                    skip = True
                elif word not in ('-c', '-MD', entry['file']):
                    out.append(word)
            return out, entry['directory'], entry['file']
    raise Error(f'{side} has no {source}')


def compile_as(side, source, names, folder, *flags):
    """An object file of one side's source, with its functions renamed."""
    words, cwd, path = compile_flags(side, source)
    obj = Path(folder) / f'{side}-{Path(source).stem}.o'
    subprocess.run([*words, *(f'-D{n}={side}_{n}' for n in names), *flags,
                    '-w', '-Wno-error', '-c', path, '-o', str(obj)], cwd=cwd,
                   check=True, capture_output=True, text=True)
    return str(obj)


def link(program, side, *objects):
    """With what QEMU's utility functions want, and that is much."""
    libs = subprocess.run(['pkg-config', '--libs', 'glib-2.0'], check=True,
                          capture_output=True, text=True).stdout.split()
    out = SIDES[side] / 'out'
    result = subprocess.run(
        ['cc', '-O2', '-o', str(program), *map(str, objects),
         *map(str, (out / 'libqom.a.p').glob('*.o')),
         str(out / 'libqemuutil.a'), *libs, '-lm', '-lpthread'],
        capture_output=True, text=True, check=False)
    if result.returncode:
        raise Error(f'{program.name} does not link: '
                    + (result.stderr.strip().splitlines() or ['?'])[-1])
    return program


def run_lines(*cmd):
    """{first word: [numbers]} of what a program prints."""
    out = subprocess.run([str(c) for c in cmd], check=True, text=True,
                         capture_output=True, timeout=900).stdout
    return {line.split()[0]: [float(w) for w in line.split()[1:]]
            for line in out.splitlines()}


# ---- the encoder ------------------------------------------------------------

KERNELS = {4: ('AVX512', 'AVX2', 'SSE2', 'portable'),
           3: ('AVX2', 'SSE2', 'portable'), 2: ('SSE2', 'portable'),
           1: ('portable',)}


def encoder_programs(folder):
    """The tree's own benchmark with stock's encoders, and with ours."""
    folder = Path(folder)
    bench = 'tests/bench/xbzrle-bench.c'
    words, cwd, path = compile_flags('patched', bench)
    programs = {}
    for name in 'scalar', 'avx512', 'patched':
        base = name != 'patched'
        side = 'stock' if base else 'patched'
        main = folder / f'bench-{name}.o'
        subprocess.run([*words, *(['-DXBZRLE_BENCH_BASE'] if base else []),
                        '-w', '-Wno-error', '-c', path, '-o', str(main)],
                       cwd=cwd, check=True, capture_output=True, text=True)
        flags, there, source = compile_flags(side, 'migration/xbzrle.c')
        if name == 'scalar':
            wrapper = folder / 'scalar.c'
            source = (Path(there) / source).resolve()
            wrapper.write_text('#include "qemu/osdep.h"\n'
                               '#undef CONFIG_AVX512BW_OPT\n'
                               f'#include "{source}"\n', encoding='utf-8')
            source = str(wrapper)
            flags += ['-iquote', str(Path(there) / '../src/migration')]
        encoder = folder / f'xbzrle-{name}.o'
        subprocess.run([*flags, '-w', '-Wno-error', '-c', source, '-o',
                        str(encoder)], cwd=there, check=True,
                       capture_output=True, text=True)
        program = folder / f'encoder-{name}'
        link(program, side, main, encoder)
        programs[name] = program
    with open('/proc/cpuinfo', encoding='utf-8') as f:
        if 'avx512bw' not in f.read():
            del programs['avx512']
    return programs


def bench_overruns(folder, pairs, quick):
    """Both encoders as the base has them called, one after the other."""
    names = ('xbzrle_encode_buffer', 'xbzrle_decode_buffer')
    objects = [compile_as(side, 'migration/xbzrle.c', names, folder)
               for side in SIDES]
    program = link(Path(folder) / 'encoders', 'patched',
                   TOP / 'tests/xbzrle/encoders.c', *objects)
    pages = 20000 if quick else 400000
    out = subprocess.run([str(program), str(pairs), str(pages)], check=True,
                         capture_output=True, text=True, timeout=900).stdout
    rows = [line.split() for line in out.splitlines()]
    rows = [(float(a), float(b)) for name, a, b in rows if name == 'overruns']
    return result_case(
        'encoder-out-of-bounds',
        f'pages for which the encoder writes past its output, of {pages}',
        'pages', 'lower', *zip(*rows),
        {'on': 'patched', 'op': '<=', 'value': 0},
        'on a host without AVX512BW stock has no such page either')


def bench_encoder(pairs, quick):
    cases = []
    settings = {
        # name: (options, what, goals for the mean by kernel)
        'l3': (['-m', '8'], 'encoder, pages of L3 size',
               {'SSE2': 3.0, 'AVX2': 3.5, 'AVX512': 1.7}),
        'page': (['-m', '64' if quick else '512', '-r', '-P', 'page'],
                 'copy, encode and refresh, random pages of memory',
                 {'SSE2': 1.8, 'AVX2': 1.8, 'AVX512': 1.8}),
    }
    seconds = '0.02' if quick else '0.06'
    with tempfile.TemporaryDirectory(prefix='bench.', dir=WORK) as folder:
        cases.append(bench_overruns(folder, pairs, quick))
        programs = encoder_programs(folder)
        for setting, (options, what, goals) in settings.items():
            say(f'{what}, {pairs} pairs')
            times, sent = {}, {}    # (kernel, pattern): [per pair]
            for _ in range(pairs):
                for name, program in programs.items():
                    out = subprocess.run(
                        [str(program), *options, '-s', seconds], check=True,
                        capture_output=True, text=True, timeout=600).stdout
                    rows = [ln.split(',') for ln in out.splitlines()[1:]]
                    accels = KERNELS[1 + max(int(r[1]) for r in rows)]
                    for r in rows:
                        key = (name if name != 'patched' else
                               accels[int(r[1])], r[2])
                        times.setdefault(key, []).append(float(r[4]))
                        sent[key] = int(r[6])
            patterns = list(dict.fromkeys(k[1] for k in times))
            for kernel, goal in goals.items():
                stock = 'avx512' if kernel == 'AVX512' else 'scalar'
                if (kernel, patterns[0]) not in times or \
                        (stock, patterns[0]) not in times:
                    say(f'  {kernel} is left out: not on this CPU')
                    continue
                speed, slowest = [], []
                for i in range(pairs):
                    each = [times[stock, p][i] / times[kernel, p][i]
                            for p in patterns]
                    speed.append(round(
                        math.exp(sum(map(math.log, each)) / len(each)), 3))
                    slowest.append(round(min(each), 3))
                against = 'stock AVX512' if stock == 'avx512' else \
                    'stock scalar'
                cases.append(result_case(
                    f'encoder-{setting}-{kernel.lower()}',
                    f'{what}: {kernel}, geometric mean of {len(patterns)} '
                    'patterns, speed', f'of {against}', 'higher', [1] * pairs,
                    speed, {'on': 'ratio', 'op': '>=', 'value': goal}))
                if setting == 'l3':
                    medians = [statistics.median(times[stock, p]) /
                               statistics.median(times[kernel, p])
                               for p in patterns]
                    worst = patterns[medians.index(min(medians))]
                    cases.append(result_case(
                        f'encoder-{setting}-{kernel.lower()}-slowest',
                        f'{what}: {kernel}, the slowest pattern, speed',
                        f'of {against}', 'higher', [1] * pairs,
                        [round(times[stock, worst][i] /
                               times[kernel, worst][i], 3)
                         for i in range(pairs)],
                        {'on': 'ratio', 'op': '>=', 'value': 0.95}, worst))
            if setting == 'l3':
                for p in patterns:
                    best = next(k for k in KERNELS[4] if (k, p) in times)
                    base = 'avx512' if best == 'AVX512' else 'scalar'
                    cases.append(result_case(
                        f'encoder-{p}', f'encode a page, {p}, {best}', 'ns',
                        'lower', times[base, p], times[best, p]))
                kernel = next(k for k in KERNELS[4] if (k, patterns[0]) in
                              times)
                cases.append(result_case(
                    'encoder-size', 'encoded size, sum over the patterns',
                    'bytes', 'lower',
                    [sum(sent['scalar', p] for p in patterns)],
                    [sum(sent[kernel, p] for p in patterns)],
                    {'on': 'ratio', 'op': '<=', 'value': 1},
                    'a page that overflows counts 4096; that no page gets '
                    'more than 16 bytes larger is a unit test'))
    return cases


# ---- the cache --------------------------------------------------------------

CACHE_NAMES = ('cache_init', 'cache_fini', 'cache_is_cached',
               'get_cached_data', 'cache_insert', 'cache_move',
               'cache_lookup', 'cache_note', 'cache_remove', 'cache_round',
               'cache_moving', 'cache_num_items', 'cache_max_items',
               'cache_evictions')


def cache_program(folder):
    objects = [compile_as(side, 'migration/page_cache.c', CACHE_NAMES, folder)
               for side in SIDES]
    return link(Path(folder) / 'replay', 'patched',
                TOP / 'tests/xbzrle/replay.c', *objects)


def bench_growth(pairs, quick):
    """How the time per page grows with the cache."""
    cases = []
    sizes = (64,) if quick else (64, 1024, 4096)
    with tempfile.TemporaryDirectory(prefix='bench.', dir=WORK) as folder:
        program = cache_program(folder)
        say(f'cache growth, {pairs} pairs')
        times = [run_lines(program, 'growth', *sizes) for _ in range(pairs)]
    for what, title in (('find-refresh', 'found, and refreshed'),
                        ('miss-send', 'not found, and sent')):
        for size in sizes:
            key = f'{what}-{size}'
            cases.append(result_case(
                f'growth-{key}', f'cache of {size} MiB, page {title}', 'ns',
                'lower', [t[key][0] for t in times],
                [t[key][1] for t in times]))
        if len(sizes) > 1:
            a, b = f'{what}-{sizes[-2]}', f'{what}-{sizes[-1]}'
            cases.append(result_case(
                f'growth-{what}', f'page {title}: {sizes[-1]} MiB to '
                f'{sizes[-2]} MiB', 'times', 'lower',
                [round(t[b][0] / t[a][0], 3) for t in times],
                [round(t[b][1] / t[a][1], 3) for t in times],
                {'on': 'patched', 'op': '<=', 'value': 1.5}))
    return cases


def bench_cache(pairs, quick):
    cases = []
    with tempfile.TemporaryDirectory(prefix='bench.', dir=WORK) as folder:
        program = cache_program(folder)
        say(f'cache, {pairs} pairs')
        # another sequence of random numbers each time
        hits = [run_lines(program, 'hits', i) for i in range(pairs)]
        sent = [run_lines(program, 'bytes', i) for i in range(pairs)]
        memory = run_lines(program, 'memory')
        resize = [run_lines(program, 'resize') for _ in range(pairs)]

    def add(case, title, unit, better, stock, patched, goal=None, note=''):
        cases.append(result_case(
            case, title, unit, better, stock, patched,
            goal and dict(zip(('on', 'op', 'value'), goal)), note))

    for name, values in hits[0].items():
        goal = {'strides-2m': ('patched', '>=', 90),
                'zeroed-reused': ('ratio', '>=', 1.5)}.get(name)
        add(f'cache-{name}', f'cache of 64 MiB, 16 rounds, {name}: hits',
            '% of pages', 'higher', [h[name][0] for h in hits],
            [h[name][1] for h in hits], goal,
            f'at best {values[2]:.1f}')
    for case, title, pick, goal in (
            ('loss', 'the worst of these: points below stock',
             lambda h: max(v[0] - v[1] for v in h.values()), ('<=', 2.5)),
            ('gain-scattered', 'scattered, 1.0 times the cache: points above '
             'stock', lambda h: h['scattered-1'][1] - h['scattered-1'][0],
             ('>=', 15)),
            ('gain-zipf', 'zipf 1.0: points above stock',
             lambda h: h['zipf-1.0'][1] - h['zipf-1.0'][0], ('>=', 5))):
        add(f'cache-{case}', f'cache, {title}', 'points',
            'lower' if goal[0] == '<=' else 'higher', [0] * pairs,
            [round(pick(h), 2) for h in hits], ('patched', *goal))
    add('cache-zeroed-bytes', 'cache, zeroed pages re-used: sent', 'MiB',
        'lower', [b['zeroed-reused'][0] for b in sent],
        [b['zeroed-reused'][1] for b in sent], ('ratio', '<=', 0.6),
        'with the map of zero pages that the series has')
    for name, values in memory.items():
        if 'half' not in name:
            size = name.split('-')[1]
            add(f'cache-{name}', f'cache of {size} MiB, full: memory, VmRSS',
                '% of its size', 'lower', [values[0]], [values[1]],
                ('patched', '<=', 101))
    add('cache-resize', 'cache, live from 1 GiB to 2 GiB: longest call',
        'ms', 'lower', [r['resize-1024-2048-longest'][0] for r in resize],
        [r['resize-1024-2048-longest'][1] for r in resize],
        ('patched', '<=', 50), 'stock throws its pages away')
    return cases


# ---- guests -----------------------------------------------------------------

class Load:
    """What a guest does, and how it is migrated.

    memory  of the guest, MiB
    load    for the load program in it, see guest.Guest
    window  the figures are from the first round to the end, or what came of it
            after so many seconds.  0: all of it
    """

    def __init__(self, title, memory, load, window, append=''):
        self.title, self.memory, self.load = title, memory, load
        self.window, self.append = window, append


# Less than the guest dirties, as whole pages
BANDWIDTH = 32 * MIB
CACHE_SIZE = 64 * MIB
LOADS = {
    'docs': Load('Linux guest of 1 GiB, the documentation\'s load', 1024,
                 (16, 1, 0, 'docs'), 0),
    'scattered': Load('Linux guest, hot set of 64 MiB in single pages, '
                      '12000 pages/s', 512,
                      (320, 64, 12000, 'scatter'), 15),
    'scattered-fast': Load('Linux guest, the same hot set, 30000 pages/s', 512,
                           (320, 64, 30000, 'scatter'), 15),
    'churn': Load('Linux guest, memory allocated, written to and freed; hot '
                  'set of 32 MiB', 512, (192, 32, 8000, 'churn'), 15,
                  append='init_on_alloc=1 init_on_free=1'),
}
FIGURES = 'transferred', 'cache-miss', 'pages', 'overflow', 'bytes'


class Guests:
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

    def guest(self, side, role, load):
        from guest import Guest
        self.count += 1
        g = Guest(SIDES[side] / 'out/qemu-system-x86_64', self.folder,
                  f'{side}-{role}-{self.count}', load.memory, load.load,
                  role != 'boot', None, self.initrd, (), load.append)
        self.open.append(g)
        return g

    def close(self):
        while self.open:
            self.open.pop().close()

    def image(self, name, load):
        """Booted once, with stock; every run starts from that state."""
        if name not in self.images:
            path = self.folder / f'{name}.img'
            g = self.guest('stock', 'boot', load)
            g.wait_text('READY', 300)
            g.wait_text('TICK', 60)
            g.qmp('stop')
            g.set_params(max_bandwidth=0)
            g.qmp('migrate', uri=f'file:{path}')
            g.wait_completed()
            self.close()
            self.images[name] = path
        return self.images[name]

    def run(self, side, name):
        """The figures of one migration, as a dict."""
        load = LOADS[name]
        image = self.image(name, load)
        window = min(2, load.window) if self.quick else load.window
        try:
            src = self.guest(side, 'src', load)
            src.qmp('migrate-incoming', uri=f'file:{image}')
            src.wait_completed()
            src.qmp('cont')
            src.wait_text('TICK', 60)
            dst = self.guest(side, 'dst', load)
            for g in (src, dst):
                g.set_caps(xbzrle=True)
            uri = f'unix:{self.folder}/mig{self.count}'
            dst.qmp('migrate-incoming', uri=uri)
            src.set_params(max_bandwidth=1024 * MIB if window
                           else BANDWIDTH, xbzrle_cache_size=CACHE_SIZE)
            if window:
                src.set_params(downtime_limit=1)
            src.qmp('migrate', uri=uri)
            before = dict.fromkeys(FIGURES, 0)
            if window:
                before = self.figures(src.wait_migration(
                    lambda i: i.get('ram', {}).get('dirty-sync-count', 0) >= 2,
                    120, 'the first round'))
                src.set_params(max_bandwidth=BANDWIDTH)
                end = time.monotonic() + window
                # until it is known that the bandwidth is less
                time.sleep(0.3)
                src.set_params(downtime_limit=300)
                info = src.wait_migration(
                    lambda i: i['status'] == 'completed' or
                    time.monotonic() > end, window + 60, 'an end')
                after = self.figures(info)
                src.set_params(max_bandwidth=1024 * MIB, downtime_limit=2000)
            info = src.wait_completed()
            if not window:
                after = self.figures(info)
            dst.wait_completed()
            dst.verify()
            found = {k: after[k] - before[k] for k in FIGURES}
            found['info'] = info
            return found
        finally:
            self.close()

    @staticmethod
    def figures(info):
        return {'transferred': info['ram']['transferred'] / MIB,
                **{k: info.get('xbzrle-cache', {}).get(k, 0)
                   for k in FIGURES if k != 'transferred'}}


def side_by_side(stock, patched):
    """The form in which the first such patch was discussed in 2013."""
    lines = []
    for key, unit, get in (
            ('total time', 'milliseconds', lambda i: i['total-time']),
            ('downtime', 'milliseconds', lambda i: i['downtime']),
            ('transferred ram', 'kbytes',
             lambda i: i['ram']['transferred'] // 1024),
            ('total ram', 'kbytes', lambda i: i['ram']['total'] // 1024),
            ('duplicate', 'pages', lambda i: i['ram']['duplicate']),
            ('normal', 'pages', lambda i: i['ram']['normal']),
            ('xbzrle transferred', 'kbytes',
             lambda i: i['xbzrle-cache']['bytes'] // 1024),
            ('xbzrle pages', 'pages', lambda i: i['xbzrle-cache']['pages']),
            ('xbzrle cache miss', '',
             lambda i: i['xbzrle-cache']['cache-miss']),
            ('xbzrle overflow', '',
             lambda i: i['xbzrle-cache']['overflow'])):
        for sign, info in (('+', patched), ('-', stock)):
            lines.append(f'{sign} {key}: {get(info)} {unit}'.rstrip())
    return '\n'.join(lines) + '\n'


def bench_guests(pairs, quick, names):
    values = {}
    infos = None
    with tempfile.TemporaryDirectory(prefix='qms-bench.') as folder:
        guests = Guests(folder, quick)
        try:
            for name in names:
                say(f'guest {name}, {pairs} pairs')
                for _ in range(pairs):
                    for side in SIDES:
                        start = time.monotonic()
                        found = guests.run(side, name)
                        info = found.pop('info')
                        found['downtime'] = info['downtime']
                        if name == 'docs':
                            infos = {**(infos or {}), side: info}
                        for key, value in found.items():
                            values.setdefault((name, key), {}).setdefault(
                                side, []).append(round(value, 3))
                        say(f'  {name}, {side}, '
                            f'{time.monotonic() - start:.0f} s: ' + ', '.join(
                                f'{k} {v:.4g}' for k, v in found.items()))
        finally:
            guests.close()
    cases = []
    for name in names:
        load = LOADS[name]
        title = load.title
        what = 'in all' if not load.window else \
            f'after the first round, in no more than {load.window} s'
        v = {k: values[name, k] for k in FIGURES}
        goal = {'on': 'ratio', 'op': '<=', 'value': 0.7 if load.window else 1}
        cases.append(result_case(
            f'guest-{name}-bytes', f'{title}: sent {what}', 'MiB', 'lower',
            v['transferred']['stock'], v['transferred']['patched'], goal,
            '32 MiB/s, 64 MiB of cache'))
        cases.append(result_case(
            f'guest-{name}-misses', f'{title}: cache misses', 'pages',
            'lower', v['cache-miss']['stock'], v['cache-miss']['patched'],
            None if load.window else goal))
        if not load.window:
            downtime = values[name, 'downtime']
            cases.append(result_case(
                f'guest-{name}-downtime', f'{title}: downtime', 'ms', 'lower',
                downtime['stock'], downtime['patched'],
                {'on': 'patched', 'op': '<=', 'value': 300},
                'downtime-limit is 300'))
            worse = [int(any(v[k]['patched'][i] > v[k]['stock'][i]
                             for k in ('transferred', 'cache-miss')))
                     for i in range(pairs)]
            cases.append(result_case(
                f'guest-{name}-worse', f'{title}: pairs in which bytes or '
                'misses are worse', 'pairs', 'lower', [0] * pairs, worse,
                {'on': 'patched', 'op': '<=', 'value': 0}))
        hits = {s: [round(100 * p / max(p + m, 1), 2) for p, m in
                    zip(v['pages'][s], v['cache-miss'][s])] for s in SIDES}
        cases.append(result_case(
            f'guest-{name}-hits', f'{title}: pages that could be encoded, of '
            'those that were tried', '%', 'higher', hits['stock'],
            hits['patched']))
    text = side_by_side(infos['stock'], infos['patched']) if infos else ''
    return cases, text


CASES = ('encoder', 'cache', 'growth', 'guests',
         *(f'guest-{name}' for name in LOADS))


def bench_xbzrle(pairs, quick, only=None):
    """The cases as results has them, the accelerator, and a text."""
    from guest import accelerator
    only = only or ('encoder', 'cache', 'growth', 'guests')
    loads = [n for n in LOADS if f'guest-{n}' in only]
    if 'guests' in only:
        loads = ['docs'] if quick else list(LOADS)
    cases, text = [], ''
    if 'encoder' in only:
        cases += bench_encoder(pairs if quick else max(pairs, 9), quick)
    if 'cache' in only:
        cases += bench_cache(pairs, quick)
    if 'growth' in only:
        cases += bench_growth(pairs, quick)
    if loads:
        more, text = bench_guests(pairs, quick, loads)
        cases += more
    return cases, accelerator(), text
