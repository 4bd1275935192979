#!/bin/sh
# shellcheck disable=SC2034,SC2154,SC2317 # its parts and others have the rest
# What all families of systems share. A family's part, such as apt.sh, has a function that says how things are done there;
# a script calls that, and then run.
set -eu
umask 022
# Root's. The worker and its builds live in $worker.
home=/var/lib/buildbot-worker
worker=$home/worker
# ec2ud: include secret.sh
# ec2ud: include tac.sh
began=${EC2UD_START:-$(date +%s)}
export PATH="$home/venv/bin:$PATH:/usr/local/sbin:/usr/local/bin"

# What a family says, besides its functions `has` (whether a package is installed), `install` and `build_dep`:
# packages with a Python that has venv, the best first; the packages of the worker, and those that it needs for TLS;
# where the worker comes from: pip, or package; what runs a command as the worker's user; and whether the script has to
# return at once.
pythons=python3
packaged=buildbot-worker
packaged_tls=
from=pip
su='su -s /bin/sh buildbot'
background=

phase() { echo "ec2ud: phase=$1 t=$(($(date +%s) - began))"; }

# retry TRIES COMMAND...
retry() {
    tries=$1
    shift
    until "$@"; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || return 1
        sleep 5
    done
}

# find_python: set $python to one that buildbot-worker runs with
find_python() {
    for python in python3 /usr/bin/python3.*; do
        "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 8))' 2>/dev/null && return
    done
}

# pip_install: install buildbot-worker in a virtualenv of its own
pip_install() {
    "$python" -m venv "$home/venv"
    # Not the newest of what it depends on, if that had to be compiled.
    retry 3 "$home/venv/bin/pip" -q install --prefer-binary \
        ${BB_WORKER_INDEX:+--index-url "$BB_WORKER_INDEX"} \
        ${BB_WORKER_WHEELS:+--no-index --find-links "$BB_WORKER_WHEELS"} \
        "buildbot-worker${BB_WORKER_VERSION:+==$BB_WORKER_VERSION}" ${BB_TLS_CERT:+"twisted[tls]"}
}

fetch_setup() {
    { curl -fsSLo "$file" "$BB_SETUP" || wget -qO "$file" "$BB_SETUP" || fetch -qo "$file" "$BB_SETUP"; } 2>/dev/null
}

setup() {
    case $BB_SETUP in
        http://* | https://*) ;;
        *)
            sh -euc "$BB_SETUP"
            return
            ;;
    esac
    file=$home/setup
    retry 9 fetch_setup || die "cannot fetch $BB_SETUP"
    if [ -n "${BB_SETUP_SHA256:-}" ]; then
        sum=$({ sha256sum "$file" || sha256 -q "$file" || shasum -a 256 "$file"; } 2>/dev/null)
        [ "${sum%% *}" = "$BB_SETUP_SHA256" ] || die "$BB_SETUP has the wrong SHA-256: ${sum%% *}"
    fi
    chmod 700 "$file"
    "$file"
}

# start: the machine goes when the worker has ended
start() {
    start="$(command -v buildbot-worker) start --nodaemon $worker"
    if [ -d /run/systemd/system ]; then
        # With the first, a build that runs out of memory does not take the worker along; an older systemd does not know it,
        # and that of Amazon Linux 2 none of them. A shell starts it: SELinux does not let systemd run what is in $home.
        for policy in --property=OOMPolicy=continue --property=Restart=no; do
            ! systemd-run --unit=buildbot-worker --uid=buildbot --working-directory="$worker" "$policy" \
                --property=SuccessAction=poweroff --property=FailureAction=poweroff \
                --property=StandardOutput=journal+console --setenv=PATH="$PATH" --setenv=HOME="$worker" -- \
                /bin/sh -c "$start; echo 'ec2ud: the worker has ended; powering off'" || return 0
        done
    fi
    # In a new shell, because this one's environment began with the password in it; and a session of its own.
    life="env -i PATH='$PATH' HOME='$worker' $su -c 'cd $worker; exec $start'
sh '${EC2UD_SWITCH:-}' off 'the worker has ended' || poweroff || shutdown -h now"
    setsid sh -c "$life" </dev/null >/dev/null 2>&1 &
}

main() {
    case ${BB_SETUP:-} in
        http:*) [ -n "${BB_SETUP_SHA256:-}" ] || die "BB_SETUP: plain http needs BB_SETUP_SHA256" ;;
    esac
    installing=
    if ! command -v buildbot-worker >/dev/null; then
        if [ "${BB_WORKER_FROM:-$from}" = package ]; then
            phase install-worker
            set --
            for package in $packaged ${BB_TLS_CERT:+$packaged_tls}; do set -- "$@" "$package"; done
            install "$@"
        else
            phase install-python
            for package in $pythons; do
                find_python && break
                install "$package" || :
            done
            find_python || die "no Python 3.8 or newer"
            # Meanwhile packages are installed, which pip does not need.
            pip_install &
            installing=$!
        fi
        command -v git >/dev/null || BB_PACKAGES="git ${BB_PACKAGES:-}"
    fi

    set --
    for package in ${BB_PACKAGES:-}; do has "$package" || set -- "$@" "$package"; done
    if [ $# != 0 ]; then
        phase packages
        install "$@"
    fi
    if [ -n "${BB_BUILD_DEP:-}" ]; then
        phase build-dep
        for package in $BB_BUILD_DEP; do build_dep "$package"; done
    fi
    if [ -n "$installing" ]; then
        phase install-worker
        wait "$installing"
    fi
    id buildbot >/dev/null 2>&1 || useradd --system --home-dir "$worker" buildbot 2>/dev/null ||
        adduser -S -D -H -h "$worker" buildbot
    if [ -n "${BB_SETUP:-}" ]; then
        phase setup
        setup
    fi

    phase start-worker
    mkdir -p "$worker"
    make_tac "passwd = open('$secret/password').read()[:-1]; import shutil; shutil.rmtree('$secret', True)"
    chown -R buildbot "$worker" "$secret"
    start
    trap - EXIT
}

# run: do it all, in the background if need be
run() {
    if [ -z "$background" ]; then
        main
        return
    fi
    trap - EXIT
    # When FreeBSD's boot has ended, whatever it has left in its session gets this signal; and a file of the console that was
    # opened before is of no use any more.
    trap '' HUP
    (
        # In braces, no shell would run the trap.
        (
            trap 'rm -rf "$secret"; sh "${EC2UD_SWITCH:-}" off "the bootstrap script failed" || shutdown -p now' EXIT
            main
        ) 2>&1 | while IFS= read -r line || [ -n "$line" ]; do
            printf '%s\n' "$line" | tee -a /var/log/buildbot-ec2ud.log /dev/console || :
        done
    ) </dev/null >/dev/null 2>&1 &
}
