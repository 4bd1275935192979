#!/bin/sh
# shellcheck disable=SC2034,SC2154,SC2317 # a part of others
# macOS. Its agent waits for user-data. Homebrew, where it is installed, belongs to a user, and does not run as root.
use_brew() {
    background=yes
    # launchd ends what is left of the agent's process group, when the agent has ended.
    { set -m; } 2>/dev/null || :
    PATH=$PATH:/opt/homebrew/bin
    su='sudo -u buildbot sh'
    brewing() {
        brew=$(command -v brew) || die "there is no Homebrew to install packages with"
        (cd / && retry 3 sudo -H -u "$(stat -f %Su "$brew")" "$brew" "$@")
    }
    has() { brewing list "$1" >/dev/null 2>&1; }
    install() { brewing install -q "$@"; }
    build_dep() { brewing install -q --only-dependencies --include-build "$1"; }
    useradd() {
        # /Users/buildbot is its record in the directory; its home is elsewhere.
        for property in 'UniqueID 399' 'PrimaryGroupID 20' 'UserShell /bin/sh' "NFSHomeDirectory $worker"; do
            dscl . -create /Users/buildbot "${property% *}" "${property#* }"
        done
    }
    # launchd runs it; or else this process.
    setsid() {
        cat >"$home/worker.plist" <<E
<plist version="1.0"><dict>
<key>Label</key><string>net.buildbot.worker</string>
<key>RunAtLoad</key><true/>
<key>ProgramArguments</key><array><string>/bin/sh</string><string>-c</string><string>$life</string></array>
</dict></plist>
E
        launchctl bootstrap system "$home/worker.plist" || "$@"
    }
}
