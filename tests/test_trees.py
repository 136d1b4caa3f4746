"""apply and refresh: onto a clone, into the generated tree and back."""
import hashlib
import subprocess
import unittest

from support import VERSION, WORK, Copy, Small, base_is_there, git, temporary

IDENT = {'GIT_COMMITTER_NAME': 'Somebody',
         'GIT_COMMITTER_EMAIL': 'somebody@localhost'}


class Tree:
    """A clone of the base that a class of tests shares."""

    def fresh(self, tree):
        for verb in ('rebase', 'am', 'merge', 'cherry-pick'):
            subprocess.run(['git', '-C', str(tree), verb, '--abort'],
                           capture_output=True, check=False)
        git(tree, 'checkout', '-q', '-f', '-B', 'mine', 'origin/base')
        git(tree, 'clean', '-q', '-f', '-d', '-x')

    def state(self, tree=None):
        tree = tree or self.tree
        branch = subprocess.run(['git', '-C', str(tree), 'symbolic-ref', '-q',
                                 'HEAD'], capture_output=True, text=True,
                                check=False).stdout
        return (git(tree, 'rev-parse', 'HEAD'), branch,
                git(tree, 'status', '--porcelain', '--ignored'),
                git(tree, 'for-each-ref'))

    def apply(self, *args, tree=None, **kw):
        return self.run_script('apply', '--tree', tree or self.tree, *args,
                               env=IDENT, **kw)

    def applied(self, *args, tree=None):
        """apply has to work; returns its output and the commits on the base."""
        status, output = self.apply(*args, tree=tree)
        self.assertEqual(status, 0, output)
        return output, self.log(tree)

    def log(self, tree=None):
        return git(tree or self.tree, 'log', '--format=%s', '--reverse',
                   'origin/base..HEAD').splitlines()

    def refused(self, *words, args=(), tree=None):
        """apply says why not, in one line, and the tree is as it was."""
        before = self.state(tree)
        status, output = self.apply(*args, tree=tree)
        self.assertEqual(status, 1, output)
        self.check_error(output, *words)
        self.assertEqual(self.state(tree), before)


class RealSeries(Tree, Copy):
    def test_apply(self):
        base_is_there()
        self.tree = self.tmp / 'qemu'
        git(self.tmp, 'clone', '-q', '--shared', '--no-checkout',
            WORK / 'stock/src', self.tree)
        git(self.tree, 'sparse-checkout', 'set', '--no-cone', '/VERSION')
        git(self.tree, 'checkout', '-q', 'base')
        _, log = self.applied()
        self.assertEqual(len(log), sum(len(self.patches(t))
                                       for t in self.topics()))
        self.assertIn('Somebody', git(self.tree, 'log', '-1', '--format=%cn'))
        self.assertEqual(git(self.tree, 'status', '--porcelain'), '')
        # once more finds that each is there
        before = self.state()
        output, _ = self.applied()
        self.assertIn('apply: 0 patches applied', output)
        self.assertEqual(self.state(), before)


class UserTree(Tree, Small):
    shared = None

    def setUp(self):
        super().setUp()
        if not UserTree.shared:
            UserTree.shared = temporary() / 'qemu'
            git(self.tmp, 'clone', '-q', self.work / 'stock/src',
                UserTree.shared)
        self.tree = UserTree.shared
        self.fresh(self.tree)

    def count(self, *topics):
        return sum(len(self.patches(t)) for t in topics)

    def test_apply(self):
        _, log = self.applied()
        self.assertEqual(len(log), self.count(*self.topics()))
        self.assertIn('Somebody', git(self.tree, 'log', '-1', '--format=%cn'))
        self.assertEqual(git(self.tree, 'status', '--porcelain'), '')
        # once more changes nothing, and says so
        before = self.state()
        output, _ = self.applied()
        self.assertIn('testbed: all 1 patches are in', output)
        self.assertIn('0 patches applied', output)
        self.assertEqual(self.state(), before)

    def test_topic(self):
        _, log = self.applied('--topic', 'testbed')
        self.assertEqual(len(log), self.count('testbed'))

    def test_fixes(self):
        _, log = self.applied('--fixes')
        self.assertEqual(len(log), self.count('testbed', 'fixes-one',
                                              'fixes-two'))
        self.fresh(self.tree)
        status, output = self.apply('--fixes', '--topic', 'alpha')
        self.assertEqual(status, 2)
        self.check_error(output, 'not allowed with')
        self.assertEqual(self.log(), [])

    def test_no_fixes(self):
        path = self.top / 'series'
        path.write_text(path.read_text(encoding='utf-8').replace(
            '# fixes-', '# mends-').replace('testbed fixes', 'testbed'),
            encoding='utf-8')
        self.refused('no topic fixes-', args=['--fixes'])

    def test_topic_after_topic(self):
        self.applied('--fixes')
        for topic in ('alpha', 'beta'):
            output, log = self.applied('--topic', topic)
            self.assertIn('fixes-one: all 2 patches are in', output)
        self.assertEqual(len(log), self.count(*self.topics()))
        tree = git(self.tree, 'rev-parse', 'HEAD^{tree}')
        # in the other order, too
        self.fresh(self.tree)
        for topic in ('beta', 'alpha'):
            self.applied('--topic', topic)
        self.assertEqual(git(self.tree, 'rev-parse', 'HEAD^{tree}'), tree)

    def test_one_is_there(self):
        # by its patch id, whatever its subject is
        self.applied('--fixes')
        git(self.tree, 'reset', '-q', '--hard', 'origin/base')
        git(self.tree, 'cherry-pick', 'ORIG_HEAD')
        git(self.tree, 'commit', '-q', '--amend', '-m', 'backport: mine')
        output, log = self.applied('--fixes')
        self.assertIn('fixes-two: all 1 patches are in', output)
        self.assertEqual(log[0], 'backport: mine')
        self.assertEqual(len(log), self.count('testbed', 'fixes-one',
                                              'fixes-two'))

    def test_first_of_a_topic_is_there(self):
        status, output = self.run_script('apply')
        self.assertEqual(status, 0, output)
        git(self.tree, 'fetch', '-q', self.work / 'patched/src',
            'topic/fixes-one')
        git(self.tree, 'reset', '-q', '--hard', 'FETCH_HEAD~1')
        output, log = self.applied('--fixes')
        self.assertIn(f'fixes-one/{self.patches("fixes-one")[0].name} is in '
                      f'{self.tree} already, skipped', output)
        self.assertEqual(len(log), self.count('testbed', 'fixes-one',
                                              'fixes-two'))

    def mine(self, name, old, new, message='mine'):
        self.edit(self.tree / name, old, new)
        git(self.tree, 'commit', '-qam', message)

    def test_there_with_another_context(self):
        # merged with --3way once, and found by its subject after that
        self.mine('migration/two.c', 'step_09 = 9;', 'step_09 = 9; /* 9 */')
        self.refused('fixes-two/0001', 'migration/two.c:', '--3way may merge',
                     args=['--fixes'])
        _, log = self.applied('--fixes', '--3way')
        before = self.state()
        output, _ = self.applied('--fixes')
        self.assertIn('fixes-two: all 1 patches are in', output)
        self.assertEqual(self.state(), before)
        # another change of that subject is told
        git(self.tree, 'reset', '-q', '--hard', 'origin/base')
        self.mine('migration/two.c', 'int step_10 = 10;\n',
                  'int step_10 = 10;\nint no_crash = 2;\n',
                  'migration/two: no crash')
        self.refused('fixes-two/0001', 'has its subject, but another change',
                     args=['--fixes'])

    def test_merge_in_any_order(self):
        # with the files that the patches were made from, which it lacks
        self.mine('migration/two.c', 'step_29 = 29;', 'step_29 = 29; /* 29 */')
        self.mine('migration/one.c', 'step_19 = 19;', 'step_19 = 19; /* 19 */')
        self.refused('beta/0002', args=['--topic', 'beta'])
        self.applied('--topic', 'beta', '--3way')
        _, log = self.applied('--3way')
        self.assertEqual(len(log), 2 + self.count(*self.topics()))

    def test_reverted(self):
        # What was taken back is not there.
        self.applied('--fixes')
        git(self.tree, 'revert', '--no-edit', 'HEAD')
        output, log = self.applied('--fixes')
        self.assertIn('1 patches applied', output)
        self.assertEqual(log[-1], log[-3])
        output, _ = self.applied('--fixes')
        self.assertIn('0 patches applied', output)

    def test_unknown_topic(self):
        self.refused('nothing', 'testbed, fixes-one', args=['--topic',
                                                            'nothing'])

    def test_conflict(self):
        # A clear message, and the tree as it was.
        self.mine('migration/one.c', 'int step_20 = 20;',
                  'int step_20 = 20; /* mine */')
        self.refused(self.patches('alpha')[0].name, 'migration/one.c')
        self.refused(self.patches('alpha')[0].name, 'migration/one.c',
                     args=['--3way'])

    def test_dirty(self):
        self.edit(self.tree / 'VERSION', VERSION, VERSION + '\n')
        self.refused('VERSION', 'commit or stash')

    def test_unfinished_rebase(self):
        self.mine('migration/one.c', 'step_03 = 3', 'step_03 = 4')
        git(self.tree, 'checkout', '-q', '-b', 'other', 'origin/base')
        self.mine('migration/one.c', 'step_03 = 3', 'step_03 = 5')
        result = subprocess.run(['git', '-C', str(self.tree), '-c',
                                 'user.name=T', '-c', 'user.email=t@x',
                                 'rebase', 'mine'], capture_output=True,
                                check=False)
        self.assertNotEqual(result.returncode, 0)
        self.refused('in the middle of a rebase')

    def test_in_the_way(self):
        # git am would stop half-way; of an ignored file nothing would be left
        patch = self.patches('alpha')[0].name
        path = self.tree / 'migration/alpha.h'
        for ignored in (False, True):
            if ignored:
                (self.tree / '.git/info/exclude').write_text('alpha.h\n',
                                                             encoding='ascii')
            path.write_text('mine\n', encoding='ascii')
            self.refused(patch, 'migration/alpha.h', 'in the way')
            self.assertEqual(path.read_text(encoding='ascii'), 'mine\n')
        path.unlink()
        path.mkdir()
        (path / 'file').touch()
        self.refused(patch, 'migration/alpha.h', 'in the way')
        (self.tree / '.git/info/exclude').unlink()

    def test_locked(self):
        # whatever git says is one line
        lock = self.tree / '.git/index.lock'
        lock.touch()
        self.addCleanup(lock.unlink)
        before = git(self.tree, 'rev-parse', 'HEAD')
        status, output = self.apply()
        self.assertEqual(status, 1)
        self.check_error(output, f'git merge in {self.tree}', 'index.lock')
        self.assertEqual(git(self.tree, 'rev-parse', 'HEAD'), before)

    def test_detached(self):
        git(self.tree, 'checkout', '-q', '--detach')
        branch = git(self.tree, 'rev-parse', 'mine')
        self.assertEqual(len(self.applied()[1]), self.count(*self.topics()))
        self.assertEqual(git(self.tree, 'rev-parse', 'mine'), branch)

    def test_linked_work_tree(self):
        linked = self.tmp / 'linked'
        git(self.tree, 'worktree', 'add', '-q', '--detach', linked)
        self.addCleanup(git, self.tree, 'worktree', 'prune')
        self.edit(linked / 'migration/one.c', 'step_03 = 3', 'step_03 = 4')
        git(linked, 'commit', '-qam', 'of the linked one')
        before = self.state()
        self.assertEqual(len(self.applied(tree=linked)[1]),
                         self.count(*self.topics()) + 1)
        self.assertEqual(self.state(), before)

    def test_shallow(self):
        shallow = self.tmp / 'shallow'
        self.mine('migration/one.c', 'step_03 = 3', 'step_03 = 4')
        git(self.tmp, 'clone', '-q', '--depth', '1', f'file://{self.tree}',
            shallow)
        status, output = self.apply(tree=shallow)
        self.assertEqual(status, 0, output)
        self.assertEqual(len(git(shallow, 'log', '--format=%h').split()),
                         self.count(*self.topics()) + 1)

    def test_versions(self):
        release = VERSION.rpartition('.')[0]
        patches = self.count(*self.topics())
        for version in (f'{release}.2', f'{release}.0', f'{VERSION}-foo',
                        f'{VERSION}+ds1', f'{release}.12.el9'):
            with self.subTest(version=version):
                self.fresh(self.tree)
                self.mine('VERSION', VERSION, version)
                self.assertEqual(len(self.applied()[1]), patches + 1)
        # .50 and above are on the way to the next release
        for version in (f'{release}.50', f'{release}.92', f'{release}0.1',
                        '11.1.0', 'nonsense', ''):
            with self.subTest(version=version):
                self.fresh(self.tree)
                self.mine('VERSION', VERSION, version)
                self.refused(f'is QEMU "{version}";', f'{release}.49',
                             'scripts/port')
                self.assertEqual(len(self.applied('--any-version')[1]),
                                 patches + 1)

    def test_other_version(self):
        self.mine('VERSION', VERSION, '9.1.0')
        self.refused('9.1.0', VERSION)

    def test_not_qemu(self):
        empty = self.tmp / 'empty'
        empty.mkdir()
        bare = self.tmp / 'bare'
        git(self.tmp, 'clone', '-q', '--bare', self.tree, bare)
        other = self.tmp / 'other'
        git(self.tmp, 'init', '-q', other)
        for tree, word in ((empty, 'not a git work tree'),
                           (self.tmp / 'none', 'not a git work tree'),
                           (bare, 'not a git work tree'),
                           (self.tree / '.git', 'not a git work tree'),
                           (self.tree / 'VERSION', 'not a git work tree'),
                           (other, 'no VERSION file')):
            status, output = self.run_script('apply', '--tree', tree)
            self.assertEqual(status, 1)
            self.check_error(output, word)

    def test_empty_name(self):
        # It is not the current folder.
        before = self.state()
        for script, *args in (('apply',), ('send', 'alpha', '--dry-run'),
                              ('port',)):
            for tree in ([''], []):
                status, output = self.run_script(script, *args, '--tree',
                                                 *tree, cwd=self.tree)
                self.assertEqual(status, 2)
                self.check_error(output, '--tree')
        # Nor is no topic all of them.
        for script in ('apply', 'port'):
            status, output = self.run_script(script, '--tree', self.tree,
                                             '--topic', '')
            self.assertEqual(status, 1)
            self.check_error(output, 'no topic ""')
        self.assertEqual(self.state(), before)


class GeneratedTree(Small):
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
        self.edit(tree / 'migration/one.c', 'step_20', 'step_x')
        status, output = self.run_script('apply')
        self.check_error(output, 'migration/one.c', 'commit or stash')

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
        self.check_error(output, 'topic/fixes-one', 'not stacked')
        self.assertEqual(self.digest(), before)
        self.ok('apply', '--force')
        self.ok('refresh', '--check')

    def test_fixes(self):
        self.assertIn('4 patches, 3 topics', self.ok('apply', '--fixes'))
        tree = self.work / 'patched/src'
        self.assertEqual(git(tree, 'for-each-ref', '--format=%(refname:short)',
                             'refs/heads/topic').split(),
                         ['topic/fixes-one', 'topic/fixes-two',
                          'topic/testbed'])
        # a part of the series is not taken for all of it
        before = self.digest()
        status, output = self.run_script('refresh')
        self.assertEqual(status, 1)
        self.check_error(output, 'no branch topic/alpha')
        self.assertEqual(self.digest(), before)
        self.ok('apply')
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
