#!/bin/sh
# shellcheck disable=SC2034,SC2154,SC2317 # a part of others
# Debian and Ubuntu.
use_apt() {
    # Debian keeps venv apart from Python. The last one is for Ubuntu 18.04.
    pythons='python3-venv python3.8-venv'
    packaged_tls='python3-openssl python3-service-identity'
    export DEBIAN_FRONTEND=noninteractive
    lists=old
    has() { dpkg -s "$1" 2>/dev/null | grep -q '^Status: install ok'; }
    apt() { retry 3 apt_once "$@"; }
    apt_once() {
        # If a first boot's own update holds the lock of the lists, apt-get does not wait for it. In a process of its own,
        # because it is retried itself.
        [ "$lists" = new ] || (retry 60 apt-get -qq update) || return 1
        # Without a network, an update only warns, and ends well: what cannot be installed then needs another one.
        lists=old
        apt-get -qq -y --no-install-recommends -o DPkg::Lock::Timeout=300 "$@" || return 1
        lists=new
    }
    install() { apt install ca-certificates "$@"; }
    build_dep() {
        etc=/etc/apt/sources.list
        # There may be files of either kind, or none.
        if [ ! -e "$etc".d/ec2ud.list ]; then
            sed -i 's/^Types: deb$/& deb-src/' "$etc".d/*.sources || :
            sed -n 's/^deb /deb-src /p' "$etc" "$etc".d/*.list >"$home/src" || :
            mv "$home/src" "$etc".d/ec2ud.list
            lists=old
        fi 2>/dev/null
        apt build-dep "$1"
    }
}
