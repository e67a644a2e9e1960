#!/bin/sh
# Make what machines without a way to any registry need, for each Python version and architecture:
#
#   PYTHONS="3.11 3.12" ARCHS="x86_64 aarch64" sh tools/dist.sh
#   WHEEL=fleetpulse-1.2.3-py3-none-any.whl DIST=folder sh tools/dist.sh    of a wheel that was built already
#
#   dist/VERSION                                            what was made last
#   dist/fleetpulse-VERSION-py3-none-any.whl                the wheel
#   dist/fleetpulse-wheels-VERSION-cp311-x86_64.tar.gz      it and the locked wheels of all that it needs, for pip
#   dist/fleetpulse-agent-VERSION-cp311-x86_64.tar.gz       a release: unpacked it is installed; for deploy/ansible
#   dist/fleetpulse-collector-VERSION-cp311-x86_64.tar.gz   the same of the collector
#
# Without PYTHONS and ARCHS: for this interpreter and this machine. The MariaDB driver has no wheels of its own; it
# is built for this interpreter, where that can be done, and left out of the other archives. Archives of other
# versions stay, to go back to.
set -eu

cd "$(dirname "$0")/.."
. tools/python.sh
PATH=$(pwd)/.venv/bin:$PATH

here=$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
pythons=${PYTHONS:-$here}
archs=${ARCHS:-$(uname -m)}
dist=${DIST:-dist}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say() {
    echo "dist: $*"
}

quiet_pip() {
    command=$1
    shift
    python -m pip "$command" --quiet --disable-pip-version-check "$@"
}

pack() {
    tar -C "$1" --sort=name --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --mtime=@0 -czf "$dist/$2.part" "$3"
    mv "$dist/$2.part" "$dist/$2"
    say "$dist/$2 ($(du -h "$dist/$2" | cut -f1))"
}

# Sets `target`, the words by which pip is told for which machines to choose.
choose() {
    target="--python-version $1 --implementation cp --only-binary=:all:"
    # Nothing newer than what RHEL 8 has: the oldest C library that all that is needed has wheels for.
    for glibc in 2_28 2_27 2_24 2_17; do
        target="$target --platform manylinux_${glibc}_$2"
    done
    target="$target --platform manylinux2014_$2 --platform linux_$2 --platform any"
}

# Word splitting of $target is wanted, here and below.
# shellcheck disable=SC2086
download() {
    quiet_pip download --no-deps --require-hashes $target --dest "$1" \
        -r requirements/agent.txt -r requirements/collector.txt
}

build_driver() {
    folder=$1
    lock=$work/driver.txt
    # One requirement and its hashes: the lines up to the next one.
    sed -n '/^mysqlclient==/,/^[a-z]/{ /^mysqlclient/p; /^ .*--hash/p; }' requirements/mysql.txt >"$lock"
    if quiet_pip wheel --no-deps --require-hashes --wheel-dir "$folder" -r "$lock" 2>"$work/driver.log"; then
        say "with the MariaDB driver"
    else
        say "without the MariaDB driver, which needs libmariadb-dev, pkg-config, gcc and the Python headers"
    fi
}

# A program of a release, by its own name so that it says that; wherever it is, it finds its interpreter.
program() {
    cat >"$1/$2" <<END
#!/bin/sh
'''exec' "\$(dirname "\$(readlink -f "\$0")")/python" -I "\$0" "\$@"
' '''
from $3 import main

main()
END
    chmod 755 "$1/$2"
}

# shellcheck disable=SC2086
release() {
    name=$1 wheels=$2 python=$3 unit=fleetpulse-$1.service
    tree=$work/$name
    rm -rf "$tree"
    mkdir -p "$tree/bin" "$tree/lib/systemd" "$tree/libexec"
    set -- "requirements/$name.txt"
    quiet_pip install $target --no-index --find-links "$wheels" --no-deps --require-hashes --no-compile \
        --target "$tree/lib/python$python/site-packages" -r "$1" 2>"$work/install.log" ||
        { cat "$work/install.log" >&2; exit 1; }
    set -- "$wheels"/fleetpulse-*.whl
    [ "$name" = agent ] || [ ! -e "$(echo "$wheels"/mysqlclient-*.whl)" ] || set -- "$@" "$wheels"/mysqlclient-*.whl
    quiet_pip install $target --no-index --no-deps --no-compile \
        --target "$tree/lib/python$python/site-packages" "$@" 2>"$work/install.log" ||
        { cat "$work/install.log" >&2; exit 1; }
    # Programs for the interpreter that packed it.
    rm -rf "$tree/lib/python$python/site-packages/bin"
    if [ "$name" = agent ]; then
        rm -rf "$tree/lib/python$python/site-packages/collector"
        program "$tree/bin" fleet-agent agent.cli
    else
        rm -rf "$tree/lib/python$python/site-packages/agent"
        program "$tree/bin" fleet-collector collector.service
        program "$tree/bin" collector-cli collector.cli.main
    fi
    cp deploy/release/prepare deploy/release/activate "$tree/libexec"
    cp "deploy/systemd/$unit" deploy/systemd/backoff.conf "$tree/lib/systemd"
}

mkdir -p "$dist"
rm -f "$dist/VERSION"
if [ -n "${WHEEL:-}" ]; then
    cp "$WHEEL" "$work"
else
    python -m hatchling build -t wheel -d "$work" >/dev/null
fi
wheel=$(basename "$work"/fleetpulse-*.whl)
version=${wheel#fleetpulse-}
version=${version%%-*}
mv "$work/$wheel" "$dist"
say "$dist/$wheel"

for python in $pythons; do
    for arch in $archs; do
        suffix=$version-cp$(echo "$python" | tr -d .)-$arch
        wheels=$work/fleetpulse-wheels-$suffix
        mkdir -p "$wheels"
        choose "$python" "$arch"
        download "$wheels"
        if [ "$python" = "$here" ] && [ "$arch" = "$(uname -m)" ]; then
            build_driver "$wheels"
        fi
        cp "$dist/$wheel" requirements/agent.txt requirements/collector.txt requirements/mysql.txt "$wheels"
        pack "$work" "fleetpulse-wheels-$suffix.tar.gz" "fleetpulse-wheels-$suffix"
        for name in agent collector; do
            release "$name" "$wheels" "$python"
            pack "$work/$name" "fleetpulse-$name-$suffix.tar.gz" .
        done
    done
done
echo "$version" >"$dist/VERSION"
