"""What the build's page tells of the instance."""

from __future__ import annotations

from buildbot.interfaces import LatentWorkerCannotSubstantiate, LatentWorkerFailedToSubstantiate
from twisted.python import log

from buildbot_ec2ud.ec2.errors import EC2CallError, ErrorClass
from buildbot_ec2ud.fleet.rental import Rental


def properties(rental: Rental, region: str) -> dict[str, str]:
    """The properties of a build that runs on *rental*."""
    instance = rental.instance
    return {
        "instance": rental.instance_id,
        "ec2_instance_type": instance.instance_type,
        "ec2_availability_zone": instance.placement,
        "ec2_market": instance.lifecycle,
        "ec2_ami": instance.image_id,
        "ec2_region": region,
    }


def refusal(worker: str, error: Exception) -> Exception:
    """What Buildbot is told when there is no instance: whether to try the build again, and why it did not start.

    :param worker: the worker's name.
    :param error: what went wrong: an answer of EC2's, or something that is wrong with the configuration.
    """
    final = not isinstance(error, EC2CallError) or error.error_class is ErrorClass.CONFIGURATION
    log.msg(f"worker {worker}: no instance: {error}")
    answer = LatentWorkerCannotSubstantiate if final else LatentWorkerFailedToSubstantiate
    return answer(f"no EC2 instance for worker {worker}: {error}")


def end(rental: Rental) -> str:
    """In which state an instance has ended, and why, as far as EC2 says."""
    why = rental.instance.why()
    return f"instance {rental.instance_id} is {rental.state}" + (f" ({why})" if why else "")
