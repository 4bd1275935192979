"""Pools of capacity: what EC2 has of an instance type in an availability zone, on a market."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: What EC2 calls the ways to pay for an instance (botocore's model, ``InstanceLifecycle`` and its opposite).
MARKETS = ("on-demand", "spot")

_TYPE = re.compile(r"[a-z0-9-]+\.[a-z0-9-]+")
_ZONE = re.compile(r"[a-z]{2,}(-[a-z0-9]+)+-\d+[a-z]")


@dataclass(frozen=True)
class Pool:
    """A pool, or several: a part that is empty stands for any.

    :ivar instance_type: such as ``t3.micro``.
    :ivar zone: the availability zone.
    :ivar market: one of :data:`MARKETS`.
    """

    instance_type: str = ""
    zone: str = ""
    market: str = ""

    @classmethod
    def parse(cls, text: str) -> Pool:
        """Read ``t3.micro/us-east-1a/spot``, or what is left of it without some of its parts; ``*`` is all pools.

        :raises ValueError: a part that is none, or twice the same.
        """
        parts: dict[str, str] = {}
        for part in text.split("/") if text != "*" else ():
            if part in MARKETS:
                name = "market"
            elif _ZONE.fullmatch(part):
                name = "zone"
            elif _TYPE.fullmatch(part):
                name = "instance_type"
            else:
                raise ValueError(f"{part!r} is no instance type, availability zone or market ({', '.join(MARKETS)})")
            if name in parts:
                raise ValueError(f"{parts[name]} and {part} in one pool")
            parts[name] = part
        return cls(**parts)

    def covers(self, pool: Pool) -> bool:
        """Whether *pool*, which has all parts, is among these."""
        pairs = ((self.instance_type, pool.instance_type), (self.zone, pool.zone), (self.market, pool.market))
        return all(mine in ("", its) for mine, its in pairs)

    def __str__(self) -> str:
        return "/".join(filter(None, (self.instance_type, self.zone, self.market))) or "*"
