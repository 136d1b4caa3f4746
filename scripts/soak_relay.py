"""A relay between two QEMUs that stalls, cuts and half-closes connections.

Imported by soak, not a program.
SPDX-License-Identifier: GPL-2.0-or-later
"""
import select
import socket
import threading
import time

PIECE = 64 << 10                # bytes that are read at a time


def free_port():
    """A TCP port of the loopback that nobody has at the moment."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def connect_to(uri, timeout=10):
    """A socket that is connected to unix:PATH or tcp:HOST:PORT, in seconds."""
    kind, _, rest = uri.partition(':')
    if kind == 'unix':
        s, address = socket.socket(socket.AF_UNIX), rest
    else:
        host, port = rest.rsplit(':', 1)
        s, address = socket.socket(), (host, int(port))
    s.settimeout(timeout)
    s.connect(address)
    s.settimeout(None)
    return s


class Relay:
    """Listens, and forwards each connection to another address.

    target  URI of the destination
    tcp     listen on a TCP port; a UNIX socket at `path` otherwise
    """

    def __init__(self, target, tcp, path):
        self.target = target
        self.pairs = []             # of sockets: the source's, the other one
        self.lock = threading.Lock()
        self.over = False
        self.go = threading.Event()
        self.go.set()
        if tcp:
            self.server = socket.socket()
            self.server.bind(('127.0.0.1', 0))
            self.uri = f'tcp:127.0.0.1:{self.server.getsockname()[1]}'
        else:
            self.server = socket.socket(socket.AF_UNIX)
            self.server.bind(str(path))
            self.uri = f'unix:{path}'
        self.server.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while not self.over:
            try:
                if not select.select([self.server], [], [], 0.1)[0]:
                    continue
                source, _ = self.server.accept()
            except (OSError, ValueError):
                return
            try:
                pair = source, connect_to(self.target)
            except OSError:
                source.close()
                continue
            with self.lock:
                if self.over:
                    self._close(pair)
                    return
                self.pairs.append(pair)
            for a, b in (pair, pair[::-1]):
                threading.Thread(target=self._forward, args=(a, b),
                                 daemon=True).start()

    def _forward(self, a, b):
        try:
            while True:
                data = a.recv(PIECE)
                while not self.go.wait(0.1):
                    pass
                if not data:
                    break
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)
        except OSError:
            self._close((a, b))

    @staticmethod
    def _close(pair):
        """To both sides; threads that use them see it.

        Without the close a peer could go on to fill the socket's buffer.
        """
        for s in pair:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            s.close()

    def stall(self, seconds):
        """Nothing is forwarded for so long."""
        self.go.clear()
        time.sleep(seconds)
        self.go.set()

    def half_close(self, side):
        """No more data for a side: 0 the source, 1 the destination."""
        with self.lock:
            for pair in self.pairs:
                try:
                    pair[side].shutdown(socket.SHUT_WR)
                except OSError:
                    pass

    def cut(self, one=None):
        """End all connections, or the one of that number; no new ones."""
        with self.lock:
            pairs = self.pairs if one is None else self.pairs[one:one + 1]
            self.over = one is None or self.over
            for pair in pairs:
                self._close(pair)
        self.go.set()

    def close(self):
        self.cut()
        self.server.close()
