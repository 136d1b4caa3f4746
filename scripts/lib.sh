# Shared by the shell scripts of this folder; sourced, never run.
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Sets: TOP   the repository        WORK  the generated things (build/)
#       STOCK / PATCHED             one folder each: src/ (git tree), out/ (build)

set -eu
# Paths in messages and in the generated trees must not depend on the caller.
unset CDPATH GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
LC_ALL=C.UTF-8 export LC_ALL

TOP=$(cd "$(dirname "$0")/.." && pwd -P)
WORK=${QMS_WORK:-$TOP/build}
case $WORK in /*) ;; *) WORK=$PWD/$WORK ;; esac
STOCK=$WORK/stock
PATCHED=$WORK/patched
CACHE=$WORK/cache
PROG=$(basename "$0")

QEMU_VERSION=11.0.1

say() { printf '%s: %s\n' "$PROG" "$*" >&2; }
die() { printf '%s: error: %s\n' "$PROG" "$*" >&2; exit 1; }
usage_error() {
    printf '%s: error: %s (see %s --help)\n' "$PROG" "$*" "$PROG" >&2
    exit 2
}

# The comment at the head of a script is its --help.
show_help() { sed -n -e '1d' -e '/^# SPDX/d' -e '/^#/!q' -e 's/^# \{0,1\}//p' "$0"; }

have() { command -v "$1" >/dev/null 2>&1; }

# need_space FOLDER MIB WHAT: stop early rather than in the middle of a build.
need_space() {
    mkdir -p "$1" || die "cannot create $1"
    free=$(df -Pm "$1" | awk 'NR == 2 { print $4 }')
    [ "$free" -ge "$2" ] ||
        die "$3 needs $2 MiB in $1, only $free MiB are free"
}

# as_root CMD...: run CMD as root, or fail with one line.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif have sudo; then
        say "as root: $*"
        sudo "$@"
    else
        return 77
    fi
}

# git without the user's configuration: the same bytes everywhere.
plain_git() {
    GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_ATTR_NOSYSTEM=1 git \
        -c safe.directory='*' -c core.autocrlf=false -c gc.auto=0 \
        -c core.attributesFile=/dev/null -c core.excludesFile=/dev/null \
        -c commit.gpgSign=false -c advice.detachedHead=false "$@"
}

# take_lock: one writer below build/ at a time.
take_lock() {
    mkdir -p "$WORK" || die "cannot create $WORK"
    if [ "${QMS_LOCKED:-}" != 1 ]; then
        exec 9>"$WORK/.lock"
        flock -n 9 || say "waiting for another run that uses $WORK"
        flock -w "${QMS_LOCK_WAIT:-1800}" 9 ||
            die "another run holds $WORK/.lock"
        QMS_LOCKED=1 export QMS_LOCKED
    fi
}

# The module qemu.qmp, unpacked by deps where the base's source has no wheel of
# it; configure asks for it, and the tree's python/qemu/machine imports it.
QMP_PATH=$CACHE/python/usr/lib/python3/dist-packages

# ---- Debian packages without touching the system's sources ----------------

APT_STATE=$CACHE/apt
DEB_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

os_id() { (. /etc/os-release 2>/dev/null; printf '%s' "${ID:-unknown}"); }
os_codename() {
    (. /etc/os-release 2>/dev/null; printf '%s' "${VERSION_CODENAME:-}")
}

# The mirror this machine already uses for Debian; DEBIAN_MIRROR overrides.
deb_mirror() {
    if [ -n "${DEBIAN_MIRROR:-}" ]; then
        printf '%s\n' "$DEBIAN_MIRROR"
    else
        # shellcheck disable=SC2016
        apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' \
            'Created-By: Packages' 2>/dev/null |
            sed -n 's/^Debian|Debian|//p' | head -n 1
    fi
}

# priv_apt get|cache ARG...: apt with its lists, sources and archives below
# build/cache/apt.  What is installed is still the system's business.
priv_apt() {
    tool=$1
    shift
    "apt-$tool" -q -o "Dir::State::lists=$APT_STATE/lists" \
        -o "Dir::Cache=$APT_STATE" -o "Dir::Etc::sourcelist=$APT_STATE/sources.list" \
        -o Dir::Etc::sourceparts=/dev/null -o "Dir::Etc::preferences=$APT_STATE/preferences" \
        -o Dir::Etc::preferencesparts=/dev/null -o APT::Sandbox::User=root \
        -o Acquire::Retries=2 "$@"
}

# priv_apt_update: fetch the private lists (sid, for one Python module that is
# nowhere else, and the backports of Debian 12); at most once a day.  Fails, with the reason in $why, where there
# is no apt, no mirror, no key or no network.
priv_apt_update() {
    have apt-get || { why="no apt-get on this system"; return 1; }
    [ -r "$DEB_KEYRING" ] || {
        why="no $DEB_KEYRING (package debian-archive-keyring)"; return 1; }
    mirror=$(deb_mirror)
    [ -n "$mirror" ] || {
        why="no Debian mirror among the apt sources (set DEBIAN_MIRROR, or run apt-get update once)"
        return 1; }
    mkdir -p "$APT_STATE/lists/partial" "$APT_STATE/archives/partial"
    {
        # A mirror's copy of sid may be old.  Its packages are taken by name
        # only, never to satisfy a dependency of something else.
        echo "deb [signed-by=$DEB_KEYRING check-valid-until=no] $mirror sid main"
        if [ "$(os_id)" = debian ]; then
            echo "deb [signed-by=$DEB_KEYRING] $mirror $(os_codename) main"
            [ "$(os_codename)" != bookworm ] ||
                echo "deb [signed-by=$DEB_KEYRING] $mirror bookworm-backports main"
        fi
    } >"$APT_STATE/sources.new"
    printf 'Package: *\nPin: release n=sid\nPin-Priority: 1\n' \
        >"$APT_STATE/preferences"
    if cmp -s "$APT_STATE/sources.new" "$APT_STATE/sources.list" &&
       [ -n "$(find "$APT_STATE/updated" -mmin -1440 2>/dev/null)" ]; then
        return 0
    fi
    rm -f "$APT_STATE/updated"
    mv "$APT_STATE/sources.new" "$APT_STATE/sources.list"
    if ! priv_apt get -o APT::Update::Error-Mode=any update \
        >"$APT_STATE/update.log" 2>&1; then
        why="apt-get update failed: $(grep -m1 -E '^(E|W):' "$APT_STATE/update.log" || echo "see $APT_STATE/update.log")"
        return 1
    fi
    : >"$APT_STATE/updated"
}

# From where a binary package is best taken here: "" or "/bookworm-backports".
backport() {
    if [ "$(os_id)" = debian ] && [ "$(os_codename)" = bookworm ]; then
        echo /bookworm-backports
    fi
}

# unpack_debs FOLDER PACKAGE...: download packages and unpack them below
# FOLDER; nothing is installed.
unpack_debs() {
    into=$1
    shift
    for pkg in "$@"; do
        name=${pkg%%/*}
        [ ! -e "$into/.$name" ] || continue
        dl=$(mktemp -d "$CACHE/dl.XXXXXX")
        case $(os_id):$pkg in
        debian:*|*/sid) fetch="priv_apt get" ;;
        *) fetch="apt-get -q -o APT::Sandbox::User=root" ;;
        esac
        if ! (cd "$dl" && $fetch download "$pkg") >"$CACHE/download.log" 2>&1; then
            rm -rf "$dl"
            why="cannot download package $name: $(grep -m1 '^E:' "$CACHE/download.log" || echo "see $CACHE/download.log")"
            return 1
        fi
        mkdir -p "$into"
        if ! dpkg-deb -x "$dl/$name"_*.deb "$into" 2>"$CACHE/download.log"; then
            rm -rf "$dl"
            why="cannot unpack package $name: $(tail -n 1 "$CACHE/download.log")"
            return 1
        fi
        rm -rf "$dl"
        : >"$into/.$name"
    done
}
