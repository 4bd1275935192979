"""Each argument that shapes a launch, and what EC2 was asked for: builds of a real master, and boto3 that looks.

What moto does not keep is read from the calls as they came.
"""

from __future__ import annotations

import gzip
from typing import Any
from unittest import mock

import boto3
from buildbot.interfaces import LatentWorkerCannotSubstantiate
from buildbot.plugins import util
from buildbot.worker.base import AbstractWorker
from moto.core.responses import ActionResult
from moto.ec2.models.instances import INSTANCE_TYPE_OFFERINGS
from moto.ec2.responses.spot_instances import SpotInstances
from twisted.internet import defer

from tests.integration.launching import ACCOUNT, AS_IT_IS, SLEEP, LaunchTestCase
from tests.unit.files import directory, write
from tests.unit.secure import environment
from tests.userdata import variables


class Shape(LaunchTestCase):
    """What an instance is."""

    @defer.inlineCallbacks
    def test_defaults(self):
        """Only what is needed: no key pair, no group, no place. Everything has its owner's name from the first moment."""
        self.start_ec2()
        found = yield self.launched(self.worker())
        instance = found["w"]
        described = instance.described
        self.assertEqual((described["ImageId"], described["InstanceType"]), ("ami-embedded", "t3.micro"))
        self.assertNotIn("KeyName", described)
        self.assertNotIn("InstanceLifecycle", described)
        self.assertEqual(instance.behavior, "terminate")
        options = described["MetadataOptions"]
        self.assertEqual((options["HttpTokens"], options["HttpPutResponseHopLimit"]), ("required", 1))
        tags = {
            "Name": "w",
            "buildbot:master": self.master.master.name,
            "buildbot:worker": "w",
            "buildbot:launch": instance.tags["buildbot:launch"],
        }
        self.assertEqual(instance.tags, tags)
        answer = yield self.call("describe_volumes")
        (volume,) = answer["Volumes"]
        self.assertEqual({tag["Key"]: tag["Value"] for tag in volume["Tags"]}, tags)
        # moto does not tag network interfaces.
        kinds = [instance.call.parameters[f"TagSpecification.{number}.ResourceType"] for number in (1, 2, 3)]
        self.assertEqual(kinds, ["instance", "volume", "network-interface"])
        for number in (1, 2, 3):
            flat = instance.parameters(f"TagSpecification.{number}.Tag.")
            sent = {flat[f"{n}.Key"]: flat[f"{n}.Value"] for n in range(1, len(flat) // 2 + 1)}
            self.assertEqual(sent, tags)
        self.assertFalse(
            {"KeyName", "SubnetId", "SecurityGroup.1", "IamInstanceProfile.Name"} & {*instance.call.parameters}
        )
        self.assertEqual((instance.call.parameters["MinCount"], instance.call.parameters["MaxCount"]), ("1", "1"))
        # Nothing else was asked, or made, or changed by hand afterwards.
        self.assertLessEqual(
            {call.action for call in self.received if call.key != "boto3"}, {"RunInstances", "DescribeInstances"}
        )

    @defer.inlineCallbacks
    def test_each(self):
        """Each argument is what boto3 reads of the instance."""
        self.start_ec2()
        subnets, group = yield self.default_network()
        yield self.call("create_key_pair", KeyName="key")
        profile, arn = yield self.instance_profile()
        data = {"ImageId": "ami-template", "InstanceType": "m5.large", "KeyName": "key"}
        template = yield self.call("create_launch_template", LaunchTemplateName="farm", LaunchTemplateData=data)
        template_id = template["LaunchTemplate"]["LaunchTemplateId"]
        bare = {"instance_type": None, "ami": None}
        options = {
            "EbsOptimized": True,
            "Monitoring": {"Enabled": True},
            "CpuOptions": {"CoreCount": 1, "ThreadsPerCore": 2},
            "MetadataOptions": {"HttpPutResponseHopLimit": 2, "InstanceMetadataTags": "enabled"},
        }
        found = yield self.launched(
            self.worker("type", instance_type="c7i.large"),
            # Of several, the first; the others are asked for only when EC2 has no capacity.
            self.worker(
                "several", instance_type=["c7i.large", "m5.large"], subnet_id=[subnets["us-east-1b"], "subnet-1"]
            ),
            self.worker("image", ami="ami-other"),
            self.worker("key", keypair_name="key"),
            self.worker("group", security_name="farm"),
            self.worker("groups", security_group_ids=[group], subnet_id=subnets["us-east-1c"]),
            self.worker("zone", placement="b"),
            self.worker("profile", instance_profile_name=profile),
            self.worker("arn", instance_profile_name=arn),
            self.worker("tags", tags={"cost": "ci", "Name": "mine"}),
            self.worker("tokens", http_tokens="optional"),
            self.worker("template", launch_template="farm", **bare),
            self.worker("template-id", launch_template=template_id, **{**bare, "ami": "ami-other"}),
            self.worker("options", launch_options=options),
            self.worker("shutdown", launch_options={"InstanceInitiatedShutdownBehavior": "stop"}),
        )
        described = {name: instance.described for name, instance in found.items()}
        self.assertEqual((len(described), len(self.calls("RunInstances"))), (15, 15))
        self.assertEqual(described["several"]["InstanceType"], "c7i.large")
        self.assertEqual(described["several"]["SubnetId"], subnets["us-east-1b"])
        self.assertEqual(described["type"]["InstanceType"], "c7i.large")
        self.assertEqual(described["image"]["ImageId"], "ami-other")
        self.assertEqual(described["key"]["KeyName"], "key")
        for name in ("group", "groups"):
            self.assertEqual([one["GroupId"] for one in described[name]["SecurityGroups"]], [group], name)
        self.assertEqual(described["groups"]["SubnetId"], subnets["us-east-1c"])
        self.assertEqual(described["zone"]["Placement"]["AvailabilityZone"], "us-east-1b")
        for name in ("profile", "arn"):
            self.assertEqual(described[name]["IamInstanceProfile"]["Arn"], arn, name)
        self.assertEqual((found["tags"].tags["cost"], found["tags"].tags["Name"]), ("ci", "mine"))
        self.assertEqual(found["tags"].tags["buildbot:worker"], "tags")
        self.assertEqual(described["tokens"]["MetadataOptions"]["HttpTokens"], "optional")
        self.assertEqual(described["template"]["ImageId"], "ami-template")
        self.assertEqual((described["template"]["InstanceType"], described["template"]["KeyName"]), ("m5.large", "key"))
        self.assertEqual(found["template"].parameters("LaunchTemplate."), {"LaunchTemplateName": "farm"})
        self.assertEqual(found["template-id"].parameters("LaunchTemplate."), {"LaunchTemplateId": template_id})
        self.assertEqual(
            (described["template-id"]["ImageId"], described["template-id"]["InstanceType"]), ("ami-other", "m5.large")
        )
        self.assertTrue(described["options"]["EbsOptimized"])
        self.assertEqual(described["options"]["Monitoring"]["State"], "enabled")
        metadata = described["options"]["MetadataOptions"]
        self.assertEqual((metadata["HttpTokens"], metadata["HttpPutResponseHopLimit"]), ("required", 2))
        self.assertEqual(metadata["InstanceMetadataTags"], "enabled")
        # moto does not keep these.
        self.assertEqual(found["options"].parameters("CpuOptions."), {"CoreCount": "1", "ThreadsPerCore": "2"})
        self.assertEqual(found["shutdown"].behavior, "stop")
        self.assertEqual({one.behavior for name, one in found.items() if name != "shutdown"}, {"terminate"})

    @defer.inlineCallbacks
    def test_regions(self):
        """Any region of any partition; the zone of ``placement`` is one of it."""
        self.start_ec2()
        regions = ("us-east-1", "eu-central-1", "cn-north-1", "us-gov-west-1")
        # moto has no instance types in other partitions.
        types = {region: [{"InstanceType": "t3.micro", "Location": f"{region}b"}] for region in regions}
        offerings = mock.patch.dict(INSTANCE_TYPE_OFFERINGS["availability-zone"], types)
        offerings.start()
        self.addCleanup(offerings.stop)
        yield self.build_on(*(self.worker(region, region=region, placement="b") for region in regions))
        yield self.until_running(*regions)
        for region in regions:
            answer = yield self.in_region(region, lambda client: client.describe_instances())
            (instance,) = (one for reservation in answer["Reservations"] for one in reservation["Instances"])
            self.assertEqual(instance["Placement"]["AvailabilityZone"], f"{region}b")
            self.assertIn({"Key": "buildbot:worker", "Value": region}, instance["Tags"])


class Storage(LaunchTestCase):
    """Disks, and addresses."""

    @defer.inlineCallbacks
    def test_block_devices(self):
        """Volumes have their size, are encrypted if wished, and go with the instance unless that is not wished."""
        self.start_ec2()
        image = yield self.image("debian", "self/debian")
        disks = [
            {"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": 12, "VolumeType": "gp3"}},
            {"DeviceName": "/dev/sdc", "Ebs": {"VolumeSize": 3, "DeleteOnTermination": False}},
        ]
        root = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 8}}
        found = yield self.launched(
            self.worker("plain", ami=image, block_device_map=disks),
            self.worker("encrypted", ami=image, block_device_map=[*disks, root], encrypted_volumes=True),
        )
        answer = yield self.call("describe_volumes")
        volumes = {volume["VolumeId"]: volume for volume in answer["Volumes"]}

        def disks_of(name: str) -> dict[str, tuple[Any, ...]]:
            return {
                one["DeviceName"]: (
                    volumes[one["Ebs"]["VolumeId"]]["Size"],
                    one["Ebs"]["DeleteOnTermination"],
                    volumes[one["Ebs"]["VolumeId"]]["Encrypted"],
                )
                for one in found[name].described["BlockDeviceMappings"]
            }

        plain, encrypted = disks_of("plain"), disks_of("encrypted")
        self.assertEqual((plain["/dev/sdb"], plain["/dev/sdc"]), ((12, True, False), (3, False, False)))
        self.assertEqual((encrypted["/dev/sdb"], encrypted["/dev/sdc"]), ((12, True, True), (3, False, True)))
        self.assertEqual(found["plain"].call.parameters["BlockDeviceMapping.1.Ebs.VolumeType"], "gp3")
        self.assertEqual(encrypted["/dev/sda1"], (8, True, True))

    @defer.inlineCallbacks
    def test_encrypted_root(self):
        """The root volume is encrypted, too, by the name that the image has for it."""
        self.start_ec2()
        image = yield self.image("debian", "self/debian")
        yield self.start_farm(
            self.worker("id", ami=image, encrypted_volumes=True),
            self.worker("rule", ami={"owners": "self", "name": "debian"}, encrypted_volumes=True),
        )
        # Unlike EC2, moto wants to be told how big a root volume is; so these do not start.
        yield defer.gatherResults([self.master.force_build(name) for name in ("id", "rule")])
        self.assertEqual(len(self.flushLoggedErrors(LatentWorkerCannotSubstantiate)), 2)
        self.assertEqual(len(self.calls("RunInstances")), 2)
        for call in self.calls("RunInstances"):
            mappings = {
                name.removeprefix("BlockDeviceMapping."): value
                for name, value in call.parameters.items()
                if name.startswith("BlockDeviceMapping.")
            }
            self.assertEqual(
                mappings, {"1.DeviceName": "/dev/sda1", "1.Ebs.Encrypted": "true", "1.Ebs.DeleteOnTermination": "true"}
            )
            self.assertEqual(call.parameters["ImageId"], image)

    @defer.inlineCallbacks
    def test_attachments(self):
        """Volumes and the address are the instance's as soon as it runs; the address is free when the instance is gone."""
        self.start_ec2()
        volume = (yield self.call("create_volume", AvailabilityZone="us-east-1b", Size=1))["VolumeId"]
        address = yield self.call("allocate_address", Domain="vpc")
        other = yield self.call("allocate_address", Domain="vpc")
        found = yield self.launched(
            self.worker("both", volumes=[(volume, "/dev/sdf")], elastic_ip=address["PublicIp"], placement="b"),
            self.worker("by-id", elastic_ip=other["AllocationId"]),
        )
        yield self.until(
            lambda: len(self.calls("AssociateAddress")) == 2 and self.calls("AttachVolume"), what="attachments"
        )
        yield self.until(
            lambda: self.master.master.workers.workers["both"].rental.attaching.called, what="the attaching"
        )
        yield self.until(
            lambda: self.master.master.workers.workers["by-id"].rental.attaching.called, what="the attaching"
        )
        found = yield self.look()
        answer = yield self.call("describe_volumes", VolumeIds=[volume])
        (attachment,) = answer["Volumes"][0]["Attachments"]
        self.assertEqual(attachment["InstanceId"], found["both"].described["InstanceId"])
        self.assertEqual(attachment["Device"], "/dev/sdf")
        self.assertEqual(found["both"].described["PublicIpAddress"], address["PublicIp"])
        self.assertEqual(found["by-id"].described["PublicIpAddress"], other["PublicIp"])
        yield self.master.stop()
        yield self.until_gone()
        answer = yield self.call("describe_addresses")
        self.assertEqual([one.get("InstanceId") or None for one in answer["Addresses"]], [None, None])
        answer = yield self.call("describe_volumes")
        self.assertEqual([one["VolumeId"] for one in answer["Volumes"]], [volume])


class Market(LaunchTestCase):
    """What it may cost."""

    @defer.inlineCallbacks
    def test_markets(self):
        """Spot instances are asked for by RunInstances; with a limit only where one is given."""
        self.start_ec2()
        prices = SpotInstances.describe_spot_price_history

        def two_prices(response: Any) -> ActionResult:
            history = prices(response).result["SpotPriceHistory"]
            return ActionResult(
                {"SpotPriceHistory": [{**history[0], "SpotPrice": price} for price in ("0.02", "0.04")]}
            )

        self.patch(SpotInstances, "describe_spot_price_history", two_prices)
        found = yield self.launched(
            self.worker("on-demand", market="on-demand"),
            self.worker("spot", market="spot"),
            self.worker("both", market="spot-then-on-demand"),
            self.worker("as-before", spot_instance=True),
            self.worker("limit", market="spot", max_spot_price=0.0123),
            self.worker("average", market="spot", price_multiplier=1.5, placement="a"),
            self.worker("lower", market="spot", price_multiplier=1.5, max_spot_price=0.01),
            self.worker("windows", market="spot", price_multiplier=2, product_description="Windows"),
            self.worker("types", instance_type=["c7i.large", "c6i.large"], market="spot", price_multiplier=1),
            self.worker("ignored", max_spot_price=0.01, price_multiplier=2),
        )
        lifecycles = {name: one.described.get("InstanceLifecycle", "on-demand") for name, one in found.items()}
        on_demand = {"on-demand", "ignored"}
        self.assertEqual({name for name, lifecycle in lifecycles.items() if lifecycle == "on-demand"}, on_demand)
        self.assertEqual({lifecycle for name, lifecycle in lifecycles.items() if name not in on_demand}, {"spot"})
        # moto does not keep these.
        self.assertEqual({name for name, one in found.items() if not one.spot}, on_demand)
        once = {
            "MarketType": "spot",
            "SpotOptions.SpotInstanceType": "one-time",
            "SpotOptions.InstanceInterruptionBehavior": "terminate",
        }
        for name in ("spot", "both", "as-before"):
            self.assertEqual(found[name].spot, once, name)
        limits = {name: one.spot.get("SpotOptions.MaxPrice") for name, one in found.items()}
        self.assertEqual(
            {name: float(limit) for name, limit in limits.items() if limit},
            {"limit": 0.0123, "average": 0.045, "lower": 0.01, "windows": 0.06, "types": 0.03},
        )
        self.assertEqual(self.calls("RequestSpotInstances"), [])
        asked = [
            (
                call.parameters["InstanceType.1"],
                call.parameters["ProductDescription.1"],
                call.parameters.get("AvailabilityZone"),
            )
            for call in self.calls("DescribeSpotPriceHistory")
        ]
        self.assertEqual(
            sorted(set(asked), key=str),
            [
                ("c6i.large", "Linux/UNIX", None),
                ("c7i.large", "Linux/UNIX", None),
                ("t3.micro", "Linux/UNIX", "us-east-1a"),
                ("t3.micro", "Linux/UNIX", None),
                ("t3.micro", "Windows", None),
            ],
        )


class Images(LaunchTestCase):
    """Which image it is."""

    @defer.inlineCallbacks
    def test_images(self):
        """However it is described, one image is found, on either market."""
        self.start_ec2()
        ids = {}
        for name, location, day in (
            ("debian-12-9", "farm/debian-9", 1),
            ("debian-12-10", "farm/debian-10", 2),
            ("debian-12-8", "farm/debian-8", 3),
            ("other", "farm/other", 4),
        ):
            ids[name] = yield self.image(name, location, day)
        pattern = ".*/debian-([0-9]+)"

        def choose(worker: Any, build: Any) -> Any:
            return defer.succeed(
                ids["other"] if (worker.name, build.builder.name) == ("callable", "callable") else None
            )

        found = yield self.launched(
            self.worker("owners", ami=None, valid_ami_owners=[int(ACCOUNT)], valid_ami_location_regex=pattern),
            self.worker(
                "spot", ami=None, valid_ami_owners=ACCOUNT, valid_ami_location_regex="farm/debian", market="spot"
            ),
            self.worker("only-owners", ami=None, valid_ami_owners="self"),
            self.worker("newest", ami={"owners": "self", "name": "debian-12-*"}),
            self.worker("callable", ami=choose),
            self.worker("renderable", ami=util.Interpolate("%(prop:image)s")),
            self.worker("ssm", ami="resolve:ssm:/farm/debian"),
            properties={"image": "ami-rendered"},
        )
        # By number; by location, as a text; by location; by date.
        self.assertEqual(
            {name: one.described["ImageId"] for name, one in found.items()},
            {
                "owners": ids["debian-12-10"],
                "spot": ids["debian-12-9"],
                "only-owners": ids["other"],
                "newest": ids["debian-12-8"],
                "callable": ids["other"],
                "renderable": "ami-rendered",
                "ssm": "resolve:ssm:/farm/debian",
            },
        )
        self.assertEqual(found["spot"].described["InstanceLifecycle"], "spot")
        # One call for each rule.
        self.assertEqual(len(self.calls("DescribeImages")), 4)


class UserData(LaunchTestCase):
    """What the instance runs."""

    @defer.inlineCallbacks
    def test_user_data(self):
        """User-data of one's own is sent as it is; a bootstrap is told master, name, password and variables."""
        self.start_ec2()
        own = "#!/bin/sh\n# Grüße\nexec sleep 100\n"
        sha256 = "0123456789abcdef" * 4
        zipped = gzip.compress(own.encode())
        found = yield self.launched(
            self.worker("own", **AS_IT_IS, user_data=own),
            self.worker("bytes", **AS_IT_IS, user_data=zipped),
            self.worker("spot", **AS_IT_IS, user_data=own, spot_instance=True),
            self.worker("rendered", **AS_IT_IS, user_data=util.Interpolate("#!/bin/sh\n# %(prop:what)s\n")),
            self.worker("nothing", **AS_IT_IS),
            self.worker("made", bb_master="master.example.org:9990", bootstrap_env={"A": "it's", "N": 4}),
            self.worker("host", bb_master="master.example.org"),
            self.worker("fixed", password="s3cret of its own"),
            self.worker("url", bootstrap_script="http://127.0.0.1:9/a.sh", bootstrap_sha256=sha256),
            properties={"what": "as the build has it"},
        )
        self.assertEqual(found["own"].user_data, own.encode())
        self.assertEqual(found["spot"].user_data, own.encode())
        self.assertEqual(found["bytes"].user_data, zipped)
        self.assertEqual(found["rendered"].user_data, b"#!/bin/sh\n# as the build has it\n")
        self.assertEqual(found["nothing"].user_data, b"")
        self.assertNotIn("UserData", found["nothing"].call.parameters)
        made = found["made"].user_data.decode()
        password = self.master.master.workers.workers["made"].password
        for line in (
            *("export BB_MASTER=master.example.org:9990", "export BB_NAME=made"),
            *("export A='it'\"'\"'s'", "export N=4", SLEEP.strip().splitlines()[-1]),
        ):
            self.assertIn(f"\n{line}\n", made)
        self.assertEqual(variables(found["made"].user_data)["BB_PASSWORD"], password)
        port = self.master.master.workers.registrations["host"].getPBPort()
        self.assertIn(f"\nexport BB_MASTER=master.example.org:{port}\n", found["host"].user_data.decode())
        self.assertEqual(variables(found["fixed"].user_data)["BB_PASSWORD"], "s3cret of its own")
        self.assertIn(f"ec2ud_fetch http://127.0.0.1:9/a.sh {sha256} ", found["url"].user_data.decode())
        passwords = {self.master.master.workers.workers[name].password for name in ("made", "host", "url")}
        self.assertEqual(len(passwords), 3)
        self.assertTrue(all(len(one) >= 32 for one in passwords))


class Access(LaunchTestCase):
    """Who asks, and where."""

    @defer.inlineCallbacks
    def test_credentials(self):
        """The key is that of the argument, of the file, or of the session; its region is the session's unless given."""
        home = directory(self)
        environment(self, HOME=home)
        self.start_ec2()
        path = write(home, "aws_id", "AKIDOFFILE\nsecret\n")
        session = boto3.Session(
            aws_access_key_id="AKIDOFSESSION", aws_secret_access_key="secret", region_name="eu-west-1"
        )
        none: dict[str, Any] = {"identifier": None, "secret_identifier": None}
        yield self.build_on(
            self.worker("given", identifier="AKIDGIVEN", secret_identifier="secret"),
            self.worker("file", aws_id_file_path=path, **none),
            self.worker("session", session=session, region=None, **none),
            self.worker("elsewhere", session=session, region="eu-west-3", **none),
        )
        yield self.until(lambda: len(self.calls("RunInstances")) == 4, what="four launches")
        self.assertEqual(
            {
                (call.parameters["TagSpecification.1.Tag.1.Value"], call.key, call.region)
                for call in self.calls("RunInstances")
            },
            {
                ("given", "AKIDGIVEN", "us-east-1"),
                ("file", "AKIDOFFILE", "us-east-1"),
                ("session", "AKIDOFSESSION", "eu-west-1"),
                ("elsewhere", "AKIDOFSESSION", "eu-west-3"),
            },
        )


class Renderables(LaunchTestCase):
    @defer.inlineCallbacks
    def test_everything(self):
        """All that shapes an instance may depend on the build."""
        self.start_ec2()
        subnets, group = yield self.default_network()
        profile, arn = yield self.instance_profile()
        properties = {
            "type": "c7i.large",
            "image": "ami-other",
            "subnet": subnets["us-east-1d"],
            "group": group,
            "cost": "ci",
            "size": 7,
            "key": "key",
            "profile": profile,
            "market": "spot",
            "price": 0.5,
            "tokens": "optional",
            "optimized": True,
        }
        prop = util.Property
        found = yield self.launched(
            self.worker(
                instance_type=[prop("type"), "t3.micro"],
                ami=prop("image"),
                subnet_id=[prop("subnet")],
                security_group_ids=[prop("group")],
                tags={"cost": prop("cost"), "branch": util.Interpolate("%(prop:cost)s-%(prop:size)s")},
                keypair_name=prop("key"),
                instance_profile_name=prop("profile"),
                market=prop("market"),
                max_spot_price=prop("price"),
                http_tokens=prop("tokens"),
                block_device_map=[{"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": prop("size")}}],
                launch_options={"EbsOptimized": prop("optimized")},
                bootstrap_env={"COST": prop("cost")},
            ),
            self.worker("zone", placement=prop("zone"), security_name=prop("name")),
            properties={**properties, "zone": "e", "name": "farm"},
        )
        described = found["w"].described
        self.assertEqual((described["InstanceType"], described["ImageId"]), ("c7i.large", "ami-other"))
        self.assertEqual((described["SubnetId"], described["KeyName"]), (subnets["us-east-1d"], "key"))
        self.assertEqual([one["GroupId"] for one in described["SecurityGroups"]], [group])
        self.assertEqual((found["w"].tags["cost"], found["w"].tags["branch"]), ("ci", "ci-7"))
        self.assertEqual(described["IamInstanceProfile"]["Arn"], arn)
        self.assertEqual(described["InstanceLifecycle"], "spot")
        self.assertEqual(float(found["w"].spot["SpotOptions.MaxPrice"]), 0.5)
        self.assertEqual(described["MetadataOptions"]["HttpTokens"], "optional")
        self.assertTrue(described["EbsOptimized"])
        self.assertEqual(found["w"].call.parameters["BlockDeviceMapping.1.Ebs.VolumeSize"], "7")
        self.assertIn(b"\nexport COST=ci\n", found["w"].user_data)
        self.assertEqual(found["zone"].described["Placement"]["AvailabilityZone"], "us-east-1e")
        self.assertEqual([one["GroupId"] for one in found["zone"].described["SecurityGroups"]], [group])

    @defer.inlineCallbacks
    def test_rendered_wrongly(self):
        """What a build makes of an argument is checked as a configuration is; EC2 is not asked, and the build ends."""
        self.start_ec2()
        workers = [
            self.worker("market", market=util.Property("wrong")),
            self.worker("type", instance_type=util.Property("missing")),
            self.worker("tags", tags={"a": util.Property("number")}),
            self.worker("image", ami=lambda worker, build: None),
            self.worker("data", **AS_IT_IS, user_data=util.Property("number")),
            self.worker("failing", ami=util.Transform(lambda: 1 / 0)),
            self.worker("group", security_group_ids=util.Property("wrong")),
        ]
        yield self.start_farm(*workers)
        properties = {"wrong": "x", "number": 5}
        builds = yield defer.gatherResults([self.master.force_build(each.name, properties) for each in workers])
        self.assertEqual(self.calls("RunInstances"), [])
        self.assertEqual([build.attempts for build in builds], [()] * len(workers))
        texts = {build.builder: build.text() for build in builds}
        for name, words in (
            ("market", "market: 'x' is none of"),
            ("type", "instance_type: name an EC2 instance type"),
            ("tags", "tags: not a text: 'a': 5"),
            ("image", "ami: name an image"),
            ("data", "user_data: not a text"),
            ("failing", "ZeroDivisionError"),
            ("group", "security_group_ids: Invalid type"),
        ):
            self.assertIn(words, texts[name])
        self.flushLoggedErrors()


class Reconfig(LaunchTestCase):
    @defer.inlineCallbacks
    def test_next_start(self):
        """A reconfig applies every argument to the next start, and does not disturb the instance that runs."""
        self.start_ec2()
        subnets, group = yield self.default_network()
        address = yield self.call("allocate_address", Domain="vpc")
        found = yield self.launched(self.worker())
        first = found["w"].described["InstanceId"]
        changed = self.worker(
            instance_type="c7i.large",
            ami="ami-other",
            keypair_name="key",
            tags={"cost": "ci"},
            security_group_ids=[group],
            subnet_id=subnets["us-east-1c"],
            market="spot",
            max_spot_price=0.3,
            elastic_ip=address["PublicIp"],
            http_tokens="optional",
            launch_options={"EbsOptimized": True},
            bootstrap_env={"A": "changed"},
        )
        yield self.master.reconfig({"workers": [changed]})
        self.assertEqual(self.ec2.states(), {first: "running"})
        worker = self.master.master.workers.workers["w"]
        self.assertEqual(
            (worker.instance_type, worker.tags, worker.rental.instance_id), ("c7i.large", {"cost": "ci"}, first)
        )
        self.patch(AbstractWorker, "quarantine_timeout", 0.1)
        yield self.call("terminate_instances", InstanceIds=[first])  # the build is tried again
        yield self.until(lambda: len(self.ec2.states()) == 2, what="the next instance")
        yield self.until_running("w")
        yield self.until(
            lambda: worker.rental.attaching is not None and worker.rental.attaching.called, what="the address"
        )
        found = yield self.look()
        described = found["w"].described
        self.assertNotEqual(described["InstanceId"], first)
        self.assertEqual(
            [described[name] for name in ("InstanceType", "ImageId", "KeyName", "SubnetId", "InstanceLifecycle")],
            ["c7i.large", "ami-other", "key", subnets["us-east-1c"], "spot"],
        )
        self.assertEqual([one["GroupId"] for one in described["SecurityGroups"]], [group])
        self.assertEqual((found["w"].tags["cost"], described["PublicIpAddress"]), ("ci", address["PublicIp"]))
        self.assertEqual(float(found["w"].spot["SpotOptions.MaxPrice"]), 0.3)
        self.assertEqual((described["EbsOptimized"], described["MetadataOptions"]["HttpTokens"]), (True, "optional"))
        self.assertIn(b"\nexport A=changed\n", found["w"].user_data)
        self.assertIn(first, "".join(self.flush()))
