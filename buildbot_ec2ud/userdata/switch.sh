#!/bin/sh
# Ends a machine that nobody needs any more; asks nobody but the machine itself. Made by buildbot-ec2ud.
#   switch lifetime SECONDS      powers off after so long, whatever happens
#   switch orphan SECONDS PORT   powers off after so long without a connection to the master's port
#   switch off [REASON]          powers off
root=${EC2UD_ROOT:-}

say() {
    { echo "ec2ud: $*" >>"$root/dev/console"; } 2>/dev/null || echo "ec2ud: $*"
    { echo "ec2ud: $*" >>"$root/var/log/buildbot-ec2ud.log"; } 2>/dev/null
    logger -t buildbot-ec2ud -- "ec2ud: $*" 2>/dev/null
}

off() {
    [ -z "${1:-}" ] || say "$1; powering off"
    while :; do
        # Each system has its own way; a BSD halts at -h, and stays.
        { shutdown -P now || shutdown -p now || shutdown -h now || poweroff || halt -p; } >/dev/null 2>&1
        sleep 120
        # Something that does not end holds it up: without waiting for it, then.
        { poweroff -f || halt -f -p; } >/dev/null 2>&1
        sleep 10
    done
}

lifetime() {
    sleep "$1"
    off "max_lifetime: $1 s are over"
}

# connections DIRECTORY...: print the inodes of established connections to the master, each with a blank.
connections() {
    for net; do grep -h "$(printf ':%04X 01 ' "$port")" "$net/tcp" "$net/tcp6"; done 2>/dev/null |
        while read -r _ _ _ _ _ _ _ _ _ inode _; do printf '%s ' "$inode"; done
}

# networks: print a process's directory for each network of this machine; a container has its own.
networks() {
    # shellcheck disable=SC2012 # names are numbers
    ls -l /proc/[0-9]*/ns/net 2>/dev/null | sed 's|.* \(/proc/[0-9]*\)/ns/net -> |\1/net |' | sort -u -k 2 |
        while read -r net _; do echo "$net"; done
}

# all_connections: as connections, in the network that this process is in, or else in any.
all_connections() {
    inodes=$(connections /proc/net)
    # shellcheck disable=SC2046 # a list
    [ -n "$inodes" ] || inodes=$(connections $(networks))
    printf '%s' "$inodes"
}

# Instances of an embedded EC2 share one machine: the processes of each have its directory in their environment.
is_own() {
    [ -z "${EC2UD_ROOT:-}" ] || tr '\0' '\n' <"/proc/$1/environ" | grep -qxF "EC2UD_ROOT=$EC2UD_ROOT"
} 2>/dev/null

# workers: print the processes of this machine that are connected to the master.
workers() {
    if [ ! -r /proc/net/tcp ]; then
        sockstat -46c -P tcp -p "$port" 2>/dev/null | while read -r _ _ number _; do
            case $number in [0-9]*) echo "$number" ;; esac
        done
        return
    fi
    set --
    for inode in $(all_connections); do set -- "$@" -e "socket:.$inode]"; done
    [ $# != 0 ] || return 0
    # shellcheck disable=SC2010 # names are numbers
    ls -l /proc/[0-9]*/fd 2>/dev/null | grep -e '^/proc/' "$@" | while read -r line; do
        case $line in
            /proc/*) pid=${line#/proc/}; pid=${pid%/fd:} ;;
            *) ! is_own "$pid" || echo "$pid" ;;
        esac
    done
}

is_connected() {
    if [ ! -r /proc/net/tcp ]; then
        netstat -an | while read -r line; do
            case $line in *[.:]"$port"[!0-9]*ESTABLISHED*) echo "$line" ;; esac
        done
    elif [ -n "${EC2UD_ROOT:-}" ]; then
        workers
    else
        # Whose they are, a process may not be allowed to see: SELinux.
        all_connections
    fi | grep -q .
}

orphan() {
    port=$2
    [ -r /proc/net/tcp ] || command -v netstat >/dev/null || { say "orphan_timeout: cannot see connections"; return; }
    # The worker asks for keepalives, by which a master that is gone without a word is noticed. Linux sends them after
    # two hours only, if it is not told otherwise.
    { echo 60 >"$root/proc/sys/net/ipv4/tcp_keepalive_time"; } 2>/dev/null
    step=$(($1 / 10 + 1)) alone=0
    [ "$step" -le 15 ] || step=15
    while [ "$alone" -lt "$1" ]; do
        sleep "$step"
        alone=$((alone + step))
        ! is_connected || alone=0
    done
    off "orphan_timeout: no connection to the master for $alone s"
}

# When memory runs out, the kernel is to end something else.
{ echo -1000 >"$root/proc/self/oom_score_adj"; } 2>/dev/null
"$@"
