#!/bin/sh
# Makes a Buildbot worker of a vanilla image of SLES or openSUSE. Variables: docs/bootstrap.md.
# ec2ud: include worker.sh
# ec2ud: include zypper.sh
use_zypper
run
