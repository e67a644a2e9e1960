#!/bin/sh
# Run buf on the wire definition; npm brings the version that package.json names.
set -eu

cd "$(dirname "$0")/.."
stamp=node_modules/.package.json

if ! cmp -s package.json "$stamp"; then
    npm install --no-package-lock --no-audit --no-fund --loglevel=error </dev/null >&2
    cp package.json "$stamp"
fi
exec node_modules/.bin/buf "$@"
