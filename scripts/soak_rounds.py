"""The rounds of soak in which a guest is migrated.

Imported by soak, not a program.
SPDX-License-Identifier: GPL-2.0-or-later
"""
import os
import subprocess
import time
from pathlib import Path

from qms import Error
from soak_guest import PATIENCE, Crash, Hang, Lost, Refused
from soak_migration import FREE, MIB, Migration

KSM = Path('/sys/kernel/mm/ksm/run')
KINDS = {'precopy': 3, 'postcopy': 3, 'recover': 5, 'cancel': 3, 'cut': 3,
         'file': 1, 'snapshot': 2}


class SmallDisk:
    """A tmpfs of some MiB; its mount is in a namespace of its own."""

    def __init__(self, mib):
        self.process = subprocess.Popen(
            ['unshare', '-rm', 'sh', '-c', f'mount -t tmpfs -o size={mib}m '
             'small /mnt && echo ready && exec sleep 3600'],
            stdout=subprocess.PIPE)
        if self.process.stdout.readline() != b'ready\n':
            self.close()
            raise Error('a small tmpfs cannot be mounted')
        self.path = f'/proc/{self.process.pid}/root/mnt'

    def close(self):
        self.process.kill()
        self.process.wait(10)


class Round(Migration):
    """A round of each kind but snapshot."""

    def run(self):
        """Returns how it ended."""
        if KSM.exists() and os.access(KSM, os.W_OK):
            KSM.write_text('1' if self.ksm else '0', encoding='ascii')
        try:
            return getattr(self, f'run_{self.kind}')()
        finally:
            if self.relay:
                self.relay.close()

    def run_precopy(self):
        self.begin()
        self.disturb(self.r.randrange(4), True)
        self.hurry()
        return self.complete()

    def run_postcopy(self):
        self.begin()
        self.disturb(self.r.randrange(3), True)
        if not self.start_postcopy():
            return 'completed before'
        self.disturb(self.r.randrange(5), False)
        self.hurry()
        return self.complete()

    def start_postcopy(self):
        """Returns whether it became postcopy."""
        src = self.soak.guest
        time.sleep(self.r.random())
        try:
            src.qmp('migrate-start-postcopy')
        except Refused:
            pass

        def done(status):
            self.switchover(status)
            return status if status in (
                'postcopy-active', 'postcopy-paused', *FREE) else None
        status = self.wait(done, 'postcopy')
        if status == 'completed':
            self.arrive()
            return False
        if status in ('failed', 'cancelled'):
            raise Error(f'{status} for no reason: '
                        f'{self.src_info.get("error-desc")}')
        self.phase('postcopy')
        return True

    def run_recover(self):
        r, soak = self.r, self.soak
        # so slow that there are pages left to wait for
        self.params['max-bandwidth'] = r.choice([2, 10, 50]) * MIB
        self.params['max-postcopy-bandwidth'] = r.choice([1, 4, 10]) * MIB
        cuts = r.randint(1, 6)
        self.begin()
        if not self.start_postcopy():
            return 'completed before'
        # The destination has to be there, too: before, a cut is the end
        self.wait(lambda s: self.dst.monitor.status in ('postcopy-active', *FREE)
                  or s in FREE, 'postcopy at the destination')
        self.disturb(r.randrange(3), False)
        if r.random() < 0.4:
            self.read_memory(self.dst, patient=False)
        while cuts:
            cuts -= 1
            self.break_connection()
            if not self.both_paused():
                break
            self.phase('paused')
            if r.random() < 0.4:
                self.read_memory(self.dst, patient=False)
            time.sleep(r.choice([0, 0, 0.05, 1]))
            self.resume()
            soak.count('recoveries')
            if cuts:
                time.sleep(r.choice([5, 20, 50, 100, 200, 500]) / 1000 *
                           r.random())
        # An earlier cut may only now be seen
        self.hurry_when_it_runs()
        return self.complete()

    def break_connection(self):
        how = self.r.choice(['cut', 'cut', 'one', 'half-source',
                             'half-destination', 'command'])
        self.soak.count(f'cuts: {how}')
        if how == 'cut':
            self.relay.cut()
        elif how == 'command':
            # to both, of which the second may be about to pause by itself
            for g in (self.soak.guest, self.dst):
                self.pause(g)
        elif how == 'one':
            self.relay.cut(self.r.randrange(2))
        else:
            self.relay.half_close(how == 'half-destination')

    @staticmethod
    def pause(guest):
        try:
            guest.oob('migrate-pause')
        except Refused:
            pass                    # it is paused, or not there yet

    def both_paused(self):
        """Wait for it; False if the migration has completed instead."""
        src, dst = self.soak.guest, self.dst
        since = time.monotonic()
        pushed = 0

        def done(status):
            nonlocal since, pushed
            there = dst.monitor.status
            if self.dst_ended() and status != 'completed':
                raise Crash(f'the destination ended in postcopy, with exit '
                            f'status {dst.vm.exitcode()}: {dst.last_words()}')
            if status in ('failed', 'cancelled'):
                raise Error(f'{status} in postcopy: '
                            f'{self.src_info.get("error-desc")}')
            if status == 'completed' and there == 'completed':
                return 'no'
            if status == there == 'postcopy-paused':
                return 'yes'
            if time.monotonic() - since > 5 + pushed * 5:
                # as a user would: say to the other side that it is over
                pushed += 1
                self.soak.count('paused by command')
                for g in (src, dst):
                    if (status if g is src else there) != 'postcopy-paused':
                        self.pause(g)
                since = time.monotonic()
            return None
        return self.wait(done, 'postcopy-paused') == 'yes'

    def resume(self):
        """Both know a new connection; retries what comes too early."""
        uri = self.listen()
        end = time.monotonic() + PATIENCE
        self.phase('recover')
        for ask in (lambda: self.dst.oob('migrate-recover', uri=uri),
                    lambda: self.soak.guest.qmp('migrate', resume=True,
                                                uri=self.through(uri))):
            while True:
                try:
                    ask()
                    break
                except Refused as e:
                    self.soak.count('recoveries refused at first')
                    status, _ = self.progress()
                    if status == 'completed':
                        return
                    if time.monotonic() > end:
                        raise Hang(f'no recovery is possible: {e}') from e
                    time.sleep(0.02)

    def hurry_when_it_runs(self):
        """The last connection stays, but it may have been given up."""
        tries = 0
        while True:
            def done(status):
                there = self.dst.monitor.status
                return status if status in ('postcopy-active', *FREE) and \
                    there in ('postcopy-active', 'completed') else \
                    'paused' if 'postcopy-paused' == status == there else None
            start = time.monotonic()
            try:
                status = self.wait(done, 'postcopy-active again', 20)
            except Hang:
                tries += 1
                self.soak.count('recoveries that were stuck')
                if tries > 2:
                    raise
                if not self.both_paused():
                    return
                status = 'paused'
            if status != 'paused':
                break
            if time.monotonic() - start < 1:
                # give what was connected a moment before it is replaced
                time.sleep(0.2)
                if self.progress()[0] != 'postcopy-paused':
                    continue
            self.resume()
            self.soak.count('recoveries')
        self.phase('postcopy')
        self.hurry()

    def run_cancel(self):
        r, soak = self.r, self.soak
        self.begin()
        self.disturb(r.randrange(2), True)
        time.sleep(r.random() * r.choice([0.01, 0.3, 2]))
        stalled = self.relay and r.random() < 0.4
        if stalled:
            self.relay.go.clear()
            time.sleep(r.random() * 2)
        soak.count('cancels')
        soak.guest.qmp('migrate_cancel')
        status = self.wait(lambda s: s in (*FREE, 'none') and s,
                           'cancelled', 30)
        if stalled:
            self.relay.go.set()
        if status == 'completed':
            self.arrive()
        else:
            self.stay()
        return status

    def run_cut(self):
        r, soak = self.r, self.soak
        self.begin()
        self.disturb(r.randrange(2), True)
        time.sleep(r.random() * r.choice([0.01, 0.3, 2]))
        how = r.choice(['kill', 'kill', 'cut', 'one', 'half-source',
                        'half-destination'])
        soak.count('killed destinations' if how == 'kill' else f'cuts: {how}')
        if how == 'kill':
            self.dst.kill()
        elif how == 'cut':
            self.relay.cut()
        elif how == 'one':
            self.relay.cut(r.randrange(3))
        else:
            self.relay.half_close(how == 'half-destination')
        self.hurry()
        status = self.wait(lambda s: s in FREE and s, 'end')
        if status != 'completed':
            self.stay()
        elif self.dst.killed:
            raise Lost('the destination was killed after the switchover')
        else:
            # without a return path the source does not know better
            self.wait(lambda _: self.dst.monitor.status in FREE or
                      self.dst_ended(), 'end of the destination')
            if self.dst.monitor.status != 'completed':
                raise Lost('the end of the stream was lost')
            self.arrive()
        return f'{how}, {status}'

    def run_file(self):
        r, soak = self.r, self.soak
        full = r.random() < 0.5
        self.transport = 'file'
        self.caps = {'multifd': False, 'mapped-ram': r.random() < 0.5}
        if self.caps['mapped-ram']:
            self.caps['multifd'] = r.random() < 0.5
        self.params['max-bandwidth'] = 0
        try:
            soak.small = soak.small or SmallDisk(24)
        except (Error, OSError):
            full = False
            soak.count('no small file system')
        path = f'{soak.small.path if full else soak.folder}/image'
        if os.path.exists(path):
            os.unlink(path)
        try:
            self.dst = soak.new_guest(self.sides[1], incoming=True)
            self.configure(soak.guest, self.dst)
            self.phase('file')
            soak.guest.qmp('migrate', uri=f'file:{path}')
            status = self.wait(lambda s: s in FREE and s, 'end')
            if full:
                soak.count('full file systems')
                if status != 'failed':
                    raise Error(f'{status} on a full file system')
                self.stay()
                return 'no space, failed'
            if status != 'completed':
                raise Error(f'{status} to a file: '
                            f'{self.src_info.get("error-desc")}')
            self.dst.qmp('migrate-incoming', uri=f'file:{path}')
            self.arrive()
            return 'loaded'
        finally:
            if os.path.exists(path):
                os.unlink(path)

    def ferry(self):
        """Nothing but a migration to the binary that the round begins with."""
        self.sides = self.soak.guest.side, self.sides[0]
        self.transport, self.caps, self.params = 'unix', {}, {
            'max-bandwidth': 0, 'downtime-limit': 2000}
        self.held = self.pauses = False
        self.begin()
        return self.complete()
