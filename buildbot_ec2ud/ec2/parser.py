"""XML answers of EC2 -> objects.

In the shape of txAWS's ``Parser``, whose methods take the body of an answer. An answer that is not the expected one is
an error, never "no instances".
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

from lxml import etree
from txaws.ec2 import client, model

from buildbot_ec2ud.ec2.errors import NoAnswer


class Instance(model.Instance):
    """An EC2 instance, with what txAWS's own lacks.

    :ivar tags: a dict.
    :ivar state_reason: ``(code, message)`` of the last change of state; both empty while there was none.
    :ivar state_transition_reason: the older, free text for the same.
    :ivar lifecycle: ``"spot"``, or ``"on-demand"``.
    :ivar subnet_id: the id of its subnet, or None.
    """

    tags: dict[str, str]
    state_reason: tuple[str, str]
    state_transition_reason: str
    lifecycle: str
    subnet_id: str | None

    @property
    def ended(self) -> bool:
        """Whether EC2 has confirmed that nothing is left to pay for: it is terminated."""
        return self.instance_state == "terminated"

    @property
    def ending(self) -> bool:
        """Whether it is on its way out, or out: it will never run again by itself."""
        return self.instance_state in ("shutting-down", "terminated", "stopping", "stopped")

    def why(self) -> str:
        """Why it is in its state, in EC2's words; empty when EC2 gives no reason."""
        code, message = self.state_reason
        if message.startswith(code):
            return message or self.state_transition_reason
        return ": ".join(filter(None, (code, message)))


class Parser(client.Parser):
    """Parses the answers to the calls that the project makes; the others are txAWS's."""

    def instance(self, node: Any, reservation: model.Reservation) -> Instance:
        text = _texts(node)
        instance = Instance(
            text("instanceId"),
            text("instanceState/name"),
            instance_type=text("instanceType"),
            image_id=text("imageId"),
            private_dns_name=text("privateDnsName"),
            dns_name=text("dnsName"),
            private_ip_address=text("privateIpAddress"),
            ip_address=text("ipAddress"),
            key_name=text("keyName"),
            ami_launch_index=text("amiLaunchIndex"),
            launch_time=text("launchTime"),
            placement=text("placement/availabilityZone"),
            reservation=reservation,
        )
        if not instance.instance_id or not instance.instance_state:
            raise NoAnswer("an instance without an id or a state in EC2's answer")
        instance.tags = {_texts(tag)("key"): _texts(tag)("value") for tag in node.iterfind("{*}tagSet/{*}item")}
        instance.state_reason = (text("stateReason/code"), text("stateReason/message"))
        instance.state_transition_reason = text("reason")
        instance.lifecycle = text("instanceLifecycle") or "on-demand"
        instance.subnet_id = text("subnetId") or None
        return instance

    def _reservation(self, node: Any) -> Iterator[Instance]:
        text = _texts(node)
        reservation = model.Reservation(text("reservationId"), text("ownerId"))
        for item in node.iterfind("{*}instancesSet/{*}item"):
            yield self.instance(item, reservation)

    def run_instances(self, xml_bytes: bytes) -> list[Instance]:
        instances = list(self._reservation(_answer(xml_bytes, "RunInstances")))
        if not instances:
            raise NoAnswer("RunInstances: there is no instance in the answer")
        return instances

    def describe_instances(self, xml_bytes: bytes) -> list[Instance]:
        return self.describe_instances_page(xml_bytes)[0]

    def describe_instances_page(self, xml_bytes: bytes) -> tuple[list[Instance], str | None]:
        """One page of DescribeInstances.

        :return: the instances, and the token of the next page (None after the last).
        """
        root = _answer(xml_bytes, "DescribeInstances")
        if root.find("{*}reservationSet") is None:
            raise NoAnswer("DescribeInstances: the answer has no reservationSet")
        instances = [
            instance for node in root.iterfind("{*}reservationSet/{*}item") for instance in self._reservation(node)
        ]
        return instances, _texts(root)("nextToken") or None

    def terminate_instances(self, xml_bytes: bytes) -> list[tuple[str, str, str]]:
        root = _answer(xml_bytes, "TerminateInstances")
        return [
            (text("instanceId"), text("previousState/name"), text("currentState/name"))
            for text in map(_texts, root.iterfind("{*}instancesSet/{*}item"))
        ]

    def get_console_output(self, xml_bytes: bytes) -> str:
        """The text of the console; empty while EC2 has none."""
        encoded = _texts(_answer(xml_bytes, "GetConsoleOutput"))("output")
        try:
            return base64.b64decode(encoded, validate=False).decode("utf-8", "replace")
        except ValueError as error:
            raise NoAnswer(f"GetConsoleOutput: the output is not base64: {error}") from error


def _texts(node: Any) -> Callable[[str], str]:
    """A function from a path below *node* to the text there, empty where there is none."""

    def text(path: str) -> str:
        return node.findtext("/".join("{*}" + name for name in path.split("/"))) or ""

    return text


def _answer(xml_bytes: bytes, action: str) -> Any:
    """Parse the answer to *action*.

    :raises NoAnswer: it is something else: a proxy's HTML page, cut off, empty.
    """
    # No entities and no network: an answer has no business to make this master read files or open connections.
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(xml_bytes, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise NoAnswer(f"{action}: the answer is not XML: {error}") from error
    name = etree.QName(root).localname
    if name != f"{action}Response":
        raise NoAnswer(f"{action}: the answer is a {name!r}, not EC2's")
    return root
