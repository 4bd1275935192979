#!/bin/sh
# Makes a Buildbot worker of a vanilla image of FreeBSD. Variables: docs/bootstrap.md.
# ec2ud: include worker.sh
# ec2ud: include pkg.sh
use_pkg
run
