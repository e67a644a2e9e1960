#!/bin/sh
# Every check that needs no test run, in the development environment. All are run; one failure fails.
set -u

cd "$(dirname "$0")/.." || exit 1
. tools/python.sh
PATH=$(pwd)/.venv/bin:$PATH
output=$(mktemp)
trap 'rm -f "$output"' EXIT
failed=

step() {
    name=$1
    shift
    if "$@" >"$output" 2>&1 </dev/null; then
        printf '  ok       %s\n' "$name"
    else
        printf '  FAILED   %s: %s\n' "$name" "$*"
        sed 's/^/           /' "$output"
        failed="$failed, $name"
    fi
}

# A tool that a laptop may lack: without it the step is skipped, on CI it fails.
step_with() {
    tool=$1
    if command -v "$tool" >/dev/null 2>&1; then
        shift
        step "$@"
    elif [ "${CI:-}" = true ]; then
        printf '  FAILED   %s: %s is missing\n' "$2" "$tool"
        failed="$failed, $2"
    else
        printf '  skipped  %s: %s is missing; run: %s\n' "$2" "$tool" "$(as_root apt-get install "$tool")"
    fi
}

step "locks in step" python tools/locks.py check
step "format" ruff format --check --output-format concise .
step "lint" ruff check --output-format concise .
step "types" mypy
step "layers" lint-imports
step "stubs current" sh tools/stubs.sh check
step_with npm "wire definition" sh tools/buf.sh lint
step "playbooks" sh -c 'cd deploy/ansible && ansible-lint -q --nocolor'
step_with shellcheck "shell scripts" shellcheck -x .ci/run tools/*.sh tests/lab/*.sh collector/ssh/*.sh deploy/release/* \
    deploy/ansible/files/*.sh deploy/ansible/roles/*/files/*

if [ -n "$failed" ]; then
    echo "failed: ${failed#, }"
    exit 1
fi
