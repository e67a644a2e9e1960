# shellcheck shell=sh
# Which interpreter to use, and what is missing from it. Sourced, not run.
# In: PYTHON (default python3). Out: PYTHON, PYTHON_VERSION such as 3.11.

# A command line to copy: with sudo unless the reader is root already.
as_root() {
    if [ "$(id -u)" = 0 ]; then echo "$*"; else echo "sudo $*"; fi
}

is_debian() {
    command -v apt-get >/dev/null 2>&1
}

# The Debian package of an interpreter's part (venv, dev); nothing if the interpreter is not Debian's.
debian_part() {
    case $("$PYTHON" -c 'import os, sys; print(os.path.realpath(sys.executable))') in
    "/usr/bin/python$PYTHON_VERSION") ;;
    *) return 0 ;;
    esac
    if [ "$(readlink -f /usr/bin/python3)" = "/usr/bin/python$PYTHON_VERSION" ]; then
        echo "python3-$1"
    else
        echo "python$PYTHON_VERSION-$1"
    fi
}

# Sets PYTHON_VERSION, or says in one line what to do and returns 1.
find_python() {
    PYTHON=${PYTHON:-python3}
    if ! command -v "$PYTHON" >/dev/null 2>&1; then
        if is_debian && [ "$PYTHON" = python3 ]; then
            echo "python3 is missing; run: $(as_root apt-get install python3 python3-venv)" >&2
        else
            echo "$PYTHON is missing; install Python 3.11 or newer, or name one: make PYTHON=..." >&2
        fi
        return 1
    fi
    # A version manager's stand-in is found although its interpreter cannot run.
    if ! PYTHON_VERSION=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); then
        echo "$PYTHON does not run; name another one: make PYTHON=..." >&2
        return 1
    fi
    if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        for newer in python3.13 python3.12 python3.11; do
            if "$newer" -c '' 2>/dev/null; then
                echo "$PYTHON is Python $PYTHON_VERSION, and 3.11 or newer is needed; run: make PYTHON=$newer" >&2
                return 1
            fi
        done
        echo "$PYTHON is Python $PYTHON_VERSION, and 3.11 or newer is needed" >&2
        return 1
    fi
}

# Debian and Ubuntu ship the interpreter without what `python3 -m venv` needs.
has_venv() {
    "$PYTHON" -c 'import venv; from ensurepip import version' 2>/dev/null
}
