"""What the build's page tells of the instance."""

from __future__ import annotations

from buildbot.interfaces import LatentWorkerCannotSubstantiate, LatentWorkerFailedToSubstantiate
from buildbot.process.properties import Properties
from twisted.python import log

from buildbot_ec2ud.ec2.errors import EC2CallError, ErrorClass
from buildbot_ec2ud.fleet.rental import Rental

#: The properties that tell of the instance.
PROPERTIES = ("instance", "ec2_instance_type", "ec2_availability_zone", "ec2_market", "ec2_ami", "ec2_region")


def mark(properties: Properties, rental: Rental | None) -> None:
    """Make *properties* tell of the instance, or of none.

    :param properties: a worker's, which Buildbot copies into each of its builds; or a build's.
    """
    for name in PROPERTIES:
        properties.properties.pop(name, None)
    if rental is None:
        return
    instance = rental.instance
    values = (
        rental.instance_id,
        instance.instance_type,
        instance.placement,
        instance.lifecycle,
        instance.image_id,
        rental.fleet.region,
    )
    properties.update(dict(zip(PROPERTIES, values, strict=True)), "Worker")


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
    """In which state an instance has ended, and why, as far as EC2 says; or what it could not be given."""
    if rental.trouble is not None:
        return f"instance {rental.instance_id}: {rental.trouble}"
    why = rental.instance.why()
    return f"instance {rental.instance_id} is {rental.state}" + (f" ({why})" if why else "")
