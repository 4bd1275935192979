#!/bin/sh
# Makes a Buildbot worker of a vanilla image, on systems with apt, dnf, yum, zypper or apk: installs Python, git, and
# buildbot-worker in a virtualenv of its own, makes an unprivileged user and starts the worker. On an image that has
# buildbot-worker already, it installs nothing.
#
# Variables: BB_MASTER, BB_NAME, BB_PASSWORD as always;
#   BB_PACKAGES        packages to install besides, separated by blanks
#   BB_WORKER_VERSION  version of buildbot-worker; the newest unless given
#   BB_SETUP           shell commands to run as root before the worker starts
set -eu
umask 022
home=/var/lib/buildbot-worker # root's; the worker and its builds live in $worker
worker=$home/worker
began=${EC2UD_START:-$(date +%s)}
password=$BB_PASSWORD
unset BB_PASSWORD # nothing that is installed or built needs it

phase() { echo "ec2ud: phase=$1 t=$(($(date +%s) - began))"; }

# install_packages PACKAGE...: with whatever package manager there is
install_packages() {
    if command -v apt-get >/dev/null; then
        DEBIAN_FRONTEND=noninteractive
        export DEBIAN_FRONTEND
        apt-get -qq update
        apt-get -qq -y --no-install-recommends -o Dpkg::Lock::Timeout=300 install "$@"
    elif command -v dnf >/dev/null; then
        dnf -q -y install "$@"
    elif command -v yum >/dev/null; then
        yum -q -y install "$@"
    elif command -v zypper >/dev/null; then
        zypper -q -n install "$@"
    elif command -v apk >/dev/null; then
        apk add -q "$@"
    else
        echo "no package manager known to this script" >&2
        return 1
    fi
}

if ! command -v buildbot-worker >/dev/null; then
    phase install-python
    # Debian keeps venv apart from Python; the others do not.
    if command -v apt-get >/dev/null; then
        install_packages ca-certificates git python3 python3-venv
    else
        install_packages git python3
    fi
    phase install-worker
    python3 -m venv "$home/venv"
    "$home/venv/bin/pip" -q install "buildbot-worker${BB_WORKER_VERSION:+==$BB_WORKER_VERSION}"
    PATH=$home/venv/bin:$PATH
fi

if [ -n "${BB_PACKAGES:-}" ]; then
    phase packages
    # shellcheck disable=SC2086 # a list
    install_packages $BB_PACKAGES
fi

if [ -n "${BB_SETUP:-}" ]; then
    phase setup
    sh -euc "$BB_SETUP"
fi

phase start-worker
id buildbot >/dev/null 2>&1 || useradd --system --home-dir "$worker" buildbot 2>/dev/null ||
    adduser -S -D -H -h "$worker" buildbot
mkdir -p "$worker"
buildbot-worker create-worker --relocatable --allow-shutdown=signal \
    "$worker" "$BB_MASTER" "$BB_NAME" from-file >/dev/null
# The password goes through a file that is gone when the worker has read it: not through argv, the worker's environment
# or its tac.
mv "$worker/buildbot.tac" "$worker/buildbot.tac.orig"
sed "s|^passwd = .*|with open(os.path.join(basedir, '.password')) as f: passwd = f.read()\\
os.unlink(f.name)|" "$worker/buildbot.tac.orig" >"$worker/buildbot.tac"
(umask 077 && printf '%s' "$password" >"$worker/.password")
chown -R buildbot "$worker"

# The machine goes when the worker has ended. A shell starts it: SELinux does not let systemd run what is in $home.
start="$(command -v buildbot-worker) start --nodaemon $worker"
if [ -d /run/systemd/system ]; then
    systemd-run --unit=buildbot-worker --uid=buildbot --working-directory="$worker" \
        --property=SuccessAction=poweroff --property=FailureAction=poweroff --property=StandardOutput=journal+console \
        --setenv=PATH="$PATH" --setenv=HOME="$worker" -- \
        /bin/sh -c "$start; echo 'ec2ud: the worker has ended; powering off'"
else
    {
        env -i PATH="$PATH" HOME="$worker" su -s /bin/sh buildbot -c "cd $worker && exec $start" || :
        sh "${EC2UD_SWITCH:-}" off "the worker has ended" || poweroff
    } </dev/null >/dev/null 2>&1 &
fi
