"""What an instance is given once it runs: EBS volumes and an Elastic IP address that outlive it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from twisted.internet import defer, task
from twisted.python import log

from buildbot_ec2ud.ec2.attaching import ALLOCATION_PREFIX, Address, Volume
from buildbot_ec2ud.ec2.client import EC2Client
from buildbot_ec2ud.ec2.errors import EC2CallError, ErrorClass
from buildbot_ec2ud.ec2.parser import Instance
from buildbot_ec2ud.fleet.background import pauses

#: Seconds for which a volume may be in use elsewhere, or on its way to the instance. An instance that ends has its volumes
#: until it has shut down, which takes a minute or two, and longer where its system does not let go.
ATTACH_LIMIT = 300.0
#: Seconds between two looks, at most: a build waits for what is being looked for.
LONGEST_PAUSE = 10.0

#: What passes. A call whose outcome is unknown is followed by a look.
_PASSING = (ErrorClass.IN_USE, ErrorClass.NOT_VISIBLE_YET, ErrorClass.SERVER_FAULT)

_VOLUME_ID = re.compile(r"vol-[0-9a-f]+")
_DEVICE = re.compile(r"(/dev/)?[a-z][a-z0-9]*")
_ALLOCATION_ID = re.compile(ALLOCATION_PREFIX + "[0-9a-f]+")

#: A try at something: why it is not done yet, empty or None when it is.
_Attempt = Callable[[], defer.Deferred[str | None]]


@dataclass(frozen=True)
class Attachments:
    """What a worker's instances are given.

    :ivar volumes: EBS volumes: the id, and the device name that the volume gets.
    :ivar elastic_ip: an Elastic IP address, or the allocation id of one (``eipalloc-...``).
    :ivar keep_root_volume: whether the root volume may outlive the instance.
    """

    volumes: tuple[tuple[str, str], ...] = ()
    elastic_ip: str | None = None
    keep_root_volume: bool = False


class AttachmentError(EC2CallError):
    """An instance cannot be given what it should have. The text names the volume or the address.

    :param text: what is wrong, one line.
    :param error_class: what the failure asks for.
    """

    def __init__(self, text: str, error_class: ErrorClass) -> None:
        super().__init__(text)
        self.error_class = error_class


def check_volumes(volumes: Any) -> Iterator[str]:
    """Tell what is wrong with volumes that somebody has configured; EC2 is not asked.

    :param volumes: a list of pairs of a volume's id and a device name: ``[("vol-0123456789abcdef0", "/dev/sdf")]``.
    """
    if not isinstance(volumes, (list, tuple)):
        yield f"not a list of pairs of a volume's id and a device name: {volumes!r}"
        return
    seen: set[str] = set()
    for volume in volumes:
        if not (isinstance(volume, (list, tuple)) and len(volume) == 2 and all(isinstance(v, str) for v in volume)):
            yield f"not a pair of a volume's id and a device name: {volume!r}"
            continue
        volume_id, device = volume
        if not _VOLUME_ID.fullmatch(volume_id):
            yield f"not the id of a volume (vol-...): {volume_id!r}"
        if not _DEVICE.fullmatch(device):
            yield f"not a device name, such as '/dev/sdf': {device!r}"
        # Of one device, EC2 takes both names.
        for name in (volume_id, device.removeprefix("/dev/")):
            if name in seen:
                yield f"twice: {name!r}"
            seen.add(name)


def check_elastic_ip(elastic_ip: Any) -> Iterator[str]:
    """Tell what is wrong with an Elastic IP address that somebody has configured; EC2 is not asked.

    :param elastic_ip: the address, or its allocation id.
    """
    try:
        # A number would be taken for an address, too.
        right = isinstance(elastic_ip, str) and (
            _ALLOCATION_ID.fullmatch(elastic_ip) or ipaddress.IPv4Address(elastic_ip)
        )
    except ipaddress.AddressValueError:
        right = False
    if not right:
        yield f"neither an IPv4 address nor the allocation id of one ({ALLOCATION_PREFIX}...): {elastic_ip!r}"


class Attacher:
    """Gives instances what outlives them.

    :param client: what makes the calls.
    :param clock: the reactor.
    """

    def __init__(self, client: EC2Client, clock: Any) -> None:
        self._client = client
        self._clock = clock

    @defer.inlineCallbacks
    def attach(self, wanted: Attachments, instance: Instance) -> Generator[Any, Any, None]:
        """Give *wanted* to an instance, and see to it that its root volume ends with it; no call where that is so.

        An address is taken from whatever else has it, as EC2 does by default. A volume is waited for, for
        :data:`ATTACH_LIMIT`: who has it may be an instance that is about to end.

        :param instance: what EC2 says of it now that it runs.
        :return: fires when all is there. It can be cancelled at any time; do so when the instance ends.
        :raises AttachmentError: at the first thing that the instance cannot have; the others are given up.
        """
        work = [self._patiently(what, attempt) for what, attempt in self._attempts(wanted, instance)]
        try:
            yield defer.gatherResults(work, consumeErrors=True)
        except defer.FirstError as first:
            for one in work:
                one.cancel()
            first.subFailure.raiseException()

    @defer.inlineCallbacks
    def release(self, wanted: Attachments, instance_id: str) -> Generator[Any, Any, None]:
        """Take *wanted* from an instance whose end EC2 has accepted; call it after that, and let nothing wait for it.

        EC2 itself does so when the instance has ended: the address is free then, and so are the volumes, which are not
        deleted because they were attached after the launch (EC2 user guide, "How instance termination works"; EC2 API
        reference, "TerminateInstances"). But the address would be the instance's until it has shut down. The volumes are
        left to EC2: a system that shuts down writes to them to the last.

        :return: fires when that is done, or has failed, which is logged.
        """
        if wanted.elastic_ip is None:
            return
        try:
            for address in (yield self._client.describe_addresses(wanted.elastic_ip)):
                if address.instance_id == instance_id:
                    yield self._client.disassociate_address(address.association_id)
        except EC2CallError as error:
            if error.error_class is not ErrorClass.GONE:
                log.msg(
                    f"cannot take Elastic IP {wanted.elastic_ip} from {instance_id}, whose end will free it: {error}"
                )

    def _attempts(self, wanted: Attachments, instance: Instance) -> Iterator[tuple[str, _Attempt]]:
        """What has to be done: of what it is, and a try at it."""
        for device in instance.block_devices:
            root = device.device == instance.root_device_name
            if root and not device.delete_on_termination and not wanted.keep_root_volume:
                yield f"root volume {device.volume_id}", partial(self._end_with, instance, device.device)
        for volume_id, name in wanted.volumes:
            yield f"volume {volume_id}", partial(self._attach, volume_id, instance, name)
        if wanted.elastic_ip is not None:
            yield f"Elastic IP {wanted.elastic_ip}", partial(self._associate, wanted.elastic_ip, instance)

    @defer.inlineCallbacks
    def _patiently(self, what: str, attempt: _Attempt) -> Generator[Any, Any, None]:
        """Try until it is done.

        :param what: of what it is.
        :param attempt: a try; see :data:`_Attempt`.
        :raises AttachmentError: it cannot be done, or not within :data:`ATTACH_LIMIT`.
        """
        deadline = self._clock.seconds() + ATTACH_LIMIT
        told = ""
        for pause in pauses():
            error_class = ErrorClass.IN_USE
            try:
                why_not = yield attempt()
            except EC2CallError as error:
                why_not, error_class = str(error), error.error_class
                if error_class not in _PASSING:
                    raise AttachmentError(f"{what}: {why_not}", error_class) from error
            if not why_not:
                return
            left = deadline - self._clock.seconds()
            if left <= 0:
                raise AttachmentError(f"{what}: {why_not}; given up after {ATTACH_LIMIT:g} s", error_class)
            if why_not != told:
                log.msg(f"{what}: {why_not}; will try again")
                told = why_not
            yield task.deferLater(self._clock, min(pause, LONGEST_PAUSE, left))

    def _end_with(self, instance: Instance, device: str) -> defer.Deferred[None]:
        """Let EC2 delete the volume on *device* with the instance."""
        mapping = {"DeviceName": device, "Ebs": {"DeleteOnTermination": True}}
        return self._client.modify_instance_attribute(instance.instance_id, {"BlockDeviceMappings": [mapping]})

    @defer.inlineCallbacks
    def _attach(self, volume_id: str, instance: Instance, device: str) -> Generator[Any, Any, str]:
        found = yield self._client.describe_volumes(volume_id)
        if not found:
            raise AttachmentError("EC2 has no such volume in this account and region", ErrorClass.CONFIGURATION)
        volume: Volume = found[0]
        states = {attachment.instance_id: attachment.state for attachment in volume.attachments}
        state = states.get(instance.instance_id)
        if state is None:
            if volume.availability_zone != instance.placement:
                raise AttachmentError(
                    f"it is in {volume.availability_zone}, and the instance in {instance.placement}",
                    ErrorClass.CONFIGURATION,
                )
            if volume.state in ("deleting", "deleted", "error"):
                raise AttachmentError(f"its state is {volume.state}", ErrorClass.CONFIGURATION)
            if volume.state != "available" and not (volume.state == "in-use" and volume.multi_attach_enabled):
                holders = "".join(f", {state} to {other}" for other, state in states.items())
                return f"its state is {volume.state}{holders}"
            state = yield self._client.attach_volume(volume_id, instance.instance_id, device)
        return "" if state == "attached" else f"it is {state}"

    @defer.inlineCallbacks
    def _associate(self, elastic_ip: str, instance: Instance) -> Generator[Any, Any, str]:
        found = yield self._client.describe_addresses(elastic_ip)
        if not found:
            raise AttachmentError("EC2 has no such address in this account and region", ErrorClass.CONFIGURATION)
        address: Address = found[0]
        # Each association counts as a remap, which can cost (EC2 API reference, "AssociateAddress").
        if address.instance_id != instance.instance_id:
            if address.association_id:
                log.msg(f"Elastic IP {elastic_ip}: taken from {address.instance_id or 'a network interface'}")
            yield self._client.associate_address(address.allocation_id, instance.instance_id)
        return ""
