"""EC2's answers become objects; what is not EC2's answer becomes an error, and never "no instances"."""

from __future__ import annotations

import base64
import resource
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.ec2.errors import NoAnswer
from buildbot_ec2ud.ec2.parser import Instance, Parser
from tests.unit.files import directory, write

NAMESPACE = 'xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"'

SPOT = """
<item>
  <instanceId>i-1234567890abcdef0</instanceId>
  <imageId>ami-bff32ccc</imageId>
  <instanceState><code>48</code><name>terminated</name></instanceState>
  <privateDnsName/>
  <dnsName/>
  <reason>Service initiated (2031-02-03 04:05:06 GMT)</reason>
  <keyName>key</keyName>
  <amiLaunchIndex>0</amiLaunchIndex>
  <productCodes/>
  <instanceType>c7i.large</instanceType>
  <launchTime>2031-02-03T04:00:00.000Z</launchTime>
  <placement><availabilityZone>eu-central-1b</availabilityZone><groupName/><tenancy>default</tenancy></placement>
  <subnetId>subnet-1</subnetId>
  <stateReason>
    <code>Server.SpotInstanceTermination</code>
    <message>Server.SpotInstanceTermination: Spot instance termination</message>
  </stateReason>
  <instanceLifecycle>spot</instanceLifecycle>
  <tagSet>
    <item><key>buildbot:worker</key><value>wörker &amp; 1</value></item>
    <item><key>empty</key><value/></item>
  </tagSet>
  <ipAddress>203.0.113.7</ipAddress>
  <privateIpAddress>10.0.0.7</privateIpAddress>
</item>
"""

BARE = """
<item>
  <instanceId>i-2</instanceId>
  <instanceState><code>0</code><name>pending</name></instanceState>
</item>
"""


def reservation(*instances: str) -> str:
    return (
        "<reservationId>r-1</reservationId><ownerId>123456789012</ownerId><groupSet/>"
        f"<instancesSet>{''.join(instances)}</instancesSet>"
    )


def described(*reservations: str, after: str = "") -> bytes:
    items = "".join(f"<item>{text}</item>" for text in reservations)
    return answer("DescribeInstances", f"<reservationSet>{items}</reservationSet>{after}")


def answer(action: str, content: str, doctype: str = "") -> bytes:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n{doctype}<{action}Response {NAMESPACE}>'
        f"<requestId>8f7724cf-496f-496e-8fe3-example</requestId>{content}</{action}Response>"
    ).encode()


class InstanceTests(SynchronousTestCase):
    """What is read of an instance."""

    def one(self, item: str) -> Instance:
        [instance] = Parser().describe_instances(described(reservation(item)))
        return instance

    def test_everything(self) -> None:
        """All that EC2 tells of a spot instance."""
        instance = self.one(SPOT)
        self.assertEqual(instance.instance_id, "i-1234567890abcdef0")
        self.assertEqual(instance.instance_state, "terminated")
        self.assertEqual(instance.instance_type, "c7i.large")
        self.assertEqual(instance.image_id, "ami-bff32ccc")
        self.assertEqual(instance.placement, "eu-central-1b")
        self.assertEqual(instance.subnet_id, "subnet-1")
        self.assertEqual(instance.lifecycle, "spot")
        self.assertEqual(instance.tags, {"buildbot:worker": "wörker & 1", "empty": ""})
        self.assertEqual(instance.ip_address, "203.0.113.7")
        self.assertEqual(instance.private_ip_address, "10.0.0.7")
        self.assertEqual(instance.reservation.reservation_id, "r-1")
        self.assertEqual(instance.state_reason[0], "Server.SpotInstanceTermination")
        self.assertEqual(instance.state_transition_reason, "Service initiated (2031-02-03 04:05:06 GMT)")

    def test_missing_elements(self) -> None:
        """An instance that has only just been made lacks nearly everything."""
        instance = self.one(BARE)
        self.assertEqual((instance.instance_id, instance.instance_state), ("i-2", "pending"))
        self.assertEqual(instance.lifecycle, "on-demand")
        self.assertEqual(instance.tags, {})
        self.assertEqual(instance.state_reason, ("", ""))
        self.assertIsNone(instance.subnet_id)
        self.assertEqual(instance.why(), "")

    def test_no_id_or_state(self) -> None:
        """An instance without an id or without a state is no instance."""
        for gone in ("<instanceId>i-2</instanceId>", "<name>pending</name>"):
            self.assertIn(gone, BARE)
            with self.assertRaises(NoAnswer):
                self.one(BARE.replace(gone, ""))

    def test_why(self) -> None:
        """The reason of a state is told once, and falls back to the older text."""
        instance = self.one(BARE)
        instance.state_transition_reason = "User initiated"
        for reason, why in (
            (("", ""), "User initiated"),
            (("Server.X", "Server.X: no capacity"), "Server.X: no capacity"),
            (("Server.X", "no capacity"), "Server.X: no capacity"),
            (("Server.X", ""), "Server.X"),
            (("", "no capacity"), "no capacity"),
        ):
            instance.state_reason = reason
            self.assertEqual(instance.why(), why)

    def test_states(self) -> None:
        """Only the end is an end; on the way to it are four states."""
        found = {}
        for state in ("pending", "running", "stopping", "stopped", "shutting-down", "terminated"):
            instance = self.one(BARE.replace("pending", state))
            found[state] = (instance.ending, instance.ended)
        self.assertEqual(
            found,
            {
                "pending": (False, False),
                "running": (False, False),
                "stopping": (True, False),
                "stopped": (True, False),
                "shutting-down": (True, False),
                "terminated": (True, True),
            },
        )


class AnswerTests(SynchronousTestCase):
    """Whole answers."""

    def test_describe(self) -> None:
        """All instances of all reservations, each with its own reservation."""
        page = described(reservation(BARE, SPOT), reservation(BARE).replace("r-1", "r-2"))
        found = [(i.instance_id, i.reservation.reservation_id) for i in Parser().describe_instances(page)]
        self.assertEqual(found, [("i-2", "r-1"), ("i-1234567890abcdef0", "r-1"), ("i-2", "r-2")])

    def test_no_instances(self) -> None:
        """EC2's way to say that there are none."""
        self.assertEqual(Parser().describe_instances_page(described()), ([], None))
        empty = answer("DescribeInstances", "<reservationSet/>")
        self.assertEqual(Parser().describe_instances_page(empty), ([], None))

    def test_next_token(self) -> None:
        """The token of the next page; an empty one is none."""
        for after, token in (
            ("<nextToken>eyJ2IjoiMiJ9+/=</nextToken>", "eyJ2IjoiMiJ9+/="),
            ("<nextToken/>", None),
            ("", None),
        ):
            instances, found = Parser().describe_instances_page(described(reservation(BARE), after=after))
            self.assertEqual((len(instances), found), (1, token))

    def test_run(self) -> None:
        """The instance that was started."""
        [instance] = Parser().run_instances(answer("RunInstances", reservation(BARE)))
        self.assertEqual(instance.instance_id, "i-2")
        self.assertEqual(instance.reservation.reservation_id, "r-1")

    def test_run_nothing(self) -> None:
        """A launch without an instance is not a launch."""
        with self.assertRaises(NoAnswer):
            Parser().run_instances(answer("RunInstances", "<reservationId>r-1</reservationId><instancesSet/>"))

    def test_terminate(self) -> None:
        """Each instance with its state before and now."""
        items = "".join(
            f"<item><instanceId>{name}</instanceId><currentState><code>32</code><name>shutting-down</name></currentState>"
            f"<previousState><code>16</code><name>{before}</name></previousState></item>"
            for name, before in (("i-1", "running"), ("i-2", "pending"))
        )
        self.assertEqual(
            Parser().terminate_instances(answer("TerminateInstances", f"<instancesSet>{items}</instancesSet>")),
            [("i-1", "running", "shutting-down"), ("i-2", "pending", "shutting-down")],
        )

    def test_console(self) -> None:
        """The console's text, whatever its lines and its bytes."""

        def console(output: str) -> str:
            content = f"<instanceId>i-1</instanceId><timestamp>2031-02-03T04:05:06.000Z</timestamp>{output}"
            return Parser().get_console_output(answer("GetConsoleOutput", content))

        encoded = base64.encodebytes("Linux\r\nec2ud: phase=wörker\n".encode() * 10 + b"\xff").decode()
        self.assertIn("\n", encoded.strip())
        self.assertEqual(console(f"<output>{encoded}</output>"), "Linux\r\nec2ud: phase=wörker\n" * 10 + "\ufffd")
        self.assertEqual(console(""), "")
        self.assertEqual(console("<output/>"), "")
        with self.assertRaises(NoAnswer):
            console("<output>A</output>")


METHODS: tuple[tuple[str, Callable[[Parser, bytes], Any]], ...] = (
    ("RunInstances", Parser.run_instances),
    ("DescribeInstances", Parser.describe_instances),
    ("DescribeInstances", Parser.describe_instances_page),
    ("TerminateInstances", Parser.terminate_instances),
    ("GetConsoleOutput", Parser.get_console_output),
)


class NoAnswerTests(SynchronousTestCase):
    """What is not the answer to the call."""

    def refuse(self, body: bytes) -> None:
        for action, method in METHODS:
            failure = self.assertRaises(NoAnswer, method, Parser(), body)
            self.assertIn(action, str(failure))
            self.assertEqual(len(str(failure).splitlines()), 1)
            self.assertTrue(failure.outcome_unknown)

    def test_not_xml(self) -> None:
        """Pages of proxies, nothing at all, and what is no XML."""
        for body in (
            b"",
            b"\n",
            b"<!doctype html>\n<title>Log in<p>here",
            b"<html><body>Log in</body></html>",
            b'{"message": null}',
            b"\x00\x01",
            b"\x1f\x8b\x08gzip",
            b'<?xml version="1.0" encoding="klingon"?><x/>',
        ):
            self.refuse(body)

    def test_wrong_root(self) -> None:
        """The answer to another call, and an error."""
        self.refuse(answer("DescribeImages", "<imagesSet/>"))
        self.refuse(b"<Response><Errors><Error><Code>X</Code></Error></Errors></Response>")

    def test_truncated(self) -> None:
        """An answer that is cut off, wherever that is."""
        whole = described(reservation(SPOT))
        for length in range(0, len(whole) - 1, 37):
            with self.assertRaises(NoAnswer):
                Parser().describe_instances(whole[:length])
        self.assertEqual(len(Parser().describe_instances(whole)), 1)

    def test_no_reservations(self) -> None:
        """The right root with nothing in it does not mean that there are no instances."""
        with self.assertRaises(NoAnswer):
            Parser().describe_instances(answer("DescribeInstances", ""))


class EntityTests(SynchronousTestCase):
    """An answer cannot make this process read files, or eat its memory."""

    def text_of_type(self, doctype: str, entity: str) -> str:
        item = BARE.replace("</item>", f"<instanceType>t3{entity}</instanceType></item>")
        body = answer(
            "DescribeInstances",
            f"<reservationSet><item>{reservation(item)}</item></reservationSet>",
            f"<!DOCTYPE DescribeInstancesResponse [{doctype}]>",
        )
        try:
            [instance] = Parser().describe_instances(body)
        except NoAnswer as error:
            return str(error)
        return instance.instance_type

    def test_file(self) -> None:
        """An external entity is not read."""
        path = write(directory(self), "secret", "TOP-SECRET")
        for target in (path, f"file://{path}"):
            text = self.text_of_type(f'<!ENTITY x SYSTEM "{target}">', "&x;")
            self.assertNotIn("TOP-SECRET", text)
            text = self.text_of_type(f'<!ENTITY % x SYSTEM "{target}"> %x;', "")
            self.assertNotIn("TOP-SECRET", text)

    def test_laughs(self) -> None:
        """Entities of entities of entities are not expanded."""
        doctype = '<!ENTITY a0 "hahahahaha">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        text = self.text_of_type(doctype, "&a9;")
        self.assertLess(len(text), 1000)
        self.assertLess(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, 100_000)
