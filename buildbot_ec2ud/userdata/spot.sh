#!/bin/sh
# Waits for EC2 to take this machine back; then ends the worker in time and powers off. Made by buildbot-ec2ud.
#   spot PORT   with the master's port
# shellcheck disable=SC2034 # for workers()
port=$1
set --
# shellcheck source=/dev/null
. "${0%/*}/switch"
# shellcheck source=/dev/null
. "${0%/*}/imds"

# time_in JSON: print the time of a notice, such as 2017-09-18T08:22:00Z.
time_in() {
    at=${1#*[tT]ime\"}
    at=${at#*\"}
    at=${at%%\"*}
    case $at in '' | *[!0-9TZ:-]*) at=unknown ;; esac
    echo "$at"
}

# build_time TIME: print for how many seconds a build may go on when the machine is taken back at TIME.
build_time() {
    text="${1%T*} ${1#*T}"
    text=${text%Z}
    end=$(date -juf '%Y-%m-%d %H:%M:%S' "$text" +%s 2>/dev/null || date -ud "$text" +%s 2>/dev/null)
    # EC2 gives two minutes. The last 15 s are for the master to hear of it.
    left=105
    [ -z "$end" ] || left=$((end - $(date +%s) - 15))
    [ "$left" -le 105 ] || left=105
    [ "$left" -ge 0 ] || left=0
    echo "$left"
}

# A worker that does not know SIGHUP would end at once.
knows_hup() {
    [ ! -r "/proc/$1/status" ] || grep -q '^SigCgt:.*[13579bdf]$' "/proc/$1/status"
}

header='' advice='' rounds=0
while :; do
    if [ -z "$header" ] || [ "$rounds" -ge 60 ]; then
        new_token
        rounds=0
    fi
    rounds=$((rounds + 1))
    notice=$(ask GET meta-data/spot/instance-action)
    case $notice in *'"action"'*) break ;; esac
    if [ -z "$advice" ]; then
        advice=$(ask GET meta-data/events/recommendations/rebalance)
        [ -z "$advice" ] || say "rebalance-recommendation at=$(time_in "$advice")"
    fi
    sleep 5
done
at=$(time_in "$notice")
say "spot-interruption at=$at"
left=$(build_time "$at") told=' '
while :; do
    for pid in $(workers); do
        # The master gives it nothing more to do then, and ends it after its build.
        case $told in *" $pid "*) ;; *) ! knows_hup "$pid" || kill -HUP "$pid" ;; esac
        told="$told$pid "
    done
    [ "$left" -gt 0 ] || break
    pause=5
    [ "$left" -ge 5 ] || pause=$left
    sleep "$pause"
    left=$((left - pause))
done
# A worker that ends closes its connection: the master need not find out by itself.
for signal in TERM KILL; do
    for pid in $(workers); do kill -s "$signal" "$pid"; done
    sleep 2
done
off "spot-interruption"
