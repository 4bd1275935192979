"""The calls about volumes and Elastic IP addresses: what is made of their answers, and which are made again without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import defer
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.ec2.attaching import Address, BlockDevice, Volume, VolumeAttachment
from buildbot_ec2ud.ec2.client import EC2Client
from buildbot_ec2ud.ec2.errors import NoAnswer
from buildbot_ec2ud.ec2.parser import Parser
from tests.unit.test_parser import BARE, answer, described, reservation
from tests.unit.test_query_retries import CLOSED, RetryTestCase

IP = "203.0.113.7"


class Repeated(RetryTestCase):
    """Which calls are made again when the first was not answered."""

    def sent(self, action: str, call: Callable[[EC2Client], defer.Deferred[Any]]) -> list[str]:
        """The actions that come when the first reply is lost, and the next is not."""
        called = call(self.client(CLOSED, (200, answer(action, "<return>true</return>"))))
        called.addErrback(lambda failure: failure.trap(NoAnswer))
        self.pump()
        self.successResultOf(called)
        return [parameters["Action"][0] for _, parameters in self.agent.sent]

    def test_harmless(self) -> None:
        attribute = {"BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"DeleteOnTermination": True}}]}
        for action, call in (
            ("AssociateAddress", lambda client: client.associate_address("eipalloc-1", "i-1")),
            ("DisassociateAddress", lambda client: client.disassociate_address("eipassoc-1")),
            ("ModifyInstanceAttribute", lambda client: client.modify_instance_attribute("i-1", attribute)),
        ):
            self.assertEqual(self.sent(action, call), [action, action])

    def test_attach_volume(self) -> None:
        """The second call would be refused because of what the first has done."""
        sent = self.sent("AttachVolume", lambda client: client.attach_volume("vol-1", "i-1", "/dev/sdf"))
        self.assertEqual(sent, ["AttachVolume"])


class Parsing(SynchronousTestCase):
    def test_block_devices(self) -> None:
        """The devices of an instance; one that is no EBS volume has no id."""
        mapping = (
            "<rootDeviceName>/dev/xvda</rootDeviceName><blockDeviceMapping>"
            "<item><deviceName>/dev/xvda</deviceName><ebs><volumeId>vol-1</volumeId><status>attached</status>"
            "<attachTime>2031-02-03T04:05:06.000Z</attachTime><deleteOnTermination>true</deleteOnTermination></ebs></item>"
            "<item><deviceName>/dev/sdf</deviceName><ebs><deleteOnTermination>false</deleteOnTermination>"
            "<volumeId>vol-2</volumeId></ebs></item><item><deviceName>/dev/sdb</deviceName></item></blockDeviceMapping>"
        )
        [found] = Parser().describe_instances(described(reservation(BARE.replace("</item>", f"{mapping}</item>"))))
        self.assertEqual(found.root_device_name, "/dev/xvda")
        self.assertEqual(
            found.block_devices,
            (
                BlockDevice("/dev/xvda", "vol-1", True),
                BlockDevice("/dev/sdf", "vol-2", False),
                BlockDevice("/dev/sdb", "", False),
            ),
        )

    def test_no_block_devices(self) -> None:
        for more in ("", "<blockDeviceMapping/>"):
            [found] = Parser().describe_instances(described(reservation(BARE.replace("</item>", f"{more}</item>"))))
            self.assertEqual((found.root_device_name, found.block_devices), ("", ()))

    def test_volumes(self) -> None:
        items = (
            "<item><volumeId>vol-1</volumeId><size>8</size><availabilityZone>us-east-1a</availabilityZone>"
            "<status>in-use</status><createTime>2031-02-03T04:05:06.000Z</createTime><attachmentSet>"
            "<item><volumeId>vol-1</volumeId><instanceId>i-1</instanceId><device>/dev/sdf</device>"
            "<status>attached</status></item><item><volumeId>vol-1</volumeId><instanceId>i-2</instanceId>"
            "<device>/dev/sdg</device><status>detaching</status></item></attachmentSet>"
            "<multiAttachEnabled>true</multiAttachEnabled></item>"
            "<item><volumeId>vol-2</volumeId><availabilityZone>us-east-1b</availabilityZone><status>available</status>"
            "<attachmentSet/><multiAttachEnabled>false</multiAttachEnabled></item>"
        )
        attachments = (
            VolumeAttachment("i-1", "/dev/sdf", "attached"),
            VolumeAttachment("i-2", "/dev/sdg", "detaching"),
        )
        self.assertEqual(
            Parser().describe_volumes(answer("DescribeVolumes", f"<volumeSet>{items}</volumeSet>")),
            [
                Volume("vol-1", "in-use", "us-east-1a", True, attachments),
                Volume("vol-2", "available", "us-east-1b", False, ()),
            ],
        )
        self.assertEqual(Parser().describe_volumes(answer("DescribeVolumes", "<volumeSet/>")), [])

    def test_addresses(self) -> None:
        items = (
            f"<item><publicIp>{IP}</publicIp><allocationId>eipalloc-1</allocationId><domain>vpc</domain>"
            "<instanceId>i-1</instanceId><associationId>eipassoc-1</associationId></item>"
            "<item><publicIp>203.0.113.8</publicIp><allocationId>eipalloc-2</allocationId><instanceId/></item>"
        )
        self.assertEqual(
            Parser().describe_addresses(answer("DescribeAddresses", f"<addressesSet>{items}</addressesSet>")),
            [Address(IP, "eipalloc-1", "eipassoc-1", "i-1"), Address("203.0.113.8", "eipalloc-2", "", "")],
        )
        self.assertEqual(Parser().describe_addresses(answer("DescribeAddresses", "<addressesSet/>")), [])

    def test_not_a_listing(self) -> None:
        """The right root with nothing in it does not mean that there is no such volume, or address."""
        for action, method in (
            ("DescribeVolumes", Parser.describe_volumes),
            ("DescribeAddresses", Parser.describe_addresses),
        ):
            with self.assertRaises(NoAnswer):
                method(Parser(), answer(action, ""))

    def test_changes(self) -> None:
        attached = answer("AttachVolume", "<volumeId>vol-1</volumeId><status>attaching</status>")
        self.assertEqual(Parser().attach_volume(attached), "attaching")
        associated = answer("AssociateAddress", "<return>true</return><associationId>eipassoc-1</associationId>")
        self.assertEqual(Parser().associate_address(associated), "eipassoc-1")

    def test_something_else(self) -> None:
        """What is not the answer to the call is an error."""
        parser = Parser()
        for method in (
            parser.attach_volume,
            parser.describe_volumes,
            parser.describe_addresses,
            parser.associate_address,
            parser.disassociate_address,
            parser.modify_instance_attribute,
        ):
            for body in (b"", b"<html><body>Log in</body></html>", answer("RunInstances", "<return>true</return>")):
                with self.assertRaises(NoAnswer):
                    method(body)
