#!/bin/sh
# Starts a worker on an instance of the embedded EC2, where buildbot-worker is installed already.
# Touches nothing outside the instance's own directory, and stays in the foreground: the worker is the instance.
set -eu
umask 077
home=$PWD
worker=$home/worker
# Not by an assignment: tracing (sh -x) would show it.
IFS= read -r password <<END
$BB_PASSWORD
END
unset BB_PASSWORD
# ec2ud: include tac.sh
mkdir -p "$worker"
# From a pipe, not a file: this instance may be killed at any time, and nobody would clean up.
make_tac 'passwd = open(3).read()[:-1]' --maxretries=5
echo "ec2ud: phase=start-worker t=$(($(date +%s) - EC2UD_START))"
# In a new shell, because this one's environment began with the password in it.
exec sh -c 'buildbot-worker start --nodaemon "$1" || :
exec 3<&-
echo "ec2ud: the worker has ended; powering off"
exec sh "$EC2UD_SWITCH" off' sh "$worker" 3<<END
$password
END
