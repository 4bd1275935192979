#!/bin/sh
# shellcheck disable=SC2034,SC2154,SC2317 # a part of others
# FreeBSD. It runs user-data early in its boot, and waits for it; has no Python and no bash; and PyPI has no wheels for it,
# so the package is the better worker.
use_pkg() {
    background=yes
    [ -n "${BB_WORKER_VERSION:-}${BB_WORKER_INDEX:-}${BB_WORKER_WHEELS:-}" ] || from=package
    packaged=devel/py-buildbot-worker
    packaged_tls='security/py-openssl security/py-service_identity'
    # With root's shell: the account may have none.
    su='su -m buildbot'
    export ASSUME_ALWAYS_YES=yes
    has() { pkg info -qe "$1"; }
    install() { retry 9 pkg install -q "$@"; }
    # What it runs with: a package does not know what its port was built with.
    build_dep() {
        pkg update -q
        for package in $(pkg rquery %dn "$1"); do install "$package"; done
    }
    useradd() { pw useradd buildbot -d "$worker" -s /bin/sh; }
    setsid() { daemon "$@"; }
}
