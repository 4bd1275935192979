"""What instances are launched into, and from: launch templates, subnets, security groups, key pairs, instance types."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet import defer

from buildbot_ec2ud.ec2.client import FILTER_VALUES
from buildbot_ec2ud.ec2.errors import EC2CallError
from buildbot_ec2ud.ec2.surroundings import SecurityGroup, Subnet, TemplateVersion
from buildbot_ec2ud.launch import RESOLVED_BY_EC2
from buildbot_ec2ud.preflight.candidates import Candidate, Needs
from buildbot_ec2ud.preflight.findings import State

if TYPE_CHECKING:
    from buildbot_ec2ud.preflight import Preflight


class Premises:
    """Looks at what the launches of some workers need to be there.

    :param preflight: what is told of it.
    :param candidates: the workers.
    """

    def __init__(self, preflight: Preflight, candidates: Sequence[Candidate]) -> None:
        self._preflight = preflight
        self._client = preflight.client
        self._tell = preflight.tell
        self._candidates = candidates
        self._needs = [(one.name, Needs.of(offer)) for one in candidates for offer in one.offers]

    @defer.inlineCallbacks
    def run(self) -> Generator[Any, Any, dict[str, Subnet]]:
        """Look at everything, each thing once; fires with the subnets that there are."""
        yield self._templates()
        subnets = yield self._subnets()
        yield self._groups(subnets)
        yield self._key_pairs()
        yield self._types(subnets)
        return subnets

    def _workers_of(self, fits: Callable[[Needs], bool]) -> list[str]:
        """The names of the workers with a launch whose needs fit."""
        return list(dict.fromkeys(name for name, needs in self._needs if fits(needs)))

    @defer.inlineCallbacks
    def _templates(self) -> Generator[Any, Any, None]:
        """Look at the launch templates, and take over what they say of images and instance types."""
        answers: dict[str, TemplateVersion | None] = {}
        for _, needs in list(self._needs):
            if not needs.template or repr(needs.template) in answers:
                continue
            key, action = repr(needs.template), "DescribeLaunchTemplateVersions"
            workers = self._workers_of(lambda other, key=key: repr(other.template) == key)
            title = needs.template.get("LaunchTemplateId") or needs.template.get("LaunchTemplateName")
            subject = f"launch template {title} ({needs.template.get('Version', '$Default')})"
            answers[key] = None
            try:
                found = yield self._client.describe_launch_template_versions(needs.template)
            except EC2CallError as error:
                self._preflight.tell_error(subject, error, action, workers, only_checked=True)
                continue
            if not found:
                fix = "give launch_template one of this region, and a version that it has"
                self._tell(State.PROBLEM, subject, "EC2 has no such version of it", fix, workers)
                continue
            answers[key] = found[0]
            self._tell(State.OK, subject, f"is there, version {found[0].number}", "", workers)
        self._needs = [
            (name, needs.with_template(version) if (version := answers.get(repr(needs.template))) else needs)
            for name, needs in self._needs
        ]
        named = {candidate.image.image_id for candidate in self._candidates if candidate.image is not None}
        for image_id in _all(version.image_id for version in answers.values() if version and version.image_id):
            workers = self._workers_of(lambda needs, image_id=image_id: needs.image == image_id)
            if not workers or image_id in named or image_id.startswith(RESOLVED_BY_EC2):
                continue
            try:
                self._preflight.tell_of_image(
                    f"image {image_id}", (yield self._preflight.images.by_id(image_id)), workers
                )
            except EC2CallError as error:
                self._preflight.tell_error(f"image {image_id}", error, "DescribeImages", workers, only_checked=True)

    @defer.inlineCallbacks
    def _subnets(self) -> Generator[Any, Any, dict[str, Subnet]]:
        """Look at the subnets; fires with those that there are."""
        wanted = _all(subnet for _, needs in self._needs for subnet in needs.subnets)
        found = yield self._listed("subnets", "DescribeSubnets", wanted, self._client.describe_subnets)
        if found is None:
            return {}
        subnets = {subnet.subnet_id: subnet for subnet in found}
        for name in wanted:
            workers = self._workers_of(lambda needs, name=name: name in needs.subnets)
            subnet, subject = subnets.get(name), f"subnet {name}"
            if subnet is None:
                fix = "give subnet_id a subnet of this region"
                self._tell(State.PROBLEM, subject, "EC2 has no such subnet in this account and region", fix, workers)
            elif subnet.state not in ("available", ""):
                fix = "wait, or give another subnet_id"
                self._tell(State.PROBLEM, subject, f"its state is {subnet.state}", fix, workers)
            elif subnet.free_addresses == 0:
                text = f"has no free address, in {subnet.availability_zone}"
                self._tell(State.PROBLEM, subject, text, "end what uses them, or give a larger subnet", workers)
            else:
                free = "" if subnet.free_addresses is None else f", {subnet.free_addresses} free addresses"
                self._tell(State.OK, subject, f"{subnet.availability_zone}{free}", "", workers)
        return subnets

    @defer.inlineCallbacks
    def _groups(self, subnets: dict[str, Subnet]) -> Generator[Any, Any, None]:
        """Look at the security groups, which have to be of the subnets' VPC."""
        for by, all_wanted in (
            ("group-id", _all(group for _, needs in self._needs for group in needs.group_ids)),
            ("group-name", _all(group for _, needs in self._needs for group in needs.group_names)),
        ):

            def ask(*values: str, by: str = by) -> defer.Deferred[list[SecurityGroup]]:
                return self._client.describe_security_groups(by, *values)

            found = yield self._listed("security groups", "DescribeSecurityGroups", all_wanted, ask)
            for name in all_wanted if found is not None else ():
                groups = [group for group in found if name in (group.group_id, group.name)]
                for worker in self._workers_of(lambda needs, name=name: name in (*needs.group_ids, *needs.group_names)):
                    self._tell_of_group(name, groups, worker, subnets)

    def _tell_of_group(
        self, name: str, groups: Sequence[SecurityGroup], worker: str, subnets: dict[str, Subnet]
    ) -> None:
        subject = f"security group {name}"
        if not groups:
            fix = "give security_group_ids, or security_name, one of this region"
            self._tell(State.PROBLEM, subject, "EC2 has no such group in this account and region", fix, (worker,))
            return
        mine = [needs for other, needs in self._needs if other == worker and name in needs.group_ids]
        vpcs = {subnets[one].vpc_id for needs in mine for one in needs.subnets if one in subnets}
        if others := sorted(vpcs - {group.vpc_id for group in groups}):
            text = f"is of {groups[0].vpc_id}, and a subnet is of {', '.join(others)}"
            fix = "give security_group_ids and subnet_id of one VPC"
            self._tell(State.PROBLEM, subject, text, fix, (worker,))
            return
        self._tell(State.OK, subject, f"is there, in {groups[0].vpc_id or 'no VPC'}", "", (worker,))

    @defer.inlineCallbacks
    def _key_pairs(self) -> Generator[Any, Any, None]:
        wanted = _all(needs.key_name for _, needs in self._needs if needs.key_name)
        found = yield self._listed("key pairs", "DescribeKeyPairs", wanted, self._client.describe_key_pairs)
        for name in wanted if found is not None else ():
            workers = self._workers_of(lambda needs, name=name: needs.key_name == name)
            if name in found:
                self._tell(State.OK, f"key pair {name}", "is there", "", workers)
            else:
                fix = "make it there, or leave keypair_name out"
                self._tell(State.PROBLEM, f"key pair {name}", "EC2 has none of that name in this region", fix, workers)

    @defer.inlineCallbacks
    def _types(self, subnets: dict[str, Subnet]) -> Generator[Any, Any, None]:
        """Look at the instance types: each has to be offered in the zones where it is asked for."""
        wanted = _all(needs.instance_type for _, needs in self._needs if needs.instance_type)
        ask = self._client.describe_instance_type_offerings
        found = yield self._listed("instance types", "DescribeInstanceTypeOfferings", wanted, ask)
        if found is None:
            return
        offered: dict[str, set[str]] = {}
        for kind, zone in found:
            offered.setdefault(kind, set()).add(zone)
        for name, needs in self._needs:
            kind, zones = needs.instance_type, offered.get(needs.instance_type, set())
            asked = {subnets[one].availability_zone for one in needs.subnets if one in subnets} | set(
                _all([needs.zone])
            )
            if not kind:
                continue
            if not zones:
                fix = "give instance_type one that EC2 has there"
                text = "EC2 does not offer it in this region"
                self._tell(State.PROBLEM, f"instance type {kind}", text, fix, (name,))
            for zone in sorted(asked - zones) if zones else ():
                text = f"EC2 does not offer it in {zone}, but in {', '.join(sorted(zones))}"
                fix = "give another instance_type, or a subnet_id or placement there"
                self._tell(State.PROBLEM, f"instance type {kind}", text, fix, (name,))
            if zones and asked <= zones:
                where = ", ".join(sorted(asked or zones))
                self._tell(State.OK, f"instance type {kind}", f"is offered in {where}", "", (name,))

    @defer.inlineCallbacks
    def _listed(
        self, subject: str, action: str, wanted: Sequence[str], ask: Callable[..., defer.Deferred[list[Any]]]
    ) -> Generator[Any, Any, list[Any] | None]:
        """Ask for all of *wanted*; fires with what there is of them, or with None where that cannot be asked."""
        found: list[Any] = []
        try:
            for start in range(0, len(wanted), FILTER_VALUES):
                found += yield ask(*wanted[start : start + FILTER_VALUES])
        except EC2CallError as error:
            self._preflight.tell_error(subject, error, action, only_checked=True)
            return None
        return found


def _all(values: Iterable[str]) -> list[str]:
    """Each of *values* once, without empty ones."""
    return [value for value in dict.fromkeys(values) if value]
