#!/usr/bin/env python3
"""reader.py SOCKET PLAN [FILE]: the slow storage at a stream's other end.

Listens on a unix socket, takes one stream and counts its bytes (FILE: keeps
them).  Says what happens, with the monotonic clock's time, a line each.

  fast          as fast as it can
  stall:N       1 MiB, then nothing for N seconds, then fast
  count:S:N     as fast as it can; says "first" and "last" after S seconds of
                data and N more, or at the end
  pace:B:R:P    B bytes per second for R seconds, a pause of P, and so on
"""
# SPDX-License-Identifier: GPL-2.0-or-later
import socket
import sys
import time

CHUNK = 1 << 20


class Reader:
    def __init__(self, conn, out):
        self.conn = conn
        self.out = out
        self.buffer = memoryview(bytearray(CHUNK))
        self.total = 0

    def read(self, limit=CHUNK):
        """Bytes read; 0 at the end."""
        try:
            count = self.conn.recv_into(self.buffer[:limit])
        except ConnectionResetError:
            count = 0
        if self.out:
            self.out.write(self.buffer[:count])
        self.total += count
        return count

    def fast(self):
        while self.read():
            pass

    def stall(self, seconds):
        while self.total < CHUNK and self.read(CHUNK - self.total):
            pass
        tell('stall', self.total)
        time.sleep(seconds)
        tell('go', self.total)
        self.fast()

    def count(self, skip, length):
        self.read()
        start = time.monotonic()
        mark, at = None, (start, self.total)
        while True:
            more = self.read()
            now = time.monotonic()
            if not mark and (now >= start + skip or not more):
                # all over within that: what there was of it counts
                mark = at if not more else (now, self.total)
                tell('first', mark[1], mark[0])
            if not more or now >= start + skip + length:
                tell('last', self.total, now)
                break
        self.fast()

    def pace(self, rate, run, pause):
        while True:
            start = time.monotonic()
            done = 0
            while time.monotonic() < start + run:
                # in steps of 10 ms
                due = rate * (time.monotonic() - start + 0.01)
                if due - done < 1:
                    time.sleep(0.005)
                    continue
                count = self.read(min(int(due - done), CHUNK))
                if not count:
                    return
                done += count
                if done >= due - 1:
                    time.sleep(0.01)
            time.sleep(pause)


def tell(what, count, at=None):
    print(what, at or time.monotonic(), count, flush=True)


def main():
    path, plan = sys.argv[1:3]
    plan, *numbers = plan.split(':')
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen(1)
    tell('listening', 0)
    conn, _ = server.accept()
    tell('connected', 0)
    out = open(sys.argv[3], 'wb', 0) if len(sys.argv) > 3 else None
    reader = Reader(conn, out)
    getattr(reader, plan)(*map(float, numbers))
    tell('end', reader.total)


main()
