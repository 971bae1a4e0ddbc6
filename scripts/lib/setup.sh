# Sourced by the scripts, from any folder: makes what they need and leaves the shell in the clone.
#
#   need PROGRAM:PACKAGE...   Debian packages for the programs that are missing
#   need_headers              a C compiler and Python's headers
#   need_package_lists        apt knows what it could download
#   make_venv [GROUP...]      .venv with the project and these dependency groups
#
# shellcheck shell=bash
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
root=$PWD

# Everything stays in the clone. Talking to ourselves needs no proxy.
export PIP_CACHE_DIR=$root/.cache/pip XDG_CACHE_HOME=$root/.cache PIP_DISABLE_PIP_VERSION_CHECK=1
export no_proxy="${no_proxy:+$no_proxy,}127.0.0.1,localhost"
export NO_PROXY=$no_proxy

say() { printf '== %s\n' "$*" >&2; }
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

as_root() { # REASON COMMAND... ; where that cannot be, the reason is what is said
    local reason=$1
    shift
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif sudo -n true 2>/dev/null; then
        sudo -n "$@"
    elif [ -t 0 ] && command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "$reason, and neither root nor sudo is at hand to do it"
    fi
}

update_lists() { # REASON ; once is enough
    [ -z "${updated:-}" ] || return 0
    as_root "$1" apt-get -qq update
    updated=yes
}

install_packages() { # PACKAGE...
    local reason="this needs 'apt-get install $*'"
    command -v apt-get >/dev/null || die "$reason, and there is no apt-get"
    say "installing $*"
    update_lists "$reason"
    as_root "$reason" env DEBIAN_FRONTEND=noninteractive DEBCONF_NOWARNINGS=yes \
        apt-get -qq -o Dpkg::Use-Pty=0 install --yes --no-install-recommends "$@" >/dev/null
}

need() { # PROGRAM:PACKAGE...
    local pair packages=()
    for pair in "$@"; do
        # mkfs and its like stand where an ordinary user's PATH does not lead.
        PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || packages+=("${pair#*:}")
    done
    [ ${#packages[@]} = 0 ] || install_packages "${packages[@]}"
}

need_package_lists() {
    apt-cache show grub-rescue-pc >/dev/null 2>&1 && return
    update_lists "this needs 'apt-get update'"
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() { # sets $python
    for python in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if new_enough "$python"; then return; fi
        [ "$python" != "${PYTHON:-}" ] || die "PYTHON=$PYTHON is not a Python of at least 3.11"
    done
    return 1
}

need_python() {
    find_python && return
    install_packages python3
    find_python && return
    for python in python3.13 python3.12 python3.11; do
        if apt-cache show "$python" >/dev/null 2>&1; then
            install_packages "$python"
            return
        fi
    done
    die "there is no Python of at least 3.11 here; name one by PYTHON=/path/to/python3"
}

python_package() { # SUFFIX: the package of this Python that has venv or dev
    "$python" -c 'import sys; print("python3.%d-%s" % (sys.version_info[1], sys.argv[1]))' "$1"
}

need_headers() {
    local packages=() headers
    need_python
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    command -v cc >/dev/null || packages+=(gcc)
    [ -e /usr/include/stdio.h ] || packages+=(libc6-dev)
    [ -e "$headers/Python.h" ] || packages+=("$(python_package dev)")
    [ ${#packages[@]} = 0 ] || install_packages "${packages[@]}"
}

make_venv() { # GROUP...
    local want group missing=() groups=()
    need_python
    "$python" -c 'import ensurepip, venv' 2>/dev/null || install_packages "$(python_package venv)"
    mkdir -p .cache
    exec 9>.cache/setup.lock
    flock 9
    # One mark for each group: what pyproject.toml and Python were when it was installed.
    want=$({ "$python" -V && cat pyproject.toml; } | sha256sum)
    for group in project "$@"; do
        [ "$(cat ".venv/.has-$group" 2>/dev/null)" = "$want" ] || missing+=("$group")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        say "installing into .venv: ${missing[*]}"
        # A venv of another Python, or a broken one, is made anew.
        [ "$(.venv/bin/python -V 2>/dev/null)" = "$("$python" -V)" ] || rm -rf .venv
        "$python" -m venv --upgrade-deps .venv >&2
        for group in "$@"; do groups+=(--group "$group"); done
        .venv/bin/pip install --quiet --editable . "${groups[@]}" >&2
        for group in project "$@"; do printf '%s\n' "$want" >".venv/.has-$group"; done
    fi
    exec 9>&-
}
