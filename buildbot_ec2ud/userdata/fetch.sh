#!/bin/sh
# shellcheck disable=SC2154,SC2317 # a part of others
# A part of posix.sh, for a bootstrap script that the instance fetches.

# ec2ud_fetch URL SHA256-or-dash: fetch the bootstrap script, with retries, and verify it.
ec2ud_fetch() {
    ec2ud_phase fetch
    ec2ud_pause=1
    until ec2ud_fetch_once "$1"; do
        [ "$ec2ud_pause" -le 64 ] || { echo "ec2ud: cannot fetch $1"; return 1; }
        sleep "$ec2ud_pause"
        ec2ud_pause=$((ec2ud_pause * 2))
    done
    [ "$2" != - ] || return 0
    ec2ud_sum=$({ sha256sum "$ec2ud_script" || sha256 -q "$ec2ud_script" || shasum -a 256 "$ec2ud_script" ||
        openssl dgst -sha256 -r "$ec2ud_script"; } 2>/dev/null)
    [ "${ec2ud_sum%% *}" = "$2" ] || { echo "ec2ud: $1 has the wrong SHA-256: ${ec2ud_sum%% *}"; return 1; }
}

ec2ud_fetch_once() {
    if command -v curl >/dev/null; then
        curl -fsSL --connect-timeout 10 --max-time 120 -o "$ec2ud_script" "$1"
    elif command -v wget >/dev/null; then
        wget -q -T 30 -O "$ec2ud_script" "$1"
    elif command -v fetch >/dev/null; then
        fetch -q -T 30 -o "$ec2ud_script" "$1"
    else
        python3 -c 'import sys, urllib.request as u; open(sys.argv[2], "wb").write(u.urlopen(sys.argv[1], timeout=30).read())' \
            "$1" "$ec2ud_script"
    fi
}
