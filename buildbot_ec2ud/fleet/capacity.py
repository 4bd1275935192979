"""Memory of offers that EC2 had no capacity for, and of quotas that are used up: for a while they are not asked for."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

from buildbot_ec2ud.ec2.errors import EC2CallError, ErrorClass
from buildbot_ec2ud.fleet.offer import Offer, Pool

#: Seconds for which an offer without capacity is not asked for again, unless another time is configured.
MEMORY = 180.0
#: Seconds for which nothing is asked for on a market whose quota is used up: as long as EC2 counts an instance that has just
#: ended ("terminated instances still count for a while", EC2 developer guide, "Eventual consistency").
QUOTA_PAUSE = 60.0
#: How many builds that lost their spot instance are remembered: far more than are ever retried at the same time.
LOST_BUILDS = 10000


class NoOffer(EC2CallError):
    """None of several offers was to be had. Its text has the reason of each.

    :param reasons: what is said of each offer, or of a whole market.
    """

    error_class = ErrorClass.NO_CAPACITY

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{what}: {why}" for what, why in reasons.items()))


class Capacity:
    """What is known of offers, for all workers of a region.

    :param clock: the reactor.
    :param memory: seconds for which an offer without capacity is skipped.
    """

    def __init__(self, clock: Any, memory: float = MEMORY) -> None:
        self._clock = clock
        self._memory = memory
        self._offers: dict[Any, tuple[float, float, str]] = {}
        self._lost: collections.OrderedDict[int, None] = collections.OrderedDict()

    def refused(self, offer: Offer, error: EC2CallError) -> None:
        """Take note of what EC2 says of an offer."""
        if error.error_class is ErrorClass.NO_CAPACITY:
            self.had_none(offer.pool, error.text())
        elif error.error_class is ErrorClass.QUOTA:
            self._note(offer.market, QUOTA_PAUSE, error.text())

    def had_none(self, pool: Pool, why: str) -> None:
        """There is no capacity in a pool: EC2 has refused an offer of it, or taken an instance back."""
        self._note(pool, self._memory, why)

    def _note(self, key: Any, seconds: float, why: str) -> None:
        now = self._clock.seconds()
        self._offers[key] = (now, now + seconds, why)

    def succeeded(self, offer: Offer) -> None:
        """There is capacity after all."""
        self._offers.pop(offer.pool, None)
        self._offers.pop(offer.market, None)

    def why_not(self, offer: Offer) -> str | None:
        """Why an offer need not be asked for now: what EC2 said of it, and how long ago. None when there is no reason."""
        now = self._clock.seconds()
        for key in (offer.market, offer.pool):
            since, until, why = self._offers.get(key, (0.0, 0.0, ""))
            if now < until:
                return f"{why} ({now - since:.0f} s ago; asked for again in {until - now:.0f} s)"
        return None

    def quota_used_up(self, offer: Offer) -> bool:
        """Whether it is the quota of its market that speaks against an offer."""
        return self._clock.seconds() < self._offers.get(offer.market, (0.0, 0.0, ""))[1]

    # Builds

    def lost(self, requests: set[int]) -> None:
        """Builds have lost their spot instance.

        :param requests: the ids of their build requests, which are those of their next attempts too.
        """
        for request in requests:
            self._lost[request] = None
            self._lost.move_to_end(request)
        while len(self._lost) > LOST_BUILDS:
            self._lost.popitem(last=False)

    def has_lost(self, requests: set[int]) -> bool:
        """Whether an earlier attempt at a build has lost its spot instance."""
        return any(request in self._lost for request in requests)
