#!/bin/sh
# Makes a Buildbot worker of a vanilla image, whatever its system is. Variables: docs/bootstrap.md.
# ec2ud: pack
# ec2ud: include worker.sh
# ec2ud: include apt.sh
# ec2ud: include dnf.sh
# ec2ud: include zypper.sh
# ec2ud: include apk.sh
# ec2ud: include pkg.sh
# ec2ud: include brew.sh
case "$(uname) $(sed -n 's/^ID\(_LIKE\)\{0,1\}=//p' /etc/os-release 2>/dev/null | tr "\"'\n" '   ')" in
    FreeBSD*) use_pkg ;;
    Darwin*) use_brew ;;
    *" debian "* | *" ubuntu "*) use_apt ;;
    *" suse "* | *" sles "* | *" opensuse"*) use_zypper ;;
    *" fedora "* | *" rhel "* | *" centos "* | *" amzn "*) use_dnf ;;
    *" alpine "*) use_apk ;;
    *)
        # It may be a relative of one of them. Else it cannot install anything, but may not need to.
        has() { false; }
        install() { die "no package manager known to this script"; }
        build_dep() { install; }
        for manager in apt-get:apt dnf:dnf yum:dnf zypper:zypper apk:apk; do
            if command -v "${manager%:*}" >/dev/null; then
                "use_${manager#*:}"
                break
            fi
        done
        ;;
esac
run
