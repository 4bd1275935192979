"""Starts of one moment take turns."""

from __future__ import annotations

from typing import Any

from twisted.internet import defer
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.fleet.turns import Turns


class Reactor:
    """Iterates as Twisted's own does: what is to be called at once is called in the next iteration. A ``Clock`` does not."""

    def __init__(self) -> None:
        self._calls: list[Any] = []

    def callLater(self, seconds: float, call: Any) -> None:
        assert seconds == 0
        self._calls.append(call)

    def iterate(self) -> None:
        calls, self._calls = self._calls, []
        for call in calls:
            call()


class Waiting(SynchronousTestCase):
    def setUp(self):
        self.reactor = Reactor()
        self.turns = Turns(self.reactor)
        self.had: list[Any] = []

    def start(self, name: Any) -> defer.Deferred[Any]:
        return self.turns.wait().addCallbacks(lambda _: self.had.append(name), lambda _: self.had.append("cancelled"))

    def iterate(self) -> list[Any]:
        """Whose turn comes in the next iteration of the reactor."""
        self.had.clear()
        self.reactor.iterate()
        return self.had

    def test_first(self):
        """Who is alone does not wait."""
        self.start(1)
        self.assertEqual(self.had, [1])

    def test_one_in_each_iteration(self):
        for name in range(3):
            self.start(name)
        self.assertEqual(self.had, [0])
        self.assertEqual([self.iterate()[:] for _ in range(3)], [[1], [2], []])
        self.start(3)
        self.assertEqual(self.had, [3])

    def test_cancelled(self):
        """Who does not want its turn any more has none."""
        self.start(0)
        second = self.start(1)
        self.start(2)
        second.cancel()
        self.assertEqual(self.had, [0, "cancelled"])
        self.assertEqual(self.iterate(), [2])

    def test_failed(self):
        """What is done in a turn may fail: the next one comes."""
        failing = self.turns.wait().addCallback(lambda _: 1 // 0)
        self.start(1)
        self.assertEqual(self.had, [])
        self.assertEqual(self.iterate(), [1])
        self.failureResultOf(failing, ZeroDivisionError)
