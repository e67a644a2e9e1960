#!/bin/sh
# Says how this machine is: one pass over the kernel's own numbers as plain text. It needs a POSIX
# shell, sed and an ordinary user; it writes no file and leaves no process behind. With the argument
# "agent" it also says what is known of the fleetpulse agent here.
#
# The first line names the version, the last is "== end": without it the output was cut off. Whatever
# asks a disk, a server or a daemon has a time limit. All are functions, called on the last line, so
# that a shell that reads this from its input has read it whole before anything runs. Each further line
# on its input is answered by one more look, until the input ends.

PATH=/usr/bin:/bin:/usr/sbin:/sbin:/run/current-system/sw/bin
LC_ALL=C
export PATH LC_ALL
newline='
'
second=1
# What `wait` says when SIGALRM (14) ends it.
woken=142
# The same patterns as in fleetpulse/machine/filesystem.py: what the check `filesystem` leaves out,
# and what hangs when another machine does.
not_real='autofs|binfmt_misc|bpf|cgroup*|configfs|debugfs|devfs|devpts|devtmpfs|efivarfs|fuse.gvfsd-fuse|fuse.lxcfs|fuse.portal|fusectl|hugetlbfs|mqueue|nsfs|proc|pstore|ramfs|resctrl|rpc_pipefs|securityfs|selinuxfs|sysfs|tmpfs|tracefs|erofs|fuse.snapfuse|iso9660|squashfs|udf|aufs|overlay'
containers='/run/user/*|/snap/*|/var/snap/*|/var/lib/docker/*|/var/lib/containers/*|/var/lib/containerd/*|/run/containerd/*|/var/lib/kubelet/pods/*|/dev/*|/proc/*|/sys/*'
network='nfs*|cifs|smb*|ceph|glusterfs|lustre|afs|9p|gpfs|beegfs*|fuse.*'

# A line that was cut off before it does not swallow the mark of the section.
section() {
    printf '\n== %s\n' "$1"
}

# Wakes this shell once a second while something is waited for. It ends with the shell, too.
guard() {
    # Not TERM: between fork and exec the new process still has this trap, which would take it.
    trap 'kill -KILL "$!"; exit' TERM
    while :; do
        sleep "$second" &
        wait "$!"
        kill -ALRM "$$" || exit
    done
}

# limited SECONDS COMMAND...: runs one program, at most about that long. Even one that cannot be killed,
# as it waits for a dead server, holds up nothing.
limited() {
    limit=$1
    shift
    "$@" &
    job=$!
    ticks=0
    while
        wait "$job"
        status=$?
        [ "$status" = "$woken" ]
    do
        ticks=$((ticks + 1))
        if [ "$ticks" -gt "$limit" ]; then
            break
        elif [ "$ticks" -eq "$limit" ]; then
            kill -KILL "$job"
        fi
    done
    job=
    case $status in
        137 | "$woken") status='timeout' ;;
    esac
}

# Prints "NAME FIRST-LINE" of a small file, without starting a program.
first_line() {
    value=
    if read -r value <"$2" || [ -n "$value" ]; then
        printf '%s %s\n' "$1" "$value"
    fi
}

counters() {
    section counters
    printf 'date %s\n' "$(date +%s)"
    first_line boot_id /proc/sys/kernel/random/boot_id
    first_line machine_id /etc/machine-id
    if [ -r /proc/loadavg ]; then
        first_line load /proc/loadavg
    else
        printf 'load %s\n' "$(sysctl -n vm.loadavg)"
        printf 'boottime %s\n' "$(sysctl -n kern.boottime)"
    fi
    cpus=
    read -r cpus </sys/devices/system/cpu/online ||
        cpus=0-$(($(getconf _NPROCESSORS_ONLN || getconf NPROCESSORS_ONLN) - 1))
    echo "cpus $cpus"
    # The clock that the counters after it are divided by.
    first_line uptime /proc/uptime
    sed -n -e '/^intr/d' -e '/^cpu /p' -e '/^btime /p' -e '/^processes /p' \
        -e '/^Mem[TFA]/p' -e '/^Buffers:/p' -e '/^Cached:/p' -e '/^SReclaimable:/p' -e '/^Swap[TF]/p' \
        -e '/^pswp/p' /proc/stat /proc/meminfo /proc/vmstat
}

interfaces() {
    section network
    [ -r /proc/net/dev ] || return
    sed -n -e '3,1002p' /proc/net/dev
    echo all
}

disks() {
    section disks
    [ -d /sys/block ] || return
    number=0
    disk_facts=
    for device in /sys/block/*; do
        [ -e "$device/device" ] || continue
        number=$((number + 1))
        [ "$number" -le 500 ] || break
        name=${device#/sys/block/}
        first_line "$name" "$device/stat"
        size='' model=''
        read -r size <"$device/size"
        read -r model <"$device/device/model"
        disk_facts="${disk_facts}disk $name ${size:-0} $model$newline"
    done
    echo all
}

# Counts the states of all processes, and looks for one that an earlier probe could not end.
processes() {
    section processes
    stuck=
    # Not even the first process can be seen where /proc is mounted with hidepid.
    if [ -r /proc/stat ] && ! [ -r /proc/1/stat ]; then
        echo hidden
        return
    fi
    if [ -r /proc/self/stat ]; then
        # A name has 15 characters at most, so it cannot look like the numbers after the state.
        letters=$(sed -n -e 's/^\([0-9]*\) (stat) D [-0-9 ]\{30,\}$/\1/p' -e t \
            -e 's/^\([0-9]*\) (df) D [-0-9 ]\{30,\}$/\1/p' -e t \
            -e 's/^.*) \([A-Za-z]\) [-0-9 ]\{30,\}$/\1/p' /proc/[0-9]*/stat)
    else
        letters=$(ps -axo state=)
    fi
    R=0 S=0 D=0 I=0 Z=0 T=0 X=0 other=0
    for letter in $letters; do
        case $letter in
            S*) S=$((S + 1)) ;;
            I*) I=$((I + 1)) ;;
            R*) R=$((R + 1)) ;;
            [0-9]*) D=$((D + 1)) stuck="$stuck $letter" ;;
            [DU]*) D=$((D + 1)) ;;
            Z*) Z=$((Z + 1)) ;;
            [Tt]*) T=$((T + 1)) ;;
            X*) X=$((X + 1)) ;;
            *) other=$((other + 1)) ;;
        esac
    done
    if [ -n "$letters" ]; then
        echo "R $R S $S D $D I $I Z $Z T $T X $X ? $other"
    elif [ -r /proc/stat ]; then
        # More of them than fit on one command line.
        set -- /proc/[0-9]*
        echo "count $#"
    fi
}

# Whether `stat` or `df` of an earlier probe still hangs on filesystems of the kind $1.
is_stuck() {
    for pid in $stuck; do
        case $(tr '\000' ' ' <"/proc/$pid/cmdline") in
            *"$1 %S"* | *'df -P -k '*) return 0 ;;
        esac
    done
    return 1
}

# space KIND SECONDS: size and use of the filesystems of one kind, `local` or `remote`.
space() {
    kind=$1
    limit=$2
    section "$kind"
    set --
    # The table of mounts needs no disk and no server; what is not asked for is not touched.
    set -f
    IFS=$newline
    for line in $mounts; do
        IFS=' '
        # shellcheck disable=SC2034 # it is used inside eval, where the patterns have to be
        type=${line##* }
        point=${line#* }
        point=${point% *}
        if eval "case \$type in $network) [ $kind = local ] ;; *) [ $kind = remote ] ;; esac"; then
            continue
        fi
        if [ "$point" != / ] && eval "case \$type in $not_real) ;; *) false ;; esac"; then
            continue
        fi
        if eval "case \$point in $containers) ;; *) false ;; esac"; then
            continue
        fi
        case $point in
            *\\012*) continue ;;                   # with a newline it could look like a section
            *\\*) point=$(printf '%b' "$point") ;; # a blank is \040
        esac
        set -- "$@" "$point"
        [ $# -lt 400 ] || break
    done
    unset IFS
    set +f
    if [ $# -eq 0 ]; then
        echo 'status 0'
        return
    fi
    if is_stuck "$kind"; then
        echo 'status stuck'
        return
    fi
    if [ -n "$(stat -f -c %S /proc)" ]; then
        limited "$limit" stat -f -c "$kind %S %b %f %a %c %d %n" "$@"
    else
        limited "$limit" df -P -k "$@"
        if [ "$status" = 0 ]; then
            printf '\ndf inodes\n'
            limited "$limit" df -P -i "$@"
            status=0
        fi
    fi
    printf '\nstatus %s %s\n' "$status" "$limit"
}

filesystems() {
    section mounts
    if [ -r /proc/self/mounts ]; then
        mounts=$(sed -n -e 's/^\([^ ]* [^ ]* [^ ]*\) .*/\1/p' -e 1000q /proc/self/mounts)
        printf '%s\nall\n' "$mounts"
        space local 2
        space remote 3
    else
        section local
        limited 2 df -P -k -l
        printf '\nstatus %s 2\n' "$status"
    fi
}

facts() {
    section facts
    first_line dmi_vendor /sys/class/dmi/id/sys_vendor
    first_line dmi_model /sys/class/dmi/id/product_name
    first_line board /sys/firmware/devicetree/base/model
    first_line memory /proc/meminfo
    cores=0
    for file in /sys/devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list; do
        siblings=
        read -r siblings <"$file" || continue
        number=${file#/sys/devices/system/cpu/cpu}
        number=${number%%/*}
        # A core is counted where its first thread is.
        case $siblings in
            "$number" | "$number"[,-]*) cores=$((cores + 1)) ;;
        esac
    done
    echo "cpus $cpus"
    echo "cores $cores"
    [ "$cores" -gt 0 ] || sed -n -e '/^physical id/p' -e '/^cpu cores/p' /proc/cpuinfo
    printf '%s' "$disk_facts"
    number=0
    for file in /sys/class/net/*/address; do
        number=$((number + 1))
        [ "$number" -le 400 ] || break
        name=${file#/sys/class/net/}
        first_line "mac ${name%/address}" "$file"
    done
    number=0
    while [ "$number" -lt 200 ] && read -r line; do
        number=$((number + 1))
        printf 'ip6 %s\n' "$line"
    done </proc/net/if_inet6
    if command -v ip >/dev/null; then
        ip -o -4 addr | sed -n -e 's/^[0-9]*: *\([^ ]*\) *inet \([0-9.]*\).*/ip \1 \2/p' -e 200q
    else
        # Local addresses; the name of an interface is not in there.
        sed -n -e 's/^.*|-- \([0-9.]*\)$/\1/' -e h -e n -e '/32 host LOCAL/{g' -e 's/^/ip - /p' -e '}' \
            /proc/net/fib_trie
    fi
    # The first processor is enough, and its flags are the last that matters; some boards are named
    # behind the last processor, and those have no flags.
    sed -n -e '/^PRETTY_NAME=/p' -e '/^NAME=/p' -e '/^VERSION_ID=/p' \
        -e '/^model name/p' -e '/^vendor_id/p' -e '/^Model/p' \
        -e '/^flags.* hypervisor/s/.*/flags : hypervisor/p' -e '/^flags/q' /etc/os-release /proc/cpuinfo
    echo all
}

units() {
    section units
    [ -d /run/systemd/system ] || return
    limited 2 systemctl --failed --full --no-legend --no-pager
    printf '\nstatus %s 2\n' "$status"
}

agent() {
    section agent
    [ -d /run/systemd/system ] || return
    case $status in
        timeout) return ;; # a manager that did not answer just now
    esac
    limited 2 systemctl show fleetpulse-agent.service -p LoadState -p ActiveState -p SubState -p Result \
        -p ExecMainCode -p ExecMainStatus -p NRestarts -p StateChangeTimestamp -p ActiveEnterTimestamp \
        -p InactiveEnterTimestamp
    section log
    limited 2 journalctl -u fleetpulse-agent.service -n 5 -o cat --no-pager -q
}

# One look at everything; with "agent" also at what is known of the agent here.
look() {
    guard >/dev/null &
    guard=$!
    status=0
    echo 'fleetpulse-probe 1'
    section system
    uname -s -r -m
    counters
    interfaces
    disks
    processes
    facts
    filesystems
    units
    [ "$1" != agent ] || agent
    kill "$guard"
    # Nothing is left of it while the next look is waited for.
    while
        wait "$guard"
        [ "$?" = "$woken" ]
    do
        :
    done
    section end
}

main() {
    # Some shells say later, and elsewhere, whom they saw die.
    exec 2>/dev/null
    cd /
    job=
    trap '[ -z "$job" ] || kill -KILL "$job"; exit 1' HUP INT TERM
    trap : ALRM
    # A key may be bound to this script: then the wish is what was asked for in its place.
    case "${1-} ${SSH_ORIGINAL_COMMAND-}" in
        'agent '* | *' agent') wish=agent ;;
        *) wish= ;;
    esac
    look "$wish" </dev/null
    # Who runs this by a key that is bound to it may send the script all the same: that is no wish.
    while read -r wish; do
        case $wish in
            again | agent) look "$wish" </dev/null ;;
        esac
    done
}

# On one line, so that nothing is left of it on the input, from which `main` goes on to read.
main "$@"; exit 0
