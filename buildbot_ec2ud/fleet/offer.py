"""What a launch asks EC2 for, and the tags by which its instance is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: The tag whose value only one launch has.
LAUNCH_TAG = "buildbot:launch"
#: The tag that names the master.
MASTER_TAG = "buildbot:master"
#: The tag that names the worker.
WORKER_TAG = "buildbot:worker"
#: What the console of EC2 shows as an instance's name.
NAME_TAG = "Name"

#: What EC2's capacity depends on: an instance type, a subnet or availability zone, and a market.
Pool = tuple[str | None, str | None, str]


@dataclass(frozen=True)
class Offer:
    """One way to get an instance: an instance type in a subnet, on a market.

    :ivar parameters: all parameters of RunInstances, nested as in the EC2 API, but for the ClientToken.
    """

    instance_type: str | None
    subnet_id: str | None
    market: str
    parameters: Mapping[str, Any]

    @property
    def place(self) -> str | None:
        """The subnet, or else the availability zone; None where EC2 may choose."""
        return self.subnet_id or self.parameters.get("Placement", {}).get("AvailabilityZone")

    @property
    def pool(self) -> Pool:
        """Of which pool of EC2's capacity it is."""
        return self.instance_type, self.place, self.market

    def __str__(self) -> str:
        where = f" in {self.place}" if self.place else ""
        return f"{self.instance_type or 'the instance type of the launch template'} {self.market}{where}"
