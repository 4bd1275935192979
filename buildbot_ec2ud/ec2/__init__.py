"""EC2 itself: txAWS's client, made current. Importing this package makes ``import txaws`` work on Python 3."""

from buildbot_ec2ud.ec2 import _txaws

_txaws.install()
