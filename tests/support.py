"""What the tests of the scripts share.

SPDX-License-Identifier: GPL-2.0-or-later
"""
import atexit
import functools
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
           'no-pvm', 'plot', 'port', 'refresh', 'send', 'soak']
VERSION = re.search(r'^QEMU_VERSION=(\S+)$', (TOP / 'scripts/lib.sh')
                    .read_text(encoding='utf-8'), re.M)[1]

# Nobody's configuration of git makes a difference.
os.environ['GIT_CONFIG_GLOBAL'] = '/dev/null'


def git(tree, *args, stdin=None):
    return subprocess.run(
        ['git', '-C', str(tree), '-c', 'user.name=Test', '-c',
         'user.email=test@localhost', '-c', 'protocol.file.allow=always',
         *args], check=True, capture_output=True, text=True,
        input=stdin).stdout.strip()


def base_is_there():
    if not (WORK / 'stock/.base').exists():
        subprocess.run([TOP / 'scripts/base'], check=True,
                       capture_output=True)


def temporary():
    folder = tempfile.mkdtemp(prefix='qms-test.')
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def edit(path, old, new, count=1):
    text = path.read_text(encoding='utf-8')
    if old not in text:
        raise AssertionError(f'{path} does not have {old!r}')
    path.write_text(text.replace(old, new, count), encoding='utf-8')


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
        self.work = self.tmp / 'work'
        self.work.mkdir()
        self.copy()

    def copy(self):
        self.top.mkdir()
        for name in ('scripts', 'patches', 'tests', 'docs'):
            shutil.copytree(TOP / name, self.top / name,
                            ignore=shutil.ignore_patterns(
                                '__pycache__', '*.png', '*.json'))
        for name in ('series', 'README.md', 'MAINTAINERS-notes.md'):
            shutil.copy(TOP / name, self.top)
        if self.with_base:
            base_is_there()
            (self.work / 'stock').symlink_to(WORK / 'stock')

    def run_script(self, name, *args, env=None, path=None, cwd='/'):
        """Run a script of the copy; returns (status, output)."""
        full = {**os.environ, 'QMS_WORK': str(self.work)}
        full.pop('QMS_LOCKED', None)
        full.pop('QMS_CACHE', None)
        full.update(env or {})
        if path:
            full['PATH'] = f'{path}:{full["PATH"]}'
        result = subprocess.run([str(self.top / 'scripts' / name),
                                 *map(str, args)],
                                env=full, cwd=cwd, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True,
                                timeout=300, check=False)
        self.assertNotIn('Traceback', result.stdout)
        return result.returncode, result.stdout

    def check_error(self, output, *words):
        """One line that says what is wrong, in our words and not git's."""
        lines = [ln for ln in output.splitlines() if ': error: ' in ln]
        self.assertEqual(len(lines), 1, output)
        self.assertNotIn('safe.directory', output)
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
        return re.findall(r'^# ([\w-]+):', text, re.M)

    def patches(self, topic):
        return sorted((self.top / 'patches' / topic).glob('0*.patch'))

    edit = staticmethod(edit)


# ---- a small series on a small base, for what does not depend on the real ones

SERIES = '''# The order.
# testbed: what all need
# fixes-one: repairs of one; needs: testbed
# fixes-two: repairs of two; needs: testbed
# alpha: a first feature; needs: testbed fixes
# beta: a second feature; needs: testbed fixes
'''
LINES = ''.join(f'int step_{n:02} = {n};\n' for n in range(1, 41))
FIXES = 'Fixes: 0123456789ab ("migration: add one")'


def after(n, text):
    """An edit: text goes behind line n of LINES."""
    line = f'int step_{n:02} = {n};\n'
    return line, line + text


# (topic, subject, the rest of the message, {file: edits or contents})
PATCHES = [
    ('testbed', 'tests/qtest/migration: a first step', '',
     {'tests/qtest/migration/one.c': [after(5, 'int test_bed;\n')]}),
    ('fixes-one', 'migration/one: do not lose a step', FIXES,
     {'migration/one.c': [after(10, 'int not_lost = 1;\n')]}),
    ('fixes-one', 'tests/qtest/migration: no step is lost', '',
     {'tests/qtest/migration/one.c': [after(10, 'int test_not_lost;\n')]}),
    ('fixes-two', 'migration/two: no crash',
     f'No test: it takes a machine of another kind.\n\n{FIXES}',
     {'migration/two.c': [after(10, 'int no_crash = 1;\n')]}),
    ('alpha', 'migration/one: go faster', '',
     {'migration/one.c': [('int not_lost = 1;', 'int not_lost = 2;'),
                          after(20, 'int faster = 1;\n')],
      'migration/alpha.h': '/* SPDX-License-Identifier: GPL-2.0-or-later */\n'
      '\n/* ' + 'a long line ' * 6 + 'it is */\n'}),
    ('alpha', 'qapi/migration: tell how much faster', '',
     {'qapi/migration.json': [(
         '# @old: as before (since 1.2)\n',
         '# @old: as before (since 1.2)\n#\n# @fast: faster (since 11.2)\n')]}),
    ('beta', 'docs/devel/migration: describe the steps', '',
     {'docs/devel/migration/one.rst': [after(7, 'It has steps.\n')]}),
    ('beta', 'migration/two: add up the steps', '',
     {'migration/two.c': [after(
         30, 'int sum(void)\n{\n    return step_01 + step_02;\n}\n')]}),
]


@functools.lru_cache(None)
def small():
    """The small series and its base, made once: top/, stock/."""
    base_is_there()
    folder = temporary()
    src = folder / 'stock/src'
    src.mkdir(parents=True)
    with subprocess.Popen(
            ['git', '-C', str(WORK / 'stock/src'), 'archive', 'base', 'VERSION',
             'MAINTAINERS', 'COPYING', 'README.rst', 'scripts/checkpatch.pl',
             'scripts/get_maintainer.pl', 'linux-user/meson.build',
             'system/meson.build'], stdout=subprocess.PIPE) as tar:
        subprocess.run(['tar', '-xC', str(src)], stdin=tar.stdout, check=True)
    (src / 'Makefile').touch()
    for name in ('migration/one.c', 'migration/two.c',
                 'tests/qtest/migration/one.c', 'docs/devel/migration/one.rst'):
        (src / name).parent.mkdir(parents=True, exist_ok=True)
        (src / name).write_text(LINES, encoding='utf-8')
    (src / 'qapi').mkdir()
    (src / 'qapi/migration.json').write_text(
        '##\n# @Steps:\n#\n# @old: as before (since 1.2)\n##\n',
        encoding='utf-8')
    git(src, 'init', '-q', '-b', 'base')
    git(src, 'add', '-A')
    git(src, 'commit', '-q', '-m', f'QEMU {VERSION}')
    (folder / 'stock/.base').write_text('tests\n', encoding='utf-8')
    top = folder / 'top'
    shutil.copytree(TOP / 'scripts', top / 'scripts',
                    ignore=shutil.ignore_patterns('__pycache__'))
    (top / 'series').write_text(SERIES, encoding='utf-8')
    work = folder / 'work'
    tree = work / 'patched/src'
    work.mkdir()
    git(folder, 'clone', '-q', str(src), str(tree))
    git(tree, 'checkout', '-q', '--detach')
    notes = '# Notes\n\n## Status\n'
    for topic in re.findall(r'^# ([\w-]+): ', SERIES, re.M):
        (top / 'patches' / topic).mkdir(parents=True)
        (top / 'patches' / topic / '0000-cover-letter.md').write_text(
            f'# migration: {topic} in short\n\nIt makes steps.  Checkpatch '
            'warning "line over 80 characters" as it is long.\n',
            encoding='utf-8')
        notes += f'\n### {topic}\n\n| patch | status |\n|---|---|\n'
        for name, subject, message, changes in PATCHES:
            if name != topic:
                continue
            for path, change in changes.items():
                if isinstance(change, str):
                    (tree / path).write_text(change, encoding='utf-8')
                    continue
                for old, new in change:
                    edit(tree / path, old, new)
            git(tree, 'add', '-A')
            git(tree, 'commit', '-q', '-s', '-m',
                f'{subject}\n\nThere was no such step.\n\n{message}')
            notes += f'| {subject} | own |\n'
        git(tree, 'branch', f'topic/{topic}')
    (top / 'MAINTAINERS-notes.md').write_text(
        notes + '\n## Rebase log\n', encoding='utf-8')
    (top / 'README.md').write_text('# Steps\n', encoding='utf-8')
    (top / 'docs').mkdir()
    (top / 'docs/steps.md').write_text('# Steps\n', encoding='utf-8')
    subprocess.run([top / 'scripts/refresh'], check=True, capture_output=True,
                   env={**os.environ, 'QMS_WORK': str(work)})
    return folder


class Small(Copy):
    """A test on a copy of the small series."""

    def copy(self):
        shutil.copytree(small() / 'top', self.top)
        (self.work / 'stock').symlink_to(small() / 'stock')
