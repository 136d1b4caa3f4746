"""The series, its patches and the trees they are applied to.

Imported by apply, port, refresh, lint, check and send; not a program of its
own.
SPDX-License-Identifier: GPL-2.0-or-later
"""
import argparse
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from email.header import decode_header, make_header
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
WORK = Path(os.environ.get('QMS_WORK') or TOP / 'build').absolute()
STOCK = WORK / 'stock'
PATCHED = WORK / 'patched'
CACHE = WORK / 'cache'
# The base's version is set in one place.
VERSION = re.search(r'^QEMU_VERSION=(\S+)$', (Path(__file__).parent / 'lib.sh')
                    .read_text(encoding='utf-8'), re.M)[1]
NEXT = '11.2'                   # the release in which what is new here can be
COVER = '0000-cover-letter.md'
FIXES = 'fixes-'                # how the names of topics of repairs start

# Everything that could change the bytes of a patch is set here and not by
# the configuration of whoever runs it.
DIFF = ['--full-index', '--no-renames', '--diff-algorithm=myers',
        '--unified=3', '--src-prefix=a/', '--dst-prefix=b/', '--no-ext-diff',
        '--no-textconv', '--no-color']
FORMAT = ['--zero-commit', '--no-signature', '--no-numbered', '--no-thread',
          '--no-attach', '--no-base', '--no-notes', '--stat=80',
          '--subject-prefix=PATCH', *DIFF]


class Error(Exception):
    """Something the user has to know; shown as one line."""


def say(message):
    print(f'{Path(sys.argv[0]).name}: {message}', file=sys.stderr, flush=True)


def interrupt(signum, frame):
    """SIGTERM and SIGHUP end a program as Ctrl-C does: tidily."""
    raise KeyboardInterrupt


def run_main(main):
    """Run main(), with one clear line instead of a traceback."""
    prog = Path(sys.argv[0]).name
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)
    try:
        WORK.mkdir(parents=True, exist_ok=True)
        sys.exit(main())
    except (Error, OSError, EOFError, UnicodeError) as e:
        if isinstance(e, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(141)
        sys.exit(f'{prog}: error: {e or type(e).__name__}')
    except subprocess.CalledProcessError as e:
        last = ((e.stderr or '').strip().splitlines() or [''])[-1]
        cmd = ' '.join(map(str, e.cmd))[:200]
        sys.exit(f'{prog}: error: {cmd}: exit status {e.returncode}'
                 + (f': {last}' if last else ''))
    except KeyboardInterrupt:
        sys.exit(f'{prog}: interrupted')


def take_lock():
    """One writer below build/ at a time; scripts that this one runs share it.

    The same lock, and the same variable, as in lib.sh.
    """
    if os.environ.get('QMS_LOCKED') == '1':
        return
    WORK.mkdir(parents=True, exist_ok=True)
    lock = open(WORK / '.lock', 'w', encoding='ascii')
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f'waiting for another run that uses {WORK}')
        fcntl.flock(lock, fcntl.LOCK_EX)
    os.environ['QMS_LOCKED'] = '1'
    take_lock.held = lock           # until the program ends


def git_error(result):
    """The line of git's output that says what is wrong."""
    lines = (result.stderr + result.stdout).strip().splitlines()
    return next((ln for ln in lines if re.match('(fatal|error): ', ln)),
                lines[-1] if lines else f'exit status {result.returncode}')


def git(repo, *args, check=True, env=None, stdin=None, timeout=None):
    """Run git without the user's configuration; returns its result."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith('GIT_')}
    clean.update(GIT_CONFIG_NOSYSTEM='1', GIT_CONFIG_GLOBAL='/dev/null',
                 LC_ALL='C.UTF-8', TZ='UTC', GIT_TERMINAL_PROMPT='0',
                 GIT_ATTR_NOSYSTEM='1')
    clean.update(env or {})
    cmd = ['git', '-c', 'safe.directory=*', '-c', 'core.autocrlf=false',
           '-c', 'gc.auto=0', '-c', 'commit.gpgSign=false',
           '-c', 'advice.detachedHead=false', '-c', 'core.hooksPath=/dev/null',
           '-c', 'core.attributesFile=/dev/null', '-c',
           'core.excludesFile=/dev/null', '-C', str(repo), *args]
    result = subprocess.run(cmd, check=False, env=clean, input=stdin,
                            capture_output=True, text=True, errors='replace',
                            timeout=timeout)
    if check and result.returncode:
        what = next(a for a in args if a[0] != '-' and '=' not in a)
        raise Error(f'git {what} in {repo}: {git_error(result)}')
    return result


def git_out(repo, *args, **kw):
    return git(repo, *args, **kw).stdout.strip()


class Series:
    """The one order.  `topics` is a list of Topic, in order."""

    class Topic:
        def __init__(self, name, needs):
            self.name = name
            self.needs = needs
            self.patches = []       # paths relative to patches/

    def __init__(self, top=TOP):
        self.top = Path(top)
        self.dir = self.top / 'patches'
        self.topics = []
        path = self.top / 'series'
        try:
            lines = path.read_text(encoding='utf-8').splitlines()
        except OSError as e:
            raise Error(f'cannot read {path}: {e.strerror}') from e
        for n, line in enumerate(lines, 1):
            head = re.match(r'# ([a-z][a-z0-9-]*):', line)
            if head:
                needs = re.search(r'needs: *([a-z0-9 -]+)', line)
                self.topics.append(self.Topic(
                    head[1], needs[1].split() if needs else []))
            elif line.strip() and not line.startswith('#'):
                if not self.topics:
                    raise Error(f'series:{n}: a patch before the first topic')
                self.topics[-1].patches.append(line.strip())
        names = [t.name for t in self.topics]
        fixes = [n for n in names if n.startswith(FIXES)]
        for i, t in enumerate(self.topics):
            if fixes and 'fixes' in t.needs and 'fixes' not in names:
                at = t.needs.index('fixes')
                t.needs[at:at + 1] = fixes
            for need in t.needs:
                if need not in names[:i]:
                    raise Error(f'series: topic {t.name} needs {need}, '
                                'which does not come before it')

    def topic(self, name):
        for t in self.topics:
            if t.name == name:
                return t
        raise Error(f'no topic "{name}"; the series has '
                    + ', '.join(t.name for t in self.topics))

    def choose(self, topic=None, fixes=False):
        """What --topic and --fixes mean: topics, in series order."""
        if topic is not None:
            return self.closure(topic)
        if not fixes:
            return self.topics
        names = [t.name for t in self.topics if t.name.startswith(FIXES)]
        if not names:
            raise Error(f'the series has no topic {FIXES}...')
        return self.closure(*names)

    def closure(self, *names):
        """Topics and those they name as needed, in series order."""
        want = set(names)
        todo = list(names)
        while todo:
            for need in self.topic(todo.pop()).needs:
                if need not in want:
                    want.add(need)
                    todo.append(need)
        return [t for t in self.topics if t.name in want]

    def patches(self):
        return [p for t in self.topics for p in t.patches]

    def path(self, patch):
        p = self.dir / patch
        if not p.is_file():
            raise Error(f'{patch} is in series but not in patches/')
        return p


def read_patch(path):
    """(headers, message, diff) of a patch; the headers are decoded."""
    text = Path(path).read_bytes().decode('utf-8', 'replace')
    head, _, rest = text.partition('\n\n')
    message, _, diff = rest.partition('\n---\n')
    fields = {key: str(make_header(decode_header(re.sub(r'\n[ \t]+', ' ', v))))
              for key, v in re.findall(
                  r'^(From|Subject): (.*(?:\n[ \t].*)*)', head, re.M)}
    return fields, message, diff


def subject_of(path):
    return re.sub(r'^\[PATCH\] ', '', read_patch(path)[0].get('Subject', ''))


def touched_files(paths):
    """The files that a list of patches changes, creates or removes."""
    files = set()
    for p in paths:
        text = Path(p).read_text(encoding='utf-8', errors='replace')
        for m in re.finditer(r'^diff --git a/(\S+) b/(\S+)$', text, re.M):
            files.update(m.groups())
    return sorted(files)


def base_tree():
    """The base's git tree, fetched when it is not there."""
    if not (STOCK / '.base').exists():
        subprocess.run([str(Path(__file__).parent / 'base')], check=True)
    return STOCK / 'src'


def folder(text):
    """argparse's type for --tree: an empty one is not the current folder."""
    if not text:
        raise argparse.ArgumentTypeError('the name of a folder is empty')
    return text


def work_tree(path):
    """(top, version) of a user's clone of QEMU."""
    path = Path(path).resolve()
    if not path.is_dir() or git_out(path, 'rev-parse', '--is-inside-work-tree',
                                    check=False) != 'true':
        raise Error(f'{path} is not a git work tree')
    top = Path(git_out(path, 'rev-parse', '--show-toplevel'))
    try:
        return top, (top / 'VERSION').read_text(encoding='ascii').strip()
    except (OSError, UnicodeError):
        raise Error(f'{top} is not a QEMU source tree (no VERSION file)')


def git_dir(tree):
    return Path(git_out(tree, 'rev-parse', '--absolute-git-dir'))


BUSY = {'rebase-apply': 'a rebase, or of git am', 'rebase-merge': 'a rebase',
        'MERGE_HEAD': 'a merge', 'CHERRY_PICK_HEAD': 'a cherry-pick',
        'REVERT_HEAD': 'a revert', 'sequencer': 'a cherry-pick or revert',
        'BISECT_LOG': 'a bisect', 'qms-port/state': 'scripts/port'}


def must_be_clean(tree):
    """Refuse a tree with changes, or in the middle of something."""
    for name, what in BUSY.items():
        if (git_dir(tree) / name).exists():
            raise Error(f'{tree} is in the middle of {what}; finish or abort '
                        'it first')
    dirty = git(tree, 'status', '--porcelain',
                '--untracked-files=no').stdout.splitlines()
    if dirty:
        raise Error(f'{tree} has changes that are not committed '
                    f'({dirty[0][3:]}); commit or stash them first')


def must_not_be_in_the_way(tree, paths):
    """Refuse files without version control where patches create files.

    Git itself would overwrite those that are ignored.
    """
    for path in paths:
        for name in re.findall(r'^diff --git a/\S+ b/(\S+)\nnew file mode',
                               path.read_text(encoding='utf-8'), re.M):
            for at in (name, *map(str, Path(name).parents)):
                there = tree / at
                if os.path.lexists(there) and (at == name or
                                               not there.is_dir()) and not \
                        git_out(tree, 'ls-files', '--', at):
                    raise Error(f'{path.parent.name}/{path.name} creates '
                                f'{name}, and {there} is in the way, not '
                                'under version control; move it away')


def user_identity(tree):
    """The user's own identity commits in the user's own tree."""
    ident = subprocess.run(['git', '-C', str(tree), 'var',
                            'GIT_COMMITTER_IDENT'],
                           capture_output=True, text=True, check=False)
    match = re.match(r'(.*) <(.*)> ', ident.stdout)
    if not match:
        raise Error('git does not know who you are: set user.name and '
                    'user.email')
    return {'GIT_COMMITTER_NAME': match[1], 'GIT_COMMITTER_EMAIL': match[2]}


class Scratch:
    """A sparse clone in which patches are tried; gone with its `with`.

    Only the folders that the patches touch are checked out, so this takes
    a second where the whole tree would take ten.
    """

    def __init__(self, repo, commit, files):
        WORK.mkdir(parents=True, exist_ok=True)
        self.tmp = tempfile.mkdtemp(prefix='scratch.', dir=WORK)
        self.dir = Path(self.tmp) / 'tree'
        try:
            # Not a clone: that refuses some trees that are fine (shallow
            # ones, linked work trees), and copies every ref.
            self.start = git_out(repo, 'rev-parse', '-q', '--verify',
                                 f'{commit}^{{commit}}')
            git(WORK, 'init', '-q', '-b', 'base', str(self.dir))
            objects, shallow = git_out(
                repo, 'rev-parse', '--path-format=absolute', '--git-path',
                'objects', '--git-path', 'shallow').splitlines()
            self.borrow(objects)
            if Path(shallow).exists():
                shutil.copy(shallow, self.dir / '.git/shallow')
            # patterns for files that are patched, plus what checkpatch and
            # get_maintainer read
            keep = ['/MAINTAINERS', '/VERSION', '/COPYING', '/.gitignore',
                    '/README.rst', '/Makefile', '/scripts/*',
                    *('/' + f for f in files)]
            git(self.dir, 'sparse-checkout', 'set', '--no-cone', '--stdin',
                stdin='\n'.join(keep) + '\n')
            git(self.dir, 'checkout', '-q', '--detach', self.start)
        except BaseException:
            self.close()
            raise

    def borrow(self, objects):
        """Use another repository's objects, too."""
        with open(self.dir / '.git/objects/info/alternates', 'a',
                  encoding='utf-8') as f:
            f.write(f'{objects}\n')

    def close(self):
        shutil.rmtree(self.tmp, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


# With this committer commit ids depend on the patches alone.
SERIES_ID = {'GIT_COMMITTER_NAME': 'series',
             'GIT_COMMITTER_EMAIL': 'series@localhost'}


def am(repo, patch, name, three_way=False, committer=None):
    """Apply one patch with git am, zero fuzz; raises Error, tree unchanged.

    committer: GIT_COMMITTER_* of who commits; without it commits are
    reproducible.
    """
    args = ['am', '-q', '--keep-cr', '--whitespace=nowarn',
            '--3way' if three_way else '--no-3way', str(patch)]
    if not committer:
        args.insert(1, '--committer-date-is-author-date')
    result = git(repo, *args, check=False, env=committer or SERIES_ID)
    if result.returncode == 0:
        return
    text = result.stderr + result.stdout
    unmerged = git_out(repo, 'diff', '--name-only', '--diff-filter=U')
    # This asks for an identity too.
    git(repo, 'am', '--abort', check=False, env=committer or SERIES_ID)
    files = re.findall(r'error: patch failed: (\S+?:\d+)', text) or \
        re.findall(r'error: (\S+): (?:patch does not apply|does not exist'
                   r'|already exists)', text) or \
        unmerged.splitlines()
    where = ', '.join(dict.fromkeys(files)) or \
        (text.strip().splitlines() or ['no message'])[0]
    raise Error(f'{name} does not apply: {where}')


def apply_in(scratch, series, topics):
    """git am the topics; returns {topic: tip commit} and the base commit."""
    base = git_out(scratch.dir, 'rev-parse', 'HEAD')
    tips = {}
    for t in topics:
        for p in t.patches:
            am(scratch.dir, series.path(p), p)
        tips[t.name] = git_out(scratch.dir, 'rev-parse', 'HEAD')
    return tips, base


def format_range(repo, start, end, outdir):
    """git format-patch of a range; returns the paths it wrote, in order."""
    out = git_out(repo, 'format-patch', *FORMAT, '-o', str(outdir),
                  f'{start}..{end}')
    return [Path(line) for line in out.splitlines()]
