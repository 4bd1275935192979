"""A long answer of EC2's is parsed in slices: it becomes the same as a short one, and the reactor is not held up."""

from __future__ import annotations

from typing import Any

from twisted.internet import task
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.ec2 import xml
from buildbot_ec2ud.ec2.errors import NoAnswer
from buildbot_ec2ud.ec2.parser import AT_ONCE, SLICE, Parser
from tests.unit.test_parser import SPOT, answer, described, reservation

#: More than is parsed in one go, in reservations of two.
COUNT = 600


def instances(count: int = COUNT) -> list[str]:
    return [
        reservation(*(SPOT.replace("i-1234567890abcdef0", f"i-{number + one}") for one in range(2)))
        for number in range(0, count, 2)
    ]


class CountingClock(task.Clock):
    """Counts how many times something was put off."""

    turns = 0

    def callLater(self, *args: Any, **kwargs: Any) -> Any:
        self.turns += 1
        return super().callLater(*args, **kwargs)


class SlicesTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = CountingClock()

    def parse(self, body: bytes) -> Any:
        return Parser().describe_instances_long_page(body, self.clock)

    def parsed(self, body: bytes) -> Any:
        """What *body* becomes when the reactor has had all its turns."""
        parsing = self.parse(body)
        self.clock.advance(0)
        return parsing


class LongAnswers(SlicesTestCase):
    def test_same_as_a_short_one(self) -> None:
        body = described(*instances(), after="<nextToken>more</nextToken>")
        self.assertGreater(len(body), AT_ONCE)
        expected, token = Parser().describe_instances_page(body)
        found, found_token = self.successResultOf(self.parsed(body))
        self.assertEqual((len(found), token, found_token), (COUNT, "more", "more"))
        for one, other in zip(found, expected, strict=True):
            mine, its = ({**vars(each), "reservation": vars(each.reservation)} for each in (one, other))
            self.assertEqual(mine, its)

    def test_reactor_in_between(self) -> None:
        """Each slice is a turn of its own."""
        body = described(*instances())
        self.successResultOf(self.parsed(body))
        self.assertGreaterEqual(self.clock.turns, len(body) // SLICE)

    def test_short_answers_at_once(self) -> None:
        """What is soon parsed needs no turn."""
        found, token = self.successResultOf(self.parse(described(*instances(20))))
        self.assertEqual((len(found), token, self.clock.getDelayedCalls()), (20, None, []))

    def test_cancelled(self) -> None:
        parsing = self.parse(described(*instances()))
        parsing.cancel()
        self.failureResultOf(parsing)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_gone_when_parsed(self) -> None:
        """What has been read is not kept: at the end there is no reservation left in the tree."""
        *_, (_, root) = xml.parse_in_slices(described(*instances()), SLICE, "reservationSet")
        self.assertEqual(len(root.find("{*}reservationSet")), 0)


class LongNonsense(SlicesTestCase):
    """Something long that is not the answer is an error, and never "no instances"."""

    def refused(self, body: bytes) -> str:
        self.assertGreater(len(body), AT_ONCE)
        return str(self.failureResultOf(self.parsed(body), NoAnswer).value)

    def test_truncated(self) -> None:
        body = described(*instances())
        for length in (AT_ONCE + 1, len(body) - 1):
            self.assertIn("the answer is not XML", self.refused(body[:length]))

    def test_not_xml(self) -> None:
        self.assertIn("the answer is not XML", self.refused(b"no, " * AT_ONCE))

    def test_wrong_root(self) -> None:
        page = f"<html><body>{'<p>Sign in</p>' * (AT_ONCE // 10)}</body></html>"
        self.assertIn("the answer is a 'html'", self.refused(page.encode()))

    def test_another_answer(self) -> None:
        body = answer("DescribeImages", f"<reservationSet/><imagesSet>{'<item/>' * (AT_ONCE // 6)}</imagesSet>")
        self.assertIn("'DescribeImagesResponse'", self.refused(body))

    def test_no_reservations(self) -> None:
        body = answer("DescribeInstances", f"<somethingSet>{'<item/>' * (AT_ONCE // 6)}</somethingSet>")
        self.assertIn("has no reservationSet", self.refused(body))

    def test_instance_without_a_state(self) -> None:
        body = described(*instances(), reservation("<item><instanceId>i-1</instanceId></item>"))
        self.assertIn("without an id or a state", self.refused(body))

    def test_entities(self) -> None:
        """No file of this machine gets into an instance."""
        body = described(*instances(), reservation("<item><instanceId>&file;</instanceId></item>")).replace(
            b"\n<Desc", b'\n<!DOCTYPE x [<!ENTITY file SYSTEM "file:///etc/hostname">]><Desc', 1
        )
        self.assertIn("without an id or a state", self.refused(body))
