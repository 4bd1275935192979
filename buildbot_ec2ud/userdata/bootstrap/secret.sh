#!/bin/sh
# shellcheck disable=SC2154 # a part of worker.sh
# Takes the password out of the environment, and puts it into $secret/password: in memory, if a tmpfs is there. With
# here-documents, because tracing (sh -x) shows what is in commands and assignments.
mkdir -p "$home"
for secret in /run /dev/shm "$home"; do ! grep -qs " $secret tmpfs " /proc/mounts || break; done
secret=$(mktemp -d "$secret/buildbot-worker.XXXXXX")
trap 'rm -rf "$secret"' EXIT
# An older bash writes a here-document into a file in $TMPDIR, which has to be set by then.
(
    umask 077
    TMPDIR=$secret
    cat >"$secret/password" <<E
$BB_PASSWORD
E
)
unset BB_PASSWORD
