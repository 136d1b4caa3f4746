"""port: onto another version, with conflicts, on and back."""
import re
import subprocess
import unittest

from support import VERSION, Small, git, temporary

IDENT = {'GIT_COMMITTER_NAME': 'Somebody',
         'GIT_COMMITTER_EMAIL': 'somebody@localhost'}


class Port(Small):
    """A clone of the base in which upstream went on.

    One commit changes a line beside what alpha's first patch adds, another
    one is what fixes-two's patch does.
    """
    shared = None

    def setUp(self):
        super().setUp()
        if not Port.shared:
            tree = Port.shared = temporary() / 'qemu'
            git(self.tmp, 'clone', '-q', self.work / 'stock/src', tree)
            git(tree, 'tag', f'v{VERSION}')
            for name, old, new, subject in (
                    ('VERSION', VERSION, '11.0.92', 'Update version'),
                    ('migration/one.c', 'step_20 = 20;', 'step_20 = 21;',
                     'migration: count right'),
                    ('migration/one.c', 'step_02 = 2;', 'step_02 = 3;',
                     'migration: far away'),
                    ('migration/two.c', 'int step_10 = 10;\n',
                     'int step_10 = 10;\nint no_crash = 1;\n',
                     'migration: do not crash')):
                self.edit(tree / name, old, new)
                git(tree, 'commit', '-qam', subject)
            git(tree, 'tag', 'upstream')
        self.tree = self.tmp / 'qemu'
        git(self.tmp, 'clone', '-q', Port.shared, self.tree)
        git(self.tree, 'checkout', '-q', '-b', 'mine', 'upstream')
        self.upstream = git(self.tree, 'log', '-1', '--format=%h',
                            '--abbrev=12', '--grep=count right')

    def port(self, *args, tree=None):
        return self.run_script('port', '--tree', tree or self.tree, *args,
                               env=IDENT)

    def stopped(self, *args):
        """It stops at alpha's first patch; returns what it says."""
        status, output = self.port(*args)
        self.assertEqual(status, 1, output)
        self.check_error(output, self.patches('alpha')[0].name,
                         'migration/one.c', '--continue', '--abort')
        return output

    def resolve(self, add=True):
        path = self.tree / 'migration/one.c'
        text = path.read_text(encoding='utf-8')
        path.write_text(re.sub(
            r'<{7}.*?>{7}.*?\n', 'int step_20 = 21;\nint faster = 1;\n', text,
            flags=re.S), encoding='utf-8')
        if add:
            git(self.tree, 'add', 'migration/one.c')

    def done(self, *args):
        status, output = self.port(*args)
        self.assertEqual(status, 0, output)
        return output

    def refused(self, *words, args=()):
        before = self.state()
        status, output = self.port(*args)
        self.assertEqual(status, 1, output)
        self.check_error(output, *words)
        self.assertEqual(self.state(), before)

    def state(self):
        branch = subprocess.run(['git', '-C', str(self.tree), 'symbolic-ref',
                                 '-q', 'HEAD'], capture_output=True, text=True,
                                check=False).stdout
        return (git(self.tree, 'rev-parse', 'HEAD'), branch,
                git(self.tree, 'status', '--porcelain'),
                git(self.tree, 'for-each-ref'),
                git(self.tree, 'config', '-l', '--local'))

    def row(self, output, topic):
        """The numbers of a row of the table, by column."""
        names = re.search(r'^\| topic \|(.*)\|$', output, re.M)[1].split('|')
        cells = re.search(rf'^\| {topic} \|(.*)\|$', output, re.M)[1].split('|')
        return {n.strip(): int(c) for n, c in zip(names, cells) if int(c)}

    def test_conflict_and_continue(self):
        mine = git(self.tree, 'rev-parse', 'mine')
        self.edit(self.top / 'MAINTAINERS-notes.md', '## Rebase log\n', f'''\
## Rebase log

| upstream | what | touches |
|---|---|---|
| {self.upstream} | counts right | our counting |
| 0123456789 | another thing | migration/one.c |
| 0123456789 | another thing | nothing of ours |
''')
        output = self.stopped()
        self.assertIn('"migration/one: go faster"', output)
        self.assertIn('  migration/one.c: 1 hunk\n'
                      f'    {self.upstream} migration: count right\n', output)
        self.assertNotIn('far away', output)
        self.assertIn('| counts right |', output)
        self.assertIn('| migration/one.c |', output)
        self.assertNotIn('nothing of ours', output)

        status = self.done('--status')
        self.assertIn('at alpha/0001', status)
        self.assertIn('not resolved: migration/one.c', status)
        self.assertEqual(self.row(status, 'alpha'),
                         {'patches': 2, 'to do': 2, 'hunks': 1})

        # not before it is resolved, and added, as a whole
        self.refused('migration/one.c is not resolved', args=['--continue'])
        git(self.tree, 'add', 'migration/one.c')
        self.refused('migration/one.c still has conflict markers',
                     args=['--continue'])
        self.resolve(add=False)
        self.refused('migration/one.c has changes that were not added',
                     args=['--continue'])
        self.refused('a port is going on', args=[])
        git(self.tree, 'add', 'migration/one.c')
        output = self.done('--continue')
        self.assertEqual(self.row(output, 'all'), {
            'patches': 8, 'by itself': 6, 'with conflicts': 1,
            'already there': 1, 'hunks': 1})
        self.assertEqual(self.row(output, 'fixes-two'),
                         {'patches': 1, 'already there': 1})
        self.assertIn('with conflicts:\n- alpha: migration/one: go faster '
                      '(hunks: 1; migration/one.c)\n', output)
        self.assertIn('already there:\n- fixes-two: migration/two: no crash\n',
                      output)

        # one branch a topic, each on the one before; nobody else's has moved
        for topic, count in (('testbed', 1), ('fixes-one', 3),
                             ('fixes-two', 3), ('alpha', 5), ('beta', 7)):
            self.assertEqual(git(self.tree, 'rev-list', '--count',
                                 f'mine..qms/{topic}'), str(count), topic)
        self.assertEqual(git(self.tree, 'symbolic-ref', '--short', 'HEAD'),
                         'qms/beta')
        self.assertEqual(git(self.tree, 'rev-parse', 'mine'), mine)
        self.assertEqual(git(self.tree, 'status', '--porcelain'), '')
        self.assertIn('int step_20 = 21;\nint faster = 1;\n',
                      git(self.tree, 'show', 'qms/alpha:migration/one.c'))
        # the messages and authors are the patches', who commits is the user
        self.assertEqual(
            git(self.tree, 'log', '-1', '--format=%an|%cn|%B', 'qms/alpha~1'),
            git(self.tree, 'log', '-1', '--format=%an|Somebody|%B',
                'refs/qms/topics/alpha~1'))
        # nothing is left that would change what git does
        self.assertFalse((self.tree / '.git/rr-cache').exists())
        self.assertFalse((self.tree / '.git/qms-port').exists())
        self.refused('no port is going on', args=['--continue'])

    def test_abort(self):
        (self.tree / 'notes.txt').write_text('mine\n', encoding='ascii')
        before = self.state()
        self.stopped()
        self.resolve()
        self.done('--abort')
        self.assertEqual(self.state(), before)
        self.assertEqual((self.tree / 'notes.txt').read_text(encoding='ascii'),
                         'mine\n')
        self.assertFalse((self.tree / '.git/rr-cache').exists())
        for verb in ('--continue', '--abort', '--status'):
            self.refused('no port is going on', args=[verb])
        # from a detached HEAD, too
        git(self.tree, 'checkout', '-q', '--detach')
        before = self.state()
        self.stopped()
        self.done('--abort')
        self.assertEqual(self.state(), before)

    def test_abort_later(self):
        # of the commits and branches that were made nothing is left
        self.edit(self.tree / 'migration/two.c', 'step_30 = 30', 'step_30 = 3')
        git(self.tree, 'commit', '-qam', 'another conflict, in beta')
        before = self.state()
        self.stopped()
        self.resolve()
        status, output = self.port('--continue')
        self.check_error(output, 'beta/0002')
        self.assertIn('another conflict, in beta', output)
        git(self.tree, 'rev-parse', 'qms/alpha')
        self.done('--abort')
        self.assertEqual(self.state(), before)

    def test_remembered(self):
        # what was resolved once is not asked again
        before = self.state()
        self.stopped()
        self.resolve()
        output = self.done('--continue')
        tree = git(self.tree, 'rev-parse', 'HEAD^{tree}')
        git(self.tree, 'checkout', '-q', 'mine')
        self.refused('has a branch qms/testbed already')
        for topic in self.topics():
            git(self.tree, 'branch', '-qD', f'qms/{topic}')
        output = self.done()
        self.assertIn('alpha/0001', output)
        self.assertEqual(self.row(output, 'alpha'),
                         {'patches': 2, 'by itself': 1,
                          'resolved as before': 1, 'hunks': 1})
        self.assertEqual(git(self.tree, 'rev-parse', 'HEAD^{tree}'), tree)
        self.assertEqual(git(self.tree, 'config', '-l', '--local'), before[-1])

    def test_own_rerere_stays(self):
        (self.tree / '.git/rr-cache').mkdir()
        self.stopped()
        self.resolve()
        self.done('--continue')
        self.assertTrue((self.tree / '.git/rr-cache').exists())

    def test_committed_by_hand(self):
        self.stopped()
        self.resolve()
        git(self.tree, '-c', 'core.editor=true', 'cherry-pick', '--continue')
        output = self.done('--continue')
        self.assertEqual(self.row(output, 'alpha'),
                         {'patches': 2, 'by itself': 1, 'with conflicts': 1,
                          'hunks': 1})

    def test_ended_by_hand(self):
        # then it is tried once more
        self.stopped()
        git(self.tree, 'cherry-pick', '--abort')
        self.stopped('--continue')
        git(self.tree, 'cherry-pick', '--quit')
        self.resolve()
        self.refused('migration/alpha.h has changes', args=['--continue'])
        git(self.tree, 'reset', '-q', '--hard')
        self.stopped('--continue')

    def test_left_out(self):
        self.stopped()
        git(self.tree, 'checkout', '-q', 'HEAD', '--', '.')
        git(self.tree, 'rm', '-q', '-f', 'migration/alpha.h')
        output = self.done('--continue')
        self.assertEqual(self.row(output, 'alpha')['left out'], 1)
        self.assertIn('left out:\n- alpha: migration/one: go faster', output)

    def test_somewhere_else(self):
        self.stopped()
        self.resolve()
        git(self.tree, 'stash', '-q')
        git(self.tree, 'checkout', '-q', 'mine')
        self.refused('is not where the port was', args=['--continue'])
        # what is on a branch is not touched
        self.edit(self.tree / 'migration/one.c', 'step_03', 'step_x')
        self.done('--abort')
        self.assertEqual(git(self.tree, 'status', '--porcelain'),
                         'M migration/one.c')

    def test_file_is_gone(self):
        git(self.tree, 'rm', '-q', 'migration/one.c')
        git(self.tree, 'commit', '-qm', 'migration: one is gone')
        status, output = self.port()
        self.assertEqual(status, 1)
        self.check_error(output, 'fixes-one/0001', 'migration/one.c')
        self.assertIn('your tree has no such file', output)
        self.assertIn('migration: one is gone', output)
        git(self.tree, 'rm', '-q', '--cached', 'migration/one.c')
        (self.tree / 'migration/one.c').unlink()
        status, output = self.port('--continue')
        self.check_error(output, 'alpha/0001')

    def test_own_patches_are_not_upstream(self):
        # The second one is beside what the first one brought.
        self.edit(self.tree / 'migration/one.c', 'step_11 = 11', 'step_11 = 1')
        git(self.tree, 'commit', '-qam', 'migration: one is enough')
        status, output = self.port()
        self.check_error(output, 'fixes-one/0001')
        path = self.tree / 'migration/one.c'
        path.write_text(re.sub(
            r'<{7}.*?>{7}.*?\n', 'int not_lost = 1;\nint step_11 = 1;\n',
            path.read_text(encoding='utf-8'), flags=re.S), encoding='utf-8')
        git(self.tree, 'add', '-u')
        output = self.stopped('--continue')
        self.assertIn('  migration/one.c: 2 hunks\n', output)
        self.assertIn('migration: one is enough', output)
        self.assertIn('migration: count right', output)
        self.assertNotIn('do not lose a step', output)

    def test_no_history(self):
        git(self.tree, 'checkout', '-q', '--orphan', 'alone')
        git(self.tree, 'commit', '-qm', 'a snapshot of upstream')
        git(self.tree, 'tag', '-d', f'v{VERSION}')
        self.assertIn('no upstream commits are named', self.stopped())
        self.resolve()
        self.done('--continue')

    def test_topics(self):
        output = self.done('--fixes')
        self.assertEqual(self.row(output, 'all'),
                         {'patches': 4, 'by itself': 3, 'already there': 1})
        self.assertEqual(git(self.tree, 'branch', '--list', 'qms/*',
                             '--format=%(refname:short)').split(),
                         ['qms/fixes-one', 'qms/fixes-two', 'qms/testbed'])
        # a feature on top of them: what is there already is found
        output = self.done('--topic', 'beta')
        self.assertEqual(self.row(output, 'all'),
                         {'patches': 6, 'by itself': 2, 'already there': 4})
        self.assertEqual(git(self.tree, 'rev-parse', 'qms/fixes-two'),
                         git(self.tree, 'rev-parse', 'qms/beta~2'))

    def test_refusals(self):
        self.refused('nothing', args=['--topic', 'nothing'])
        self.edit(self.tree / 'VERSION', '11', '12')
        self.refused('VERSION', 'commit or stash')
        git(self.tree, 'checkout', '-q', '.')
        (self.tree / 'migration/alpha.h').write_text('mine', encoding='ascii')
        self.refused('alpha/0001', 'in the way')
        (self.tree / 'migration/alpha.h').unlink()
        status, output = self.port('--abort', '--topic', 'alpha')
        self.assertEqual(status, 2)
        bare = self.tmp / 'bare'
        git(self.tmp, 'clone', '-q', '--bare', self.tree, bare)
        status, output = self.port(tree=bare)
        self.check_error(output, 'not a git work tree')

    def test_apply_during_a_port(self):
        self.stopped()
        self.resolve()
        git(self.tree, 'commit', '-qm', 'by hand')
        status, output = self.run_script('apply', '--any-version', '--tree',
                                         self.tree, env=IDENT)
        self.assertEqual(status, 1)
        self.check_error(output, 'in the middle of scripts/port')


if __name__ == '__main__':
    unittest.main()
