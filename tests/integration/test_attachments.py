"""Volumes and Elastic IP addresses of instances of the embedded EC2; boto3 makes them, and tells who has them.

What differs from EC2: moto frees a volume as soon as its instance begins to shut down, lets AttachVolume take a volume from
whoever has it, and never frees the address of an instance that has ended.
"""

from __future__ import annotations

from typing import Any

from twisted.internet import defer, reactor

from buildbot_ec2ud.ec2 import query
from buildbot_ec2ud.ec2.client import EC2Client
from buildbot_ec2ud.ec2.credentials import AWSCredentials
from buildbot_ec2ud.ec2.query import QueryFactory
from buildbot_ec2ud.ec2.transport import Transport
from buildbot_ec2ud.embedded import Faults
from buildbot_ec2ud.embedded.kinds import KINDS
from buildbot_ec2ud.fleet import attachments, background
from buildbot_ec2ud.fleet.attachments import Attacher, AttachmentError, Attachments
from tests.integration.instances import InstanceTestCase
from tests.unit.fleets import logged


class AttachmentsTestCase(InstanceTestCase):
    """An attacher on the embedded EC2."""

    def setUp(self) -> None:
        self.patch(query, "LONGEST_BACKOFF", 0.2)
        self.patch(background, "FIRST_PAUSE", 0.1)
        self.patch(attachments, "LONGEST_PAUSE", 0.1)
        self.faults = Faults()
        self.start_ec2(faults=self.faults)
        transport = Transport(reactor)
        self.addCleanup(transport.close)
        creds = AWSCredentials(self.ec2.access_key, self.ec2.secret_key, reactor=reactor)
        self.client = EC2Client(creds, self.ec2.endpoint_url, QueryFactory(self.ec2.region, reactor, transport.agent))
        self.attacher = Attacher(self.client, reactor)

    @defer.inlineCallbacks
    def start(self, **parameters: Any) -> Any:
        """An instance that runs, as our own client sees it."""
        instance_id = yield self.launch(Placement={"AvailabilityZone": "us-east-1a"}, **parameters)
        yield self.until_state(instance_id, "running")
        (instance,) = yield self.client.describe_instances(instance_id)
        return instance

    @defer.inlineCallbacks
    def volume(self, zone: str = "us-east-1a") -> Any:
        answer = yield self.call("create_volume", AvailabilityZone=zone, Size=1)
        return answer["VolumeId"]

    @defer.inlineCallbacks
    def address(self) -> Any:
        """A new address: itself, and its allocation id."""
        answer = yield self.call("allocate_address", Domain="vpc")
        return answer["PublicIp"], answer["AllocationId"]

    @defer.inlineCallbacks
    def holders(self, volume_id: str) -> Any:
        """Who has a volume, and as what."""
        answer = yield self.call("describe_volumes", VolumeIds=[volume_id])
        return [(item["InstanceId"], item["Device"]) for item in answer["Volumes"][0]["Attachments"]]

    @defer.inlineCallbacks
    def holder(self, allocation_id: str) -> Any:
        """Who has an address; None if nobody."""
        answer = yield self.call("describe_addresses", AllocationIds=[allocation_id])
        return answer["Addresses"][0].get("InstanceId") or None

    def attach(self, instance: Any, *volume_ids: str, **wanted: Any) -> defer.Deferred[None]:
        volumes = tuple((volume_id, f"/dev/sd{letter}") for volume_id, letter in zip(volume_ids, "fgh", strict=False))
        return self.attacher.attach(Attachments(volumes=volumes, **wanted), instance)


class Life(AttachmentsTestCase):
    @defer.inlineCallbacks
    def test_two_starts(self) -> Any:
        """One instance after the other has the same volumes and the same address; the first has them until it ends."""
        first, second = (yield self.volume()), (yield self.volume())
        elastic_ip, allocation_id = yield self.address()
        wanted = Attachments(((first, "/dev/sdf"), (second, "/dev/sdg")), elastic_ip)
        for _ in range(2):
            instance = yield self.start()
            instance_id = instance.instance_id
            yield self.attacher.attach(wanted, instance)
            self.assertEqual((yield self.holders(first)), [(instance_id, "/dev/sdf")])
            self.assertEqual((yield self.holders(second)), [(instance_id, "/dev/sdg")])
            self.assertEqual((yield self.holder(allocation_id)), instance_id)
            self.assertEqual((yield self.describe(instance_id))["PublicIpAddress"], elastic_ip)
            yield self.client.terminate_instances(instance_id)
            yield self.attacher.release(wanted, instance_id)
            self.assertIsNone((yield self.holder(allocation_id)))
            yield self.until_state(instance_id, "terminated")
            self.assertEqual((yield self.holders(first)), [])
        self.assertEqual(self.ec2.calls["AttachVolume"], 4)

    @defer.inlineCallbacks
    def test_next_is_quicker(self) -> Any:
        """The next instance gets the address while the last one has it; its release then comes too late to matter."""
        _, allocation_id = yield self.address()
        last, next_one = (yield self.start()), (yield self.start())
        wanted = Attachments(elastic_ip=allocation_id)
        yield self.attacher.attach(wanted, last)
        self.assertEqual((yield self.holder(allocation_id)), last.instance_id)
        yield self.attacher.attach(wanted, next_one)
        self.assertEqual((yield self.holder(allocation_id)), next_one.instance_id)
        yield self.attacher.release(wanted, last.instance_id)
        self.assertEqual((yield self.holder(allocation_id)), next_one.instance_id)

    @defer.inlineCallbacks
    def test_again(self) -> Any:
        """What is there already is not attached and not associated again."""
        volume_id, (elastic_ip, _) = (yield self.volume()), (yield self.address())
        instance = yield self.start()
        for _ in range(2):
            yield self.attach(instance, volume_id, elastic_ip=elastic_ip)
        self.assertEqual((self.ec2.calls["AttachVolume"], self.ec2.calls["AssociateAddress"]), (1, 1))

    @defer.inlineCallbacks
    def test_address_released(self) -> Any:
        """An address that is no more when the instance ends is no error, whichever way it was named."""
        texts = logged(self)
        for by in (0, 1):
            address = yield self.address()
            instance = yield self.start()
            wanted = Attachments(elastic_ip=address[by])
            yield self.attacher.attach(wanted, instance)
            yield self.call("release_address", AllocationId=address[1])
            yield self.client.terminate_instances(instance.instance_id)
            yield self.attacher.release(wanted, instance.instance_id)
        self.assertEqual([text for text in texts if "Elastic IP" in text], [])

    @defer.inlineCallbacks
    def test_association_ended(self) -> Any:
        """Somebody has ended the association between the look and the call."""
        texts = logged(self)
        address, allocation_id = yield self.address()
        instance = yield self.start()
        yield self.attach(instance, elastic_ip=address)
        found = yield self.client.describe_addresses(address)
        yield self.call("disassociate_address", AssociationId=found[0].association_id)
        self.patch(self.client, "describe_addresses", lambda _: defer.succeed(found))
        yield self.attacher.release(Attachments(elastic_ip=address), instance.instance_id)
        self.assertEqual(self.ec2.calls["DisassociateAddress"], 2)
        self.assertEqual([text for text in texts if "Elastic IP" in text], [])


class RootVolume(AttachmentsTestCase):
    KEPT = [
        {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 8, "DeleteOnTermination": False}},
        {"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": 1, "DeleteOnTermination": False}},
    ]

    @defer.inlineCallbacks
    def volumes(self) -> Any:
        """Where all volumes are."""
        answer = yield self.call("describe_volumes")
        return sorted(item["Device"] for volume in answer["Volumes"] for item in volume["Attachments"])

    @defer.inlineCallbacks
    def left(self, **wanted: Any) -> Any:
        """How many volumes are left of an instance whose volumes are to stay."""
        instance = yield self.start(BlockDeviceMappings=self.KEPT)
        self.assertEqual((yield self.volumes()), ["/dev/sda1", "/dev/sdb"])
        yield self.attach(instance, **wanted)
        found = yield self.describe(instance.instance_id)
        kept = {item["DeviceName"]: not item["Ebs"]["DeleteOnTermination"] for item in found["BlockDeviceMappings"]}
        yield self.client.terminate_instances(instance.instance_id)
        yield self.until_state(instance.instance_id, "terminated")
        answer = yield self.call("describe_volumes")
        return kept, len(answer["Volumes"])

    @defer.inlineCallbacks
    def test_ends_with_the_instance(self) -> Any:
        """The root volume, and only that."""
        self.assertEqual((yield self.left()), ({"/dev/sda1": False, "/dev/sdb": True}, 1))

    @defer.inlineCallbacks
    def test_wanted(self) -> Any:
        self.assertEqual((yield self.left(keep_root_volume=True)), ({"/dev/sda1": True, "/dev/sdb": True}, 2))
        self.assertEqual(self.ec2.calls["ModifyInstanceAttribute"], 0)

    @defer.inlineCallbacks
    def test_as_usual(self) -> Any:
        """No call is made for an instance with nothing to attach, whose root volume ends with it."""
        instance = yield self.start()
        self.assertEqual([device.device for device in instance.block_devices], [instance.root_device_name])
        self.ec2.calls.clear()
        yield self.attach(instance)
        self.assertEqual(self.ec2.calls, {})


class BadDays(AttachmentsTestCase):
    @defer.inlineCallbacks
    def test_in_use_and_then_free(self) -> Any:
        """The volume of another instance is not taken from it, and is attached when it is free."""
        volume_id = yield self.volume()
        other, instance = (yield self.start()), (yield self.start())
        yield self.attach(other, volume_id)
        attaching = self.attach(instance, volume_id)
        looks = self.ec2.calls["DescribeVolumes"] + 3
        yield self.until(lambda: self.ec2.calls["DescribeVolumes"] > looks, what="some looks")
        self.assertNoResult(attaching)
        self.assertEqual((yield self.holders(volume_id)), [(other.instance_id, "/dev/sdf")])
        yield self.call("terminate_instances", InstanceIds=[other.instance_id])
        yield attaching
        self.assertEqual((yield self.holders(volume_id)), [(instance.instance_id, "/dev/sdf")])

    @defer.inlineCallbacks
    def test_in_use_for_ever(self) -> Any:
        self.patch(attachments, "ATTACH_LIMIT", 0.5)
        volume_id = yield self.volume()
        other, instance = (yield self.start()), (yield self.start())
        yield self.attach(other, volume_id)
        error = yield self.assertFailure(self.attach(instance, volume_id), AttachmentError)
        self.assertEqual(
            str(error),
            f"volume {volume_id}: its state is in-use, attached to {other.instance_id}; given up after 0.5 s",
        )
        self.assertEqual((yield self.holders(volume_id)), [(other.instance_id, "/dev/sdf")])

    @defer.inlineCallbacks
    def test_cancelled(self) -> Any:
        """A volume that nobody waits for any more stays free."""
        volume_id = yield self.volume()
        other, instance = (yield self.start()), (yield self.start())
        yield self.attach(other, volume_id)
        attaching = self.attach(instance, volume_id)
        attaching.cancel()
        self.failureResultOf(attaching, defer.CancelledError)
        yield self.call("terminate_instances", InstanceIds=[other.instance_id])
        yield self.until_state(other.instance_id, "terminated")
        self.assertEqual((yield self.holders(volume_id)), [])
        self.assertEqual(self.ec2.calls["AttachVolume"], 1)

    @defer.inlineCallbacks
    def test_unknown(self) -> Any:
        """The text names what EC2 does not have; so does that of a volume in another zone."""
        instance = yield self.start()
        elsewhere = yield self.volume("us-east-1b")
        no_such = "EC2 has no such {} in this account and region"
        for volumes, elastic_ip, text in (
            (("vol-00000000000000000",), None, f"volume vol-00000000000000000: {no_such.format('volume')}"),
            ((elsewhere,), None, f"volume {elsewhere}: it is in us-east-1b, and the instance in us-east-1a"),
            ((), "203.0.113.7", f"Elastic IP 203.0.113.7: {no_such.format('address')}"),
            ((), "eipalloc-0", f"Elastic IP eipalloc-0: {no_such.format('address')}"),
        ):
            error = yield self.assertFailure(self.attach(instance, *volumes, elastic_ip=elastic_ip), AttachmentError)
            self.assertEqual(str(error), text)
        self.assertEqual((yield self.holders(elsewhere)), [])

    @defer.inlineCallbacks
    def test_without_an_answer(self) -> Any:
        """Whatever becomes of the calls and their answers, everything is attached; a volume only once."""
        volume_id, (elastic_ip, allocation_id) = (yield self.volume()), (yield self.address())
        for kind in ("lost-reply", "server-fault", "reset", "truncated", "html", "throttled", "unavailable"):
            instance = yield self.start(BlockDeviceMappings=RootVolume.KEPT[:1])
            self.ec2.calls.clear()
            for action in (
                *("DescribeVolumes", "AttachVolume", "DescribeAddresses", "AssociateAddress"),
                "ModifyInstanceAttribute",
            ):
                self.faults.add(kind, action)
            yield self.attach(instance, volume_id, elastic_ip=elastic_ip)
            self.assertEqual(self.faults.waiting, [], kind)
            self.assertEqual(self.ec2.calls["AttachVolume"], 1 if KINDS[kind].done else 2, kind)
            self.assertEqual((yield self.holders(volume_id)), [(instance.instance_id, "/dev/sdf")], kind)
            self.assertEqual((yield self.holder(allocation_id)), instance.instance_id, kind)
            self.faults.add(kind, "DisassociateAddress")
            yield self.client.terminate_instances(instance.instance_id)
            yield self.attacher.release(Attachments(elastic_ip=elastic_ip), instance.instance_id)
            self.assertEqual(self.faults.waiting, [], kind)
            self.assertIsNone((yield self.holder(allocation_id)), kind)
        answer = yield self.call("describe_volumes")
        self.assertEqual([volume["VolumeId"] for volume in answer["Volumes"]], [volume_id])
