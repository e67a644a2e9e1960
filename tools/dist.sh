#!/bin/sh
# Make what machines without a way to any registry need: the wheel, and an archive for each Python version and
# architecture, with the wheel and the locked wheels of all that it needs.
#
#   PYTHONS="3.11 3.12" ARCHS="x86_64 aarch64" sh tools/dist.sh
#
# Without them: for this interpreter and this machine. The MariaDB driver has no wheels of its own; it is built
# for this interpreter, where that can be done, and left out of the other archives.
set -eu

cd "$(dirname "$0")/.."
. tools/python.sh
PATH=$(pwd)/.venv/bin:$PATH

here=$(python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
pythons=${PYTHONS:-$here}
archs=${ARCHS:-$(uname -m)}

say() {
    echo "dist: $*"
}

rm -rf dist
mkdir -p dist
python -m hatchling build -t wheel -d dist >/dev/null
wheel=$(ls dist/*.whl)
version=${wheel#dist/fleetpulse-}
version=${version%%-*}
say "$wheel"

download() {
    python=$1 arch=$2 folder=$3
    # Any of these is older than, or as old as, what Debian 12 and Ubuntu 24.04 have.
    platforms=
    for glibc in 2_36 2_34 2_31 2_28 2_27 2_24 2_17; do
        platforms="$platforms --platform manylinux_${glibc}_$arch"
    done
    platforms="$platforms --platform manylinux2014_$arch --platform linux_$arch --platform any"
    # Word splitting is wanted.
    # shellcheck disable=SC2086
    python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
        --python-version "$python" --implementation cp $platforms --dest "$folder" \
        -r requirements/agent.txt -r requirements/collector.txt
}

build_driver() {
    folder=$1
    lock=$(mktemp)
    # One requirement and its hashes: the lines up to the next one.
    sed -n '/^mysqlclient==/,/^[a-z]/{ /^mysqlclient/p; /^ .*--hash/p; }' requirements/mysql.txt >"$lock"
    if python -m pip wheel --quiet --disable-pip-version-check --no-deps --require-hashes --wheel-dir "$folder" \
        -r "$lock" 2>/dev/null; then
        say "with the MariaDB driver"
    else
        say "without the MariaDB driver, which needs libmariadb-dev, pkg-config, gcc and the Python headers"
    fi
    rm -f "$lock"
}

for python in $pythons; do
    for arch in $archs; do
        name=fleetpulse-$version-cp$(echo "$python" | tr -d .)-$arch
        mkdir -p "dist/$name"
        download "$python" "$arch" "dist/$name"
        if [ "$python" = "$here" ] && [ "$arch" = "$(uname -m)" ]; then
            build_driver "dist/$name"
        fi
        cp "$wheel" requirements/agent.txt requirements/collector.txt requirements/mysql.txt "dist/$name"
        tar -C dist --sort=name --owner=0 --group=0 --mtime=@0 -czf "dist/$name.tar.gz" "$name"
        rm -rf "dist/$name"
        say "dist/$name.tar.gz ($(du -h "dist/$name.tar.gz" | cut -f1))"
    done
done
