"""Images of the embedded EC2, made by boto3: which one is found, and how often EC2 is asked."""

from __future__ import annotations

from typing import Any

from moto.backends import get_backend
from twisted.internet import defer, reactor

from buildbot_ec2ud.ec2 import query
from buildbot_ec2ud.ec2.client import EC2Client
from buildbot_ec2ud.ec2.credentials import AWSCredentials
from buildbot_ec2ud.ec2.errors import EC2Error, ErrorClass
from buildbot_ec2ud.ec2.query import QueryFactory
from buildbot_ec2ud.ec2.transport import Transport
from buildbot_ec2ud.embedded import Faults
from buildbot_ec2ud.fleet.image_rules import ImageRule
from buildbot_ec2ud.fleet.images import Images, NoImage
from tests.integration.instances import InstanceTestCase

ACCOUNT = "123456789012"


class ImagesTestCase(InstanceTestCase):
    """Images without a fleet, on the embedded EC2."""

    def setUp(self) -> None:
        self.patch(query, "LONGEST_BACKOFF", 0.1)
        self.start_ec2(faults=Faults())
        transport = Transport(reactor)
        self.addCleanup(transport.close)
        creds = AWSCredentials(self.ec2.access_key, self.ec2.secret_key, reactor=reactor)
        self.client = EC2Client(creds, self.ec2.endpoint_url, QueryFactory(self.ec2.region, reactor, transport.agent))
        self.images = Images(self.client, reactor)

    @defer.inlineCallbacks
    def register(self, name: str, location: str | None = None, architecture: str | None = None, day: int = 0) -> Any:
        """Make an image; its id."""
        answer = yield self.call("register_image", Name=name)
        image_id = answer["ImageId"]
        # moto's RegisterImage knows only names.
        made = get_backend("ec2")[ACCOUNT][self.ec2.region].amis[image_id]
        made.image_location, made.architecture = location, architecture
        if day:
            made.creation_date = made.creation_date.replace(year=2031, month=1, day=day)
        return image_id

    def find(self, **wanted: Any) -> defer.Deferred[Any]:
        return self.images.find(ImageRule.of({name.replace("_", "-"): value for name, value in wanted.items()}))

    def locate(self, owners: Any, regex: str | None = None) -> defer.Deferred[Any]:
        return self.images.find(ImageRule.of_locations(owners, regex))

    def listings(self) -> int:
        return self.ec2.calls["DescribeImages"]


class Reading(ImagesTestCase):
    @defer.inlineCallbacks
    def test_as_boto3_reads_it(self):
        """An image is read as somebody else's client reads it."""
        yield self.register("debian-12", "mine/debian-12.manifest.xml", "arm64", day=5)
        yield self.register("bare")
        answer = yield self.call("describe_images", Owners=["self"])
        theirs = {
            image["ImageId"]: (
                image["State"],
                image.get("ImageLocation"),
                image["Name"],
                image["CreationDate"],
                image["RootDeviceName"],
                image.get("Architecture", ""),
            )
            for image in answer["Images"]
        }
        found = yield self.client.describe_images(owners=["self"])
        ours = {
            image.image_id: (
                image.state,
                image.location,
                image.name,
                image.creation_date,
                image.root_device_name,
                image.architecture,
            )
            for image in found
        }
        self.assertEqual(len(theirs), 2)
        self.assertEqual(ours, theirs)
        self.assertEqual({location for _, location, *_ in ours.values()}, {None, "mine/debian-12.manifest.xml"})

    @defer.inlineCallbacks
    def test_by_id(self):
        image_id = yield self.register("debian-12")
        found = yield self.images.by_id(image_id)
        self.assertEqual((found.image_id, found.root_device_name), (image_id, "/dev/sda1"))
        failure = yield self.assertFailure(self.images.by_id("ami-00000000000000000"), EC2Error)
        self.assertEqual((failure.code, failure.error_class), ("InvalidAMIID.NotFound", ErrorClass.CONFIGURATION))

    @defer.inlineCallbacks
    def test_by_id_when_it_is_gone(self):
        """Of an image that was, moto tells nothing, and no error."""
        image_id = yield self.register("debian-12")
        yield self.call("deregister_image", ImageId=image_id)
        yield self.assertFailure(self.images.by_id(image_id), NoImage)


class Finding(ImagesTestCase):
    @defer.inlineCallbacks
    def test_newest(self):
        """The newest one that passes the filters, whatever its location."""
        yield self.register("debian-12-1", "z", "x86_64", day=1)
        wanted = yield self.register("debian-12-0", "a", "x86_64", day=3)
        yield self.register("debian-12-2", "b", "x86_64", day=2)
        yield self.register("debian-12-9", "b", "arm64", day=9)
        yield self.register("debian-11-9", "b", "x86_64", day=9)
        found = yield self.find(owners="self", name="debian-12-*", architecture="x86_64")
        self.assertEqual(found.image_id, wanted)
        self.assertEqual((yield self.find(owners=ACCOUNT, name="debian-12-[0-2]")).image_id, wanted)

    @defer.inlineCallbacks
    def test_tag(self):
        wanted = yield self.register("image-a", day=1)
        yield self.register("image-b", day=2)
        yield self.call("create_tags", Resources=[wanted], Tags=[{"Key": "Role", "Value": "ci"}])
        found = yield self.images.find(ImageRule.of({"tag:Role": "ci"}))
        self.assertEqual(found.image_id, wanted)

    @defer.inlineCallbacks
    def test_disabled(self):
        """One that cannot be started is not taken."""
        wanted = yield self.register("debian-1", "m/1", day=1)
        other = yield self.register("debian-2", "m/2", day=2)
        yield self.call("disable_image", ImageId=other)
        self.assertEqual((yield self.find(owners="self", name="debian-*")).image_id, wanted)
        self.assertEqual((yield self.locate("self", "m/(.*)")).image_id, wanted)

    @defer.inlineCallbacks
    def test_location(self):
        """As numbers; images without a location, and those of strangers, are left out."""
        yield self.register("image-a", "buildbot-x-9/image.manifest.xml", day=9)
        wanted = yield self.register("image-b", "buildbot-x-10/image.manifest.xml", day=1)
        yield self.register("image-c", "buildbot-x-/image.manifest.xml")
        yield self.register("image-d")
        for owners in ("self", int(ACCOUNT), [ACCOUNT, "amazon"]):
            found = yield self.locate(owners, r"buildbot\-.*\-(\d+)/image.manifest.xml")
            self.assertEqual(found.image_id, wanted)
        failure = yield self.assertFailure(self.locate(99720109477, ".*"), NoImage)
        self.assertEqual(str(failure), "no available image fits: owners 099720109477; location '.*' (EC2 lists 0)")
        failure = yield self.assertFailure(self.locate("self", "debian"), NoImage)
        self.assertEqual(str(failure), "no available image fits: owners self; location 'debian' (EC2 lists 4)")

    @defer.inlineCallbacks
    def test_owners_alone(self):
        wanted = yield self.register("image-a", "z/1", day=1)
        yield self.register("image-b", "a/1", day=2)
        self.assertEqual((yield self.locate("self")).image_id, wanted)


class Asking(ImagesTestCase):
    @defer.inlineCallbacks
    def test_once_for_all(self):
        """Twenty workers that want the same are one call; later ones need none."""
        wanted = yield self.register("debian-12")
        before = self.listings()
        found = yield defer.gatherResults([self.find(owners="self", name="debian-*") for _ in range(20)])
        self.assertEqual({image.image_id for image in found}, {wanted})
        self.assertEqual((yield self.find(name=["debian-*"], owners=["self"])).image_id, wanted)
        self.assertEqual(self.listings() - before, 1)

    @defer.inlineCallbacks
    def test_made_meanwhile(self):
        """That there was none is forgotten at once."""
        yield self.assertFailure(self.find(owners="self", name="debian-*"), NoImage)
        wanted = yield self.register("debian-12")
        self.assertEqual((yield self.find(owners="self", name="debian-*")).image_id, wanted)

    @defer.inlineCallbacks
    def test_bad_days(self):
        """What passes, passes: the image is found all the same."""
        wanted = yield self.register("debian-12")
        kinds = ("throttled", "lost-reply", "html", "truncated")
        for kind in kinds:
            self.ec2.faults.add(kind, "DescribeImages")
        self.assertEqual((yield self.find(owners="self", name="debian-*")).image_id, wanted)
        self.assertEqual(self.ec2.faults.hits, dict.fromkeys(kinds, 1))

    @defer.inlineCallbacks
    def test_cancelled(self):
        """Who cancels a call that EC2 does not answer hears of it at once, and the next one is answered."""
        wanted = yield self.register("debian-12")
        self.ec2.faults.add("hang-headers", "DescribeImages")
        waiting = self.find(owners="self")
        yield self.until(lambda: self.ec2.faults.hits, what="a call that hangs")
        waiting.cancel()
        self.failureResultOf(waiting, defer.CancelledError)
        self.assertEqual((yield self.find(owners="self")).image_id, wanted)
