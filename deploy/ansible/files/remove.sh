# shellcheck shell=sh
# What both uninstall scripts use; the playbook puts this in front of them.

remove() {
    for path in "$@"; do
        if [ -e "$path" ] || [ -L "$path" ]; then
            rm -rf "$path"
            echo "removed $path"
        fi
    done
}

# An account with the home that the rollout has given it: one that was there before, and is somebody's, stays. What runs
# as it is ended first, for the collector may be looking at this moment.
remove_account() {
    [ "$(getent passwd "$1" | cut -d: -f6)" = "$2" ] || return 0
    for _ in 1 2 3 4 5; do
        for process in /proc/[0-9]*; do
            [ "$(stat -c %U "$process" 2>/dev/null)" != "$1" ] || kill -KILL "${process#/proc/}" 2>/dev/null || true
        done
        if userdel "$1"; then
            echo "removed the account $1"
            return 0
        fi
        sleep 1
    done
    return 1
}
