#!/bin/sh
# Makes a Buildbot worker of a vanilla image of Debian or Ubuntu. Variables: docs/bootstrap.md.
# ec2ud: include worker.sh
# ec2ud: include apt.sh
use_apt
run
