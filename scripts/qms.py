"""The series, its patches and the trees they are applied to.

Imported by apply, refresh, lint, check and send; not a program of its own.
SPDX-License-Identifier: GPL-2.0-or-later
"""
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
WORK = Path(os.environ.get('QMS_WORK') or TOP / 'build').absolute()
STOCK = WORK / 'stock'
PATCHED = WORK / 'patched'
CACHE = WORK / 'cache'
VERSION = '11.0.1'
COVER = '0000-cover-letter.md'

# Everything that could change the bytes of a patch is set here and not by
# the configuration of whoever runs it.
FORMAT = ['--zero-commit', '--no-signature', '--full-index', '--no-numbered',
          '--no-thread', '--no-attach', '--no-base', '--no-notes',
          '--no-renames', '--stat=80', '--subject-prefix=PATCH',
          '--diff-algorithm=myers', '--unified=3', '--src-prefix=a/',
          '--dst-prefix=b/', '--no-ext-diff', '--no-textconv', '--no-color']


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


def git(repo, *args, check=True, env=None, stdin=None):
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
    return subprocess.run(cmd, check=check, env=clean, input=stdin,
                          capture_output=True, text=True, errors='replace')


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
        for i, t in enumerate(self.topics):
            for need in t.needs:
                if need not in names[:i]:
                    raise Error(f'series: topic {t.name} needs {need}, '
                                'which does not come before it')

    def topic(self, name):
        for t in self.topics:
            if t.name == name:
                return t
        raise Error(f'no topic {name}; the series has '
                    + ', '.join(t.name for t in self.topics))

    def closure(self, name):
        """The topic and the topics it names as needed, in series order."""
        want = {name}
        todo = [name]
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
            git(WORK, 'clone', '-q', '--shared', '--no-checkout',
                str(repo), str(self.dir))
            # patterns for files that are patched, plus what checkpatch and
            # get_maintainer read
            keep = ['/MAINTAINERS', '/VERSION', '/COPYING', '/.gitignore',
                    '/README.rst', '/Makefile', '/scripts/*',
                    *('/' + f for f in files)]
            git(self.dir, 'sparse-checkout', 'set', '--no-cone', '--stdin',
                stdin='\n'.join(keep) + '\n')
            git(self.dir, 'checkout', '-q', '--detach', commit)
        except BaseException:
            self.close()
            raise

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
    # This asks for an identity too.
    git(repo, 'am', '--abort', check=False, env=committer or SERIES_ID)
    files = re.findall(r'error: patch failed: (\S+?:\d+)', text) or \
        re.findall(r'error: (\S+): (?:patch does not apply|does not exist'
                   r'|already exists)', text) or \
        re.findall(r'CONFLICT .* in (\S+)', text)
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
