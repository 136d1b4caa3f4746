"""Help, bad input and bad surroundings: one clear line each."""
import os
import subprocess
import sys
import tarfile
import unittest

from support import SCRIPTS, TOP, VERSION, Copy, Small


class Usage(unittest.TestCase):
    def test_help(self):
        for name in SCRIPTS:
            with self.subTest(script=name):
                result = subprocess.run(
                    [TOP / 'scripts' / name, '--help'], cwd='/',
                    capture_output=True, text=True, check=False)
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertIn(name, result.stdout)
                self.assertGreater(len(result.stdout.splitlines()), 4)

    def test_unknown_argument(self):
        for name in SCRIPTS:
            if name == 'no-pvm':
                continue            # takes a command
            with self.subTest(script=name):
                result = subprocess.run(
                    [TOP / 'scripts' / name, '--nonsense'], cwd='/',
                    capture_output=True, text=True, check=False)
                self.assertEqual(result.returncode, 2)
                self.assertIn('error:', result.stderr.splitlines()[-1])

    def test_no_such_peer(self):
        result = subprocess.run(
            [TOP / 'scripts/check', '--only', 'base', '--peer', 'nonsense'],
            cwd='/', capture_output=True, text=True, check=False)
        self.assertNotEqual(result.returncode, 0)
        self.assertEqual(result.stderr.splitlines()[-1],
                         'check: error: --peer nonsense: no such program')

    def test_no_pvm_runs_the_command(self):
        result = subprocess.run(
            [TOP / 'scripts/no-pvm', 'sh', '-c', 'echo "$1"; exit 3', 'x',
             'a  b'], capture_output=True, text=True, check=False)
        self.assertEqual((result.returncode, result.stdout), (3, 'a  b\n'))

    @unittest.skipUnless(os.path.exists('/sys/module/kvm_pvm'), 'no PVM here')
    def test_no_pvm_hides_kvm(self):
        result = subprocess.run(
            [TOP / 'scripts/no-pvm', 'sh', '-c',
             'test ! -e /dev/kvm && test -w /dev/null && test -d /dev/shm'],
            check=False)
        self.assertEqual(result.returncode, 0)


class Base(Copy):
    with_base = False

    def pins(self, folder, content='not this'):
        folder.mkdir()
        (folder / f'qemu_{VERSION}+ds.orig.tar.xz').write_text(
            content, encoding='utf-8')
        return folder

    def test_wrong_checksum(self):
        cache = self.pins(self.tmp / 'cache')
        status, output = self.run_script('base',
                                         env={'QMS_CACHE': str(cache)})
        self.assertEqual(status, 1)
        self.check_error(output, 'wrong checksum',
                         f'qemu_{VERSION}+ds.orig.tar.xz')
        self.assertFalse((self.work / 'stock/src').exists())

    def test_no_network_and_no_cache(self):
        stubs = self.stub(apt_get='echo "E: no network" >&2; exit 100',
                          curl='exit 6', timeout='echo no route >&2; exit 128')
        status, output = self.run_script('base', path=stubs)
        self.assertEqual(status, 1)
        self.check_error(output, f'cannot get QEMU {VERSION}', 'cache: ',
                         'Debian: ',
                         'upstream: no network', '--from')

    def test_other_version(self):
        tree = self.tmp / 'qemu'
        tree.mkdir()
        (tree / 'VERSION').write_text('9.2.0\n', encoding='ascii')
        status, output = self.run_script('base', '--from', tree)
        self.assertEqual(status, 1)
        self.check_error(output, '9.2.0', f'for {VERSION}')

    def test_altered_tree(self):
        # The right version is not enough.
        tree = self.tmp / 'qemu'
        (tree / 'migration').mkdir(parents=True)
        (tree / 'VERSION').write_text(f'{VERSION}\n', encoding='ascii')
        (tree / 'migration/ram.c').write_text('int x;\n', encoding='ascii')
        tar = self.tmp / 'qemu.tar.gz'
        with tarfile.open(tar, 'w:gz') as t:
            t.add(tree, f'qemu-{VERSION}')
        for source in (tree, tar):
            status, output = self.run_script('base', '--from', source)
            self.assertEqual(status, 1)
            self.check_error(output, f'is not that of QEMU {VERSION}')
            self.assertFalse((self.work / 'stock/src').exists())

    def test_from_nonsense(self):
        for source, word in ((self.tmp / 'none', 'no such file'),
                             (self.top / 'series', 'neither')):
            status, output = self.run_script('base', '--from', source)
            self.assertEqual(status, 1)
            self.check_error(output, word)

    def test_disk_full(self):
        stubs = self.stub(df='echo h; echo "x 100 99 1 99% /"')
        status, output = self.run_script('base', path=stubs)
        self.assertEqual(status, 1)
        self.check_error(output, 'needs 1500 MiB', 'only 1 MiB')


class Build(Copy):
    def test_no_compiler(self):
        status, output = self.run_script('build', 'stock',
                                         env={'CC': 'no-such-cc'})
        self.assertEqual(status, 1)
        self.check_error(output, 'no C compiler no-such-cc')

    def test_disk_full(self):
        stubs = self.stub(df='echo h; echo "x 100 99 1 99% /"')
        (self.work / 'cache/firmware').mkdir(parents=True)
        (self.work / 'cache/firmware/.done').touch()
        status, output = self.run_script('build', 'stock', path=stubs)
        self.assertEqual(status, 1)
        self.check_error(output, 'needs 2000 MiB', 'only 1 MiB')

    def test_neither_root_nor_sudo(self):
        # What is missing is named, for somebody else to install.
        folder = self.stub(
            dpkg_query='exit 1', apt_get='exit 100', id='echo 1000')
        for name in ('sh', 'sed', 'awk', 'mkdir', 'basename', 'dirname',
                     'flock', 'cat', 'env', 'pwd', 'df'):
            found = subprocess.run(['which', name], capture_output=True,
                                   text=True, check=False).stdout.strip()
            if found and not (folder / name).exists():
                (folder / name).symlink_to(found)
        status, output = self.run_script('deps', 'build',
                                         env={'PATH': str(folder)})
        self.assertEqual(status, 1)
        self.check_error(output, 'neither root nor sudo', 'libglib2.0-dev')


class Send(Small):
    def test_dry_run(self):
        status, output = self.run_script(
            'send', 'alpha', '--dry-run', '-v', '3', '--in-reply-to',
            '<cover@example>')
        self.assertEqual(status, 0, output)
        mbox = (self.work / 'send/alpha-v3.mbox').read_text(encoding='utf-8')
        count = len(self.patches('alpha'))
        self.assertEqual(mbox.count('\nSubject: [PATCH v3 '), count + 1)
        self.assertRegex(mbox, rf'\[PATCH v3 0+/{count}\] migration: alpha')
        self.assertIn('To: qemu-devel@nongnu.org', mbox)
        self.assertIn('In-Reply-To: <cover@example>', mbox)
        self.assertRegex(mbox, r'\nbase-commit: [0-9a-f]{40}\n')
        self.assertNotIn('BLURB HERE', mbox)
        # what it needs comes before it, and is told
        self.assertEqual(mbox.count('prerequisite-patch-id: '),
                         sum(len(self.patches(t)) for t in (
                             'testbed', 'fixes-one', 'fixes-two')))

    def test_needs_own_sign_off(self):
        home = self.tmp / 'home'
        home.mkdir()
        (home / '.gitconfig').write_text(
            '[user]\nname = Else\nemail = else@localhost\n', encoding='utf-8')
        status, output = self.run_script('send', 'alpha',
                                         env={'GIT_CONFIG_GLOBAL':
                                              str(home / '.gitconfig')})
        self.assertEqual(status, 1)
        self.check_error(output, 'Signed-off-by: Else <else@localhost>')

    def test_needs_confirmed_rules(self):
        home = self.tmp / 'home'
        home.mkdir()
        name, mail = [ln for ln in self.patches('alpha')[0].read_text(
            encoding='utf-8').splitlines() if ln.startswith('Signed-off-by')
        ][0].split(': ', 1)[1].rstrip('>').split(' <')
        (home / '.gitconfig').write_text(
            f'[user]\nname = {name}\nemail = {mail}\n', encoding='utf-8')
        status, output = self.run_script('send', 'alpha',
                                         env={'GIT_CONFIG_GLOBAL':
                                              str(home / '.gitconfig')})
        self.assertEqual(status, 1)
        self.check_error(output, 'rules were not confirmed')
        self.assertIn('code-provenance.rst', output)


class Results(unittest.TestCase):
    def test_goal_is_computed(self):
        sys.path.insert(0, str(TOP / 'scripts'))
        self.addCleanup(sys.path.remove, str(TOP / 'scripts'))
        from results import result_case
        goal = {'on': 'patched', 'op': '<=', 'value': 5}
        # every pair has to be within a goal on the patched side
        self.assertFalse(result_case('c', 't', 'ms', 'lower', [9, 9], [4, 6],
                                     goal)['met'])
        self.assertTrue(result_case('c', 't', 'ms', 'lower', [9, 9], [4, 5],
                                    goal)['met'])
        # and the median for one on the ratio
        goal = {'on': 'ratio', 'op': '>=', 'value': 2}
        case = result_case('c', 't', 'GB/s', 'higher', [1, 1, 1], [3, 2, 1],
                           goal)
        self.assertTrue(case['met'])
        self.assertEqual(case['ratio'], {'median': 2, 'min': 1, 'max': 3})
        # stock may be nothing at all
        self.assertIsNone(result_case('c', 't', 'pages', 'lower', [0], [0])
                          ['ratio'])


class Load(Copy):
    with_base = False

    def test_guest_load(self):
        # The guest's load program finds its memory right, and says so.
        load = self.tmp / 'load'
        subprocess.run([os.environ.get('CC', 'cc'), '-O2', '-Wall', '-Werror',
                        '-o', str(load), str(self.top / 'tests/guest/load.c')],
                       check=True)
        with subprocess.Popen([load, '8', '4', '50000'], text=True,
                              stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE) as proc:
            self.addCleanup(proc.kill)
            self.assertIn('READY pages=2048', proc.stdout.readline())
            self.assertIn('bad=0', proc.stdout.readline())
            proc.stdin.write('v\n')
            proc.stdin.flush()
            line = proc.stdout.readline()
            while not line.startswith('VERIFY'):
                line = proc.stdout.readline()
            self.assertRegex(line, r'VERIFY pages=2048 bad=0 writes=[1-9]')
            proc.kill()


if __name__ == '__main__':
    unittest.main()
