"""The scenarios of Buildbot's own tests of ``EC2LatentWorker``, each under the name that it has there.

Source: ``master/buildbot/test/unit/worker/test_ec2.py`` of Buildbot 4.3.0, which has 19 tests. There, constructors ask a
mocked EC2; here they ask nobody, so what only EC2 knows comes with a start: a build of a real master, on the embedded EC2.
"""

from __future__ import annotations

import socket
import warnings
from typing import Any

from buildbot.config import ConfigErrors
from twisted.internet import defer, reactor
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.worker import EC2UserDataLatentWorker
from tests.integration.launching import ACCOUNT, LaunchTestCase
from tests.unit.files import directory
from tests.unit.secure import environment

#: What all of them give by keyword.
KEYS = {"identifier": "publickey", "secret_identifier": "privatekey"}
NAMED = {**KEYS, "keypair_name": "test_keypair", "security_name": "test_security_group"}


class Scenario(LaunchTestCase):
    """Workers with a password of their own and no bootstrap: their instances get no user-data, as there."""

    def bot(self, *args: Any, **arguments: Any) -> EC2UserDataLatentWorker:
        """A worker of the embedded EC2, by the positional arguments of there."""
        more = {"endpoint_url": self.ec2.endpoint_url, "region": self.ec2.region, "build_wait_timeout": 0}
        return EC2UserDataLatentWorker(*(args or ("bot1", "sekrit", "m1.large")), **{**more, **arguments})

    @defer.inlineCallbacks
    def start(self, **arguments: Any) -> Any:
        """Start one worker; its instance."""
        found = yield self.launched(self.bot(**arguments))
        self.assertEqual(list(found), ["bot1"])
        return found["bot1"]

    @defer.inlineCallbacks
    def setUp(self) -> Any:
        self.start_ec2()
        self.subnets, self.group = yield self.default_network()
        self.ami = yield self.image("foo", "amazon/foo")
        yield self.call("create_key_pair", KeyName="test_keypair")
        yield self.call("create_security_group", GroupName="test_security_group", Description="test")

    def until_attached(self) -> defer.Deferred[Any]:
        """Wait until the instance has what it gets when it runs."""
        worker = self.master.master.workers.workers["bot1"]
        return self.until(
            lambda: worker.rental.attaching is not None and worker.rental.attaching.called, what="attaching"
        )


class Construction(SynchronousTestCase):
    """What the constructor says."""

    def setUp(self) -> None:
        environment(self, HOME=directory(self))

        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError("somebody was asked")

        self.patch(reactor, "connectTCP", refuse)
        self.patch(socket.socket, "connect", refuse)

    def worker(self, **arguments: Any) -> EC2UserDataLatentWorker:
        return EC2UserDataLatentWorker("bot1", "sekrit", "m1.large", **arguments)

    def test_constructor_minimal(self):
        """The attributes can be read at once. Unlike there, nobody is asked: no key pair and no group is made."""
        worker = self.worker(ami="ami-1")
        self.assertEqual((worker.workername, worker.password), ("bot1", "sekrit"))
        self.assertEqual((worker.instance_type, worker.ami), ("m1.large", "ami-1"))

    def test_constructor_tags(self):
        """The same as there."""
        worker = self.worker(**NAMED, ami="ami-1", tags={"foo": "bar"})
        self.assertEqual(worker.tags, {"foo": "bar"})

    def test_constructor_region(self):
        """There is no ``session`` unless one was given: the region is a setting, and known as soon as it is configured."""
        worker = self.worker(**NAMED, ami="ami-1", region="us-west-1")
        self.assertEqual(worker.settings.region, "us-west-1")

    def test_fail_mixing_classic_and_vpc_ec2_settings(self):
        """ConfigErrors, which Buildbot collects, instead of a ValueError, which ends the loading."""
        raised = self.assertRaises(
            ConfigErrors,
            self.worker,
            keypair_name="test_key",
            security_name="classic",
            subnet_id="sn-1234",
            ami="ami-1",
        )
        self.assertEqual(
            raised.errors, ["worker bot1: security_name: not possible with subnet_id, use security_group_ids"]
        )

    def test_fail_multiplier_and_max_are_none(self):
        """A ValueError there; here a spot instance without either costs at most the price on demand, as EC2 has it."""
        worker = self.worker(**NAMED, ami="ami-1", spot_instance=True, price_multiplier=None, max_spot_price=None)
        self.assertTrue(worker.spot_instance)

    def test_no_default_security_warning_when_security_group_ids(self):
        """A list of subnets was taken by mistake there; here it is an order of preference."""
        worker = self.worker(
            **KEYS, keypair_name="test_keypair", ami="ami-1", subnet_id=["sn-1"], security_group_ids=["sg-1"]
        )
        self.assertIsNone(worker.security_name)
        self.assertEqual(worker.subnet_id, ["sn-1"])

    def test_use_non_default_keypair_security(self):
        """The same as there: no warnings."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            worker = self.worker(**NAMED, ami="ami-1")
        self.assertEqual((worker.keypair_name, worker.security_name), ("test_keypair", "test_security_group"))


class Start(Scenario):
    @defer.inlineCallbacks
    def test_start_vpc_instance(self):
        """The key pair's name is sent as it is; nobody asks whether it exists but EC2."""
        subnet = self.subnets["us-east-1c"]
        instance = yield self.start(
            **KEYS,
            keypair_name="test_keypair",
            security_group_ids=[self.group],
            subnet_id=subnet,
            ami=self.ami,
        )
        described = instance.described
        self.assertEqual((described["SubnetId"], described["KeyName"]), (subnet, "test_keypair"))
        self.assertEqual([one["GroupId"] for one in described["SecurityGroups"]], [self.group])
        self.assertEqual((described["InstanceType"], described["ImageId"]), ("m1.large", self.ami))
        self.assertEqual(len(self.ec2.alive()), 1)

    @defer.inlineCallbacks
    def test_start_instance(self):
        """The property ``instance`` is this instance's, not the last one's; and there are tags from the start."""
        instance = yield self.start(**NAMED, ami=self.ami)
        described = instance.described
        self.assertEqual((described["InstanceId"][:2], described["ImageId"][:4]), ("i-", "ami-"))
        self.assertEqual([one["GroupName"] for one in described["SecurityGroups"]], ["test_security_group"])
        self.assertEqual(instance.tags["buildbot:worker"], "bot1")
        self.assertEqual(instance.user_data, b"")
        yield self.until(lambda: self.master.master.workers.workers["bot1"].properties.getProperty("instance"))
        worker = self.master.master.workers.workers["bot1"]
        self.assertEqual(worker.properties.getProperty("instance"), described["InstanceId"])
        self.assertEqual(worker.password, "sekrit")

    @defer.inlineCallbacks
    def test_start_instance_volumes(self):
        """The attribute is as it was given; ``DeleteOnTermination`` is put in when EC2 is asked."""
        disks = [
            {"DeviceName": "/dev/xvdb", "Ebs": {"VolumeType": "gp2", "VolumeSize": 20}},
            {"DeviceName": "/dev/xvdc", "Ebs": {"VolumeSize": 30, "DeleteOnTermination": False}},
        ]
        instance = yield self.start(**NAMED, ami=self.ami, block_device_map=disks)
        found = {one["DeviceName"]: one["Ebs"] for one in instance.described["BlockDeviceMappings"]}
        self.assertEqual(
            {name: ebs["DeleteOnTermination"] for name, ebs in found.items() if name in ("/dev/xvdb", "/dev/xvdc")},
            {"/dev/xvdb": True, "/dev/xvdc": False},
        )
        self.assertEqual(instance.call.parameters["BlockDeviceMapping.1.Ebs.VolumeType"], "gp2")
        self.assertEqual(self.master.master.workers.workers["bot1"].block_device_map, disks)

    @defer.inlineCallbacks
    def test_start_instance_attach_volume(self):
        """The same as there; it has to be in the zone of the instance."""
        answer = yield self.call("create_volume", AvailabilityZone="us-east-1a", Size=10)
        volume = answer["VolumeId"]
        instance = yield self.start(**NAMED, ami=self.ami, volumes=[(volume, "/dev/sdz")], placement="a")
        yield self.until_attached()
        answer = yield self.call("describe_volumes", VolumeIds=[volume])
        (attachment,) = answer["Volumes"][0]["Attachments"]
        self.assertEqual(
            (attachment["InstanceId"], attachment["Device"]), (instance.described["InstanceId"], "/dev/sdz")
        )

    @defer.inlineCallbacks
    def test_start_instance_tags(self):
        """They are there from the start, and on the volumes too."""
        instance = yield self.start(**NAMED, ami=self.ami, tags={"foo": "bar"})
        self.assertEqual(instance.tags["foo"], "bar")
        self.assertEqual(self.calls("CreateTags"), [])
        answer = yield self.call("describe_volumes")
        self.assertIn({"Key": "foo", "Value": "bar"}, answer["Volumes"][0]["Tags"])

    @defer.inlineCallbacks
    def test_start_instance_ip(self):
        """The same as there; the address is looked for when the instance runs, not in the constructor."""
        address = yield self.call("allocate_address", Domain="vpc")
        worker = self.bot(**NAMED, ami=self.ami, elastic_ip=address["PublicIp"])
        self.assertEqual(self.calls("DescribeAddresses"), [])
        found = yield self.launched(worker)
        yield self.until_attached()
        answer = yield self.call("describe_addresses")
        (described,) = answer["Addresses"]
        self.assertEqual(described["InstanceId"], found["bot1"].described["InstanceId"])

    @defer.inlineCallbacks
    def test_start_vpc_spot_instance(self):
        """RunInstances instead of a request of its own, for which upstream has to wait, and which may not be found yet."""
        subnet = self.subnets["us-east-1b"]
        instance = yield self.start(
            **KEYS,
            keypair_name="test_keypair",
            ami=self.ami,
            spot_instance=True,
            max_spot_price=1.5,
            security_group_ids=[self.group],
            subnet_id=subnet,
        )
        described = instance.described
        self.assertEqual((described["InstanceLifecycle"], described["SubnetId"]), ("spot", subnet))
        self.assertEqual([one["GroupId"] for one in described["SecurityGroups"]], [self.group])
        self.assertEqual(float(instance.spot["SpotOptions.MaxPrice"]), 1.5)
        self.assertEqual(self.calls("RequestSpotInstances"), [])

    @defer.inlineCallbacks
    def test_start_spot_instance(self):
        """There is no default price; and there are tags."""
        product = "Linux/Unix"
        instance = yield self.start(**NAMED, ami=self.ami, spot_instance=True, product_description=product)
        self.assertEqual(instance.described["InstanceLifecycle"], "spot")
        self.assertEqual(self.master.master.workers.workers["bot1"].product_description, product)
        self.assertNotIn("SpotOptions.MaxPrice", instance.spot)
        self.assertEqual(instance.tags["Name"], "bot1")


class GetImage(Scenario):
    """There, ``get_image()`` asks in the constructor; here it is seen of what image the instance is."""

    @defer.inlineCallbacks
    def test_get_image_ami(self):
        instance = yield self.start(**NAMED, ami=self.ami)
        self.assertEqual(instance.described["ImageId"], self.ami)
        self.assertEqual(self.calls("DescribeImages"), [])

    @defer.inlineCallbacks
    def test_get_image_owners(self):
        """The last one by its location, as there."""
        last = yield self.image("zzz", "zzz/last")
        yield self.image("new", "new/but-not-last", day=9)
        instance = yield self.start(**NAMED, valid_ami_owners=[int(ACCOUNT)])
        self.assertEqual(instance.described["ImageId"], last)

    @defer.inlineCallbacks
    def test_get_image_location(self):
        """The expression needs owners, or all public images of the region would be listed."""
        yield self.image("zzz", "other/zzz")
        instance = yield self.start(**NAMED, valid_ami_owners=[int(ACCOUNT)], valid_ami_location_regex="amazon/.*")
        self.assertEqual(instance.described["ImageId"], self.ami)
        raised = self.assertRaises(ConfigErrors, self.bot, **NAMED, valid_ami_location_regex="amazon/.*")
        self.assertIn("valid_ami_owners: goes with valid_ami_location_regex", raised.errors[0])

    @defer.inlineCallbacks
    def test_get_image_location_not_found(self):
        """The build ends, and says why, instead of a ValueError from the constructor."""
        worker = self.bot(**NAMED, valid_ami_owners=[int(ACCOUNT)], valid_ami_location_regex="foobar.*")
        yield self.start_farm(worker)
        build = yield self.master.force_build("bot1")
        self.assertEqual((build.outcome, build.attempts, self.ec2.states()), ("exception", (), {}))
        self.assertIn("no available image fits", build.text())
        self.assertIn("foobar.*", build.text())
        self.assertEqual(len(self.flush()), 1)
