"""What the calls of moto's EC2 that launch instances ask for."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from buildbot_ec2ud.embedded._moto import EC2Backend, InstanceResponse
from buildbot_ec2ud.embedded.pools import Pool


@dataclass(frozen=True)
class Launch:
    """A call of ``RunInstances``.

    :ivar zone: the availability zone, if the call names one or a subnet; else empty.
    :ivar token: the client token, empty if there is none.
    :ivar user_data: as it was before base64.
    :ivar parameters: all but the token, as they were sent.
    """

    account: str
    region: str
    zone: str
    token: str
    user_data: bytes = field(repr=False)
    parameters: Mapping[str, str] = field(repr=False)

    @property
    def least(self) -> int:
        """``MinCount``, which moto takes for 1 where it is missing; moto has seen that it is a number."""
        return int(self.parameters.get("MinCount", "1"))

    @property
    def most(self) -> int:
        """``MaxCount``."""
        return int(self.parameters.get("MaxCount", self.least))


def launch_of(response: InstanceResponse) -> Launch:
    """What a request asks for.

    :raises EC2ClientError: there is no such subnet.
    """
    zone, subnet = response._get_param("Placement.AvailabilityZone"), response._get_param("SubnetId")
    if not zone and subnet:
        zone = response.ec2_backend.get_subnet(subnet).availability_zone
    try:
        user_data = base64.b64decode(response._get_param("UserData") or "")
    except binascii.Error:
        user_data = b""  # moto will refuse it
    return Launch(
        response.current_account,
        response.region,
        zone or "",
        response._get_param("ClientToken") or "",
        user_data,
        {name: values[0] for name, values in response.querystring.items() if name != "ClientToken"},
    )


@dataclass(frozen=True)
class Demand:
    """Instances that are wanted, by whichever call.

    :ivar market: ``on-demand`` or ``spot``.
    :ivar zones: the availability zones of the region.
    :ivar named: whether the call says in which zone or subnet.
    :ivar subnets: the zones where the instances may be, each with its subnet: one zone if the call says so.
    :ivar least: how many there must be.
    :ivar most: how many there may be.
    :ivar max_price: dollars per hour that are offered for a spot instance; None: as many as it costs.
    """

    account: str
    region: str
    instance_type: str
    market: str
    zones: tuple[str, ...]
    named: bool
    subnets: Mapping[str, str]
    least: int
    most: int
    max_price: float | None = None

    def pool(self, zone: str) -> Pool:
        """The pool that it is about in a zone."""
        return Pool(self.instance_type, zone, self.market)


def demand_of(backend: EC2Backend, count: int, options: Mapping[str, Any], call: Launch | None) -> Demand:
    """What is wanted of a backend.

    :param count: how many, as moto understands it.
    :param options: what moto's ``run_instances`` gets by name.
    :param call: the ``RunInstances`` that it is for; None for another call.
    :raises EC2ClientError: there is no such subnet or launch template.
    """
    instance_type = options["instance_type"]
    if options.get("launch_template") and options["is_instance_type_default"]:
        template = backend._get_template_from_args(options["launch_template"]).data
        instance_type = template.get("InstanceType") or instance_type
    spot = "spot" in (options.get("instance_market_options"), options.get("lifecycle"))
    subnet = options.get("subnet_id") or next(
        (nic["SubnetId"] for nic in options.get("nics", ()) if "SubnetId" in nic), ""
    )
    zone = backend.get_subnet(subnet).availability_zone if subnet else options.get("placement")
    defaults = {name: default.id for name, default in sorted(backend.get_default_subnets().items())}
    price = call.parameters.get("InstanceMarketOptions.SpotOptions.MaxPrice") if call and spot else None
    return Demand(
        backend.account_id,
        backend.region_name,
        instance_type,
        "spot" if spot else "on-demand",
        tuple(defaults),
        bool(zone),
        {zone: subnet or defaults.get(zone, "")} if zone else defaults,
        count,
        max(count, call.most) if call else count,
        _number(price),
    )


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
