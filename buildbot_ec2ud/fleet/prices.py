"""What spot instances have cost of late."""

from __future__ import annotations

import datetime
import time
from typing import Any

from twisted.internet import defer

from buildbot_ec2ud.ec2.client import EC2Client

#: Seconds whose prices are averaged, as ``EC2LatentWorker`` does.
PERIOD = 24 * 3600
#: Seconds for which an average is kept.
KEEP = 60.0


class SpotPrices:
    """Averages of spot prices, shared by the workers of a region.

    :param client: what to ask.
    :param clock: the reactor.
    """

    def __init__(self, client: EC2Client, clock: Any) -> None:
        self._client = client
        self._clock = clock
        self._kept: dict[tuple[str, str, str | None], tuple[float, float | None]] = {}

    @defer.inlineCallbacks
    def average(self, instance_type: str, product: str, zone: str | None) -> Any:
        """The average of the prices that EC2 tells for the last 24 hours.

        :param instance_type: an EC2 instance type.
        :param product: EC2's product description, such as ``Linux/UNIX``.
        :param zone: an availability zone; None for all of the region.
        :return: fires with dollars an hour; None when there are no prices.
        :raises EC2CallError: EC2 refused, or did not answer.
        """
        wanted = (instance_type, product, zone)
        until, average = self._kept.get(wanted, (0.0, None))
        if self._clock.seconds() < until:
            return average
        # Prices are of the wall clock's hours, like signatures.
        since = datetime.datetime.fromtimestamp(time.time() - PERIOD, datetime.UTC)
        prices = yield self._client.describe_spot_price_history(instance_type, product, zone, since)
        average = sum(prices) / len(prices) if prices else None
        self._kept[wanted] = (self._clock.seconds() + KEEP, average)
        return average
