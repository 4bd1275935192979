"""What an instance is launched into, as EC2 tells it, and dry runs: calls that change nothing."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple

from twisted.internet import defer

from buildbot_ec2ud.ec2.answers import Node, answer, listing
from buildbot_ec2ud.ec2.client import EC2Client, _filters
from buildbot_ec2ud.ec2.errors import DRY_RUN_SUCCEEDED, EC2Error, NoAnswer

#: Offerings asked for in one page: EC2 takes up to 1000.
OFFERINGS_PAGE = 1000
_OFFERINGS = "instanceTypeOfferingSet"


class Subnet(NamedTuple):
    """A subnet.

    :ivar state: ``available``, ``pending``, or another in which nothing can be launched.
    :ivar free_addresses: IPv4 addresses that no one has; None where EC2 does not tell.
    """

    subnet_id: str
    state: str
    vpc_id: str
    availability_zone: str
    free_addresses: int | None


class SecurityGroup(NamedTuple):
    """A security group."""

    group_id: str
    name: str
    vpc_id: str


class TemplateVersion(NamedTuple):
    """A version of a launch template.

    :ivar image_id: the image that it names, empty if none.
    :ivar instance_type: the instance type that it names, empty if none.
    """

    number: str
    image_id: str
    instance_type: str


class SurroundingsClient(EC2Client):
    """The client, with the calls of a check before anything is launched.

    What a listing is asked for by id or name goes by a filter: what EC2 does not know is merely absent from the answer.
    """

    def describe_subnets(self, *subnet_ids: str) -> defer.Deferred[list[Subnet]]:
        """Describe subnets.

        :param subnet_ids: from 1 to 200 ids.
        """

        def parse(body: bytes) -> list[Subnet]:
            items = listing(body, "DescribeSubnets", "subnetSet").items("subnetSet")
            return [_subnet(node) for node in map(Node, items)]

        return self._call("DescribeSubnets", {"Filters": _filters({"subnet-id": subnet_ids})}, parse)

    def describe_security_groups(self, by: str, *values: str) -> defer.Deferred[list[SecurityGroup]]:
        """Describe security groups.

        :param by: ``group-id`` or ``group-name``.
        :param values: from 1 to 200 of them.
        """

        def parse(body: bytes) -> list[SecurityGroup]:
            items = listing(body, "DescribeSecurityGroups", "securityGroupInfo").items("securityGroupInfo")
            return [SecurityGroup(*map(node.text, ("groupId", "groupName", "vpcId"))) for node in map(Node, items)]

        return self._call("DescribeSecurityGroups", {"Filters": _filters({by: values})}, parse)

    def describe_key_pairs(self, *names: str) -> defer.Deferred[list[str]]:
        """Find key pairs.

        :param names: from 1 to 200 names.
        :return: fires with the names of those that there are.
        """

        def parse(body: bytes) -> list[str]:
            return [Node(item).text("keyName") for item in listing(body, "DescribeKeyPairs", "keySet").items("keySet")]

        return self._call("DescribeKeyPairs", {"Filters": _filters({"key-name": names})}, parse)

    def describe_instance_type_offerings(self, *instance_types: str) -> defer.Deferred[list[tuple[str, str]]]:
        """Find out in which availability zones of the region instance types are offered.

        :param instance_types: from 1 to 200 of them.
        :return: fires with pairs of an instance type and a zone.
        """

        def parse(body: bytes) -> tuple[list[tuple[str, str]], str | None]:
            page = listing(body, "DescribeInstanceTypeOfferings", _OFFERINGS)
            found = [(node.text("instanceType"), node.text("location")) for node in map(Node, page.items(_OFFERINGS))]
            return found, page.text("nextToken") or None

        parameters = {
            "LocationType": "availability-zone",
            "Filters": _filters({"instance-type": instance_types}),
            "MaxResults": OFFERINGS_PAGE,
        }
        return self._pages("DescribeInstanceTypeOfferings", parameters, parse)

    def describe_launch_template_versions(self, template: Mapping[str, Any]) -> defer.Deferred[list[TemplateVersion]]:
        """Describe the version of a launch template that a launch would take.

        :param template: as ``LaunchTemplate`` in RunInstances.
        :return: fires with that version, or with none.
        :raises EC2Error: there is no such launch template, or no such version.
        """
        name = "LaunchTemplateId" if "LaunchTemplateId" in template else "LaunchTemplateName"
        version = str(template.get("Version", "$Default"))
        parameters = {name: template.get(name), "Versions": [version]}

        def parse(body: bytes) -> list[TemplateVersion]:
            page = listing(body, "DescribeLaunchTemplateVersions", "launchTemplateVersionSet")
            return [_template_version(node) for node in map(Node, page.items("launchTemplateVersionSet"))]

        return self._call("DescribeLaunchTemplateVersions", parameters, parse)

    @defer.inlineCallbacks
    def dry_run(self, action: str, parameters: Mapping[str, Any]) -> Generator[Any, Any, bytes | None]:
        """Ask EC2 whether it would do a call.

        :param action: EC2's name of the call.
        :param parameters: nested, as in the EC2 API.
        :return: fires with None if it would. Who imitates EC2 may know no dry runs, and do the call: then, with its answer.
        :raises EC2Error: why it would not.
        """

        def parse(body: bytes) -> bytes:
            answer(body, action)
            return body

        parameters = {**parameters, "DryRun": True}
        if action == "RunInstances":
            # Whoever takes it for a real call, and answers the second attempt only, is to launch one instance.
            parameters["ClientToken"] = secrets.token_hex(16)
        try:
            return (yield self._call(action, parameters, parse))
        except EC2Error as error:
            if error.code != DRY_RUN_SUCCEEDED:
                raise
        return None


def _subnet(node: Node) -> Subnet:
    free = node.text("availableIpAddressCount")
    if free and not free.isdigit():
        raise NoAnswer(f"DescribeSubnets: not a number of addresses: {free!r}")
    names: Sequence[str] = ("subnetId", "state", "vpcId", "availabilityZone")
    return Subnet(*map(node.text, names), int(free) if free else None)


def _template_version(node: Node) -> TemplateVersion:
    data = node.child("launchTemplateData")
    return TemplateVersion(node.text("versionNumber"), data.text("imageId"), data.text("instanceType"))
