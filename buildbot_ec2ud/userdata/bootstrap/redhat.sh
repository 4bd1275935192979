#!/bin/sh
# Makes a Buildbot worker of a vanilla image of RHEL, Rocky, Alma, CentOS Stream, Fedora or Amazon Linux. Variables: docs/bootstrap.md.
# ec2ud: include worker.sh
# ec2ud: include dnf.sh
use_dnf
run
