"""``buildbot-ec2ud check`` asks an embedded EC2 that somebody else's client fills; nothing is ever launched."""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any

from moto.backends import get_backend
from twisted.internet import defer, reactor, threads
from twisted.internet.utils import getProcessOutputAndValue

from buildbot_ec2ud.commands import check
from buildbot_ec2ud.commands.check import Check
from buildbot_ec2ud.embedded._moto import EC2BaseResponse
from tests.integration.launching import ACCOUNT, LaunchTestCase
from tests.unit.files import directory
from tests.unit.master_directory import make_master
from tests.unit.secure import environment
from tests.unit.servers import Answers, error, serve
from tests.unit.test_iam_policy import allowed

SECRET = "s3cret-of-the-account"
NOBODY = "http://127.0.0.1:1"
#: A subnet and a group that nobody has, in the form of EC2's ids.
NO_SUBNET, NO_GROUP, NO_VOLUME = "subnet-0123456789abcdef0", "sg-0123456789abcdef0", "vol-0123456789abcdef0"


class CheckTestCase(LaunchTestCase):
    """An EC2 with an image, and the directory of a master whose workers use it.

    :ivar instances: how many instances somebody else has started.
    """

    instances = 0

    @defer.inlineCallbacks
    def setUp(self) -> Any:
        environment(self, HOME=directory(self))
        self.start_ec2()
        self.basedir = os.path.join(directory(self), "farm")
        self.ami = yield self.image("debian-13", "location")
        # Not in tearDown: EC2 has ended then.
        self.addCleanup(self.assert_harmless)

    def assert_harmless(self) -> None:
        """Nothing was launched, and every call that would change something was a dry run."""
        self.assertEqual(len(self.ec2.states()), self.instances)
        for call in self.received:
            if call.key != "boto3":
                self.assertIn(f"ec2:{call.action}", allowed())
                if not call.action.startswith("Describe"):
                    self.assertEqual(call.parameters.get("DryRun"), "true", call.action)

    def place(self, **arguments: Any) -> dict[str, Any]:
        """The arguments of a worker with its instances here."""
        given = {"endpoint_url": self.ec2.endpoint_url, "region": "us-east-1", "ami": self.ami}
        return {**given, "identifier": "AKID", "secret_identifier": SECRET, **arguments}

    @defer.inlineCallbacks
    def check(self, *names: str, as_json: bool = True, **workers: dict[str, Any]) -> Any:
        """Check these workers, or those that there are; the exit status, and the findings by subject.

        :param names: of the workers to look at.
        """
        if workers:
            make_master(self.basedir, workers)
        out, err = io.StringIO(), io.StringIO()
        self.patch(sys, "stdout", out)
        self.patch(sys, "stderr", err)
        self.received.clear()
        self.ec2.calls.clear()
        status = yield Check(reactor, self.basedir, names).run(as_json=as_json)
        self.out, self.err = out.getvalue(), err.getvalue()
        self.assertNotIn(SECRET, self.out + self.err)
        found: dict[str, list[Any]] = {}
        for row in json.loads(self.out or "[]") if as_json else ():
            found.setdefault(row["subject"], []).append(row)
        return status, found

    def assert_problem(self, found: Any, subject: str, text: str, workers: list[str]) -> None:
        """There is exactly one finding about it: a problem, with words and a fix."""
        self.assertIn(subject, found)
        self.assertEqual(len(found[subject]), 1, found[subject])
        row = found[subject][0]
        self.assertEqual((row["state"], row["workers"]), ("problem", workers), row)
        self.assertIn(text, row["text"])
        self.assertTrue(row["fix"], row)
        self.assertFalse(row["fix"].endswith("."), row)

    def states(self, found: Any) -> dict[str, str]:
        return {subject: rows[0]["state"] for subject, rows in found.items()}

    def backend(self) -> Any:
        return get_backend("ec2")[ACCOUNT]["us-east-1"]


class Fine(CheckTestCase):
    @defer.inlineCallbacks
    def test_everything(self) -> Any:
        """All that a worker can need is there: each is told to be."""
        subnets, group = yield self.default_network()
        subnet = subnets["us-east-1a"]
        yield self.call("create_key_pair", KeyName="farm")
        volume = (yield self.call("create_volume", AvailabilityZone="us-east-1a", Size=1))["VolumeId"]
        address = yield self.call("allocate_address", Domain="vpc")
        data = {"InstanceType": "t3.micro"}
        yield self.call("create_launch_template", LaunchTemplateName="base", LaunchTemplateData=data)
        profile = {"InstanceProfileName": "builder"}
        yield threads.deferToThread(self.client("iam", "us-east-1").create_instance_profile, **profile)
        status, found = yield self.check(
            w=self.place(
                subnet_id=subnet,
                security_group_ids=[group],
                keypair_name="farm",
                volumes=[(volume, "/dev/sdf")],
                elastic_ip=address["PublicIp"],
                launch_template="base",
                instance_profile_name="builder",
                market="spot-then-on-demand",
            )
        )
        self.assertEqual(set(self.states(found).values()), {"ok"}, self.out)
        self.assertEqual(status, 0)
        for subject, text in (
            ("EC2", "access key AKID, from the configuration"),
            (f"image {self.ami}", "available (debian-13)"),
            (f"subnet {subnet}", "us-east-1a, "),
            (f"security group {group}", "is there, in vpc-"),
            ("key pair farm", "is there"),
            ("launch template base ($Default)", "is there, version 1"),
            ("instance type t3.micro", "is offered in us-east-1a"),
            (f"volume {volume}", "is free, in us-east-1a"),
            (f"Elastic IP {address['PublicIp']}", "is free"),
            (f"dry run of t3.micro spot in {subnet}", "the parameters, instance profile builder"),
            (f"dry run of t3.micro on-demand in {subnet}", "EC2 would launch it"),
            ("user-data", "inline"),
            ("permission ec2:TerminateInstances", "is not refused"),
            ("permission ec2:GetConsoleOutput", "is not refused"),
            ("permission ec2:ModifyInstanceAttribute", "is not refused"),
            ("permission ec2:AttachVolume", "is not refused"),
            ("permission ec2:AssociateAddress", "is not refused"),
            ("permission ec2:DisassociateAddress", "is not refused"),
        ):
            self.assertIn(text, found.pop(subject)[0]["text"])
        self.assertEqual(found, {})

    @defer.inlineCallbacks
    def test_asked_once(self) -> Any:
        """Workers that share a configuration are asked about once, whatever their names; others are not lost."""
        subnets, _ = yield self.default_network()
        fleet = {f"w-{n}": self.place(subnet_id=subnets["us-east-1a"]) for n in range(12)}
        other = self.place(subnet_id=subnets["us-east-1b"], instance_type="t3.small")
        status, found = yield self.check(**fleet, other=other)
        self.assertEqual(status, 0, self.out)
        self.assertEqual(
            {action: count for action, count in self.ec2.calls.items() if action.startswith(("Run", "Describe"))},
            {
                "RunInstances": 2,
                "DescribeInstances": 1,
                "DescribeImages": 1,
                "DescribeSubnets": 1,
                "DescribeInstanceTypeOfferings": 1,
            },
        )
        (row,) = found["instance type t3.micro"]
        self.assertEqual(row["workers"], list(fleet))
        (row,) = found[f"image {self.ami}"]
        self.assertEqual(row["workers"], [*fleet, "other"])

    @defer.inlineCallbacks
    def test_dry_run(self) -> Any:
        """EC2 is asked for what a start would ask for: the user-data, but for the password, and the tags, which a policy
        may look at.
        """
        yield self.check(w=self.place(tags={"cost": "centre"}, owner="farm-7", http_tokens="optional"))
        (call,) = self.calls("RunInstances")
        tags = {
            call.parameters[f"TagSpecification.1.Tag.{n}.Key"]: call.parameters[f"TagSpecification.1.Tag.{n}.Value"]
            for n in range(1, 6)
        }
        expected = {"Name": "w", "cost": "centre", "buildbot:master": "farm-7", "buildbot:worker": "w"}
        self.assertEqual({key: tags.get(key) for key in expected}, expected)
        self.assertEqual(call.parameters["MetadataOptions.HttpTokens"], "optional")
        self.assertGreater(len(call.parameters["UserData"]), 1000)

    @defer.inlineCallbacks
    def test_chain(self) -> Any:
        """Credentials that AWS's own chain finds: which, and where."""
        os.environ.update(AWS_ACCESS_KEY_ID="AKIDOFENV", AWS_SECRET_ACCESS_KEY=SECRET)
        status, found = yield self.check(w=self.place(identifier=None, secret_identifier=None))
        self.assertEqual(status, 0, self.out)
        self.assertIn("access key AKIDOFENV, from env", found["EC2"][0]["text"])
        self.assertEqual({call.key for call in self.received}, {"AKIDOFENV"})

    @defer.inlineCallbacks
    def test_some_workers(self) -> Any:
        """Only those that are named; and what was meant by a name that there is not."""
        status, found = yield self.check("good", good=self.place(), bad=self.place(keypair_name="nope"))
        self.assertEqual((status, list(found[f"image {self.ami}"][0]["workers"])), (0, ["good"]), self.out)
        status, _ = yield self.check("goood", "bad")
        self.assertEqual((status, self.out), (1, ""))
        self.assertEqual(self.err, "there is no EC2UserDataLatentWorker 'goood'; did you mean good?\n")
        self.assertEqual(sum(self.ec2.calls.values()), 0)

    @defer.inlineCallbacks
    def test_known_at_a_build(self) -> Any:
        """What only a build has is told, and is no problem; the rest is looked at."""
        status, found = yield self.check(
            a=self.place(ami="=lambda worker, build: 'ami-1'"),
            b=self.place(bootstrap_env="={'X': util.Property('x')}", password="=util.Property('p')"),
            c=self.place(keypair_name="=util.Property('key')", tags="={'a': 'b', 'x': util.Property('x')}"),
            d=self.place(ami="=util.Property('ami')", instance_type="=[util.Property('type'), 't3.micro']"),
        )
        self.assertEqual(status, 0, self.out)
        self.assertEqual({row["state"] for row in found["launch"]}, {"later"})
        self.assertEqual(
            {row["workers"][0]: row["text"] for row in found["launch"]},
            {
                "a": "ami is known only when a build starts, so the launch is not looked at",
                "c": "keypair_name, tags are known only when a build starts, and the launch is looked at without that",
                "d": "ami, instance_type are known only when a build starts, so the launch is not looked at",
            },
        )
        self.assertEqual([row["workers"] for row in found["user-data"] if row["state"] == "later"], [["b"], ["b"]])
        self.assertEqual(found["dry run of t3.micro on-demand"][0]["workers"], ["b", "c"])
        tags = [call.parameters["TagSpecification.1.Tag.2.Key"] for call in self.calls("RunInstances")]
        self.assertEqual(tags, ["buildbot:master", "a"])  # what is known of them is asked for

    @defer.inlineCallbacks
    def test_images(self) -> Any:
        """An image by a rule, and one that EC2 resolves."""
        _, found = yield self.check(
            a=self.place(ami={"owners": "self", "name": "debian-*"}),
            b=self.place(ami="resolve:ssm:/aws/x"),
        )
        (subject,) = (subject for subject in found if subject.startswith("image owners"))
        self.assertTrue(subject.endswith(f"is {self.ami}"), subject)
        self.assertIn("EC2 itself finds it", found["image resolve:ssm:/aws/x"][0]["text"])
        images = {call.parameters["ImageId"] for call in self.calls("RunInstances")}
        self.assertEqual(images, {self.ami, "resolve:ssm:/aws/x"})

    @defer.inlineCallbacks
    def test_text(self) -> Any:
        """Lines for people: the place, then a line for each thing, then a sum."""
        status, _ = yield self.check(as_json=False, a=self.place(), b=self.place(keypair_name="nope"))
        self.assertEqual(status, 1)
        first, *lines, last = self.out.splitlines()
        self.assertEqual(first, f"us-east-1 ({self.ec2.endpoint_url})")
        self.assertIn(f"  ok        image {self.ami}: available (debian-13)  [a, b]", lines)
        text = "EC2 has none of that name in this region; make it there, or leave keypair_name out  [b]"
        self.assertIn(f"  problem   key pair nope: {text}", lines)
        self.assertRegex(last, "^[0-9]+ ok, 1 problem$")


class Missing(CheckTestCase):
    @defer.inlineCallbacks
    def test_all(self) -> Any:
        """Everything that is not there, at once, each with the worker and what to do."""
        status, found = yield self.check(
            image=self.place(ami="ami-0123456789abcdef0"),
            rule=self.place(ami={"owners": "self", "name": "freebsd-*"}),
            net=self.place(subnet_id=["subnet-0123456789abcdef0"], security_group_ids=[NO_GROUP]),
            name=self.place(security_name="nope"),
            key=self.place(keypair_name="nope"),
            kind=self.place(instance_type=["t3.micro", "nope.large"]),
            template=self.place(launch_template="nope"),
            things=self.place(volumes=[(NO_VOLUME, "/dev/sdf")], elastic_ip="203.0.113.7"),
            profile=self.place(instance_profile_name="nope"),
        )
        self.assertEqual(status, 1)
        for subject, text, worker in (
            ("image ami-0123456789abcdef0", "InvalidAMIID.NotFound", "image"),
            ("image owners self; name 'freebsd-*'", "no available image fits", "rule"),
            (f"subnet {NO_SUBNET}", "no such subnet", "net"),
            (f"security group {NO_GROUP}", "no such group", "net"),
            ("security group nope", "no such group", "name"),
            ("key pair nope", "none of that name", "key"),
            ("instance type nope.large", "does not offer it in this region", "kind"),
            ("launch template nope ($Default)", "InvalidLaunchTemplateName.NotFoundException", "template"),
            (f"volume {NO_VOLUME}", "no such volume", "things"),
            ("Elastic IP 203.0.113.7", "no such address", "things"),
        ):
            self.assert_problem(found, subject, text, [worker])
        (profile,) = (row for rows in found.values() for row in rows if row["workers"] == ["profile"] and row["fix"])
        self.assertIn("instance_profile_name", profile["fix"])
        self.assertEqual(profile["state"], "problem")
        # Without an image there is no launch to ask for; of the others there is.
        launched = {
            row["workers"][0] for subject, rows in found.items() if subject.startswith("dry run") for row in rows
        }
        self.assertFalse(launched & {"image", "rule"}, launched)
        self.assertTrue(
            {"net", "key", "kind"} <= {name for rows in found.values() for r in rows for name in r["workers"]}
        )

    @defer.inlineCallbacks
    def test_asked_once(self) -> Any:
        """What is not there is not asked for again either, and is told of all workers in one line."""
        spot = {"market": "spot", "price_multiplier": 2.0, "instance_type": "nope.large"}
        things = {"volumes": [(NO_VOLUME, "/dev/sdf")], "elastic_ip": "203.0.113.7"}
        missing = self.place(ami="ami-0123456789abcdef0", **spot, **things)
        status, found = yield self.check(a=missing, b=missing, c=missing)
        self.assertEqual(status, 1)
        for subject in ("image ami-0123456789abcdef0", f"volume {NO_VOLUME}", "Elastic IP 203.0.113.7"):
            self.assert_problem(found, subject, "", ["a", "b", "c"])
        self.assert_problem(found, "spot prices of nope.large", "none of the last 24 hours", ["a", "b", "c"])
        asked = {name: n for name, n in self.ec2.calls.items() if name.startswith("Describe")}
        self.assertEqual(set(asked.values()), {1}, asked)
        self.assertEqual(len(asked), 6)

    @defer.inlineCallbacks
    def test_template_version(self) -> Any:
        """A version that a launch template has not; and an image in one, which is looked at as if it were an argument."""
        data = {"InstanceType": "t3.micro", "ImageId": "ami-0123456789abcdef0"}
        yield self.call("create_launch_template", LaunchTemplateName="base", LaunchTemplateData=data)
        template = {"LaunchTemplateName": "base"}
        plain = {"ami": None, "instance_type": None}
        status, found = yield self.check(
            old=self.place(**plain, launch_template={**template, "Version": "7"}),
            a=self.place(**plain, launch_template={**template, "Version": "1"}),
        )
        self.assertEqual(status, 1)
        self.assert_problem(found, "launch template base (7)", "", ["old"])
        self.assert_problem(found, "image ami-0123456789abcdef0", "InvalidAMIID.NotFound", ["a"])
        self.assertEqual(found["instance type t3.micro"][0]["workers"], ["a"])


class Wrong(CheckTestCase):
    @defer.inlineCallbacks
    def test_zone(self) -> Any:
        """A type that a subnet's zone has not, while the region has it."""
        subnets, _ = yield self.default_network()
        answer = yield self.call(
            "describe_instance_type_offerings",
            LocationType="availability-zone",
            Filters=[{"Name": "instance-type", "Values": ["t3.micro"]}],
        )
        offered = {one["Location"] for one in answer["InstanceTypeOfferings"]}
        without = sorted(set(subnets) - offered)[0]
        status, found = yield self.check(
            w=self.place(subnet_id=[subnets[without], subnets["us-east-1a"]]),
            x=self.place(placement=without[-1]),
        )
        self.assertEqual(status, 1)
        problems = [row for row in found["instance type t3.micro"] if row["state"] == "problem"]
        self.assertEqual([row["workers"] for row in problems], [["w", "x"]])
        self.assertIn(f"EC2 does not offer it in {without}, but in us-east-1a", problems[0]["text"])

    @defer.inlineCallbacks
    def test_network(self) -> Any:
        """A full subnet, and a group of another VPC."""
        subnets, group = yield self.default_network()
        vpc = (yield self.call("create_vpc", CidrBlock="10.9.0.0/16"))["Vpc"]["VpcId"]
        other = (yield self.call("create_subnet", VpcId=vpc, CidrBlock="10.9.0.0/24"))["Subnet"]["SubnetId"]
        full = self.backend().get_subnet(subnets["us-east-1a"])
        self.patch(full, "_available_ip_addresses", 0)
        status, found = yield self.check(
            full=self.place(subnet_id=full.id), vpc=self.place(subnet_id=other, security_group_ids=[group])
        )
        self.assertEqual(status, 1)
        self.assert_problem(found, f"subnet {full.id}", "no free address, in us-east-1a", ["full"])
        self.assert_problem(found, f"security group {group}", f"and a subnet is of {vpc}", ["vpc"])

    @defer.inlineCallbacks
    def test_image_state(self) -> Any:
        """An image that is there and cannot be launched yet; its launch is not asked for."""
        self.patch(self.backend().amis[self.ami], "state", "pending")
        status, found = yield self.check(w=self.place())
        self.assertEqual(status, 1)
        self.assert_problem(found, f"image {self.ami}", "its state is pending", ["w"])
        self.assertEqual(self.calls("RunInstances"), [])

    @defer.inlineCallbacks
    def test_in_use(self) -> Any:
        """A volume and an address that somebody else has; those of the master's own instance are as they should be."""
        owner = {"Key": "buildbot:master", "Value": "farm"}
        ids = []
        for tags in ([owner], [{"Key": "x", "Value": "y"}]):
            tagged = [{"ResourceType": "instance", "Tags": tags}]
            zone = {"AvailabilityZone": "us-east-1a"}
            ids.append((yield self.launch("#!/bin/sh\nexec sleep 100\n", Placement=zone, TagSpecifications=tagged)))
        things = []
        for instance_id in ids:
            yield self.until_state(instance_id, "running")
            volume = (yield self.call("create_volume", AvailabilityZone="us-east-1a", Size=1))["VolumeId"]
            yield self.call("attach_volume", VolumeId=volume, InstanceId=instance_id, Device="/dev/sdf")
            address = yield self.call("allocate_address", Domain="vpc")
            allocation = address["AllocationId"]
            yield self.call("associate_address", AllocationId=allocation, InstanceId=instance_id)
            things.append((volume, allocation))
        workers = {
            name: self.place(owner="farm", placement="a", volumes=[(volume, "/dev/sdf")], elastic_ip=address)
            for name, (volume, address) in zip(("own", "others"), things, strict=True)
        }
        status, found = yield self.check(**workers)
        self.assertEqual(status, 1)
        (volume, address), (taken, taken_address) = things
        self.assertEqual(found[f"volume {volume}"][0]["state"], "ok")
        self.assertEqual(found[f"Elastic IP {address}"][0]["state"], "ok")
        self.assert_problem(found, f"volume {taken}", f"in-use, by {ids[1]}", ["others"])
        self.assert_problem(found, f"Elastic IP {taken_address}", f"in use by {ids[1]}", ["others"])
        self.assertEqual(sorted(self.ec2.alive()), sorted(ids))  # the check has ended none
        self.instances = 2

    @defer.inlineCallbacks
    def test_volume_elsewhere(self) -> Any:
        """A volume in another zone than the instances; and one whose zone EC2 need not choose."""
        volume = (yield self.call("create_volume", AvailabilityZone="us-east-1b", Size=1))["VolumeId"]
        volumes = [(volume, "/dev/sdf")]
        status, found = yield self.check(a=self.place(placement="a", volumes=volumes), any=self.place(volumes=volumes))
        self.assertEqual(status, 1)
        texts = {row["workers"][0]: row["text"] for row in found[f"volume {volume}"] if row["state"] == "problem"}
        self.assertEqual(texts["a"], "is in us-east-1b, and instances can be in us-east-1a")
        self.assertIn("EC2 may put the instance into another zone", texts["any"])


class NotAllowed(CheckTestCase):
    """What a policy refuses."""

    @defer.inlineCallbacks
    def refused(self, *actions: str, **arguments: Any) -> Any:
        for action in actions:
            self.ec2.faults.add("unauthorized", action, 100)
        return (yield self.check(w=self.place(**arguments)))

    @defer.inlineCallbacks
    def test_run_instances(self) -> Any:
        """The permission is named, and where to get it; the encoded message is left out."""
        status, found = yield self.refused("RunInstances")
        self.assertEqual(status, 1)
        self.assert_problem(found, "dry run of t3.micro on-demand", "ec2:RunInstances is not allowed", ["w"])
        self.assertIn("contrib/iam-policy.json", self.out)
        self.assertNotIn("c29tZXRoaW5n", self.out)

    @defer.inlineCallbacks
    def test_describe_instances(self) -> Any:
        """Without it the master is blind, and the rest is looked at all the same."""
        status, found = yield self.refused("DescribeInstances")
        self.assertEqual(status, 1)
        self.assert_problem(found, "permission ec2:DescribeInstances", "ec2:DescribeInstances is not allowed", [])
        self.assertEqual(found["dry run of t3.micro on-demand"][0]["state"], "ok")

    @defer.inlineCallbacks
    def test_only_for_the_check(self) -> Any:
        """What only the check asks is no problem of the master's; it is not known, and that is another status."""
        subnets, _ = yield self.default_network()
        status, found = yield self.refused(
            *("DescribeImages", "DescribeSubnets", "DescribeSecurityGroups", "DescribeKeyPairs"),
            *("DescribeInstanceTypeOfferings", "DescribeLaunchTemplateVersions"),
            subnet_id=subnets["us-east-1a"],
            security_group_ids=[NO_GROUP],
            keypair_name="k",
            launch_template="base",
        )
        self.assertEqual(status, 3, self.out)
        unasked = [subject for subject, state in self.states(found).items() if state == "not asked"]
        self.assertEqual(
            unasked,
            [
                f"image {self.ami}",
                "launch template base ($Default)",
                *("subnets", "security groups", "key pairs", "instance types"),
            ],
        )
        self.assertIn("ec2:DescribeKeyPairs is not allowed", found["key pairs"][0]["text"])

    @defer.inlineCallbacks
    def test_image_that_a_start_asks_for(self) -> Any:
        """By a rule, a start needs DescribeImages itself."""
        status, found = yield self.refused("DescribeImages", ami={"owners": "self", "name": "debian-*"})
        self.assertEqual(status, 1)
        (subject,) = (subject for subject in found if subject.startswith("image "))
        self.assert_problem(found, subject, "ec2:DescribeImages is not allowed", ["w"])

    @defer.inlineCallbacks
    def test_without_an_instance(self) -> Any:
        """A policy that looks at tags refuses what is not there: there is no telling."""
        status, found = yield self.refused("TerminateInstances", "GetConsoleOutput")
        self.assertEqual(status, 0, self.out)
        for action in ("TerminateInstances", "GetConsoleOutput"):
            self.assertEqual(found[f"permission ec2:{action}"][0]["state"], "later")


class BadDays(CheckTestCase):
    """EC2 cannot be asked."""

    def setUp(self) -> Any:
        self.patch(check, "PATIENCE", 0.1)
        return super().setUp()

    @defer.inlineCallbacks
    def one_line(self, status: int, state: str, text: str, **arguments: Any) -> Any:
        """Check a worker of a place that cannot be asked: the one line about EC2."""
        found_status, found = yield self.check(w=self.place(**arguments))
        self.assertEqual(found_status, status, self.out)
        self.assertEqual(list(found), ["EC2"], self.out)
        ((row,),) = found.values()
        self.assertEqual(row["state"], state)
        self.assertIn(text, row["text"])
        return row

    @defer.inlineCallbacks
    def test_nobody(self) -> Any:
        row = yield self.one_line(3, "not asked", NOBODY, endpoint_url=NOBODY)
        self.assertIn("endpoint_url", row["fix"])

    @defer.inlineCallbacks
    def test_silence(self) -> Any:
        self.patch(check, "CALL_TIMEOUT", 0.3)
        self.ec2.faults.add("hang-headers", "DescribeInstances", 100)
        yield self.one_line(3, "not asked", "no answer from")

    @defer.inlineCallbacks
    def test_proxy(self) -> Any:
        self.ec2.faults.add("html", "DescribeInstances", 100)
        row = yield self.one_line(3, "not asked", "DescribeInstances: the answer is")
        self.assertIn("proxy", row["fix"])

    @defer.inlineCallbacks
    def test_clock(self) -> Any:
        self.ec2.faults.add("wrong-date", "DescribeInstances", 100)
        row = yield self.one_line(1, "problem", "this machine's clock is 20 min behind EC2's")
        self.assertIn("NTP", row["fix"])

    @defer.inlineCallbacks
    def test_wrong_keys(self) -> Any:
        url = serve(self, Answers((401, error("AuthFailure", "AWS was not able to validate them"))).site())
        row = yield self.one_line(1, "problem", "AuthFailure", endpoint_url=url)
        self.assertIn("secret_identifier", row["fix"])

    @defer.inlineCallbacks
    def test_no_credentials(self) -> Any:
        os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
        arguments = {"identifier": None, "secret_identifier": None}
        row = yield self.one_line(1, "problem", "no AWS credentials found", **arguments)
        self.assertTrue(row["fix"])

    @defer.inlineCallbacks
    def test_no_such_secret(self) -> Any:
        """A worker whose keys cannot be had is told; the others are looked at."""
        status, found = yield self.check(a=self.place(identifier="=util.Secret('nope')"), b=self.place())
        self.assertEqual(status, 1)
        self.assert_problem(found, "credentials", "cannot get its AWS credentials: KeyError", ["a"])
        self.assertEqual(found[f"image {self.ami}"][0]["workers"], ["b"])

    @defer.inlineCallbacks
    def test_other_places(self) -> Any:
        """One place that is down takes nothing from the others."""
        status, found = yield self.check(a=self.place(endpoint_url=NOBODY), b=self.place())
        self.assertEqual(status, 3)
        self.assertEqual(sorted(row["state"] for row in found["EC2"]), ["not asked", "ok"])
        self.assertEqual(found["dry run of t3.micro on-demand"][0]["workers"], ["b"])

    @defer.inlineCallbacks
    def test_in_the_middle(self) -> Any:
        """When EC2 answers no more, it is not waited for again and again."""
        self.patch(check, "PATIENCE", 0.0)
        self.ec2.faults.add("lost-reply", "DescribeImages", 100)
        for action in ("DescribeSubnets", "DescribeKeyPairs", "DescribeInstanceTypeOfferings", "RunInstances"):
            self.ec2.faults.add("reset", action, 100)
        place = self.place(subnet_id=NO_SUBNET, keypair_name="k")
        status, found = yield self.check(a=place, b=place, c=place, d=place)
        self.assertEqual(status, 3)
        self.assertEqual(found[f"image {self.ami}"][0]["workers"], ["a", "b", "c", "d"])
        # A connection that was closed may have been idle for too long: the call is made once more, at once.
        self.assertEqual(len(self.calls("DescribeImages")), 2)
        self.assertEqual(found["EC2"][-1]["text"], "given up: 3 calls were not answered")
        self.assertEqual(self.calls("RunInstances"), [])
        self.assertEqual(self.calls("DescribeInstanceTypeOfferings"), [])

    @defer.inlineCallbacks
    def test_unusable(self) -> Any:
        """What is wrong with a configuration, and that nothing was asked."""
        status, _ = yield self.check(w=self.place(market="x"))
        self.assertEqual((status, self.out), (1, ""))
        self.assertIn("worker w: market: 'x'", self.err)
        self.assertEqual(sum(self.ec2.calls.values()), 0)


class WithoutDryRuns(CheckTestCase):
    """An EC2 that takes a dry run for a real call."""

    def setUp(self) -> Any:
        self.patch(EC2BaseResponse, "error_on_dryrun", lambda _: None)
        return super().setUp()

    @defer.inlineCallbacks
    def test_ended(self) -> Any:
        """What it launches is ended at once, and it is asked for no other launch."""
        status, found = yield self.check(w=self.place(instance_type=["t3.micro", "t3.small"]))
        self.assertEqual(status, 1)
        (instance_id,) = self.ec2.states()
        self.assert_problem(found, "dry run of t3.micro on-demand", f"has launched {instance_id}", [])
        self.assertNotIn("dry run of t3.small on-demand", found)
        yield self.until_gone()

    @defer.inlineCallbacks
    def test_not_ended(self) -> Any:
        self.ec2.faults.add("unauthorized", "TerminateInstances", 1)
        status, found = yield self.check(w=self.place())
        self.assertEqual(status, 1)
        row = found["dry run of t3.micro on-demand"][0]
        self.assertIn("which it does not end: UnauthorizedOperation", row["text"])
        self.assertIn("reap", row["fix"])

    def assert_harmless(self) -> None:
        """It was not."""
        self.assertEqual(len(self.ec2.states()), 1)


class Process(CheckTestCase):
    """The command itself."""

    @defer.inlineCallbacks
    def test_command(self) -> Any:
        """Its arguments, exit status and output."""
        make_master(self.basedir, {"w": self.place(keypair_name="nope"), "x": self.place(keypair_name="not this")})
        out, err, status = yield getProcessOutputAndValue(
            *(sys.executable, ["-m", "buildbot_ec2ud.cli", "check", "--json", self.basedir, "w"]),
            env=os.environ,
            path="/",
        )
        self.assertEqual((status, err), (1, b""), out)
        self.assertNotIn(SECRET.encode(), out)
        self.assertEqual([row["subject"] for row in json.loads(out) if row["state"] == "problem"], ["key pair nope"])
