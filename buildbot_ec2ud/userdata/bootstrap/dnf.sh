#!/bin/sh
# shellcheck disable=SC2034,SC2154,SC2317 # a part of others
# RHEL, Rocky, Alma, CentOS Stream, Fedora, Amazon Linux.
use_dnf() {
    dnf=$(command -v dnf || echo yum)
    pythons='python3 python3.12 python3.11 python39 python38'
    packaged_tls='python3-pyOpenSSL python3-service-identity'
    # Amazon Linux 2 has Python 3.7, and this.
    if command -v amazon-linux-extras >/dev/null; then
        pythons=python38
        amazon-linux-extras enable python3.8 >/dev/null
    fi
    has() { rpm -q "$1" >/dev/null 2>&1; }
    install() { retry 3 "$dnf" -q -y install "$@"; }
    build_dep() {
        if [ "$dnf" = yum ]; then
            install yum-utils
            retry 3 yum-builddep -q -y "$1"
        else
            "$dnf" builddep --help >/dev/null 2>&1 || install 'dnf-command(builddep)'
            retry 3 "$dnf" -q -y builddep "$1"
        fi
    }
}
