#!/usr/bin/env python3
"""bench_growth.py [--size S]... [--runs N] [--case C]...: very large guests.

What grows with the size of memory, although there is nothing in it: guests whose
memory is not reserved and never touched (firmware without anything to boot),
of 64 GiB, 256 GiB and 1 TiB unless told otherwise, on TCG.  Stock and patched
in turn, a QEMU for each run.

  precopy   migrate to a command that throws all away, and a cancel after 2 s
  snapshot  a background snapshot to the same, and a cancel after 2 s
  postcopy  to another QEMU: 1 s of precopy, then the switch

Measured: how long each command takes, when the first page is sent, the pause
(the events STOP and RESUME, for postcopy of the two sides), the longest silence
of the monitor during each step (scripts/monitor.py), what QEMU's resident
memory and page tables grow by.  Prints a table, medians with the least and the
most.

  --size S     with a suffix G or T; several
  --runs N     for each (3)
  --case C     only this one; several
  --profile    QEMU's own profile of locks (HMP sync-profile), too: what was
               waited for longest, and how long it was in all
  --json FILE  every single value

Free page hints are not here: their driver needs a Linux that has booted, and
its own figures for each page would take 16 GiB of memory per TiB.
Needs root or /dev/userfaultfd, and build/{stock,patched}/out (scripts/build).
"""
# SPDX-License-Identifier: GPL-2.0-or-later
import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import bench_snapshot
from bench_snapshot import BINARY
from guest import accelerator
from monitor import Watch
from qms import Error, run_main, say

GIB = 1 << 30
LIMIT = 180                     # s for what may take long
SINK = 'exec:cat >/dev/null'


class Vm(bench_snapshot.Vm):
    """A QEMU with memory that nobody has touched."""

    # pylint: disable=super-init-not-called
    def __init__(self, bench, side, size, incoming=False):
        from qemu.machine import QEMUMachine    # the tree's own
        bench.count += 1
        self.side = side
        self.memory = size
        name = f'{side}-{bench.count}'
        watch = bench.folder / f'{name}.watch'
        options = [
            '-nodefaults', '-run-with', 'exit-with-parent=on',
            '-accel', bench.accel,
            '-cpu', 'host' if bench.accel == 'kvm' else 'max,phys-bits=46',
            '-machine', 'q35,memory-backend=ram', '-m', f'{size // GIB}G',
            '-object', f'memory-backend-ram,id=ram,reserve=off,size={size}',
            '-qmp', f'unix:{watch},server=on,wait=off']
        if incoming:
            options += ['-incoming', 'defer']
        self.vm = QEMUMachine(str(BINARY[side]), options, name=name,
                              base_temp_dir=str(bench.folder), qmp_timer=60)
        bench.open.append(self)
        try:
            self.vm.launch()
        except Exception as e:
            words = (self.vm.get_log() or '').strip().splitlines() or [str(e)]
            raise Error(f'{side}: QEMU does not start: {words[-1]}') from e
        self.vm._qmp.settimeout(LIMIT)  # pylint: disable=protected-access
        self.pid = self.vm.get_pid()
        if not incoming:
            time.sleep(1.5)             # the firmware
        if bench.profile:
            self.qmp('human-monitor-command', command_line='sync-profile on')
        self.watch = Watch(watch)
        self.before = self.use()

    def use(self):
        """Resident memory and page tables, MiB."""
        return self.proc('status', 'VmRSS', 'VmPTE') / 1024

    def timed(self, command, **arguments):
        """How long a command takes, ms."""
        start = time.monotonic()
        self.qmp(command, **arguments)
        return 1000 * (time.monotonic() - start)

    def lap(self):
        return 1000 * self.watch.lap()

    def wait_first(self):
        """Seconds until pages are sent."""
        start = time.monotonic()
        self.wait_scan(LIMIT)
        return time.monotonic() - start

    def cancel(self, figures):
        """Cancel, and everything about that."""
        self.lap()
        start = time.monotonic()
        figures['cancel: command, ms'] = self.timed('migrate_cancel')
        info = self.wait_end()
        figures['cancel: until it is, ms'] = 1000 * (time.monotonic() - start)
        figures['cancel: silence, ms'] = self.lap()
        if info['status'] == 'completed':
            say(f'{self.side}: it was completed before the cancel')

    def wait_end(self):
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            info = self.qmp('query-migrate')
            if info.get('status') in ('cancelled', 'completed'):
                return info
            if info.get('status') == 'failed':
                raise Error(f'{self.side}: {info.get("error-desc")}')
            time.sleep(0.005)
        raise Error(f'{self.side}: no end of it in {LIMIT} s')

    def waits(self):
        """QEMU's own profile: {lock and place: seconds}, the most first."""
        text = self.qmp('human-monitor-command',
                        command_line='info sync-profile 10')
        found = {}
        for line in text.splitlines():
            # type, object, place, seconds, count, average
            match = re.match(r'(\S.*?)\s+(0x[0-9a-f]+|\[\s*\d+\])\s+(\S+:\d+)'
                             r'\s+([\d.]+)\s+\d+', line)
            if match and match[1] != 'condvar':
                key = f'{match[1]} {match[3]}'
                found[key] = found.get(key, 0) + float(match[4])
        return found


class Bench:
    def __init__(self, folder, profile):
        self.folder = Path(folder)
        self.profile = profile
        self.accel = accelerator()
        self.open = []
        self.count = 0
        self.locks = {}             # (case, size, side): {lock: seconds}

    def close(self):
        for vm in self.open:
            if hasattr(vm, 'watch'):
                vm.watch.finish()
            vm.close()
        self.open.clear()

    def note_locks(self, case, size, side, vm):
        if self.profile:
            mine = self.locks.setdefault((case, size, side), {})
            for key, seconds in vm.waits().items():
                mine[key] = max(mine.get(key, 0), seconds)


def start(vm, uri, figures):
    """`migrate`, until the first pages are sent."""
    vm.lap()
    figures['migrate: command, ms'] = vm.timed('migrate', uri=uri)
    figures['first pages after, ms'] = 1000 * vm.wait_first()
    figures['start: silence, ms'] = vm.lap()


def precopy(bench, side, size):
    vm = Vm(bench, side, size)
    figures = {}
    start(vm, SINK, figures)
    time.sleep(2)
    figures['running: silence, ms'] = vm.lap()
    figures['query-migrate, ms'] = vm.timed('query-migrate')
    vm.cancel(figures)
    figures['growth, MiB'] = vm.use() - vm.before
    bench.note_locks('precopy', size, side, vm)
    return figures


def snapshot(bench, side, size):
    vm = Vm(bench, side, size)
    figures = {}
    vm.prepare()
    vm.vm.get_qmp_events()
    start(vm, SINK, figures)
    figures['pause, ms'] = 1000 * -(vm.event('STOP') - vm.event('RESUME'))
    time.sleep(2)
    figures['running: silence, ms'] = vm.lap()
    figures['growth, MiB'] = vm.use() - vm.before
    vm.cancel(figures)
    bench.note_locks('snapshot', size, side, vm)
    return figures


def postcopy(bench, side, size):
    src = Vm(bench, side, size)
    dst = Vm(bench, side, size, incoming=True)
    path = bench.folder / 'postcopy'
    path.unlink(missing_ok=True)
    figures = {}
    for vm in (src, dst):
        vm.set_caps(postcopy_ram=True)
    src.qmp('migrate-set-parameters', **{'max-bandwidth': 0})
    dst.lap()
    dst.qmp('migrate-incoming', uri=f'unix:{path}')
    start(src, f'unix:{path}', figures)
    figures['start: silence of the destination, ms'] = dst.lap()
    time.sleep(1)
    src.lap()
    dst.lap()
    src.vm.get_qmp_events()
    dst.vm.get_qmp_events()
    figures['switch: command, ms'] = src.timed('migrate-start-postcopy')
    stopped = src.event('STOP', LIMIT)
    figures['pause, ms'] = 1000 * (dst.event('RESUME', LIMIT) - stopped)
    time.sleep(2)
    figures['switch: silence, ms'] = src.lap()
    figures['switch: silence of the destination, ms'] = dst.lap()
    figures['growth, MiB'] = src.use() - src.before
    figures['growth of the destination, MiB'] = dst.use() - dst.before
    bench.note_locks('postcopy', size, side, src)
    return figures


CASES = {'precopy': precopy, 'snapshot': snapshot, 'postcopy': postcopy}


def size_of(text):
    match = re.fullmatch(r'(\d+)([GT])', text)
    if not match or not int(match[1]):
        raise argparse.ArgumentTypeError(f'{text} is not like 256G or 1T')
    return int(match[1]) * GIB * (1024 if match[2] == 'T' else 1)


def shown(values):
    def short(v):
        return f'{v:.0f}' if abs(v) >= 10 else f'{v:.1f}'
    if not values:
        return 'failed'
    return f'{short(statistics.median(values))} ({short(min(values))} to ' \
        f'{short(max(values))})'


def table(results, sizes, cases):
    for case in cases:
        names = list(dict.fromkeys(
            name for size in sizes for side in BINARY
            for figures in results[case, size, side] for name in figures))
        print(f'\n{case}\n')
        print('| figure |' + ''.join(f' {size // GIB} GiB {side} |'
                                     for size in sizes for side in BINARY))
        print('|---|' + '--:|' * (len(sizes) * len(BINARY)))
        for name in names:
            print(f'| {name} |' + ''.join(
                f' {shown([f[name] for f in results[case, size, side] if name in f])} |'
                for size in sizes for side in BINARY))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', type=size_of, action='append')
    parser.add_argument('--runs', type=int, default=3)
    parser.add_argument('--case', choices=list(CASES), action='append')
    parser.add_argument('--profile', action='store_true')
    parser.add_argument('--json', type=Path)
    args = parser.parse_args()
    if args.runs < 1:
        raise Error('--runs must be at least 1')
    for side, binary in BINARY.items():
        if not binary.exists():
            raise Error(f'{side}: there is no {binary} (scripts/build)')
    sizes = args.size or [64 * GIB, 256 * GIB, 1024 * GIB]
    cases = args.case or list(CASES)
    results = {(case, size, side): [] for case in cases for size in sizes
               for side in BINARY}
    with tempfile.TemporaryDirectory(prefix='qms-growth.') as folder:
        bench = Bench(folder, args.profile)
        for size in sizes:
            for case in cases:
                for _ in range(args.runs):
                    for side in BINARY:
                        try:
                            figures = CASES[case](bench, side, size)
                            results[case, size, side].append(figures)
                            say(f'{case} {size // GIB} GiB {side}: ' + '; '.join(
                                f'{k} {v:.1f}' for k, v in figures.items()))
                        except (Error, OSError) as e:
                            say(f'{case} {size // GIB} GiB {side}: failed: {e}')
                        finally:
                            bench.close()
    table(results, sizes, cases)
    for (case, size, side), locks in bench.locks.items():
        print(f'\nWaited for most, {case} {size // GIB} GiB {side}: '
              + '; '.join(f'{k} {v:.3f} s' for k, v in sorted(
                  locks.items(), key=lambda x: -x[1])[:5]))
    if args.json:
        args.json.write_text(json.dumps(
            [{'case': c, 'GiB': s // GIB, 'side': d, 'runs': r}
             for (c, s, d), r in results.items()], indent=1) + '\n',
            encoding='utf-8')
    sys.stdout.flush()
    return int(any(not r for r in results.values()))


if __name__ == '__main__':
    run_main(main)
