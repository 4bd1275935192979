"""What the embedded EC2 has to give: capacity, addresses, quotas and prices; and its refusals, in EC2's own words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from buildbot_ec2ud.embedded._calls import Demand
from buildbot_ec2ud.embedded._moto import Alive, EC2Error
from buildbot_ec2ud.embedded.pools import MARKETS, Pool


@dataclass(frozen=True)
class Place:
    """Where instances go.

    :ivar zone: the availability zone; empty where the region has none that EC2 could choose.
    :ivar count: how many.
    """

    zone: str
    count: int


class Capacity:
    """What there is of instances; without end, unless something is set. Everything can be changed while EC2 runs.

    A pool is written ``TYPE/ZONE/MARKET``, such as ``t3.micro/us-east-1a/spot``; what is left out stands for any, and ``*``
    for all. What is alive are all instances but the terminated ones.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> Capacity:
        """Let there be no end of anything again.

        :return: this, for the next setting.
        """
        self._limits: dict[Pool, float] = {}
        self._quotas: dict[str, float] = {}
        self._prices: dict[Pool, float] = {}
        self._not_offered: set[Pool] = set()
        self._full: set[str] = set()
        return self

    def limit(self, pool: str, instances: int | None) -> Capacity:
        """Let there be capacity for so many instances, else ``InsufficientInstanceCapacity``.

        :param pool: where; of several pools (``spot``), it is the limit of all together. A launch must fit in every limit.
        :param instances: how many may be alive, in each region; None: without end.
        :raises ValueError: no such pool, or no number of instances.
        """
        return self._set(self._limits, Pool.parse(pool), _count(instances))

    def quota(self, market: str, instances: int | None) -> Capacity:
        """Let each account have so many instances of a market in each region, else ``MaxSpotInstanceCountExceeded`` or
        ``VcpuLimitExceeded``. EC2 counts virtual CPUs.

        :param market: ``on-demand`` or ``spot``.
        :param instances: how many may be alive; None: without end.
        :raises ValueError: no such market, or no number of instances.
        """
        if market not in MARKETS:
            raise ValueError(f"{market!r} is no market; there are {', '.join(MARKETS)}")
        return self._set(self._quotas, market, _count(instances))

    def price(self, pool: str, dollars: float | None) -> Capacity:
        """Let spot instances cost that: a launch with a lower ``MaxPrice`` gets ``SpotMaxPriceTooLow``.

        :param pool: where; of several that have one, the highest price counts.
        :param dollars: per hour; None: nothing.
        :raises ValueError: no such pool, or no price.
        """
        if dollars is not None and not 0 <= dollars < math.inf:
            raise ValueError(f"not a price: {dollars!r}")
        return self._set(self._prices, Pool.parse(pool), dollars)

    def not_offered(self, pool: str) -> Capacity:
        """Let EC2 not offer that at all: ``Unsupported``.

        :param pool: such as ``t3.micro/us-east-1e``.
        :raises ValueError: no such pool.
        """
        self._not_offered.add(Pool.parse(pool))
        return self

    def full(self, subnet: str) -> Capacity:
        """Let a subnet have no free address: ``InsufficientFreeAddressesInSubnet``.

        :param subnet: its id; or a zone, for all subnets of that.
        :raises ValueError: neither of them.
        """
        if not subnet.startswith("subnet-") and not (Pool.parse(subnet).zone == subnet):
            raise ValueError(f"{subnet!r} is no subnet and no availability zone")
        self._full.add(subnet)
        return self

    def place(self, demand: Demand, alive: Iterable[Alive]) -> Place:
        """Choose where instances go, and how many. Called in the threads of the requests.

        :param alive: the instances that are.
        :raises EC2Error: there is no place for as many as are wanted at least.
        """
        counted = bool(self._limits or self._quotas)
        there = [instance for instance in alive if instance.region == demand.region] if counted else []
        zones = [zone for zone in demand.subnets if self._offers(demand, zone)]
        if demand.subnets and not zones:
            raise self._unsupported(demand)
        quota = self._quotas.get(demand.market, math.inf)
        quota -= sum((each.account, each.pool.market) == (demand.account, demand.market) for each in there)
        if quota < demand.least:
            raise _over_quota(demand)
        if not demand.subnets:
            return Place("", int(min(demand.most, quota)))
        best, refusals = Place("", 0), []
        for zone in zones:
            room = int(min(demand.most, quota, max(0, self._room(demand, zone, there))))
            price = max((p for pool, p in list(self._prices.items()) if pool.covers(demand.pool(zone))), default=0.0)
            if demand.max_price is not None and demand.max_price < price:
                refusals.append(_too_cheap(demand.max_price, price))
            elif self._full & {zone, demand.subnets[zone]}:
                refusals.append(_no_addresses(demand.subnets[zone]))
            elif room < demand.least:
                refusals.append(self._no_capacity(demand, zone, there))
            elif room > best.count:
                best = Place(zone, room)
        if not best.count:
            # Of several zones, one that could have had it.
            raise next((error for error in refusals if error.code == "InsufficientInstanceCapacity"), refusals[0])
        return best

    def _set(self, table: dict, key: Pool | str, value: float | None) -> Capacity:
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value
        return self

    def _offers(self, demand: Demand, zone: str) -> bool:
        return not any(pool.covers(demand.pool(zone)) for pool in list(self._not_offered))

    def _room(self, demand: Demand, zone: str, there: list[Alive]) -> float:
        """How many instances fit into a zone."""
        return min(
            (
                count - sum(pool.covers(instance.pool) for instance in there)
                for pool, count in list(self._limits.items())
                if pool.covers(demand.pool(zone))
            ),
            default=math.inf,
        )

    # What EC2 says. Sources: EC2 API reference, "Error codes", for the codes; for the words, as they are seen in the field,
    # the issue that is named.

    def _unsupported(self, demand: Demand) -> EC2Error:
        # fedora-copr/copr#3279
        where = f"Availability Zone ({next(iter(demand.subnets))})" if demand.named else f"Region ({demand.region})"
        others = ", ".join(zone for zone in demand.zones if self._offers(demand, zone))
        choose = f" Please retry your request by not specifying an Availability Zone or choosing {others}."
        return EC2Error(
            "Unsupported",
            f"Your requested instance type ({demand.instance_type}) is not supported in your requested {where}."
            + (choose if others else ""),
        )

    def _no_capacity(self, demand: Demand, zone: str, there: list[Alive]) -> EC2Error:
        # An error of the server, by its status. On demand: iterative/cml#814; without a zone: fedora-copr/copr#3279; spot:
        # kubernetes-sigs/cluster-api-provider-aws#2016.
        if demand.market == "spot":
            text = "There is no Spot capacity available that matches your request."
        elif not demand.named:
            text = (
                f"We currently do not have sufficient {demand.instance_type} capacity in zones with support for 'gp2' "
                "volumes. Our system will be working on provisioning additional capacity."
            )
        else:
            text = (
                f"We currently do not have sufficient {demand.instance_type} capacity in the Availability Zone you "
                f"requested ({zone}). Our system will be working on provisioning additional capacity."
            )
            others = [
                z for z in demand.zones if self._offers(demand, z) and self._room(demand, z, there) >= demand.least
            ]
            if others:
                text += (
                    f" You can currently get {demand.instance_type} capacity by not specifying an Availability Zone in "
                    f"your request or choosing {', '.join(others)}."
                )
        return EC2Error("InsufficientInstanceCapacity", text, 500)


def _no_addresses(subnet: str) -> EC2Error:
    # osbuild/osbuild-composer#1575
    return EC2Error(
        "InsufficientFreeAddressesInSubnet",
        f"There are not enough free addresses in subnet '{subnet}' to satisfy the requested number of instances.",
    )


def _over_quota(demand: Demand) -> EC2Error:
    # The first: aws/aws-parallelcluster#340.
    if demand.market == "spot":
        return EC2Error("MaxSpotInstanceCountExceeded", "Max spot instance count exceeded")
    return EC2Error(
        "VcpuLimitExceeded",
        "You have requested more vCPU capacity than your current vCPU limit allows for the instance bucket that the "
        "specified instance type belongs to. Please visit http://aws.amazon.com/contact-us/ec2-request to request an "
        "adjustment to this limit.",
    )


def _too_cheap(offered: float, price: float) -> EC2Error:
    return EC2Error(
        "SpotMaxPriceTooLow",
        f"Your Spot request price of {offered:g} is lower than the minimum required Spot request fulfillment price of "
        f"{price:g}.",
    )


def _count(instances: int | None) -> int | None:
    if instances is not None and (not isinstance(instances, int) or instances < 0):
        raise ValueError(f"not a number of instances: {instances!r}")
    return instances
