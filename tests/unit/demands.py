"""What the tests of the embedded EC2's capacity share: instances that are wanted, and instances that are."""

from __future__ import annotations

from typing import Any

from buildbot_ec2ud.embedded._calls import Demand
from buildbot_ec2ud.embedded._moto import Alive
from buildbot_ec2ud.embedded.pools import Pool

REGION, ACCOUNT = "us-east-1", "123456789012"
ZONES = ("us-east-1a", "us-east-1b", "us-east-1c")
SUBNETS = {zone: f"subnet-{zone[-1]}" for zone in ZONES}


def demand(instance_type: str = "t3.micro", zone: str = "", market: str = "on-demand", **more: Any) -> Demand:
    """One instance that is wanted, in a zone if there is one."""
    subnets = {zone: SUBNETS[zone]} if zone else SUBNETS
    least = more.get("least", 1)
    values = {
        "account": ACCOUNT,
        "region": REGION,
        "zones": ZONES,
        "subnets": subnets,
        "least": 1,
        "most": least,
        **more,
    }
    return Demand(instance_type=instance_type, market=market, named=bool(zone), **values)


def alive(
    instance_type: str = "t3.micro",
    zone: str = ZONES[0],
    market: str = "on-demand",
    account: str = ACCOUNT,
    region: str = REGION,
) -> Alive:
    """An instance that is."""
    return Alive(account, region, Pool(instance_type, zone, market))
