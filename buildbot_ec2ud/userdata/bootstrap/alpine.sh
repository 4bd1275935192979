#!/bin/sh
# Makes a Buildbot worker of a vanilla image of Alpine. Variables: docs/bootstrap.md.
# ec2ud: include worker.sh
# ec2ud: include apk.sh
use_apk
run
