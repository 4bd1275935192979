"""botocore's model of EC2 checks and flattens parameters."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.ec2 import shapes

COUNT = {"MinCount": 1, "MaxCount": 1}


class CheckTests(SynchronousTestCase):
    """What is wrong with parameters, without asking EC2."""

    def wrong(self, *words: str, **parameters: object) -> None:
        """There is one line about *parameters*, with all *words* in it."""
        lines = shapes.check("RunInstances", {**COUNT, **parameters})
        self.assertEqual(len(lines), 1, lines)
        for word in words:
            self.assertIn(word, lines[0])

    def test_right(self) -> None:
        """Nothing is wrong with what EC2 takes."""
        parameters = {
            **COUNT,
            "ImageId": "ami-1",
            "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 1},
            "TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "a", "Value": "b"}]}],
        }
        self.assertEqual(shapes.check("RunInstances", parameters), [])

    def test_unknown(self) -> None:
        """An unknown parameter is named, at any depth."""
        self.wrong("InstanceTyp", InstanceTyp="t3.micro")
        self.wrong("MetadataOptions", "HttpToken", MetadataOptions={"HttpToken": "required"})
        self.wrong("BlockDeviceMappings[1].Ebs", "Size", BlockDeviceMappings=[{}, {"Ebs": {"Size": 1}}])

    def test_wrong_type(self) -> None:
        """A value of the wrong type is named, at any depth."""
        self.wrong("ImageId", "int", ImageId=1)
        self.wrong("SecurityGroupIds", "str", SecurityGroupIds="sg-1")
        self.wrong("SecurityGroupIds[1]", "NoneType", SecurityGroupIds=["sg-1", None])
        self.wrong("EbsOptimized", "str", EbsOptimized="yes")
        self.wrong("MetadataOptions.HttpPutResponseHopLimit", MetadataOptions={"HttpPutResponseHopLimit": "2"})

    def test_missing(self) -> None:
        """What EC2 requires has to be there."""
        lines = shapes.check("RunInstances", {})
        self.assertEqual(len(lines), 2)
        self.assertIn("MaxCount", lines[0] + lines[1])
        self.assertIn("MinCount", lines[0] + lines[1])

    def test_all_at_once(self) -> None:
        """There is a line for each thing that is wrong."""
        self.assertEqual(len(shapes.check("RunInstances", {**COUNT, "ImageId": 1, "KeyName": 2, "Nonsense": 3})), 3)


class FlattenTests(SynchronousTestCase):
    """EC2's query protocol."""

    def test_nested(self) -> None:
        """Lists are counted from 1 and drop their plural; structures are joined by dots."""
        parameters = {
            **COUNT,
            "SecurityGroupIds": ["sg-1", "sg-2"],
            "TagSpecifications": [
                {"ResourceType": "instance", "Tags": [{"Key": "a", "Value": "b"}, {"Key": "c", "Value": ""}]},
                {"ResourceType": "volume", "Tags": [{"Key": "d", "Value": "é"}]},
            ],
            "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"DeleteOnTermination": True, "VolumeSize": 8}}],
            "InstanceMarketOptions": {"MarketType": "spot", "SpotOptions": {"SpotInstanceType": "one-time"}},
            "EbsOptimized": False,
        }
        self.assertEqual(
            shapes.flatten("RunInstances", parameters),
            {
                "MinCount": "1",
                "MaxCount": "1",
                "SecurityGroupId.1": "sg-1",
                "SecurityGroupId.2": "sg-2",
                "TagSpecification.1.ResourceType": "instance",
                "TagSpecification.1.Tag.1.Key": "a",
                "TagSpecification.1.Tag.1.Value": "b",
                "TagSpecification.1.Tag.2.Key": "c",
                "TagSpecification.1.Tag.2.Value": "",
                "TagSpecification.2.ResourceType": "volume",
                "TagSpecification.2.Tag.1.Key": "d",
                "TagSpecification.2.Tag.1.Value": "é",
                "BlockDeviceMapping.1.DeviceName": "/dev/sda1",
                "BlockDeviceMapping.1.Ebs.DeleteOnTermination": "true",
                "BlockDeviceMapping.1.Ebs.VolumeSize": "8",
                "InstanceMarketOptions.MarketType": "spot",
                "InstanceMarketOptions.SpotOptions.SpotInstanceType": "one-time",
                "EbsOptimized": "false",
            },
        )

    def test_filters(self) -> None:
        """Filters, and a number."""
        self.assertEqual(
            shapes.flatten(
                "DescribeInstances",
                {"Filters": [{"Name": "tag:a", "Values": ["x", "y"]}], "MaxResults": 100},
            ),
            {"Filter.1.Name": "tag:a", "Filter.1.Value.1": "x", "Filter.1.Value.2": "y", "MaxResults": "100"},
        )

    def test_action_and_version_are_left_out(self) -> None:
        """They are the query's to add."""
        self.assertEqual(shapes.flatten("DescribeInstances", {}), {})
        self.assertEqual(shapes.api_version(), "2016-11-15")

    def test_parameters_stay_as_they_are(self) -> None:
        """What is given is not changed: it is sent again when EC2 does not answer."""
        parameters = {**COUNT, "TagSpecifications": [{"ResourceType": "instance", "Tags": []}]}
        shapes.flatten("RunInstances", parameters)
        self.assertEqual(parameters, {**COUNT, "TagSpecifications": [{"ResourceType": "instance", "Tags": []}]})
