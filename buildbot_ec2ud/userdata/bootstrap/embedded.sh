#!/bin/sh
# Starts a worker on an instance of the embedded EC2, where buildbot-worker is installed already.
# Touches nothing outside the instance's own directory, and stays in the foreground: the worker is the instance.
set -eu
umask 077
worker=$PWD/worker
mkdir -p "$worker"
# The password goes through a file that is gone when the worker has read it: not through argv, the worker's environment
# or its tac.
printf '%s' "$BB_PASSWORD" >"$worker/.password"
unset BB_PASSWORD
buildbot-worker create-worker --relocatable --maxretries=5 --allow-shutdown=signal \
    "$worker" "$BB_MASTER" "$BB_NAME" from-file >/dev/null
mv "$worker/buildbot.tac" "$worker/buildbot.tac.orig"
sed "s|^passwd = .*|with open(os.path.join(basedir, '.password')) as f: passwd = f.read()\\
os.unlink(f.name)|" "$worker/buildbot.tac.orig" >"$worker/buildbot.tac"
echo "ec2ud: phase=start-worker t=$(($(date +%s) - EC2UD_START))"
buildbot-worker start --nodaemon "$worker" || :
echo "ec2ud: the worker has ended; powering off"
exec sh "$EC2UD_SWITCH" off
