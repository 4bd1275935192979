"""Whether the EBS volumes and Elastic IP addresses that workers' instances are to get are there, and free."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.internet import defer

from buildbot_ec2ud.ec2.attaching import Address, Volume
from buildbot_ec2ud.ec2.errors import EC2CallError
from buildbot_ec2ud.ec2.surroundings import Subnet
from buildbot_ec2ud.preflight.candidates import Candidate, Needs
from buildbot_ec2ud.preflight.findings import State

if TYPE_CHECKING:
    from buildbot_ec2ud.preflight import Preflight


@defer.inlineCallbacks
def check_possessions(
    preflight: Preflight, candidates: Sequence[Candidate], subnets: Mapping[str, Subnet]
) -> Generator[Any, Any, None]:
    """Look at what the instances of *candidates* are to get.

    :param preflight: what is told of it.
    :param subnets: those that there are, by id.
    """
    own = {instance.instance_id for instance in preflight.own}
    for candidate in candidates:
        wanted = candidate.worker.settings.attachments
        for volume_id, _ in wanted.volumes:
            subject = f"volume {volume_id}"
            try:
                found = yield preflight.once(volume_id, partial(preflight.client.describe_volumes, volume_id))
            except EC2CallError as error:
                preflight.tell_error(subject, error, "DescribeVolumes", (candidate.name,))
                continue
            preflight.tell(*_of_volume(subject, found, own, _zones(candidate, subnets)), (candidate.name,))
        if wanted.elastic_ip is not None:
            address = wanted.elastic_ip
            subject = f"Elastic IP {address}"
            try:
                addresses = yield preflight.once(address, partial(preflight.client.describe_addresses, address))
            except EC2CallError as error:
                preflight.tell_error(subject, error, "DescribeAddresses", (candidate.name,))
                continue
            preflight.tell(*_of_address(subject, addresses, own), (candidate.name,))


def _zones(candidate: Candidate, subnets: Mapping[str, Subnet]) -> set[str]:
    """The zones where its instances can be; none where EC2 may choose any."""
    zones = set()
    for offer in candidate.offers:
        needs = Needs.of(offer)
        here = {needs.zone, *(subnets[one].availability_zone for one in needs.subnets if one in subnets)} - {""}
        if not here:
            return set()
        zones |= here
    return zones


def _of_volume(subject: str, found: Sequence[Volume], own: set[str], zones: set[str]) -> tuple[State, str, str, str]:
    if not found:
        fix = "give volumes the id of one of this account and region"
        return State.PROBLEM, subject, "EC2 has no such volume", fix
    volume = found[0]
    holders = [attachment.instance_id for attachment in volume.attachments]
    if wrong := sorted(zones - {volume.availability_zone}):
        text = f"is in {volume.availability_zone}, and instances can be in {', '.join(wrong)}"
        return State.PROBLEM, subject, text, "give a subnet_id or placement in the volume's zone only"
    if volume.state == "available":
        zone = volume.availability_zone
        if not zones:
            text = f"is free, in {zone}, and EC2 may put the instance into another zone"
            return State.PROBLEM, subject, text, "give a subnet_id or placement in the volume's zone"
        return State.OK, subject, f"is free, in {zone}", ""
    if volume.state == "in-use" and (volume.multi_attach_enabled or (holders and own.issuperset(holders))):
        return State.OK, subject, f"is in use by {', '.join(holders)}, which does not matter", ""
    used = f", by {', '.join(holders)}" if holders else ""
    return State.PROBLEM, subject, f"its state is {volume.state}{used}", "free it, or give volumes another"


def _of_address(subject: str, found: Sequence[Address], own: set[str]) -> tuple[State, str, str, str]:
    if not found:
        return State.PROBLEM, subject, "EC2 has no such address", "give elastic_ip one of this account and region"
    address = found[0]
    if not address.allocation_id:
        return State.PROBLEM, subject, "it is of EC2-Classic, which is no more", "give elastic_ip another"
    if address.association_id and address.instance_id not in own:
        holder = address.instance_id or "a network interface"
        text = f"is in use by {holder}, from which a start would take it"
        return State.PROBLEM, subject, text, "free it, or give elastic_ip another"
    mine = f"is in use by {address.instance_id}, of this master" if address.association_id else "is free"
    return State.OK, subject, mine, ""
