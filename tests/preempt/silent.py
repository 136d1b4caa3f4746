#!/usr/bin/env python3
"""silent.py [--side S] [--preempt P] [--way W] [--seconds N]: a link that
goes without a word, in the middle of postcopy.

Run by hand; needs root, build/stock/out and build/patched/out (scripts/build)
and the guest (scripts/deps guest).  A Linux guest is switched to postcopy over
a link with a round trip of 1 ms; then everything is dropped in both
directions, and neither end gets a RST, a FIN or ICMP.  Both sides' monitors
are asked what they can say and do.  Prints one line for each question; what
has no answer in time is said to HANG, and then what can be is told out of band
(oob).  The exit status is 1 if something hung or failed.

  --side     stock or patched; both without it
  --preempt  on or off, of postcopy-preempt; both without it
  --way      what is done about it; only both without it
     both    both are told to pause, the link comes back, recovery
     src     only the source is told, the link comes back, recovery
     dst     only the destination is
     none    the link comes back and all has to go on by itself
     first   as both, but with a round trip of 400 ms and as soon as the source
             knows that the guest runs, so that it waits for its first pages
     early   as both, but the source is told to resume before the link is back,
             then to pause, and to resume again when it is
     again   as both, but the link goes again as soon as the recovery begins,
             so that all is done twice
     switch  the link goes right before the switchover; the source is told to
             pause, to cancel, or else to yank, and then the guest has to run
             there again, and there only when the link is back
     pong    the link, here with a round trip of 400 ms, goes when the guest
             begins to run on the destination and the source does not know it
             yet; then as switch
  --seconds  that the link is gone before anyone is told anything (10)
"""
# SPDX-License-Identifier: GPL-2.0-or-later
import argparse
import json
import socket
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'scripts'))

import netns                                        # noqa: E402
from bench_preempt import SIDES, Bench, Case        # noqa: E402
from qms import Error, run_main                     # noqa: E402

ANSWER = 5                      # s that an answer may take
SETTLE = 15                     # s for a state that follows from a command
PORT = 4450                     # of the first recovery
OOB = ['migrate-pause', 'migrate-recover', 'yank']


class Monitor:
    """A QMP connection with out-of-band commands."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(30)
        self.socket.connect(path)
        self.text, self.answers = b'', {}
        self.count, self.hung = 0, 0    # ids
        self._read(time.monotonic() + 30)       # the greeting
        self.ask('qmp_capabilities', {'enable': ['oob']}, timeout=30)

    def _read(self, end):
        """One more message; False if there is none in time."""
        while b'\n' not in self.text:
            self.socket.settimeout(max(end - time.monotonic(), 0.01))
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                return False
            if not data:
                raise ConnectionResetError
            self.text += data
        line, self.text = self.text.split(b'\n', 1)
        message = json.loads(line)
        if 'id' in message:
            self.answers[message['id']] = message
        return True

    def ask(self, command, arguments=None, oob=False, timeout=ANSWER):
        """The answer's 'return', or 'error' with its text; None: no answer.

        While one hangs that is not out of band, no other is sent after it:
        with eight in the queue the monitor would not read the next, out of
        band or not.
        """
        if not oob and self.hung:
            end = time.monotonic() + timeout
            while self.hung not in self.answers and self._read(end):
                pass
            if self.hung not in self.answers:
                return None
            self.hung = 0
        self.count += 1
        key = 'exec-oob' if oob else 'execute'
        end = time.monotonic() + timeout
        try:
            self.socket.sendall(json.dumps({
                key: command, 'arguments': arguments or {},
                'id': self.count}).encode() + b'\n')
            while self.count not in self.answers and self._read(end):
                pass
        except ConnectionError:
            return 'error: this QEMU has ended'
        answer = self.answers.get(self.count)
        if answer is None:
            self.hung = self.hung if oob else self.count
            return None
        if 'error' in answer:
            return f'error: {answer["error"]["desc"]}'
        return answer['return']

    def close(self):
        self.socket.close()


class Trial:
    """One migration whose link goes."""

    def __init__(self, side, preempt, way, seconds):
        self.start = time.monotonic()
        self.name = f'{side}, preempt {"on" if preempt else "off"}, ' \
                    f'pause {way}'
        self.side, self.way, self.seconds = side, way, seconds
        self.case = Case('', False, preempt, 20, mode='par', cpus=2,
                         rtt=400 if way in ('pong', 'first') else 1)
        self.monitors, self.bad = {}, 0

    def say(self, what, words):
        print(f'{self.name}: {time.monotonic() - self.start:5.1f} s: '
              f'{what}: {words}', flush=True)

    def hangs(self, who):
        return self.monitors[who].ask('query-status') is None

    def command(self, who, command, arguments=None, refused=False):
        """Out of band if that can be and has to be: one that hangs would have
        its effect when it gets its turn.  Returns whether it worked.
        refused: that it is an error is all right."""
        oob = command in OOB and self.hangs(who)
        began = time.monotonic()
        got = self.monitors[who].ask(command, arguments, oob)
        word = f'{who} {command}{" oob" if oob else ""}'
        if got is None:
            self.say(word, f'HANGS, no answer in {ANSWER} s')
        else:
            self.say(word, f'{got or "ok"} ({time.monotonic() - began:.1f} s)')
        good = got is not None and not isinstance(got, str)
        self.bad += not good and not refused
        return good

    def look(self):
        """What each side says of itself."""
        for who in 'src', 'dst':
            words = []
            for command in 'query-status', 'query-migrate':
                got = self.monitors[who].ask(command)
                self.bad += got is None
                words.append(f'{command} ' + (
                    'HANGS' if got is None else got if isinstance(got, str)
                    else str(got.get('status'))))
            self.say(who, ', '.join(words))

    def wait(self, who, states, seconds=SETTLE):
        """Until its migration is in one of these states."""
        end, state = time.monotonic() + seconds, None
        while time.monotonic() < end:
            got = self.monitors[who].ask('query-migrate')
            state = got.get('status') if isinstance(got, dict) else got
            if state in states:
                self.say(who, f'is {state}')
                return True
            time.sleep(0.1)
        self.bad += 1
        self.say(who, f'HANGS: it is {state or "silent"} and not '
                      f'{" or ".join(states)} after {seconds} s')
        return False

    def run(self, bench):
        paths = {who: f'{bench.folder}/{who}-oob' for who in ('src', 'dst')}
        more = [('-chardev', f'socket,id=oob,path={path},server=on,wait=off',
                 '-mon', 'chardev=oob,mode=control')
                for path in paths.values()]
        try:
            with netns.Link(*self.case.link) as link:
                try:
                    src, dst = bench.precopy(self.side, self.case, link,
                                             *more)
                    self.monitors = {who: Monitor(path)
                                     for who, path in paths.items()}
                    if self.way in ('switch', 'pong'):
                        self.switch(link, src, dst)
                    else:
                        self.paused(link, dst)
                finally:
                    for monitor in self.monitors.values():
                        monitor.close()
                    bench.close()
        except Error as e:
            self.bad += 1
            self.say('FAILS', str(e))

    def cut(self, link):
        link.cut()
        self.start = time.monotonic()
        self.say('link', 'cut')

    def mend(self, link):
        link.mend()
        self.say('link', 'mended')

    def switch(self, link, src, dst):
        """The link goes right before, or right after."""
        if self.way == 'switch':
            self.cut(link)
        self.command('src', 'migrate-start-postcopy')
        if self.way == 'pong':
            if not dst.vm.event_wait('RESUME', timeout=60):
                raise Error('the destination does not run')
            self.cut(link)
        time.sleep(self.seconds)
        self.look()
        self.command('src', 'migrate-pause', refused=True)
        if not self.command('src', 'migrate_cancel', refused=True):
            self.command('src', 'yank', {'instances': [{'type': 'migration'}]})
        self.wait('src', ['cancelled', 'failed', 'postcopy-paused'])
        self.look()
        src.wait_text('TICK', 30, len(src.text))
        self.say('guest', 'runs on the source')
        self.mend(link)
        heard = len(dst.text) if self.way == 'switch' else 0
        time.sleep(2 * SETTLE)
        self.look()
        if 'TICK' in dst.text[heard:]:
            self.bad += 1
            self.say('guest', 'runs on the DESTINATION, TOO')
            src.wait_text('TICK', 30, len(src.text))
            self.say('guest', 'still runs on the source')

    def recover(self, number):
        uri = f'tcp:{netns.DST}:{PORT + number}'
        self.command('dst', 'migrate-recover', {'uri': uri})
        return self.command('src', 'migrate', {'uri': uri, 'resume': True})

    def pause(self, who):
        """If it is not paused yet."""
        got = self.monitors[who].ask('query-migrate')
        if not isinstance(got, dict) or got['status'] != 'postcopy-paused':
            self.command(who, 'migrate-pause')
        if not self.hangs(who):
            self.wait(who, ['postcopy-paused'])

    def paused(self, link, dst):
        """In the middle of postcopy."""
        self.command('src', 'migrate-start-postcopy')
        self.wait('src', ['postcopy-active'])
        time.sleep(0 if self.way == 'first' else 1)
        self.cut(link)
        time.sleep(1)
        self.look()
        time.sleep(self.seconds)
        self.look()
        told = {'none': (), 'src': ('src',), 'dst': ('dst',)}.get(
            self.way, ('dst', 'src'))
        for who in told:
            self.pause(who)
        if self.way == 'early':
            self.recover(0)
            time.sleep(self.seconds)
            self.look()
            for who in told:
                self.pause(who)
        self.mend(link)
        if told:
            for who in 'dst', 'src':
                if not self.hangs(who):
                    self.wait(who, ['postcopy-paused'], 60)
            self.recover(1)
        if self.way == 'again':
            self.cut(link)
            time.sleep(self.seconds)
            self.look()
            for who in told:
                self.pause(who)
            self.mend(link)
            self.recover(2)
        self.monitors['src'].ask('migrate-set-parameters',
                                 {'max-postcopy-bandwidth': 0})
        for who in 'src', 'dst':
            if not self.wait(who, ['completed'], 300):
                return
        dst.verify()
        self.say('guest', 'runs, its memory is right')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--side', choices=list(SIDES), action='append')
    parser.add_argument('--preempt', choices=['off', 'on'], action='append')
    parser.add_argument('--way', action='append', choices=[
        'both', 'src', 'dst', 'none', 'first', 'early', 'again', 'switch',
        'pong'])
    parser.add_argument('--seconds', type=float, default=10)
    args = parser.parse_args()
    why = netns.missing(0)
    if why:
        raise Error(why)
    if not 0 <= args.seconds <= 3600:
        raise Error('--seconds is 0 to 3600')
    # what the QMP library has to say when a QEMU has ended
    sys.unraisablehook = lambda _: None
    bad = {}
    with tempfile.TemporaryDirectory(prefix='qms-silent.') as folder:
        bench = Bench(folder, True)
        for way in args.way or ['both']:
            for preempt in args.preempt or ['off', 'on']:
                for side in args.side or list(SIDES):
                    trial = Trial(side, preempt == 'on', way, args.seconds)
                    trial.run(bench)
                    bad[trial.name] = trial.bad
    for name, count in bad.items():
        print(f'{name}: {count or "nothing"} hung or failed')
    return 1 if any(bad.values()) else 0


if __name__ == '__main__':
    run_main(main)
