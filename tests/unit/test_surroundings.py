"""The calls of a check before anything is launched: what is asked, what is read of the answer, and dry runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import defer

from buildbot_ec2ud.ec2.errors import EC2Error, NoAnswer
from buildbot_ec2ud.ec2.surroundings import SecurityGroup, Subnet, SurroundingsClient, TemplateVersion
from buildbot_ec2ud.fleet import pacing
from tests.unit.test_parser import answer
from tests.unit.test_query_retries import CLOSED, HTML, RetryTestCase, refused

DRY = refused("DryRunOperation", 412, "Request would have succeeded, but DryRun flag is set.")
LAUNCH = {"MinCount": 1, "MaxCount": 1, "ImageId": "ami-1"}

#: The calls that list something, with what is asked for.
LISTINGS: dict[str, tuple[Callable[[SurroundingsClient], defer.Deferred[Any]], dict[str, str]]] = {
    "DescribeSubnets": (
        lambda client: client.describe_subnets("subnet-1", "subnet-2"),
        {"Filter.1.Name": "subnet-id", "Filter.1.Value.1": "subnet-1", "Filter.1.Value.2": "subnet-2"},
    ),
    "DescribeSecurityGroups": (
        lambda client: client.describe_security_groups("group-name", "farm"),
        {"Filter.1.Name": "group-name", "Filter.1.Value.1": "farm"},
    ),
    "DescribeKeyPairs": (
        lambda client: client.describe_key_pairs("k"),
        {"Filter.1.Name": "key-name", "Filter.1.Value.1": "k"},
    ),
    "DescribeInstanceTypeOfferings": (
        lambda client: client.describe_instance_type_offerings("t3.micro"),
        {
            "LocationType": "availability-zone",
            "Filter.1.Name": "instance-type",
            "Filter.1.Value.1": "t3.micro",
            "MaxResults": "1000",
        },
    ),
    "DescribeLaunchTemplateVersions": (
        lambda client: client.describe_launch_template_versions({"LaunchTemplateId": "lt-1", "Version": "7"}),
        {"LaunchTemplateId": "lt-1", "LaunchTemplateVersion.1": "7"},
    ),
}


class SurroundingsTestCase(RetryTestCase):
    def client(self, *answers: Any, **more: Any) -> SurroundingsClient:
        plain = super().client(*answers, **more)
        return SurroundingsClient(self.creds, "https://ec2.example.org/", plain.query_factory)

    def sent(self, number: int = 0) -> dict[str, str]:
        """The parameters of a call."""
        given = {name: values[0] for name, values in self.agent.sent[number][1].items()}
        return {name: value for name, value in given.items() if name != "Version"}

    def listed(self, action: str, body: str) -> Any:
        """What comes of an answer to a call."""
        return self.successResultOf(LISTINGS[action][0](self.client((200, answer(action, body)))))


class Listings(SurroundingsTestCase):
    def test_asked(self) -> None:
        """By filters, so that one which is not there does not hide the others."""
        for action, (call, parameters) in LISTINGS.items():
            called = call(self.client(HTML))
            called.addErrback(lambda _: None)
            self.assertEqual(self.sent(), {"Action": action, **parameters})

    def test_template_by_name(self) -> None:
        """And its default version, which is what a launch takes."""
        self.client(HTML).describe_launch_template_versions({"LaunchTemplateName": "base"}).addErrback(lambda _: None)
        self.assertEqual(
            self.sent(),
            {
                "Action": "DescribeLaunchTemplateVersions",
                "LaunchTemplateName": "base",
                "LaunchTemplateVersion.1": "$Default",
            },
        )

    def test_subnets(self) -> None:
        items = (
            "<item><subnetId>subnet-1</subnetId><state>available</state><vpcId>vpc-1</vpcId><cidrBlock>10.0.0.0/24"
            "</cidrBlock><availableIpAddressCount>251</availableIpAddressCount><availabilityZone>us-east-1a"
            "</availabilityZone></item><item><subnetId>subnet-2</subnetId><state>pending</state></item>"
        )
        self.assertEqual(
            self.listed("DescribeSubnets", f"<subnetSet>{items}</subnetSet>"),
            [Subnet("subnet-1", "available", "vpc-1", "us-east-1a", 251), Subnet("subnet-2", "pending", "", "", None)],
        )

    def test_nonsense(self) -> None:
        """A number that is none is no answer of EC2's."""
        item = "<item><subnetId>s</subnetId><availableIpAddressCount>many</availableIpAddressCount></item>"
        body = answer("DescribeSubnets", f"<subnetSet>{item}</subnetSet>")
        error = self.fails(self.client((200, body)).describe_subnets("s"), NoAnswer)
        self.assertIn("'many'", str(error))

    def test_groups(self) -> None:
        item = "<item><ownerId>1</ownerId><groupId>sg-1</groupId><groupName>farm</groupName><vpcId>vpc-1</vpcId></item>"
        found = self.listed("DescribeSecurityGroups", f"<securityGroupInfo>{item}</securityGroupInfo>")
        self.assertEqual(found, [SecurityGroup("sg-1", "farm", "vpc-1")])

    def test_key_pairs(self) -> None:
        item = "<item><keyPairId>key-1</keyPairId><keyName>k</keyName></item>"
        self.assertEqual(self.listed("DescribeKeyPairs", f"<keySet>{item}</keySet>"), ["k"])

    def test_offerings(self) -> None:
        """All pages."""

        def page(zone: str, after: str) -> tuple[int, bytes]:
            item = f"<item><instanceType>t3.micro</instanceType><location>{zone}</location></item>"
            body = f"<instanceTypeOfferingSet>{item}</instanceTypeOfferingSet>{after}"
            return 200, answer("DescribeInstanceTypeOfferings", body)

        client = self.client(page("us-east-1a", "<nextToken>more</nextToken>"), page("us-east-1b", ""))
        found = self.successResultOf(client.describe_instance_type_offerings("t3.micro"))
        self.assertEqual(found, [("t3.micro", "us-east-1a"), ("t3.micro", "us-east-1b")])
        self.assertEqual(self.sent(1)["NextToken"], "more")

    def test_template(self) -> None:
        item = (
            "<item><launchTemplateId>lt-1</launchTemplateId><versionNumber>7</versionNumber><launchTemplateData>"
            "<imageId>ami-1</imageId></launchTemplateData></item>"
        )
        found = self.listed(
            "DescribeLaunchTemplateVersions", f"<launchTemplateVersionSet>{item}</launchTemplateVersionSet>"
        )
        self.assertEqual(found, [TemplateVersion("7", "ami-1", "")])

    def test_not_a_listing(self) -> None:
        """The right root with nothing in it does not mean that there is none; nor does a proxy's page."""
        for action, (call, _) in LISTINGS.items():
            for wrong in ((200, answer(action, "")), HTML, (200, answer("DescribeVolumes", "<volumeSet/>"))):
                self.fails(call(self.client(wrong)), NoAnswer)

    def test_attempted_again(self) -> None:
        """A call that only looks is."""
        body = (200, answer("DescribeKeyPairs", "<keySet/>"))
        self.assertEqual(self.successResultOf(self.client(CLOSED, body).describe_key_pairs("k")), [])

    def test_pace(self) -> None:
        """They are in the larger buckets."""
        for action in LISTINGS:
            self.assertEqual(pacing.request_limit(action), pacing.LOOKING)


class DryRuns(SurroundingsTestCase):
    def test_would(self) -> None:
        """EC2's 412 is success, and is not attempted again."""
        self.assertIsNone(self.successResultOf(self.client(DRY).dry_run("RunInstances", LAUNCH)))
        (_,) = self.agent.sent
        sent = self.sent()
        self.assertEqual((sent["Action"], sent["DryRun"], sent["ImageId"]), ("RunInstances", "true", "ami-1"))

    def test_would_not(self) -> None:
        client = self.client(refused("UnauthorizedOperation", 403))
        self.assertEqual(self.fails(client.dry_run("RunInstances", LAUNCH), EC2Error).code, "UnauthorizedOperation")

    def test_did(self) -> None:
        """Who knows no dry runs has done the call: its answer is what one needs to undo it."""
        body = answer("RunInstances", "<reservationId>r-1</reservationId>")
        self.assertEqual(self.successResultOf(self.client((200, body)).dry_run("RunInstances", LAUNCH)), body)

    def test_not_ec2(self) -> None:
        """A proxy has done nothing."""
        self.fails(self.client(HTML).dry_run("TerminateInstances", {"InstanceIds": ["i-1"]}), NoAnswer)

    def test_lost_answer(self) -> None:
        """Asked again under the same token: whoever takes it for a real call launches one instance, not two."""
        called = self.client(CLOSED, DRY).dry_run("RunInstances", LAUNCH)
        self.pump()
        self.assertIsNone(self.successResultOf(called))
        first, second = (self.sent(number)["ClientToken"] for number in (0, 1))
        self.assertEqual(first, second)
        self.assertTrue(first)
        self.client(DRY).dry_run("RunInstances", LAUNCH)
        self.assertNotEqual(self.sent()["ClientToken"], first)

    def test_other_calls(self) -> None:
        """They have no token."""
        client = self.client(DRY)
        self.assertIsNone(self.successResultOf(client.dry_run("TerminateInstances", {"InstanceIds": ["i-1"]})))
        self.assertEqual(self.sent(), {"Action": "TerminateInstances", "DryRun": "true", "InstanceId.1": "i-1"})
