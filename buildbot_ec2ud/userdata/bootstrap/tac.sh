#!/bin/sh
# shellcheck disable=SC2154,SC2317 # a part of others
die() {
    echo "ec2ud: $*" >&2
    exit 1
}

# endpoint TEXT: print a text as part of the description of a Twisted endpoint
endpoint() { printf '%s\n' "$1" | sed 's/[\\:=]/\\&/g'; }

# make_tac PASSWD OPTION...: makes a worker in $worker. PASSWD is the line of its tac that reads the password: that is not
# in argv, in the worker's environment or in its tac.
make_tac() {
    passwd=$1
    shift
    if [ -n "${BB_TLS_CERT:-}" ]; then
        host=${BB_MASTER%:*}
        host=${host#"["}
        host=$(endpoint "${host%"]"}"):${BB_MASTER##*:}
        tls=tls:$host
        # Of an IPv6 address, Twisted's `tls` would only take the certificate.
        case $BB_MASTER in "["*) tls=$tls:endpoint=$(endpoint "tcp:$host") ;; esac
        if [ "$BB_TLS_CERT" != system ]; then
            # Twisted reads one certificate of each file.
            rm -rf "$home/tls"
            mkdir -p "$home/tls"
            count=0
            while read -r line; do
                case $line in *BEGIN*) count=$((count + 1)) ;; esac
                [ $count = 0 ] || echo "$line" >>"$home/tls/$count.pem"
            done <<E
$BB_TLS_CERT
E
            [ $count != 0 ] || die "BB_TLS_CERT: no certificate"
            tls=$tls:trustRoots=$(endpoint "$home/tls")
        fi
        mkdir -p "$worker"
        printf '%s\n' "$tls" >"$worker/endpoint"
        # Not by an option of create-worker: an older one has none.
        passwd="$passwd; import functools; buildmaster_host = port = None; \
            connection_string = open(os.path.join(basedir, 'endpoint')).read().strip(); \
            Worker = functools.partial(Worker, connection_string=connection_string)"
    fi
    rm -f "$worker/buildbot.tac" # of the image
    buildbot-worker create-worker --quiet --relocatable --allow-shutdown=signal "$@" \
        "$worker" "$BB_MASTER" "$BB_NAME" from-file
    mv "$worker/buildbot.tac" "$worker/buildbot.tac.orig"
    sed "s|^passwd = .*|$passwd|" "$worker/buildbot.tac.orig" >"$worker/buildbot.tac"
}
