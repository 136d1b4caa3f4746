"""A slow or a long link between two network namespaces, for the benchmarks.

Imported, not a program.  Needs root.  Nothing of the machine's own network is
touched, and all of it goes with the namespaces.
SPDX-License-Identifier: GPL-2.0-or-later
"""
import os
import select
import shutil
import subprocess
import tempfile
from pathlib import Path

from qms import TOP, Error

SRC, DST = '10.97.1.1', '10.97.2.2'
TIMEOUT = 60                    # of each command, s


def missing(rtt=None):
    """Why there can be no link here, with that rtt; None if there can."""
    if os.geteuid():
        return 'network namespaces need root'
    for tool in ('ip', 'tc'):
        if not shutil.which(tool):
            return f'there is no {tool} (package iproute2)'
    if rtt is not None and not os.path.exists('/dev/net/tun'):
        return 'there is no /dev/net/tun'
    return None


def build(name, folder):
    """Compile tests/preempt/NAME.c into a folder; returns the program."""
    program = Path(folder) / name
    if not program.exists():
        result = subprocess.run(
            [os.environ.get('CC', 'cc'), '-O2', '-pthread', '-o', str(program),
             str(TOP / f'tests/preempt/{name}.c')],
            capture_output=True, text=True, check=False, timeout=TIMEOUT)
        if result.returncode:
            raise Error(f'{name} does not compile: ' + (
                result.stderr.strip().splitlines() or ['?'])[-1])
    return program


class Link:
    """src and dst, and what is between them, shaped from src to dst.

    mbit    tbf's rate, with pfifo_fast below it; 0: as fast as it can
    router  the shaped interface is that of a router in between, and not of the
            sending host
    rtt     ms that packets take there and back, half of it in each direction
            and after the shaping, by tests/preempt/delay.c; 0: as little as
            that can; None: without that program
    As a context: on leaving, also by an error, the namespaces are removed.
    With an rtt the link can be cut, and mended, without either end being told:
    no RST, no FIN, no ICMP.
    """

    def __init__(self, mbit, router, rtt=None):
        if rtt is not None and not 0 <= rtt <= 10000:
            raise Error(f'a link\'s rtt is 0 to 10000 ms, and not {rtt}')
        self.mbit, self.router, self.rtt = mbit, router, rtt
        self.delay = None
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
        if self.delay:
            self.delay.kill()
            self.delay.communicate()
            self.delay = None
        while self.made:
            subprocess.run(['ip', 'netns', 'del', self.made.pop()],
                           capture_output=True, check=False, timeout=TIMEOUT)

    def enter(self, ns):
        """What to put before a command to run it there."""
        return ['ip', 'netns', 'exec', ns]

    def cut(self):
        """Drop everything in both directions, also what is on its way."""
        self._tell('cut', 'cut')

    def mend(self):
        """Let everything pass again."""
        self._tell('mend', 'mended')

    def lost(self):
        """How many packets did not fit into the queues behind the shaping,
        and while it is cut none of those that are dropped for it."""
        lost = int(self._tell('lost', 'lost ').split()[1])
        for ns, dev in (self.hop, 'out'), (self.dst, 'in'):
            lost += int(self._run(f'cat /sys/class/net/{dev}/statistics/'
                                  'tx_dropped', ns))
        return lost

    def _tell(self, word, answer):
        """Say a word to delay; returns its answer, which begins so."""
        if not self.delay:
            raise Error(f'{word}: the link has no rtt')
        try:
            if word:
                self.delay.stdin.write(word + '\n')
                self.delay.stdin.flush()
            line = ''
            if select.select([self.delay.stdout], [], [], TIMEOUT)[0]:
                line = self.delay.stdout.readline().strip()
        except BrokenPipeError:
            line = ''
        if not line.startswith(answer):
            self.delay.kill()
            words = self.delay.stderr.read().strip() or 'no answer'
            raise Error(words if words.startswith('delay: ')
                        else f'delay: {words}')
        return line

    def _run(self, line, ns=None, stdin=''):
        cmd = [*(self.enter(ns) if ns else []), *line.split()]
        result = subprocess.run(cmd, capture_output=True, text=True,
                                input=stdin, check=False, timeout=TIMEOUT)
        if result.returncode:
            raise Error(f'{line}: {result.stderr.strip() or "failed"}')
        return result.stdout

    def _long_wire(self, a, a_if, b, b_if):
        with tempfile.TemporaryDirectory(prefix='qms-link.') as folder:
            self.delay = subprocess.Popen(
                [str(build('delay', folder)), a, a_if, b, b_if,
                 str(round(self.rtt * 500))], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            self._tell('', 'ready')

    def _wire(self, a, a_if, a_addr, b, b_if, b_addr, rtt=None):
        if rtt is None:
            self._run(f'ip link add {a_if} netns {a} type veth peer name '
                      f'{b_if} netns {b}')
        else:
            self._long_wire(a, a_if, b, b_if)
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
        self._wire(self.hop, 'out', '10.97.2.1', self.dst, 'in', DST,
                   self.rtt)
        # /proc/sys/net is that of the process's namespace
        self._run('tee /proc/sys/net/ipv4/ip_forward', self.hop, '1')
        self._run('ip route add default via 10.97.1.2', self.src)
        self._run('ip route add default via 10.97.2.1', self.dst)
        if not self.mbit:
            return
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
