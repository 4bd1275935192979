#!/bin/sh
# shellcheck disable=SC2034,SC2154,SC2317 # a part of others
# SLES and openSUSE.
use_zypper() {
    pythons='python3 python313 python312 python311 python39'
    packaged_tls='python3-pyOpenSSL python3-service_identity'
    export ZYPP_LOCK_TIMEOUT=300
    has() { rpm -q "$1" >/dev/null 2>&1; }
    # With these it has done what it was told, and wishes a restart, or left a repository out.
    zypp() { zypper -q -n "$@" || case $? in 102 | 103 | 106) ;; *) return 1 ;; esac }
    # An image that is paid by the hour is given its repositories while it boots: until then, there are none.
    registered() { zypper -q -n repos >/dev/null 2>&1 || [ $? != 6 ]; }
    install() {
        retry 60 registered || :
        retry 3 zypp install --no-recommends "$@"
    }
    build_dep() {
        zypper -q -n repos | while IFS=' |' read -r number alias _; do
            case $alias in *[Ss]ource*) zypper -q -n modifyrepo -e "$number" ;; esac
        done
        retry 3 zypp source-install -d "$1"
    }
}
