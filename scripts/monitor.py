#!/usr/bin/env python3
"""monitor.py SOCKET SECONDS: how long does a monitor of QEMU keep silent?

Asks query-status every 5 ms on a QMP socket that nobody else uses, for
SECONDS, and prints how long the answers took: a line for each power of two
that there is, the longest silence, and when it began (seconds after the
start).  A question without an answer at the end counts with the time that it
has waited.  Exit status 1: there was such a question, or QEMU has ended.

Also imported: Watch does the same in a thread.
"""
# SPDX-License-Identifier: GPL-2.0-or-later
import argparse
import json
import socket
import threading
import time

from qms import Error, run_main

PAUSE = 0.005                   # s between an answer and the next question


class Watch(threading.Thread):
    """Asks until finish(); what it saw is in the attributes.

    longest   the longest silence, s
    began     when that began, on the monotonic clock
    waiting   since when a question has no answer; None when there is none
    late      how much too late this thread itself woke up at worst, s: what a
              busy machine does
    answers   how many there were
    buckets   {N: answers that took [2^N, 2^(N+1)) us}
    ended     QEMU closed the connection
    """

    def __init__(self, path):
        super().__init__(daemon=True)
        self.longest = self.late = 0.0
        self.began = self.start_time = time.monotonic()
        self.waiting = None
        self.answers = 0
        self.buckets = {}
        self.ended = False
        self.ending = threading.Event()
        self.data = b''
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        try:
            self.sock.connect(str(path))
            self._line()
            self._ask('qmp_capabilities')
        except (OSError, ValueError) as e:
            self.sock.close()
            raise Error(f'{path}: no QMP monitor answers: {e}') from e
        # From here on an answer may take as long as it likes.
        self.sock.settimeout(0.5)
        self.start()

    def _line(self):
        while b'\n' not in self.data:
            try:
                more = self.sock.recv(65536)
            except TimeoutError:
                if self.ending.is_set() or self.waiting is None:
                    raise
                continue
            if not more:
                raise ConnectionResetError('QEMU has ended')
            self.data += more
        line, self.data = self.data.split(b'\n', 1)
        return json.loads(line)

    def _ask(self, command):
        self.sock.sendall(b'{"execute": "%s"}\n' % command.encode())
        while True:
            answer = self._line()
            if 'return' in answer or 'error' in answer:
                return

    def _note(self, begin, end):
        if end - begin > self.longest:
            self.longest, self.began = end - begin, begin

    def run(self):
        due = time.monotonic()
        while not self.ending.is_set():
            begin = time.monotonic()
            self.late = max(self.late, begin - due)
            self.waiting = begin
            try:
                self._ask('query-status')
            except TimeoutError:
                return              # finish() was called; it counts this one
            except OSError:
                self.ended = True
                self.waiting = None
                return
            self.waiting = None
            end = time.monotonic()
            self._note(begin, end)
            self.answers += 1
            n = max(int((end - begin) * 1e6).bit_length() - 1, 0)
            self.buckets[n] = self.buckets.get(n, 0) + 1
            due = end + PAUSE
            time.sleep(PAUSE)

    def silence(self):
        """The longest until now, with the one that lasts, s."""
        since = self.waiting
        return max(self.longest, time.monotonic() - since if since else 0)

    def lap(self):
        """The longest since the last lap(), s; the next one begins."""
        longest = self.silence()
        self.longest = 0.0
        return longest

    def finish(self):
        """End, and return the longest silence, s."""
        self.ending.set()
        self.join(5)
        if self.waiting is not None:
            self._note(self.waiting, time.monotonic())
        self.sock.close()
        return self.longest

    def lines(self):
        """The histogram as text."""
        for n in sorted(self.buckets):
            yield f'{2 ** n / 1000:10.3f} ms and more: {self.buckets[n]}'


def seconds(text):
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError('must be positive')
    return value


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('socket')
    parser.add_argument('seconds', type=seconds)
    args = parser.parse_args()
    watch = Watch(args.socket)
    watch.join(args.seconds)
    longest = watch.finish()
    for line in watch.lines():
        print(line)
    print(f'{watch.answers} answers; longest silence {longest * 1000:.1f} ms, '
          f'{watch.began - watch.start_time:.3f} s after the start; this '
          f'program itself was up to {watch.late * 1000:.1f} ms late')
    if watch.waiting is not None:
        print('the last question has no answer')
    if watch.ended:
        print('QEMU has ended')
    return int(watch.ended or watch.waiting is not None)


if __name__ == '__main__':
    run_main(main)
