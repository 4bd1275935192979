#!/bin/sh
# shellcheck disable=SC2034,SC2154,SC2317 # a part of others
# Alpine.
use_apk() {
    packaged_tls='py3-openssl py3-service_identity'
    has() { apk info -qe "$1"; }
    install() { retry 3 apk add -q -U "$@"; }
    build_dep() { die "BB_BUILD_DEP: apk cannot do that; name packages in BB_PACKAGES"; }
}
