#!/bin/sh
# Generate the stubs of the wire definition beside it, or check that the committed ones are current:
#
#   tools/stubs.sh write
#   tools/stubs.sh check
set -eu

cd "$(dirname "$0")/.."
PATH=$(pwd)/.venv/bin:$PATH # protoc finds its plugins in the path
source=proto/fleetpulse/v1

generate() {
    python -m grpc_tools.protoc -Iproto --python_out="$1" --pyi_out="$1" --grpc_python_out="$1" --mypy_grpc_out="$1" \
        "$source"/*.proto
}

case ${1:-} in
write) generate proto ;;
check)
    fresh=$(mktemp -d)
    trap 'rm -rf "$fresh"' EXIT
    generate "$fresh"
    changed=
    for stub in "$fresh"/fleetpulse/v1/*; do
        cmp -s "$stub" "$source/${stub##*/}" || changed="$changed $source/${stub##*/}"
    done
    for stub in "$source"/*_pb2*; do
        [ -e "$fresh/fleetpulse/v1/${stub##*/}" ] || changed="$changed $stub"
    done
    if [ -n "$changed" ]; then
        echo "not what the wire definition generates:$changed; run: make proto"
        exit 1
    fi
    ;;
*)
    echo "usage: tools/stubs.sh write|check" >&2
    exit 2
    ;;
esac
