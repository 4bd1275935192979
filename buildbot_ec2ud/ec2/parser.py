"""XML answers of EC2 -> objects.

In the shape of txAWS's ``Parser``, whose methods take the body of an answer. An answer that is not the expected one is
an error, never "no instances".
"""

from __future__ import annotations

import base64
from collections.abc import Generator, Iterator
from typing import Any

from twisted.internet import defer, task
from txaws.ec2 import client, model

from buildbot_ec2ud.ec2 import xml
from buildbot_ec2ud.ec2.answers import Node, answer, expect, listing
from buildbot_ec2ud.ec2.attaching import Address, BlockDevice, Volume, VolumeAttachment
from buildbot_ec2ud.ec2.errors import LACKED_CAPACITY, NoAnswer
from buildbot_ec2ud.ec2.images import Image

#: Bytes of an answer that are parsed in one go: about 100 instances, which takes 10 ms ...
AT_ONCE = 400_000
#: ... and of a slice of one that is longer: about 20.
SLICE = 64 * 1024

#: What of an instance is read: a third of what EC2 tells.
_OF_INSTANCE = (
    *("{*}instanceId", "{*}instanceState", "{*}instanceType", "{*}imageId", "{*}keyName", "{*}amiLaunchIndex"),
    *("{*}privateDnsName", "{*}dnsName", "{*}privateIpAddress", "{*}ipAddress", "{*}subnetId", "{*}placement"),
    *("{*}launchTime", "{*}tagSet", "{*}stateReason", "{*}reason", "{*}instanceLifecycle"),
    *("{*}rootDeviceName", "{*}blockDeviceMapping"),
)

#: What of an image is read.
_OF_IMAGE = (
    *("{*}imageId", "{*}imageState", "{*}imageLocation", "{*}name", "{*}creationDate", "{*}rootDeviceName"),
    "{*}architecture",
)


class Instance(model.Instance):
    """An EC2 instance, with what txAWS's own lacks.

    :ivar tags: a dict.
    :ivar state_reason: ``(code, message)`` of the last change of state; both empty while there was none.
    :ivar state_transition_reason: the older, free text for the same.
    :ivar lifecycle: ``"spot"``, or ``"on-demand"``.
    :ivar subnet_id: the id of its subnet, or None.
    :ivar root_device_name: the device that it boots from, such as ``/dev/sda1``.
    :ivar block_devices: the EBS volumes that it has.
    """

    tags: dict[str, str]
    state_reason: tuple[str, str]
    state_transition_reason: str
    lifecycle: str
    subnet_id: str | None
    root_device_name: str = ""
    block_devices: tuple[BlockDevice, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether EC2 has confirmed that nothing is left to pay for: it is terminated."""
        return self.instance_state == "terminated"

    @property
    def ending(self) -> bool:
        """Whether it is on its way out, or out: it will never run again by itself."""
        return self.instance_state in ("shutting-down", "terminated", "stopping", "stopped")

    @property
    def lacked_capacity(self) -> bool:
        """Whether EC2 has ended it because it had no capacity for it, or wanted that back."""
        return self.ending and self.state_reason[0] in LACKED_CAPACITY

    def why(self) -> str:
        """Why it is in its state, in EC2's words; empty when EC2 gives no reason."""
        code, message = self.state_reason
        if message.startswith(code):
            return message or self.state_transition_reason
        return ": ".join(filter(None, (code, message)))


class Parser(client.Parser):
    """Parses the answers to the calls that the project makes; the others are txAWS's."""

    def instance(self, element: Any, reservation: model.Reservation) -> Instance:
        node = Node(element, _OF_INSTANCE)
        text = node.text
        instance = Instance(
            text("instanceId"),
            node.child("instanceState").text("name"),
            instance_type=text("instanceType"),
            image_id=text("imageId"),
            private_dns_name=text("privateDnsName"),
            dns_name=text("dnsName"),
            private_ip_address=text("privateIpAddress"),
            ip_address=text("ipAddress"),
            key_name=text("keyName"),
            ami_launch_index=text("amiLaunchIndex"),
            launch_time=text("launchTime"),
            placement=node.child("placement").text("availabilityZone"),
            reservation=reservation,
        )
        if not instance.instance_id or not instance.instance_state:
            raise NoAnswer("an instance without an id or a state in EC2's answer")
        instance.tags = {tag.text("key"): tag.text("value") for tag in map(Node, node.items("tagSet"))}
        reason = node.child("stateReason")
        instance.state_reason = (reason.text("code"), reason.text("message"))
        instance.state_transition_reason = text("reason")
        instance.lifecycle = text("instanceLifecycle") or "on-demand"
        instance.subnet_id = text("subnetId") or None
        instance.root_device_name = text("rootDeviceName")
        instance.block_devices = tuple(map(_block_device, node.items("blockDeviceMapping")))
        return instance

    def _reservation(self, element: Any) -> Iterator[Instance]:
        node = Node(element)
        reservation = model.Reservation(node.text("reservationId"), node.text("ownerId"))
        for item in node.items("instancesSet"):
            yield self.instance(item, reservation)

    def run_instances(self, xml_bytes: bytes) -> list[Instance]:
        instances = list(self._reservation(answer(xml_bytes, "RunInstances")))
        if not instances:
            raise NoAnswer("RunInstances: there is no instance in the answer")
        return instances

    def describe_instances(self, xml_bytes: bytes) -> list[Instance]:
        return self.describe_instances_page(xml_bytes)[0]

    def describe_instances_page(self, xml_bytes: bytes) -> tuple[list[Instance], str | None]:
        """One page of DescribeInstances.

        :return: the instances, and the token of the next page (None after the last).
        """
        page = _instances_page(answer(xml_bytes, "DescribeInstances"))
        instances = [instance for item in page.items("reservationSet") for instance in self._reservation(item)]
        return instances, page.text("nextToken") or None

    @defer.inlineCallbacks
    def describe_instances_long_page(
        self, xml_bytes: bytes, reactor: Any
    ) -> Generator[Any, Any, tuple[list[Instance], str | None]]:
        """One page of DescribeInstances, however long: between slices of it, *reactor* does what else it has to do."""
        if len(xml_bytes) <= AT_ONCE:
            return self.describe_instances_page(xml_bytes)
        instances: list[Instance] = []
        root = None
        try:
            for items, root in xml.parse_in_slices(xml_bytes, SLICE, "reservationSet"):  # noqa: B007
                for item in items:
                    instances.extend(self._reservation(item))
                yield task.deferLater(reactor, 0)
        except ValueError as error:
            raise NoAnswer(f"DescribeInstances: the answer is not XML: {error}") from error
        return instances, _instances_page(root).text("nextToken") or None

    def describe_images_page(self, xml_bytes: bytes) -> tuple[list[Image], str | None]:
        """One page of DescribeImages.

        :return: the images, and the token of the next page (None after the last).
        """
        root = answer(xml_bytes, "DescribeImages")
        if root.find("{*}imagesSet") is None:
            raise NoAnswer("DescribeImages: the answer has no imagesSet")
        page = Node(root)
        return [_image(item) for item in page.items("imagesSet")], page.text("nextToken") or None

    def terminate_instances(self, xml_bytes: bytes) -> list[tuple[str, str, str]]:
        root = Node(answer(xml_bytes, "TerminateInstances"))
        return [
            (node.text("instanceId"), node.child("previousState").text("name"), node.child("currentState").text("name"))
            for node in map(Node, root.items("instancesSet"))
        ]

    def describe_spot_price_history_page(self, xml_bytes: bytes) -> tuple[list[float], str | None]:
        """One page of DescribeSpotPriceHistory.

        :return: the prices, and the token of the next page (None after the last).
        """
        page = Node(answer(xml_bytes, "DescribeSpotPriceHistory"))
        try:
            prices = [float(node.text("spotPrice")) for node in map(Node, page.items("spotPriceHistorySet"))]
        except ValueError as error:
            raise NoAnswer(f"DescribeSpotPriceHistory: not a price: {error}") from error
        return prices, page.text("nextToken") or None

    def get_console_output(self, xml_bytes: bytes) -> str:
        """The text of the console; empty while EC2 has none."""
        encoded = Node(answer(xml_bytes, "GetConsoleOutput")).text("output")
        try:
            return base64.b64decode(encoded, validate=False).decode("utf-8", "replace")
        except ValueError as error:
            raise NoAnswer(f"GetConsoleOutput: the output is not base64: {error}") from error

    def attach_volume(self, xml_bytes: bytes) -> str:
        """The state of the attachment."""
        return Node(answer(xml_bytes, "AttachVolume")).text("status")

    def describe_volumes(self, xml_bytes: bytes) -> list[Volume]:
        root = listing(xml_bytes, "DescribeVolumes", "volumeSet")
        return [_volume(node) for node in map(Node, root.items("volumeSet"))]

    def describe_addresses(self, xml_bytes: bytes) -> list[Address]:
        root = listing(xml_bytes, "DescribeAddresses", "addressesSet")
        names = ("publicIp", "allocationId", "associationId", "instanceId")
        return [Address(*map(node.text, names)) for node in map(Node, root.items("addressesSet"))]

    def associate_address(self, xml_bytes: bytes) -> str:
        """The id of the association."""
        return Node(answer(xml_bytes, "AssociateAddress")).text("associationId")

    def disassociate_address(self, xml_bytes: bytes) -> None:
        answer(xml_bytes, "DisassociateAddress")

    def modify_instance_attribute(self, xml_bytes: bytes) -> None:
        answer(xml_bytes, "ModifyInstanceAttribute")


def _image(element: Any) -> Image:
    text = Node(element, _OF_IMAGE).text
    image = Image(
        text("imageId"),
        text("imageState"),
        location=text("imageLocation") or None,
        name=text("name"),
        creation_date=text("creationDate"),
        root_device_name=text("rootDeviceName"),
        architecture=text("architecture"),
    )
    if not image.image_id or not image.state:
        raise NoAnswer("an image without an id or a state in EC2's answer")
    return image


def _block_device(item: Any) -> BlockDevice:
    node = Node(item)
    ebs = node.child("ebs")
    return BlockDevice(node.text("deviceName"), ebs.text("volumeId"), ebs.text("deleteOnTermination") == "true")


def _volume(node: Node) -> Volume:
    attachments = (
        VolumeAttachment(attachment.text("instanceId"), attachment.text("device"), attachment.text("status"))
        for attachment in map(Node, node.items("attachmentSet"))
    )
    return Volume(
        node.text("volumeId"),
        node.text("status"),
        node.text("availabilityZone"),
        node.text("multiAttachEnabled") == "true",
        tuple(attachments),
    )


def _instances_page(root: Any) -> Node:
    """The children of the root of an answer to DescribeInstances.

    :raises NoAnswer: it is something else.
    """
    expect(root, "DescribeInstances")
    if root.find("{*}reservationSet") is None:
        raise NoAnswer("DescribeInstances: the answer has no reservationSet")
    return Node(root)
