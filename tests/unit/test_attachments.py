"""What an instance is given once it runs, on good days and bad ones. Time is a Clock's."""

from __future__ import annotations

from typing import Any

from twisted.internet import defer, task
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.ec2.attaching import Address, BlockDevice, Volume, VolumeAttachment
from buildbot_ec2ud.ec2.client import EC2Client
from buildbot_ec2ud.ec2.errors import ErrorClass, NoAnswer
from buildbot_ec2ud.ec2.parser import Instance
from buildbot_ec2ud.fleet.attachments import ATTACH_LIMIT, LONGEST_PAUSE, Attacher, AttachmentError, Attachments
from tests.unit.fleets import Call, instance, logged, refusal

VOLUME = "vol-0123456789abcdef0"
IP = "203.0.113.7"


def volume(
    state: str = "available", *holders: tuple[str, str], zone: str = "us-east-1a", multi: bool = False
) -> Volume:
    """A volume, and the instances that have it with the state of each attachment."""
    return Volume(VOLUME, state, zone, multi, tuple(VolumeAttachment(name, "/dev/sdf", how) for name, how in holders))


def address(instance_id: str = "", association_id: str | None = None) -> Address:
    if association_id is None:
        association_id = f"eipassoc-of-{instance_id}" if instance_id else ""
    return Address(IP, "eipalloc-1", association_id, instance_id)


class SilentClient:
    """A client whose calls wait until the test answers them.

    :ivar calls: all calls, the first one first.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def __getattr__(self, action: str) -> Any:
        if not hasattr(EC2Client, action):
            raise AttributeError(action)

        def call(*args: Any) -> defer.Deferred[Any]:
            self.calls.append(Call(action, *args))
            return self.calls[-1].waiting

        return call


class AttacherTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = task.Clock()
        self.ec2 = SilentClient()
        self.attacher = Attacher(self.ec2, self.clock)
        self.texts = logged(self)
        self._seen = 0

    def instance(self, *devices: BlockDevice) -> Instance:
        found = instance(state="running")
        found.root_device_name = "/dev/sda1"
        found.block_devices = devices
        return found

    def attach(self, *devices: BlockDevice, **wanted: Any) -> defer.Deferred[None]:
        return self.attacher.attach(Attachments(**wanted), self.instance(*devices))

    def attach_volume(self) -> defer.Deferred[None]:
        return self.attach(volumes=((VOLUME, "/dev/sdf"),))

    def answer(self, action: str, result: Any, *args: Any) -> None:
        """Answer the next call, which is *action*; with *args*, if they are given."""
        call = self.ec2.calls[self._seen]
        self._seen += 1
        self.assertEqual(call.action, action)
        if args:
            self.assertEqual(call.args, args)
        if isinstance(result, Exception):
            call.fail(result)
        else:
            call.waiting.callback(result)

    def looked(self, found: Volume) -> None:
        self.answer("describe_volumes", [found], VOLUME)

    def attached(self, result: Any) -> None:
        self.answer("attach_volume", result, VOLUME, "i-1", "/dev/sdf")

    def wait(self) -> float:
        """Let time pass until the next call; how long that took."""
        began = self.clock.seconds()
        (timer,) = self.clock.getDelayedCalls()
        self.clock.advance(timer.getTime() - began)
        return self.clock.seconds() - began

    def refused(self, attaching: defer.Deferred[None], error_class: ErrorClass, text: str) -> None:
        """It has failed with that text, and nothing goes on."""
        error = self.failureResultOf(attaching, AttachmentError).value
        self.assertEqual((str(error), error.error_class), (text, error_class))
        self.over()

    def over(self) -> None:
        """There is nothing that waits, and no further call."""
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(len(self.ec2.calls), self._seen)


class Volumes(AttacherTestCase):
    def test_attached_at_once(self) -> None:
        attaching = self.attach_volume()
        self.looked(volume())
        self.assertNoResult(attaching)
        self.attached("attached")
        self.assertIsNone(self.successResultOf(attaching))
        self.over()

    def test_attached_in_a_while(self) -> None:
        """It is there when EC2 says so, not when EC2 has accepted the call."""
        attaching = self.attach_volume()
        self.looked(volume())
        self.attached("attaching")
        self.assertNoResult(attaching)
        self.assertEqual(self.wait(), 1)
        self.looked(volume("in-use", ("i-1", "attaching")))
        self.assertNoResult(attaching)
        self.assertEqual(self.wait(), 2)
        self.looked(volume("in-use", ("i-1", "attached")))
        self.successResultOf(attaching)
        self.over()

    def test_there_already(self) -> None:
        """As after a start of a stopped instance, or by the launch's own block devices."""
        attaching = self.attach_volume()
        self.looked(volume("in-use", ("i-1", "attached")))
        self.successResultOf(attaching)
        self.over()

    def test_last_instance_ends(self) -> None:
        """The instance of the last start still has the volume, and lets go of it when it has shut down."""
        attaching = self.attach_volume()
        paused = []
        for state in ("attached", "attached", "detaching", "detaching", "detaching", "detaching"):
            self.looked(volume("in-use", ("i-0", state)))
            paused.append(self.wait())
        self.assertEqual(paused, [1, 2, 4, 8, LONGEST_PAUSE, LONGEST_PAUSE])
        self.looked(volume())
        self.attached("attached")
        self.successResultOf(attaching)
        waits = [text for text in self.texts if VOLUME in text]
        self.assertEqual(
            waits,
            [
                f"volume {VOLUME}: its state is in-use, attached to i-0; will try again",
                f"volume {VOLUME}: its state is in-use, detaching to i-0; will try again",
            ],
        )

    def test_somebody_has_it_for_ever(self) -> None:
        """The limit is kept to the second, and the text tells who has it."""
        attaching = self.attach_volume()
        while self.clock.seconds() < ATTACH_LIMIT:
            self.looked(volume("in-use", ("i-0", "attached")))
            self.assertNoResult(attaching)
            self.wait()
        self.assertEqual(self.clock.seconds(), ATTACH_LIMIT)
        self.looked(volume("in-use", ("i-0", "attached")))
        self.refused(
            attaching,
            ErrorClass.IN_USE,
            f"volume {VOLUME}: its state is in-use, attached to i-0; given up after {ATTACH_LIMIT:g} s",
        )

    def test_free_at_the_limit(self) -> None:
        attaching = self.attach_volume()
        while self.clock.seconds() < ATTACH_LIMIT:
            self.looked(volume("in-use", ("i-0", "attached")))
            self.wait()
        self.looked(volume())
        self.attached("attached")
        self.successResultOf(attaching)

    def test_refused_for_now(self) -> None:
        """What EC2 does not do yet is asked for again, after a look."""
        for code in ("VolumeInUse", "IncorrectState", "InvalidInstanceID.NotFound"):
            self.setUp()
            attaching = self.attach_volume()
            self.looked(volume())
            self.attached(refusal(code))
            self.assertNoResult(attaching)
            self.assertEqual(self.wait(), 1)
            self.looked(volume())
            self.attached("attached")
            self.successResultOf(attaching)

    def test_refused_for_now_for_ever(self) -> None:
        """The failure tells what EC2 said last, and asks for what that asks for."""
        attaching = self.attach_volume()
        while self.clock.seconds() < ATTACH_LIMIT:
            self.looked(volume())
            self.attached(refusal("InvalidInstanceID.NotFound"))
            self.wait()
        self.looked(volume())
        self.attached(refusal("InvalidInstanceID.NotFound"))
        self.refused(
            attaching,
            ErrorClass.NOT_VISIBLE_YET,
            f"volume {VOLUME}: InvalidInstanceID.NotFound: no; given up after {ATTACH_LIMIT:g} s",
        )

    def test_refused(self) -> None:
        """What will not pass is told at once, with the name of the volume and in EC2's words."""
        for code, error_class in (
            ("UnauthorizedOperation", ErrorClass.CONFIGURATION),
            ("InvalidVolume.ZoneMismatch", ErrorClass.CONFIGURATION),
            ("AttachmentLimitExceeded", ErrorClass.UNKNOWN),
            ("RequestLimitExceeded", ErrorClass.THROTTLED),
        ):
            self.setUp()
            attaching = self.attach_volume()
            self.looked(volume())
            self.attached(refusal(code))
            self.refused(attaching, error_class, f"volume {VOLUME}: {code}: no")

    def test_look_refused(self) -> None:
        attaching = self.attach_volume()
        self.answer("describe_volumes", refusal("UnauthorizedOperation"))
        self.refused(attaching, ErrorClass.CONFIGURATION, f"volume {VOLUME}: UnauthorizedOperation: no")

    def test_lost_reply_done(self) -> None:
        """The call was not answered, and took effect: it is not made again."""
        attaching = self.attach_volume()
        self.looked(volume())
        self.attached(NoAnswer("AttachVolume: the connection was closed"))
        self.assertNoResult(attaching)
        self.wait()
        self.looked(volume("in-use", ("i-1", "attached")))
        self.successResultOf(attaching)
        self.over()

    def test_lost_reply_not_done(self) -> None:
        """The call was not answered, and did nothing: after a look, it is made again."""
        attaching = self.attach_volume()
        self.looked(volume())
        self.attached(NoAnswer("AttachVolume: the connection was closed"))
        self.wait()
        self.looked(volume())
        self.attached("attached")
        self.successResultOf(attaching)

    def test_lost_reply_and_somebody_else(self) -> None:
        """After a call without an answer, somebody else's volume is not taken for ours."""
        attaching = self.attach_volume()
        self.looked(volume())
        self.attached(NoAnswer("AttachVolume: the connection was closed"))
        self.wait()
        self.looked(volume("in-use", ("i-2", "attached")))
        self.assertNoResult(attaching)
        self.assertEqual(len(self.ec2.calls), 3)

    def test_unknown(self) -> None:
        attaching = self.attach_volume()
        self.answer("describe_volumes", [])
        self.refused(
            attaching,
            ErrorClass.CONFIGURATION,
            f"volume {VOLUME}: EC2 has no such volume in this account and region",
        )

    def test_no_good(self) -> None:
        for state in ("deleting", "deleted", "error"):
            self.setUp()
            attaching = self.attach_volume()
            self.looked(volume(state))
            self.refused(attaching, ErrorClass.CONFIGURATION, f"volume {VOLUME}: its state is {state}")

    def test_other_zone(self) -> None:
        """What can never be attached is told at once, even while somebody else has it."""
        for found in (volume(zone="us-east-1b"), volume("in-use", ("i-0", "attached"), zone="us-east-1b")):
            self.setUp()
            attaching = self.attach_volume()
            self.looked(found)
            self.refused(
                attaching,
                ErrorClass.CONFIGURATION,
                f"volume {VOLUME}: it is in us-east-1b, and the instance in us-east-1a",
            )

    def test_just_made(self) -> None:
        attaching = self.attach_volume()
        self.looked(volume("creating"))
        self.assertNoResult(attaching)
        self.wait()
        self.looked(volume())
        self.attached("attached")
        self.successResultOf(attaching)

    def test_for_several(self) -> None:
        """A volume that several instances can have is not waited for."""
        attaching = self.attach_volume()
        self.looked(volume("in-use", ("i-0", "attached"), multi=True))
        self.attached("attached")
        self.successResultOf(attaching)

    def test_for_several_but_made(self) -> None:
        attaching = self.attach_volume()
        self.looked(volume("creating", multi=True))
        self.assertNoResult(attaching)
        self.assertEqual(len(self.ec2.calls), 1)

    def test_at_the_same_time(self) -> None:
        """One that is waited for does not hold up another."""
        attaching = self.attach(volumes=(("vol-a", "/dev/sdf"), ("vol-b", "/dev/sdg")))
        self.assertEqual([call.args for call in self.ec2.calls], [("vol-a",), ("vol-b",)])
        self.answer("describe_volumes", [volume("in-use", ("i-0", "attached"))], "vol-a")
        self.answer("describe_volumes", [volume()], "vol-b")
        self.answer("attach_volume", "attached", "vol-b", "i-1", "/dev/sdg")
        self.assertNoResult(attaching)
        self.wait()
        self.answer("describe_volumes", [volume()], "vol-a")
        self.answer("attach_volume", "attached", "vol-a", "i-1", "/dev/sdf")
        self.successResultOf(attaching)

    def test_one_fails(self) -> None:
        """Where one cannot be had, the others are given up: those that wait, and those that are being asked for."""
        attaching = self.attach(volumes=(("vol-a", "/dev/sdf"), ("vol-b", "/dev/sdg"), ("vol-c", "/dev/sdh")))
        self.answer("describe_volumes", [volume("in-use", ("i-0", "attached"))], "vol-a")
        self._seen += 1
        self.answer("describe_volumes", [], "vol-c")
        self.refused(
            attaching, ErrorClass.CONFIGURATION, "volume vol-c: EC2 has no such volume in this account and region"
        )
        self.assertEqual([call.cancelled for call in self.ec2.calls], [False, True, False])


class Cancelled(AttacherTestCase):
    """Whoever cancels is told at once; nothing goes on."""

    def cancelled(self, attaching: defer.Deferred[None]) -> None:
        attaching.cancel()
        self.failureResultOf(attaching, defer.CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_while_it_looks(self) -> None:
        self.cancelled(self.attach(volumes=((VOLUME, "/dev/sdf"),), elastic_ip=IP))
        self.assertEqual([call.cancelled for call in self.ec2.calls], [True, True])

    def test_while_it_waits(self) -> None:
        attaching = self.attach_volume()
        self.looked(volume("in-use", ("i-0", "attached")))
        self.cancelled(attaching)
        self.over()

    def test_while_it_attaches(self) -> None:
        attaching = self.attach_volume()
        self.looked(volume())
        self.cancelled(attaching)
        self.assertTrue(self.ec2.calls[-1].cancelled)

    def test_while_it_associates(self) -> None:
        attaching = self.attach(elastic_ip=IP)
        self.answer("describe_addresses", [address()])
        self.cancelled(attaching)
        self.assertTrue(self.ec2.calls[-1].cancelled)

    def test_while_it_releases(self) -> None:
        releasing = self.attacher.release(Attachments(elastic_ip=IP), "i-1")
        self.cancelled(releasing)
        self.assertTrue(self.ec2.calls[0].cancelled)


class RootVolume(AttacherTestCase):
    KEPT = BlockDevice("/dev/sda1", "vol-root", False)

    def test_made_to_end(self) -> None:
        """A root volume that would stay, as the image has it, ends with the instance."""
        attaching = self.attach(BlockDevice("/dev/sdb", "vol-data", False), self.KEPT)
        mapping = {"DeviceName": "/dev/sda1", "Ebs": {"DeleteOnTermination": True}}
        self.answer("modify_instance_attribute", None, "i-1", {"BlockDeviceMappings": [mapping]})
        self.successResultOf(attaching)
        self.over()

    def test_ends_anyway(self) -> None:
        """No call where there is nothing to do: the usual case."""
        self.successResultOf(self.attach(BlockDevice("/dev/sda1", "vol-root", True)))
        self.successResultOf(self.attach())  # on an instance store
        self.over()

    def test_wanted(self) -> None:
        self.successResultOf(self.attach(self.KEPT, keep_root_volume=True))
        self.over()

    def test_refused(self) -> None:
        attaching = self.attach(self.KEPT)
        self.answer("modify_instance_attribute", refusal("UnauthorizedOperation"))
        self.refused(attaching, ErrorClass.CONFIGURATION, "root volume vol-root: UnauthorizedOperation: no")


class ElasticIP(AttacherTestCase):
    def test_by_address(self) -> None:
        attaching = self.attach(elastic_ip=IP)
        self.answer("describe_addresses", [address()], IP)
        self.assertNoResult(attaching)
        self.answer("associate_address", "eipassoc-1", "eipalloc-1", "i-1")
        self.assertIsNone(self.successResultOf(attaching))
        self.over()
        self.assertEqual([text for text in self.texts if IP in text], [])

    def test_by_allocation_id(self) -> None:
        attaching = self.attach(elastic_ip="eipalloc-1")
        self.answer("describe_addresses", [address()], "eipalloc-1")
        self.answer("associate_address", "eipassoc-1", "eipalloc-1", "i-1")
        self.successResultOf(attaching)

    def test_there_already(self) -> None:
        """It is not associated again, which could cost."""
        attaching = self.attach(elastic_ip=IP)
        self.answer("describe_addresses", [address("i-1")])
        self.successResultOf(attaching)
        self.over()

    def test_taken_from_another(self) -> None:
        """It is taken from what has it, and the log tells from what."""
        for holder, association, text in (
            ("i-0", None, f"Elastic IP {IP}: taken from i-0"),
            ("", "eipassoc-of-eni", f"Elastic IP {IP}: taken from a network interface"),
        ):
            self.setUp()
            attaching = self.attach(elastic_ip=IP)
            self.answer("describe_addresses", [address(holder, association)])
            self.answer("associate_address", "eipassoc-1", "eipalloc-1", "i-1")
            self.successResultOf(attaching)
            self.assertIn(text, self.texts)

    def test_unknown(self) -> None:
        attaching = self.attach(elastic_ip=IP)
        self.answer("describe_addresses", [])
        self.refused(
            attaching,
            ErrorClass.CONFIGURATION,
            f"Elastic IP {IP}: EC2 has no such address in this account and region",
        )

    def test_refused(self) -> None:
        attaching = self.attach(elastic_ip=IP)
        self.answer("describe_addresses", [address()])
        self.answer("associate_address", refusal("UnauthorizedOperation"))
        self.refused(attaching, ErrorClass.CONFIGURATION, f"Elastic IP {IP}: UnauthorizedOperation: no")

    def test_lost_reply(self) -> None:
        """What is there after a call without an answer is not asked for again."""
        attaching = self.attach(elastic_ip=IP)
        self.answer("describe_addresses", [address()])
        self.answer("associate_address", NoAnswer("AssociateAddress: the connection was closed"))
        self.assertNoResult(attaching)
        self.wait()
        self.answer("describe_addresses", [address("i-1")])
        self.successResultOf(attaching)
        self.over()

    def test_beside_a_volume(self) -> None:
        """The address does not wait for a volume."""
        attaching = self.attach(volumes=((VOLUME, "/dev/sdf"),), elastic_ip=IP)
        self.looked(volume("in-use", ("i-0", "attached")))
        self.answer("describe_addresses", [address()])
        self.answer("associate_address", "eipassoc-1")
        self.assertNoResult(attaching)
        self.wait()
        self.looked(volume())
        self.attached("attached")
        self.successResultOf(attaching)


class Release(AttacherTestCase):
    def release(self, elastic_ip: str | None = IP) -> defer.Deferred[None]:
        return self.attacher.release(Attachments(((VOLUME, "/dev/sdf"),), elastic_ip), "i-1")

    def test_taken(self) -> None:
        releasing = self.release()
        self.answer("describe_addresses", [address("i-1")], IP)
        self.answer("disassociate_address", None, "eipassoc-of-i-1")
        self.assertIsNone(self.successResultOf(releasing))
        self.over()

    def test_nothing_to_do(self) -> None:
        """Volumes are EC2's affair, and where there is no address there is no call."""
        self.successResultOf(self.release(None))
        self.over()

    def test_moved_on(self) -> None:
        """An address that the next instance has already, or nobody, or that is no more, is left alone."""
        for found in ([address("i-2")], [address()], []):
            self.setUp()
            releasing = self.release()
            self.answer("describe_addresses", found)
            self.successResultOf(releasing)
            self.over()

    def test_moves_on_meanwhile(self) -> None:
        """An association that ends between the look and the call is no error, and not told."""
        releasing = self.release()
        self.answer("describe_addresses", [address("i-1")])
        self.answer("disassociate_address", refusal("InvalidAssociationID.NotFound"))
        self.successResultOf(releasing)
        self.assertEqual(self.texts, [])

    def test_errors(self) -> None:
        """Whatever EC2 says, it is told, and nothing else comes of it."""
        for error in (refusal("UnauthorizedOperation"), NoAnswer("closed"), refusal("InvalidAddress.NotFound")):
            for looked in (True, False):
                self.setUp()
                releasing = self.release()
                if looked:
                    self.answer("describe_addresses", [address("i-1")])
                self.answer("disassociate_address" if looked else "describe_addresses", error)
                self.assertIsNone(self.successResultOf(releasing))
                self.assertEqual(self.texts, [f"cannot take Elastic IP {IP} from i-1, whose end will free it: {error}"])
