#!/bin/sh
# Makes a Buildbot worker of a vanilla image of macOS. Variables: docs/bootstrap.md.
# ec2ud: include worker.sh
# ec2ud: include brew.sh
use_brew
run
