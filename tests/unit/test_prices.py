"""What spot instances have cost of late."""

from __future__ import annotations

import datetime
from typing import Any

from twisted.internet import defer, task
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.ec2.errors import EC2CallError, NoAnswer
from buildbot_ec2ud.ec2.parser import Parser
from buildbot_ec2ud.fleet.prices import KEEP, SpotPrices


class Client:
    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[Any, ...]] = []

    def describe_spot_price_history(self, *asked: Any) -> defer.Deferred[list[float]]:
        self.asked.append(asked)
        answer = self.answers.pop(0)
        return defer.fail(answer) if isinstance(answer, Exception) else defer.succeed(answer)


class SpotPricesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = task.Clock()

    def average(self, prices: SpotPrices, kind: str = "c7i.large", zone: str | None = None) -> float | None:
        return self.successResultOf(prices.average(kind, "Linux/UNIX", zone))

    def test_average(self) -> None:
        """Of the prices of the last 24 hours."""
        client = Client([0.1, 0.2, 0.6])
        self.assertApproximates(self.average(SpotPrices(client, self.clock), zone="us-east-1a"), 0.3, 1e-9)
        ((kind, product, zone, since),) = client.asked
        self.assertEqual((kind, product, zone), ("c7i.large", "Linux/UNIX", "us-east-1a"))
        ago = datetime.datetime.now(datetime.UTC) - since
        self.assertLess(abs(ago - datetime.timedelta(hours=24)), datetime.timedelta(minutes=5))

    def test_none(self) -> None:
        self.assertIsNone(self.average(SpotPrices(Client([]), self.clock)))

    def test_kept(self) -> None:
        """For a while; each type and zone by itself; failures are not."""
        client = Client([0.1], [0.2], [0.3], NoAnswer("a bad day"), [0.4])
        prices = SpotPrices(client, self.clock)
        self.assertEqual([self.average(prices) for _ in range(2)], [0.1, 0.1])
        self.assertEqual(self.average(prices, "c6i.large"), 0.2)
        self.assertEqual(self.average(prices, zone="us-east-1a"), 0.3)
        self.clock.advance(KEEP)
        self.failureResultOf(prices.average("c7i.large", "Linux/UNIX", None), EC2CallError)
        self.assertEqual(self.average(prices), 0.4)


class ParserTests(SynchronousTestCase):
    def page(self, inner: str) -> tuple[list[float], str | None]:
        body = f"<DescribeSpotPriceHistoryResponse>{inner}</DescribeSpotPriceHistoryResponse>"
        return Parser().describe_spot_price_history_page(body.encode())

    def test_page(self) -> None:
        item = "<item><instanceType>m</instanceType><spotPrice>{}</spotPrice></item>"
        items = f"<spotPriceHistorySet>{item.format('0.0321000')}{item.format('1.5')}</spotPriceHistorySet>"
        self.assertEqual(self.page(items), ([0.0321, 1.5], None))
        self.assertEqual(self.page(items + "<nextToken>t</nextToken>")[1], "t")
        self.assertEqual(self.page("<spotPriceHistorySet/>"), ([], None))

    def test_not_a_price(self) -> None:
        self.assertRaises(NoAnswer, self.page, "<spotPriceHistorySet><item/></spotPriceHistorySet>")
