"""A slow link between two network namespaces, for the benchmarks.

Imported, not a program.  Needs root.  Nothing of the machine's own network is
touched, and all of it goes with the namespaces.
SPDX-License-Identifier: GPL-2.0-or-later
"""
import os
import shutil
import subprocess

from qms import Error

SRC, DST = '10.97.1.1', '10.97.2.2'


def missing():
    """Why there can be no link here; None if there can."""
    if os.geteuid():
        return 'network namespaces need root'
    for tool in ('ip', 'tc'):
        if not shutil.which(tool):
            return f'there is no {tool} (package iproute2)'
    return None


class Link:
    """src and dst, and what is between them, shaped from src to dst.

    mbit    tbf's rate, with pfifo_fast below it
    router  the shaped interface is that of a router in between, and not of the
            sending host
    As a context: on leaving, also by an error, the namespaces are removed.
    """

    def __init__(self, mbit, router):
        self.mbit, self.router = mbit, router
        name = f'qms{os.getpid()}'
        self.src, self.dst = f'{name}-src', f'{name}-dst'
        self.hop = f'{name}-hop'
        self.made = []

    def __enter__(self):
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc):
        while self.made:
            subprocess.run(['ip', 'netns', 'del', self.made.pop()],
                           capture_output=True, check=False)

    def enter(self, ns):
        """What to put before a command to run it there."""
        return ['ip', 'netns', 'exec', ns]

    def _run(self, line, ns=None, stdin=''):
        cmd = [*(self.enter(ns) if ns else []), *line.split()]
        result = subprocess.run(cmd, capture_output=True, text=True,
                                input=stdin, check=False)
        if result.returncode:
            raise Error(f'{line}: {result.stderr.strip() or "failed"}')

    def _wire(self, a, a_if, a_addr, b, b_if, b_addr):
        self._run(f'ip link add {a_if} netns {a} type veth peer name {b_if} '
                  f'netns {b}')
        for ns, dev, addr in (a, a_if, a_addr), (b, b_if, b_addr):
            self._run(f'ip addr add {addr}/24 dev {dev}', ns)
            self._run(f'ip link set {dev} up', ns)

    def _make(self):
        for ns in (self.src, self.dst, self.hop):
            self._run(f'ip netns add {ns}')
            self.made.append(ns)
            self._run('ip link set lo up', ns)
        # always with the hop, so that only the place of the shaping differs
        self._wire(self.src, 'out', SRC, self.hop, 'in', '10.97.1.2')
        self._wire(self.hop, 'out', '10.97.2.1', self.dst, 'in', DST)
        # /proc/sys/net is that of the process's namespace
        self._run('tee /proc/sys/net/ipv4/ip_forward', self.hop, '1')
        self._run('ip route add default via 10.97.1.2', self.src)
        self._run('ip route add default via 10.97.2.1', self.dst)
        ns = self.hop if self.router else self.src
        # Packets of TCP, up to 64 KiB, that do not fit into the bucket are cut
        # up on their way in, as before a wire.  With a large bucket it fills
        # while one of them waits, and a small one then passes it sooner
        # than a wire could send it.  But at 1 Gbit cutting up takes so much
        # CPU time that two cores do not fill the link; so there they are
        # 16 KiB at most, 0.13 ms, and stay whole.
        burst = 3200
        if self.mbit > 500:
            burst = 20480
            for end in (self.src, self.hop):
                self._run('ip link set dev out gso_max_size 16384', end)
        self._run(f'tc qdisc add dev out root handle 1: tbf rate {self.mbit}'
                  f'mbit burst {burst} latency 50ms', ns)
        self._run('tc qdisc add dev out parent 1:1 handle 10: pfifo_fast', ns)
