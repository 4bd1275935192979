"""A whole build farm on this machine: an EC2 whose instances really run their user-data, and a Buildbot master.

For the demo, for this package's tests, and for yours. Needs the extra ``embedded``.
"""

from buildbot_ec2ud.embedded.builds import Build, Log, Step
from buildbot_ec2ud.embedded.ec2 import EmbeddedEC2
from buildbot_ec2ud.embedded.faults import Faults
from buildbot_ec2ud.embedded.master import EmbeddedMaster, RequestCollapsed, StartFailed

__all__ = ["Build", "EmbeddedEC2", "EmbeddedMaster", "Faults", "Log", "RequestCollapsed", "StartFailed", "Step"]
