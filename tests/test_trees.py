"""apply and refresh: onto a clone, into the generated tree and back."""
import hashlib
import subprocess
import tempfile
import unittest
from pathlib import Path

from support import WORK, Copy, base_is_there, git


def clone(folder):
    subprocess.run(['git', 'clone', '-q', '--shared', str(WORK / 'stock/src'),
                    str(folder)], check=True)
    return folder


class UserTree(Copy):
    @classmethod
    def setUpClass(cls):
        base_is_there()
        cls.folder = tempfile.TemporaryDirectory(prefix='qms-test.')
        cls.addClassCleanup(cls.folder.cleanup)
        cls.tree = clone(Path(cls.folder.name) / 'qemu')

    def setUp(self):
        super().setUp()
        git(self.tree, 'reset', '-q', '--hard', 'origin/base')

    def state(self):
        return (git(self.tree, 'rev-parse', 'HEAD'),
                git(self.tree, 'status', '--porcelain'),
                git(self.tree, 'symbolic-ref', 'HEAD'))

    def apply(self, *args, **kw):
        ident = {'GIT_COMMITTER_NAME': 'Somebody',
                 'GIT_COMMITTER_EMAIL': 'somebody@localhost'}
        return self.run_script('apply', '--tree', self.tree, *args, env=ident,
                               **kw)

    def test_apply(self):
        status, output = self.apply()
        self.assertEqual(status, 0, output)
        count = sum(len(self.patches(t)) for t in self.topics())
        self.assertEqual(git(self.tree, 'rev-list', '--count', 'origin/base..HEAD'),
                         str(count))
        self.assertIn('Somebody', git(self.tree, 'log', '-1', '--format=%cn'))
        self.assertEqual(git(self.tree, 'status', '--porcelain'), '')
        # once more is an error, and changes nothing
        before = self.state()
        status, output = self.apply()
        self.assertEqual(status, 1)
        self.check_error(output, 'testbed/0001', 'does not apply')
        self.assertEqual(self.state(), before)

    def test_topic(self):
        status, output = self.apply('--topic', 'testbed')
        self.assertEqual(status, 0, output)
        self.assertEqual(git(self.tree, 'rev-list', '--count', 'origin/base..HEAD'),
                         str(len(self.patches('testbed'))))

    def test_unknown_topic(self):
        status, output = self.apply('--topic', 'nothing')
        self.assertEqual(status, 1)
        self.check_error(output, 'nothing', 'testbed, xbzrle')

    def test_conflict(self):
        # A clear message, and the tree as it was.
        path = self.tree / 'migration/options.c'
        self.edit(path, 'migrate_params_apply(params, errp);',
                  'migrate_params_apply(params, errp); /* mine */')
        git(self.tree, 'commit', '-qam', 'mine')
        before = self.state()
        status, output = self.apply()
        self.assertEqual(status, 1)
        name = [p.name for p in self.patches('xbzrle')
                if 'migrate_params_apply(params, errp)' in p.read_text()][0]
        self.check_error(output, name, 'migration/options.c')
        self.assertEqual(self.state(), before)

    def test_dirty(self):
        self.edit(self.tree / 'VERSION', '10.2.2', '10.2.2\n')
        status, output = self.apply()
        self.assertEqual(status, 1)
        self.check_error(output, 'VERSION', 'commit or stash')

    def test_other_version(self):
        self.edit(self.tree / 'VERSION', '10.2.2', '9.1.0')
        git(self.tree, 'commit', '-qam', 'other')
        status, output = self.apply()
        self.assertEqual(status, 1)
        self.check_error(output, '9.1.0', '10.2.2')

    def test_not_qemu(self):
        empty = self.tmp / 'empty'
        empty.mkdir()
        for tree, word in ((empty, 'not a git work tree'),
                           (self.tmp / 'none', 'not a git work tree')):
            status, output = self.run_script('apply', '--tree', tree)
            self.assertEqual(status, 1)
            self.check_error(output, word)


class GeneratedTree(Copy):
    def digest(self):
        return {str(p.relative_to(self.top)):
                hashlib.sha256(p.read_bytes()).hexdigest()
                for p in sorted((self.top / 'patches').glob('*/*'))
                + [self.top / 'series']}

    def ok(self, *args):
        status, output = self.run_script(*args)
        self.assertEqual(status, 0, output)
        return output

    def test_round_trip_and_work(self):
        before = self.digest()
        self.ok('apply')
        tree = self.work / 'patched/src'
        self.ok('refresh')
        self.assertEqual(self.digest(), before)
        self.ok('refresh', '--check')
        self.assertIn('already up to date', self.ok('apply'))

        # A change that is not committed is not overwritten
        self.edit(tree / 'migration/ram.c', ' */', ' * */')
        status, output = self.run_script('apply')
        self.check_error(output, 'migration/ram.c', 'commit or stash')

        # A new commit becomes the next patch, and is not lost either
        last = self.topics()[-1]
        git(tree, 'commit', '-qsam', 'migration/ram: a test\n\nJust that.')
        status, output = self.run_script('apply')
        self.check_error(output, f'topic/{last}', 'refresh')
        status, output = self.run_script('refresh', '--check')
        self.check_error(output, 'migration-ram-a-test')
        self.ok('refresh')
        after = self.digest()
        new = sorted(after.keys() - before.keys())
        number = len([n for n in before if f'{last}/0' in n])
        name = f'{last}/{number:04}-migration-ram-a-test.patch'
        self.assertEqual(new, [f'patches/{name}'])
        self.assertTrue((self.top / 'series').read_text(encoding='utf-8')
                        .endswith(f'{name}\n'))
        self.ok('apply')

        # and goes again with the commit
        git(tree, 'reset', '-q', '--hard', 'HEAD~1')
        self.ok('refresh')
        self.assertEqual(self.digest(), before)

        # A branch that is not stacked would write nonsense
        git(tree, 'checkout', '-q', 'topic/testbed')
        git(tree, 'commit', '-q', '--allow-empty', '-m', 'x: y')
        status, output = self.run_script('refresh')
        self.check_error(output, 'topic/xbzrle', 'not stacked')
        self.assertEqual(self.digest(), before)
        self.ok('apply', '--force')
        self.ok('refresh', '--check')

    def test_interrupted(self):
        # A clone that was cut short is no dead end.
        half = self.work / 'patched/src.new'
        half.mkdir(parents=True)
        (half / 'configure').write_text('half', encoding='utf-8')
        self.ok('apply')
        self.assertFalse(half.exists())


if __name__ == '__main__':
    unittest.main()
