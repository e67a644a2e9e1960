#!/bin/sh
# Make .venv, or bring it up to date:
#
#   tools/venv.sh collector    what the demo needs: agent and collector on SQLite; no compiler, no root
#   tools/venv.sh dev          + the tools and tests, and the MariaDB driver where it can be built
#
# Nothing is done while the locks, pyproject.toml and the interpreter are what they were.
set -eu

cd "$(dirname "$0")/.."
. tools/python.sh

want=${1:?usage: tools/venv.sh collector|dev}
stamps=.venv/.installed

find_python

say() {
    echo "venv: $*"
}

# What an installation depends on, one hash.
fingerprint() {
    # The folder counts because an editable installation and the scripts hold its full path.
    {
        pwd
        "$PYTHON" -c 'import sys; print(sys.version)'
        cat pyproject.toml proto/fleetpulse/__init__.py "$@"
    } | cksum
}

is_installed() {
    [ -f "$stamps/$1" ] && [ "$(cat "$stamps/$1")" = "$2" ]
}

# pip takes a minute on a slow line; say what happens, and show its output only when it fails.
quietly() {
    log=$(mktemp)
    if "$@" >"$log" 2>&1; then
        rm -f "$log"
    else
        tail -n 30 "$log" >&2
        rm -f "$log"
        return 1
    fi
}

interpreter_of_venv() {
    .venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

make_venv() {
    if [ -d .venv ] && [ "$(interpreter_of_venv)" = "$PYTHON_VERSION" ] &&
        grep -qF "$(pwd)/.venv" .venv/bin/activate 2>/dev/null && .venv/bin/python -m pip --version >/dev/null 2>&1; then
        return
    fi
    if ! has_venv; then
        package=$(debian_part venv)
        if is_debian && [ -n "$package" ]; then
            echo "$package is missing; run: $(as_root apt-get install "$package")" >&2
        else
            echo "$PYTHON has no venv or ensurepip module; install them, or name another one: make PYTHON=..." >&2
        fi
        exit 1
    fi
    say "making .venv with Python $PYTHON_VERSION"
    quietly "$PYTHON" -m venv --clear .venv
}

# Other versions than the locked ones are never taken, nor anything whose hash is not in the lock.
install_locks() {
    # Word splitting is wanted: each argument is one more lock.
    locks=''
    for lock in "$@"; do locks="$locks -r requirements/$lock.txt"; done
    # shellcheck disable=SC2086
    quietly .venv/bin/python -m pip install --disable-pip-version-check --require-hashes $locks
}

install() {
    name=$1
    shift
    rm -f "$stamps/$name"
    say "installing requirements/$name.txt"
    install_locks build "$name"
    quietly .venv/bin/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
    mkdir -p "$stamps"
    echo "$1" >"$stamps/$name"
}

# The driver has no wheels: it is built against the MariaDB client library.
install_mysql_driver() {
    print=$(fingerprint requirements/mysql.txt)
    if is_installed mysql "$print"; then
        return
    fi
    rm -f "$stamps/mysql"
    say "building the MariaDB driver"
    if [ "${CI:-}" = true ]; then
        install_locks mysql
        echo "$print" >"$stamps/mysql"
    elif command -v pkg-config >/dev/null 2>&1 && install_locks mysql 2>/dev/null; then
        echo "$print" >"$stamps/mysql"
    else
        say "without the MariaDB driver; the tests on MariaDB will be skipped." \
            "It needs: libmariadb-dev, pkg-config, gcc and the Python headers"
    fi
}

case $want in
collector)
    print=$(fingerprint requirements/build.txt requirements/collector.txt)
    dev_print=$(fingerprint requirements/build.txt requirements/dev.txt)
    make_venv
    # The locks agree, so what the tests installed holds the demo's packages, too.
    if ! is_installed collector "$print" && ! is_installed dev "$dev_print"; then
        install collector "$print"
    fi
    ;;
dev)
    print=$(fingerprint requirements/build.txt requirements/dev.txt)
    make_venv
    if ! is_installed dev "$print"; then
        install dev "$print"
    fi
    install_mysql_driver
    ;;
*)
    echo "tools/venv.sh: collector or dev, not $want" >&2
    exit 2
    ;;
esac
