#!/bin/sh
# Turns this machine into a Buildbot worker: gets a bootstrap script and runs it. Made by buildbot-ec2ud.

# Everything it prints goes to the console, to syslog and to the log file; it never prints the password.
umask 077
ec2ud_log=${EC2UD_ROOT:-}/var/log/buildbot-ec2ud.log
ec2ud_dir=${EC2UD_ROOT:-}/var/lib/buildbot-ec2ud
ec2ud_script=$ec2ud_dir/bootstrap
ec2ud_start=$(date +%s)

ec2ud_phase() {
    echo "ec2ud: phase=$1 t=$(($(date +%s) - ec2ud_start))"
}

# ec2ud_facts: print the commands that export what the metadata service says of this instance; in a few seconds, or not
# at all.
ec2ud_facts() (
    # shellcheck source=/dev/null
    . "$ec2ud_dir/imds"
    new_token 3
    for fact in INSTANCE_ID=instance-id AMI_ID=ami-id REGION=placement/region LOCAL_IPV4=local-ipv4 \
        AVAILABILITY_ZONE=placement/availability-zone HOSTNAME=local-hostname; do
        value=$(ask GET "meta-data/${fact#*=}")
        # Something else may answer there.
        case $value in *[!A-Za-z0-9._-]*) value= ;; esac
        echo "export BB_${fact%%=*}=$value"
    done
)

ec2ud_bootstrap() {
ec2ud_phase start
# Before there is any variable that could mean something to those who ask, such as that of a proxy.
eval "$(ec2ud_facts)"
@EXPORTS@
export EC2UD_START="$ec2ud_start" EC2UD_SWITCH="$ec2ud_dir/switch"
@BOOTSTRAP@
chmod 700 "$ec2ud_script" || return 1
ec2ud_phase bootstrap
cd "$ec2ud_dir" || return 1
umask 022
# Last of all, for nobody but the script; and so that a shell that traces does not print it.
@SECRET@
export BB_PASSWORD
exec "$ec2ud_script"
}

ec2ud_main() {
    # In a process of its own, so that what it exports is not given to what powers off.
    (ec2ud_bootstrap)
    ec2ud_status=$?
    [ "$ec2ud_status" != 0 ] || return 0
    echo "ec2ud: the bootstrap script failed with status $ec2ud_status; powering off"
    # What was said last has to be on the console by then.
    sleep 1
    [ ! -s "$ec2ud_dir/switch" ] || exec sh "$ec2ud_dir/switch" off
    # Not even that could be written.
    shutdown -P now || shutdown -p now || poweroff
}

ec2ud_tee() {
    while IFS= read -r ec2ud_line || [ -n "$ec2ud_line" ]; do
        printf '%s\n' "$ec2ud_line"
        printf '%s\n' "$ec2ud_line" >&3
        logger -t buildbot-ec2ud -- "$ec2ud_line" 2>/dev/null
    done 3>>"$ec2ud_log"
}

# ec2ud_watch SCRIPT ARGUMENT...: run a script that outlives this one, and that nobody waits for.
ec2ud_watch() (
    ec2ud_watcher=$ec2ud_dir/$1
    shift
    [ ! -x "$ec2ud_again" ] || echo "(trap '' HUP; exec sh $ec2ud_watcher $*) </dev/null >/dev/null 2>&1 &" >>"$ec2ud_again"
    trap '' HUP
    # An instance of the embedded EC2 has no console but this output.
    [ ! -e "${EC2UD_ROOT:-}/dev/console" ] || exec >/dev/null 2>&1
    ec2ud_setsid=$(command -v setsid)
    exec ${ec2ud_setsid:+"$ec2ud_setsid"} sh "$ec2ud_watcher" "$@" </dev/null &
)

# FreeBSD has no /var/lib, and the worker's user has to get through it.
(umask 022 && mkdir -p "${ec2ud_dir%/*}" "${ec2ud_log%/*}")
mkdir -p "$ec2ud_dir"
(: >>"$ec2ud_log") 2>/dev/null || ec2ud_log=/dev/null
# cloud-init does not run this script again when the machine is restarted, but what is there. Only on this instance: an image
# may be made of it.
ec2ud_cloud=${EC2UD_ROOT:-}/var/lib/cloud
ec2ud_again=$ec2ud_cloud/scripts/per-boot/buildbot-ec2ud
if [ -d "${ec2ud_again%/*}" ]; then
    ec2ud_instance=$(readlink "$ec2ud_cloud/instance" 2>/dev/null)
    echo "#!/bin/sh
[ \"\$(readlink $ec2ud_cloud/instance 2>/dev/null)\" = '$ec2ud_instance' ] || exit 0" >"$ec2ud_again"
    chmod 700 "$ec2ud_again"
fi
@WATCHES@
ec2ud_main 2>&1 | ec2ud_tee
