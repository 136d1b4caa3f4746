"""What the rounds of soak, in which a guest is migrated, have in common.

Imported by soak, not a program.
SPDX-License-Identifier: GPL-2.0-or-later
"""
import random
import time

from qms import Error
from soak_guest import PATIENCE, Crash, Hang, Refused
from soak_relay import Relay, free_port

MIB = 1 << 20
CAPS = ('xbzrle', 'postcopy-ram', 'postcopy-preempt', 'multifd', 'return-path',
        'pause-before-switchover', 'late-block-activate', 'mapped-ram',
        'background-snapshot', 'postcopy-readahead', 'release-ram')
LIMIT = 300                     # seconds that a wait may last, with progress
FREE = ('completed', 'failed', 'cancelled')


class Migration:
    """One migration of soak.guest, with all that is decided for it.

    soak    guest, new_guest(), counters
    number  what it is decided by, with the seed
    kind    one of KINDS (soak_rounds.py)
    """

    def __init__(self, soak, number, kind):
        self.soak, self.number, self.kind = soak, number, kind
        r = self.r = random.Random(f'{soak.seed}:{number}')
        self.sides = {
            'stock': ('stock', 'stock'), 'patched': ('patched', 'patched'),
            'mixed': r.choice([('stock', 'patched'), ('patched', 'stock')]),
            'any': (r.choice(['stock', 'patched']),
                    r.choice(['stock', 'patched']))}[soak.pair]
        if kind == 'snapshot':
            self.sides = 'patched', 'patched'
        self.post = kind in ('postcopy', 'recover')
        self.caps = {}
        self.relay = self.dst = None
        self.pending = []           # reads of memory that have no answer yet
        self.plan_features()

    def plan_features(self):
        r = self.r
        self.transport = r.choice(['unix', 'tcp', 'relay-unix', 'relay-tcp'])
        if self.kind in ('recover', 'cut'):
            self.transport = r.choice(['relay-unix', 'relay-tcp'])
        extra = r.choice(['plain', 'multifd', 'xbzrle', 'zero-page'])
        self.extra = extra
        if self.post or (self.kind in ('cancel', 'cut') and r.random() < 0.3):
            self.caps['postcopy-ram'] = True
            self.caps['postcopy-preempt'] = r.random() < 0.5
            self.caps['postcopy-readahead'] = r.random() < 0.5 and \
                self.caps['postcopy-preempt']
            # with it there is no recovery
            self.caps['release-ram'] = r.random() < 0.2 and \
                self.kind != 'recover'
            if self.caps['postcopy-preempt'] and extra == 'multifd':
                self.extra = extra = 'plain'
        self.caps[extra] = True
        self.caps['return-path'] = self.post or r.random() < 0.5
        self.held = self.kind in ('cancel', 'cut')
        self.caps['late-block-activate'] = self.held
        self.pauses = self.kind in ('precopy', 'postcopy') and r.random() < 0.4
        self.caps['pause-before-switchover'] = self.pauses
        self.params = {
            'max-bandwidth': r.choice([20, 50, 200]) * MIB,
            'max-postcopy-bandwidth': r.choice([0, 5, 20, 60]) * MIB,
            'downtime-limit': r.choice([100, 300]),
            'multifd-channels': r.choice([1, 2, 4]),
            'xbzrle-cache-size': r.choice([4, 64]) * MIB,
            'zero-page-detection': r.choice(['none', 'legacy', 'multifd'])
            if extra == 'zero-page' else 'multifd',
            'postcopy-preempt-dscp': r.choice([0, 46]),
            'postcopy-readahead-size': r.choice([16, 64])}
        self.ksm = r.random() < 0.3

    def __str__(self):
        caps = ' '.join(c for c in CAPS if self.caps.get(c))
        return (f'{self.kind}, {"->".join(self.sides)}, {self.transport}, '
                f'{self.extra}, {caps}')

    # What both ends have in common

    def configure(self, *guests):
        """Set what all of them know; the rest is as without the series."""
        caps = set.intersection(*(g.known_caps for g in guests))
        params = set.intersection(*(g.known_params for g in guests))
        for g in guests:
            g.qmp('migrate-set-capabilities', capabilities=[
                {'capability': c, 'state': bool(self.caps.get(c)
                                                and c in caps)}
                for c in CAPS if c in g.known_caps])
            for name, value in self.params.items():
                if name in params:
                    try:
                        g.qmp('migrate-set-parameters', **{name: value})
                    except Refused:
                        self.soak.count('refused parameters')

    def phase(self, name):
        for g in (self.soak.guest, self.dst):
            if g:
                g.pulse.phase = name

    def listen(self):
        """A URI for the destination."""
        if self.transport.endswith('tcp'):
            return f'tcp:127.0.0.1:{free_port()}'
        return f'unix:{self.soak.path("in")}'

    def through(self, uri):
        """The URI for the source: a relay's, if there is one."""
        if not self.transport.startswith('relay'):
            return uri
        if self.relay:
            self.relay.close()
        self.relay = Relay(uri, self.transport == 'relay-tcp',
                           self.soak.path('relay'))
        return self.relay.uri

    def begin(self):
        soak = self.soak
        self.dst = soak.new_guest(self.sides[1], incoming=True, held=self.held)
        self.configure(soak.guest, self.dst)
        uri = self.listen()
        self.dst.qmp('migrate-incoming', uri=uri)
        self.phase('precopy')
        soak.guest.qmp('migrate', uri=self.through(uri))

    # Waiting

    def progress(self):
        """(status, something that changes as long as there is progress)"""
        src, dst = self.soak.guest, self.dst
        src.must_live()
        info = src.qmp('query-migrate')
        ram = info.get('ram', {})
        there = (len(dst.monitor.states), dst.killed or dst.vm.is_running()) \
            if dst else ()
        self.src_info = info
        return info.get('status', 'none'), (
            info.get('status'), ram.get('transferred'), ram.get('remaining'),
            there)

    def wait(self, done, what, patience=PATIENCE):
        """Until done(status) is true; returns it."""
        begin = changed = time.monotonic()
        before = None
        while True:
            status, token = self.progress()
            result = done(status)
            if result:
                return result
            now = time.monotonic()
            if token != before:
                before, changed = token, now
            if now - changed > patience or now - begin > LIMIT:
                there = self.dst.monitor.status if self.dst else 'none'
                raise Hang(f'no {what} within {now - begin:.0f} s, and no '
                           f'progress for {now - changed:.0f} s; the source '
                           f'is {status}, the destination {there}')
            time.sleep(0.01)

    def in_flight(self, status):
        return status not in FREE

    # What is done meanwhile

    def read_memory(self, guest, patient=True):
        """As a debugger does; in postcopy the main loop waits for the page."""
        number = guest.read_memory(self.r, f'{self.soak.folder}/mem')
        self.soak.count('memory reads')
        self.pending.append((guest, number))
        if patient:
            self.take_pending()

    def take_pending(self):
        for guest, number in self.pending:
            try:
                guest.monitor.take(number, 'a read of memory')
            except Refused:
                pass
        self.pending = []

    def stop_and_cont(self):
        """Not after the switchover: cont would run the guest twice."""
        src, r = self.soak.guest, self.r
        src.qmp('stop')
        time.sleep(r.random() * 0.5)
        try:
            src.qmp('cont')
        except Refused:
            pass                    # it is in the switchover: comes up paused
        self.soak.count('stop and cont')

    def disturb(self, times, before_switchover):
        """Some things that must not matter."""
        r, src = self.r, self.soak.guest
        for _ in range(times):
            time.sleep(r.random() * 0.3)
            what = r.choice(['read-src', 'read-dst', 'stall', 'stop', 'limit',
                             'info'])
            if what == 'read-src':
                self.read_memory(src)
            elif what == 'read-dst':
                self.read_memory(self.dst)
            elif what == 'stall' and self.relay:
                self.soak.count('stalls')
                self.relay.stall(r.choice([0.05, 0.5, 2]))
            elif what == 'stop' and before_switchover and self.pauses:
                self.stop_and_cont()
            elif what == 'stop' and not before_switchover:
                self.dst.qmp('stop')
                time.sleep(r.random() * 0.3)
                self.dst.qmp('cont')
                self.soak.count('stop and cont')
            elif what == 'limit':
                src.qmp('migrate-set-parameters', **{
                    'max-bandwidth': r.choice([1, 10, 100]) * MIB,
                    'max-postcopy-bandwidth': r.choice([1, 10, 0]) * MIB,
                    'xbzrle-cache-size': r.choice([1, 16, 128]) * MIB})
            elif what == 'info':
                src.qmp('human-monitor-command',
                        **{'command-line': 'info migrate -a'})

    def hurry(self):
        """From here on it has to come to an end."""
        src = self.soak.guest
        src.qmp('migrate-set-parameters', **{
            'max-bandwidth': 0, 'max-postcopy-bandwidth': 0,
            'downtime-limit': 2000})

    def switchover(self, status):
        if status == 'pre-switchover':
            try:
                self.soak.guest.qmp('migrate-continue', state='pre-switchover')
            except Refused:
                pass

    # Ends

    def arrive(self):
        """The destination has the guest now."""
        self.wait(lambda _: self.dst.monitor.status == 'completed' or
                  self.dst_ended(), 'completed at the destination')
        if not self.dst.vm.is_running():
            raise Crash('the source says completed, and the destination has '
                        f'ended: {self.dst.last_words()}')
        self.take_pending()
        old, self.soak.guest, self.dst = self.soak.guest, self.dst, None
        old.close()
        status = self.soak.guest.qmp('query-status')['status']
        if self.held or (self.pauses and status == 'paused'):
            self.soak.guest.qmp('cont')

    def dst_ended(self):
        if self.dst.crashed():
            self.dst.must_live()
        return not self.dst.vm.is_running()

    def stay(self, may_be_paused=False):
        """The source keeps the guest; it has to run."""
        self.take_pending()
        if self.dst.crashed():
            self.dst.must_live()
        self.dst.close()
        self.dst = None

        def runs(_):
            status = self.soak.guest.qmp('query-status')['status']
            return status == 'running' or (may_be_paused and
                                           status == 'paused')
        self.wait(runs, 'guest that runs at the source', 20)

    def complete(self):
        """A migration in which nothing went wrong has to complete."""
        def done(status):
            self.switchover(status)
            if status in ('failed', 'cancelled'):
                raise Error(f'{status} for no reason: '
                            f'{self.src_info.get("error-desc")}; the '
                            f'destination: {self.dst.last_words()}')
            return status == 'completed'
        self.wait(done, 'completed')
        self.arrive()
        return 'completed'
