"""What the tests of the scripts share.

SPDX-License-Identifier: GPL-2.0-or-later
"""
import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
WORK = Path(os.environ.get('QMS_WORK', TOP / 'build'))
SCRIPTS = ['apply', 'base', 'bench', 'build', 'check', 'demo', 'deps', 'lint',
           'no-pvm', 'plot', 'refresh', 'send']


# Nobody's configuration of git makes a difference.
os.environ['GIT_CONFIG_GLOBAL'] = '/dev/null'


def git(tree, *args):
    return subprocess.run(
        ['git', '-C', str(tree), '-c', 'user.name=Test', '-c',
         'user.email=test@localhost', *args], check=True, capture_output=True,
        text=True).stdout.strip()


def base_is_there():
    if not (WORK / 'stock/.base').exists():
        subprocess.run([TOP / 'scripts/base'], check=True,
                       capture_output=True)


class Copy(unittest.TestCase):
    """A test on a copy of the project, with generated things of its own.

    The base is the real one, by link: getting it is tested elsewhere.
    """
    with_base = True

    def setUp(self):
        tmp = tempfile.mkdtemp(prefix='qms-test.')
        self.addCleanup(shutil.rmtree, tmp, ignore_errors=True)
        self.tmp = Path(tmp)
        self.top = self.tmp / 'series'
        self.top.mkdir()
        for name in ('scripts', 'patches', 'tests'):
            shutil.copytree(TOP / name, self.top / name,
                            ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copy(TOP / 'series', self.top)
        self.work = self.tmp / 'work'
        self.work.mkdir()
        if self.with_base:
            base_is_there()
            (self.work / 'stock').symlink_to(WORK / 'stock')

    def run_script(self, name, *args, env=None, path=None, cwd='/'):
        """Run a script of the copy; returns (status, output)."""
        full = {**os.environ, 'QMS_WORK': str(self.work), **(env or {})}
        if path:
            full['PATH'] = f'{path}:{full["PATH"]}'
        full.pop('QMS_LOCKED', None)
        result = subprocess.run([str(self.top / 'scripts' / name),
                                 *map(str, args)],
                                env=full, cwd=cwd, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True,
                                timeout=300, check=False)
        return result.returncode, result.stdout

    def check_error(self, output, *words):
        """One line that says what is wrong."""
        lines = [ln for ln in output.splitlines() if ': error: ' in ln]
        self.assertEqual(len(lines), 1, output)
        self.assertNotIn('Traceback', output)
        for word in words:
            self.assertIn(word, lines[0])

    def stub(self, **commands):
        """A folder for PATH with commands that do as told."""
        folder = self.tmp / 'stubs'
        folder.mkdir(exist_ok=True)
        for name, body in commands.items():
            path = folder / name.replace('_', '-')
            path.write_text(f'#!/bin/sh\n{body}\n', encoding='utf-8')
            path.chmod(0o755)
        return folder

    def topics(self):
        text = (self.top / 'series').read_text(encoding='utf-8')
        return re.findall(r'^# (\w+):', text, re.M)

    def patches(self, topic):
        return sorted((self.top / 'patches' / topic).glob('0*.patch'))

    def edit(self, path, old, new, count=1):
        text = path.read_text(encoding='utf-8')
        self.assertIn(old, text)
        path.write_text(text.replace(old, new, count), encoding='utf-8')
