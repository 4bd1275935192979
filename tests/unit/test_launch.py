"""A worker's arguments become checked parameters of RunInstances, as an ordered list of offers."""

from __future__ import annotations

import base64
import itertools
from typing import Any

from buildbot.plugins import util
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.ec2 import shapes
from buildbot_ec2ud.fleet.image_rules import ImageRule
from buildbot_ec2ud.fleet.offer import Offer
from buildbot_ec2ud.launch import LaunchConfig, as_list, has_dynamic, is_dynamic
from buildbot_ec2ud.parameters import Names

USER_DATA = "#!/bin/sh\necho 'Grüße' '???>>>'\n".encode()
PLAIN = {"instance_type": "t3.micro", "ami": "ami-1", "region": "us-east-1"}
NAMES = Names("master", "worker", "launch")


def offers(**arguments: Any) -> list[Offer]:
    return LaunchConfig(**{**PLAIN, **arguments}).offers(USER_DATA, NAMES)


class OfferTests(SynchronousTestCase):
    """What EC2 is asked for."""

    def parameters(self, **arguments: Any) -> dict[str, Any]:
        """The parameters of the only offer."""
        [offer] = offers(**arguments)
        self.assertEqual(shapes.check("RunInstances", offer.parameters), [])
        return dict(offer.parameters)

    def test_order(self) -> None:
        """Markets come first, then instance types, then subnets."""
        found = offers(
            market="spot-then-on-demand", instance_type=["c7i.large", "c6i.large"], subnet_id=("subnet-1", "subnet-2")
        )
        expected = itertools.product(("spot", "on-demand"), ("c7i.large", "c6i.large"), ("subnet-1", "subnet-2"))
        self.assertEqual([(offer.market, offer.instance_type, offer.subnet_id) for offer in found], list(expected))
        for offer in found:
            self.assertEqual(offer.parameters["InstanceType"], offer.instance_type)
            self.assertEqual(offer.parameters["SubnetId"], offer.subnet_id)
            self.assertEqual("InstanceMarketOptions" in offer.parameters, offer.market == "spot")
            self.assertEqual(shapes.check("RunInstances", offer.parameters), [])

    def test_markets(self) -> None:
        """The market, by its name and by EC2LatentWorker's argument."""
        for arguments, markets in (
            ({}, ["on-demand"]),
            ({"spot_instance": False}, ["on-demand"]),
            ({"spot_instance": True}, ["spot"]),
            ({"market": "spot"}, ["spot"]),
            ({"market": "on-demand"}, ["on-demand"]),
            ({"market": "spot-then-on-demand", "spot_instance": True}, ["spot", "on-demand"]),
        ):
            self.assertEqual([offer.market for offer in offers(**arguments)], markets)

    def test_defaults(self) -> None:
        """One instance that ends when it shuts down, and whose metadata needs a token from the machine itself."""
        parameters = self.parameters()
        tags = parameters.pop("TagSpecifications")
        self.assertIn("+", parameters["UserData"])
        self.assertEqual([tag["ResourceType"] for tag in tags], ["instance", "volume", "network-interface"])
        self.assertEqual(
            parameters,
            {
                "ImageId": "ami-1",
                "InstanceType": "t3.micro",
                "MinCount": 1,
                "MaxCount": 1,
                "UserData": base64.b64encode(USER_DATA).decode(),
                "InstanceInitiatedShutdownBehavior": "terminate",
                "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
            },
        )

    def test_tags(self) -> None:
        """Everything that is made has its owner's name on it, and the person's tags."""
        for specification in self.parameters(tags={"cost": "ci", "Name": "mine"})["TagSpecifications"]:
            tags = {tag["Key"]: tag["Value"] for tag in specification["Tags"]}
            self.assertEqual(len(tags), len(specification["Tags"]))
            self.assertEqual(
                tags,
                {
                    "Name": "mine",
                    "cost": "ci",
                    "buildbot:master": "master",
                    "buildbot:worker": "worker",
                    "buildbot:launch": "launch",
                },
            )
        [first, *_] = self.parameters()["TagSpecifications"]
        self.assertIn({"Key": "Name", "Value": "worker"}, first["Tags"])

    def test_spot(self) -> None:
        """A spot instance is asked for once, and gone when it is interrupted."""
        self.assertEqual(
            self.parameters(market="spot")["InstanceMarketOptions"],
            {
                "MarketType": "spot",
                "SpotOptions": {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"},
            },
        )

    def test_prices(self) -> None:
        """Each instance type has its own price, on the spot market only; no price is the price on demand."""
        config = LaunchConfig(
            **{**PLAIN, "instance_type": ["a", "b", "c"], "market": "spot-then-on-demand", "max_spot_price": 9}
        )
        prices = {"a": 0.0421, "b": None, "c": 12}
        found = config.offers(b"", NAMES, prices)
        spot = [offer.parameters["InstanceMarketOptions"]["SpotOptions"].get("MaxPrice") for offer in found[:3]]
        self.assertEqual(spot, ["0.0421", None, "12.0000"])
        for offer in found:
            self.assertEqual(shapes.check("RunInstances", offer.parameters), [])
        self.assertEqual(["InstanceMarketOptions" in offer.parameters for offer in found[3:]], [False] * 3)

    def test_no_user_data(self) -> None:
        """Where there is none, nothing is sent."""
        [offer] = LaunchConfig(**PLAIN).offers(b"", NAMES)
        self.assertNotIn("UserData", offer.parameters)

    def test_encrypted(self) -> None:
        """The volumes of the mappings and the root volume, unless a mapping says otherwise."""
        config = LaunchConfig(
            **PLAIN,
            encrypted_volumes=True,
            block_device_map=[
                {"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": 9}},
                {"DeviceName": "/dev/sdc", "Ebs": {"Encrypted": False}},
                {"DeviceName": "/dev/sdd", "NoDevice": ""},
            ],
        )
        [offer] = config.offers(b"", NAMES, root_device="/dev/xvda")
        self.assertEqual(shapes.check("RunInstances", offer.parameters), [])
        self.assertEqual(
            offer.parameters["BlockDeviceMappings"],
            [
                {"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": 9, "DeleteOnTermination": True, "Encrypted": True}},
                {"DeviceName": "/dev/sdc", "Ebs": {"Encrypted": False, "DeleteOnTermination": True}},
                {"DeviceName": "/dev/sdd", "NoDevice": ""},
                {"DeviceName": "/dev/xvda", "Ebs": {"DeleteOnTermination": True, "Encrypted": True}},
            ],
        )
        [offer] = config.offers(b"", NAMES, root_device="/dev/sdb")
        self.assertEqual(len(offer.parameters["BlockDeviceMappings"]), 3)
        [offer] = LaunchConfig(**PLAIN, encrypted_volumes=True).offers(b"", NAMES, root_device="/dev/xvda")
        self.assertEqual([one["DeviceName"] for one in offer.parameters["BlockDeviceMappings"]], ["/dev/xvda"])

    def test_launch_template(self) -> None:
        """By id, by name, or in EC2's own form; what it has need not be given."""
        own = {"LaunchTemplateId": "lt-1", "Version": "3"}
        for given, expected in (
            ("lt-1", {"LaunchTemplateId": "lt-1"}),
            ("farm", {"LaunchTemplateName": "farm"}),
            (own, own),
        ):
            parameters = self.parameters(ami=None, instance_type=None, launch_template=given)
            self.assertEqual(parameters["LaunchTemplate"], expected)
            self.assertNotIn("ImageId", parameters)
            self.assertNotIn("InstanceType", parameters)
        parameters = self.parameters(launch_template="lt-1")
        self.assertEqual((parameters["ImageId"], parameters["InstanceType"]), ("ami-1", "t3.micro"))
        parameters = self.parameters(ami=None, instance_type=None, launch_options={"LaunchTemplate": own})
        self.assertEqual(parameters["LaunchTemplate"], own)

    def test_http_tokens(self) -> None:
        """For images that do not know version 2 of the metadata service; the other options stay."""
        options = {"MetadataOptions": {"InstanceMetadataTags": "enabled"}}
        self.assertEqual(
            self.parameters(http_tokens="optional", launch_options=options)["MetadataOptions"],
            {"HttpTokens": "optional", "HttpPutResponseHopLimit": 1, "InstanceMetadataTags": "enabled"},
        )

    def test_volumes_go_with_the_instance(self) -> None:
        """Unless a mapping says otherwise; one without Ebs stays as it is."""
        given = [
            {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 8}},
            {"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": 9, "DeleteOnTermination": False}},
            {"DeviceName": "/dev/sdc", "VirtualName": "ephemeral0"},
        ]
        self.assertEqual(
            self.parameters(block_device_map=given)["BlockDeviceMappings"],
            [
                {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 8, "DeleteOnTermination": True}},
                {"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": 9, "DeleteOnTermination": False}},
                {"DeviceName": "/dev/sdc", "VirtualName": "ephemeral0"},
            ],
        )
        self.assertEqual(given[0], {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 8}})

    def test_profile(self) -> None:
        """A profile is given by its name or its ARN."""
        arn = "arn:aws:iam::123456789012:instance-profile/build"
        self.assertEqual(self.parameters(instance_profile_name="build")["IamInstanceProfile"], {"Name": "build"})
        self.assertEqual(self.parameters(instance_profile_name=arn)["IamInstanceProfile"], {"Arn": arn})

    def test_other_arguments(self) -> None:
        """Each of the other arguments sets its parameter."""
        for argument, value, name, expected in (
            ("keypair_name", "key", "KeyName", "key"),
            ("security_name", "group", "SecurityGroups", ["group"]),
            ("security_group_ids", ["sg-1", "sg-2"], "SecurityGroupIds", ["sg-1", "sg-2"]),
            ("placement", "b", "Placement", {"AvailabilityZone": "us-east-1b"}),
            ("subnet_id", "subnet-1", "SubnetId", "subnet-1"),
        ):
            self.assertNotIn(name, self.parameters())
            self.assertEqual(self.parameters(**{argument: value})[name], expected)

    def test_launch_options(self) -> None:
        """Further parameters are added, and win over the defaults one by one."""
        options = {
            "EbsOptimized": True,
            "InstanceInitiatedShutdownBehavior": "stop",
            "MetadataOptions": {"HttpPutResponseHopLimit": 2},
        }
        parameters = self.parameters(launch_options=options)
        self.assertIs(parameters["EbsOptimized"], True)
        self.assertEqual(parameters["InstanceInitiatedShutdownBehavior"], "stop")
        self.assertEqual(parameters["MetadataOptions"], {"HttpTokens": "required", "HttpPutResponseHopLimit": 2})
        self.assertEqual(options["MetadataOptions"], {"HttpPutResponseHopLimit": 2})
        parameters = self.parameters(launch_options={"MetadataOptions": {"HttpTokens": "optional"}})
        self.assertEqual(parameters["MetadataOptions"], {"HttpTokens": "optional", "HttpPutResponseHopLimit": 1})

    def test_offers_share_nothing(self) -> None:
        """What is done to one offer does not change another, nor the configuration."""
        options = {"MetadataOptions": {"HttpTokens": "required"}, "Monitoring": {"Enabled": True}}
        first, second = offers(instance_type=["a", "b"], launch_options=options)
        first.parameters["Monitoring"]["Enabled"] = False
        self.assertEqual(second.parameters["Monitoring"], {"Enabled": True})
        self.assertEqual(options["Monitoring"], {"Enabled": True})

    def test_text(self) -> None:
        """An offer in a line of the log."""
        self.assertEqual(str(offers()[0]), "t3.micro on-demand")
        self.assertEqual(str(offers(subnet_id="subnet-1", market="spot")[0]), "t3.micro spot in subnet-1")
        self.assertEqual(str(offers(placement="b")[0]), "t3.micro on-demand in us-east-1b")
        [offer] = offers(instance_type=None, launch_template="lt-1")
        self.assertEqual(str(offer), "the instance type of the launch template on-demand")

    def test_pools(self) -> None:
        """Offers whose capacity is the same have the same pool, and no others."""
        several = offers(market="spot-then-on-demand", instance_type=["a", "b"], subnet_id=["subnet-1", "subnet-2"])
        self.assertEqual(len({offer.pool for offer in several}), 8)
        self.assertEqual(offers()[0].pool, offers(tags={"a": "b"}, ami="ami-2")[0].pool)
        self.assertNotEqual(offers(placement="a")[0].pool, offers(placement="b")[0].pool)


class CheckTests(SynchronousTestCase):
    """What is wrong, without asking EC2."""

    def lines(self, **arguments: Any) -> list[str]:
        return list(LaunchConfig(**{**PLAIN, **arguments}).check())

    def test_right(self) -> None:
        """Nothing is wrong with these."""
        for arguments in (
            {},
            {"instance_type": ["a", "b"], "subnet_id": ["subnet-1", "subnet-2"], "security_group_ids": ("sg-1",)},
            {"ami": "resolve:ssm:/aws/service/x"},
            {"ami": lambda worker, build: "ami-2"},
            {"ami": util.Property("ami"), "instance_type": util.Interpolate("%(prop:type)s")},
            {"instance_type": [util.Property("type"), "t3.micro"], "subnet_id": [util.Property("subnet")]},
            {"instance_type": None, "ami": None, "launch_template": "lt-1"},
            {"instance_type": None, "ami": None, "launch_options": {"LaunchTemplate": {"LaunchTemplateName": "farm"}}},
            {"ami": {"owners": ["136693071363"], "name": "debian-12-amd64-*"}},
            {"ami": {"owners": util.Property("owner"), "name": "debian-12-amd64-*"}},
            {"ami": None, "valid_ami_owners": [136693071363], "valid_ami_location_regex": ".*/(.*)"},
            {"ami": {"owners": "self"}, "encrypted_volumes": True},
            {"market": util.Property("market"), "spot_instance": util.Property("spot")},
            {"max_spot_price": 0.05, "price_multiplier": 1.2, "product_description": "Linux/UNIX (Amazon VPC)"},
            {"http_tokens": "optional", "launch_options": {"NetworkInterfaces": [{"DeviceIndex": 0}]}},
            {"placement": "-lax-1a", "region": "us-west-2"},
            {"market": "spot-then-on-demand", "spot_instance": True},
            {"tags": {"cost": "ci", "Name": "mine"}},
            {"launch_options": {"EbsOptimized": True, "MetadataOptions": {"HttpTokens": "optional"}}},
            {"launch_options": {"KeyName": "key", "Placement": {"Tenancy": "dedicated"}}},
            {"block_device_map": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 8}}]},
            {"security_name": "default", "placement": "a", "keypair_name": "key", "instance_profile_name": "p"},
        ):
            self.assertEqual(self.lines(**arguments), [], arguments)

    def test_wrong(self) -> None:
        """Each mistake has one line, which begins with the argument and names what is wrong."""
        for arguments, argument, words in (
            ({"instance_type": None}, "instance_type", "name an EC2 instance type"),
            ({"instance_type": []}, "instance_type", "name an EC2 instance type"),
            ({"instance_type": ["t3.micro", ""]}, "instance_type", "name an EC2 instance type"),
            ({"instance_type": 5}, "instance_type", "InstanceType"),
            ({"instance_type": ["t3.micro", 5]}, "instance_type", "InstanceType"),
            ({"ami": None}, "ami", "name an image"),
            ({"ami": ""}, "ami", "name an image"),
            ({"ami": 5}, "ami", "ImageId"),
            ({"ami": ["ami-1"]}, "ami", "ImageId"),
            ({"market": "Spot"}, "market", "'spot-then-on-demand'"),
            ({"market": ["spot"]}, "market", "['spot']"),
            ({"market": "on-demand", "spot_instance": True}, "spot_instance", "contradicts"),
            ({"security_name": "a", "subnet_id": "subnet-1"}, "security_name", "security_group_ids"),
            ({"security_name": 5}, "security_name", "SecurityGroups"),
            ({"security_group_ids": "sg-1"}, "security_group_ids", "list"),
            ({"security_group_ids": [5]}, "security_group_ids", "SecurityGroupIds[0]"),
            ({"subnet_id": 5}, "subnet_id", "SubnetId"),
            ({"subnet_id": ["subnet-1", 5]}, "subnet_id", "SubnetId"),
            ({"keypair_name": 5}, "keypair_name", "KeyName"),
            ({"instance_profile_name": 5}, "instance_profile_name", "IamInstanceProfile"),
            ({"placement": 5}, "placement", "letter"),
            ({"tags": ["a"]}, "tags", "not a dict"),
            ({"tags": {"buildbot:worker": "a", "buildbot:launch": "b"}}, "tags", "buildbot:launch, buildbot:worker"),
            ({"tags": {"a": 5}}, "tags", "'a': 5"),
            ({"tags": {5: "a"}}, "tags", "5: 'a'"),
            ({"block_device_map": "/dev/sda1"}, "block_device_map", "list"),
            ({"block_device_map": 5}, "block_device_map", "list"),
            ({"block_device_map": ["/dev/sda1"]}, "block_device_map", "BlockDeviceMappings[0]"),
            ({"block_device_map": [{"Ebs": {"Size": 8}}]}, "block_device_map", "Size"),
            ({"block_device_map": [{"Ebs": "8"}]}, "block_device_map", "BlockDeviceMappings[0].Ebs"),
            ({"launch_options": ["EbsOptimized"]}, "launch_options", "not a dict"),
            ({"launch_options": {"EbsOptimised": True}}, "launch_options", "EbsOptimised"),
            ({"launch_options": {"EbsOptimized": "yes"}}, "launch_options", "EbsOptimized"),
            ({"launch_options": {"MetadataOptions": "required"}}, "launch_options", "MetadataOptions"),
            ({"launch_options": {"MetadataOptions": {"HttpToken": "required"}}}, "launch_options", "HttpToken"),
            ({"launch_options": {"KeyName": 5}}, "launch_options", "KeyName"),
        ):
            lines = self.lines(**arguments)
            self.assertEqual(len(lines), 1, (arguments, lines))
            self.assertTrue(lines[0].startswith(argument + ": "), lines)
            self.assertIn(words, lines[0])

    def test_launch_options_of_ours(self) -> None:
        """What this package sets itself cannot be set, and it is said what to use instead."""
        for name, value, words in (
            ("ClientToken", "x", "made for each launch"),
            ("DryRun", True, "nothing would ever start"),
            ("InstanceMarketOptions", {"MarketType": "spot"}, "use market"),
            ("MaxCount", 2, "one instance"),
            ("MinCount", 2, "one instance"),
            ("TagSpecifications", [], "use tags"),
            ("UserData", "", "use bootstrap_script"),
        ):
            [line] = self.lines(launch_options={name: value})
            self.assertIn(f"launch_options: {name} cannot be set", line)
            self.assertIn(words, line)

    def test_launch_options_against_arguments(self) -> None:
        """A parameter that an argument sets already is not set again."""
        for name, value, argument, other in (
            ("BlockDeviceMappings", [], "block_device_map", [{"DeviceName": "/dev/sdb"}]),
            ("IamInstanceProfile", {"Name": "a"}, "instance_profile_name", "b"),
            ("ImageId", "ami-2", "ami", "ami-1"),
            ("InstanceType", "t3.large", "instance_type", "t3.micro"),
            ("KeyName", "a", "keypair_name", "b"),
            ("Placement", {"Tenancy": "dedicated"}, "placement", "a"),
            ("SecurityGroupIds", ["sg-1"], "security_group_ids", ["sg-2"]),
            ("SecurityGroups", ["a"], "security_name", "b"),
            ("SubnetId", "subnet-1", "subnet_id", "subnet-2"),
        ):
            self.assertEqual(
                self.lines(launch_options={name: value}, **{argument: other}),
                [f"launch_options: {name} contradicts {argument}"],
            )

    def test_all_at_once(self) -> None:
        """All mistakes are told in one go."""
        lines = self.lines(instance_type=None, ami=None, market="x", tags="x", keypair_name=5, launch_options={"X": 1})
        self.assertEqual(
            sorted(line.partition(":")[0] for line in lines),
            ["ami", "instance_type", "keypair_name", "launch_options", "market", "tags"],
        )


class KnownTests(SynchronousTestCase):
    """What is known without a build, and what follows from it."""

    def test_known(self) -> None:
        """Only what depends on the build is left out."""
        later = util.Property("later")
        known = LaunchConfig(
            **{**PLAIN, "ami": lambda *_: "ami-2"},
            tags={"a": "b", "c": later},
            security_group_ids=["sg-1", later],
            subnet_id=later,
            launch_options={"Monitoring": {"Enabled": later}, "EbsOptimized": True},
        ).known()
        self.assertEqual((known.instance_type, known.ami, known.subnet_id), ("t3.micro", None, None))
        self.assertEqual((known.tags, known.security_group_ids), ({"a": "b"}, ["sg-1"]))
        self.assertEqual(known.launch_options, {"EbsOptimized": True})
        plain = LaunchConfig(**PLAIN)
        self.assertEqual(plain.known(), plain)

    def test_image_rule(self) -> None:
        """A dict and the arguments of EC2LatentWorker are rules; a name is none."""
        for arguments, expected in (
            ({}, None),
            ({"ami": "resolve:ssm:/x"}, None),
            ({"ami": None, "launch_template": "lt-1"}, None),
            ({"ami": {"owners": "self", "name": "a"}}, ImageRule.of({"owners": "self", "name": "a"})),
            ({"ami": None, "valid_ami_owners": 1}, ImageRule.of_locations(1)),
            (
                {"ami": None, "valid_ami_owners": [1, "self"], "valid_ami_location_regex": "a(.*)"},
                ImageRule.of_locations(["self", 1], "a(.*)"),
            ),
        ):
            self.assertEqual(LaunchConfig(**{**PLAIN, **arguments}).image_rule, expected)

    def test_keeps_volumes(self) -> None:
        """Where one of the mappings says so, whoever has it."""
        kept = [{"DeviceName": "/dev/sdb"}, {"DeviceName": "/dev/sda1", "Ebs": {"DeleteOnTermination": False}}]
        gone = [{"DeviceName": "/dev/sda1", "Ebs": {"DeleteOnTermination": True}}]
        for arguments, expected in (
            ({}, False),
            ({"block_device_map": gone}, False),
            ({"block_device_map": kept}, True),
            ({"launch_options": {"BlockDeviceMappings": gone}}, False),
            ({"launch_options": {"BlockDeviceMappings": kept}}, True),
        ):
            self.assertIs(LaunchConfig(**PLAIN, **arguments).keeps_volumes, expected, arguments)


class HelperTests(SynchronousTestCase):
    """Small things."""

    def test_has_dynamic(self) -> None:
        """Wherever it stands."""
        later = util.Property("later")
        for value in (later, [later], ("a", [later]), {"a": later}, [{"a": [{"b": later}]}]):
            self.assertTrue(has_dynamic(value))
        for value in (None, "a", ["a"], {"a": ["b"]}):
            self.assertFalse(has_dynamic(value))

    def test_as_list(self) -> None:
        """None is no value, a text is one."""
        for value, expected in ((None, []), ("abc", ["abc"]), (["a", "b"], ["a", "b"]), (("a",), ["a"]), ([], [])):
            self.assertEqual(as_list(value), expected)

    def test_is_dynamic(self) -> None:
        """Renderables and callables are known only at a build."""
        for value in (util.Property("x"), util.Interpolate("x"), util.Secret("x"), lambda: None):
            self.assertTrue(is_dynamic(value))
        for value in (None, "x", ["x"], {}, 5):
            self.assertFalse(is_dynamic(value))
