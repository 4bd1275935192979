"""Terminate calls of the same moment are one call, and one that EC2 refuses does not spoil the others."""

from __future__ import annotations

from typing import Any

from twisted.internet import defer, task
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.ec2.errors import EC2CallError, NoAnswer
from buildbot_ec2ud.fleet.terminations import BATCH, Terminator
from tests.unit.fleets import SilentEC2, refusal


class TerminatorTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = task.Clock()
        self.ec2 = SilentEC2()
        self.terminator = Terminator(self.ec2, self.clock)

    def end(self, *ids: str) -> list[defer.Deferred[None]]:
        """Want the end of all *ids* in the same moment."""
        waiting = [self.terminator.terminate(instance_id) for instance_id in ids]
        self.clock.advance(0)
        return waiting

    def asked(self) -> list[tuple[Any, ...]]:
        return [call.args for call in self.ec2.calls]


class Merging(TerminatorTestCase):
    def test_one_call(self) -> None:
        waiting = self.end("i-1", "i-2", "i-3")
        self.assertEqual(self.asked(), [("i-1", "i-2", "i-3")])
        for one in waiting:
            self.assertNoResult(one)
        self.ec2.calls[0].answer()
        self.assertEqual([self.successResultOf(one) for one in waiting], [None] * 3)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_another_moment(self) -> None:
        """A call does not wait for the answer to the one before."""
        self.end("i-1")
        self.end("i-2")
        self.assertEqual(self.asked(), [("i-1",), ("i-2",)])

    def test_same_instance_twice(self) -> None:
        waiting = self.end("i-1", "i-1")
        self.assertEqual(self.asked(), [("i-1",)])
        self.ec2.calls[0].answer()
        self.assertEqual([self.successResultOf(one) for one in waiting], [None, None])

    def test_batches(self) -> None:
        self.end(*[f"i-{number}" for number in range(2 * BATCH + 1)])
        self.assertEqual([len(ids) for ids in self.asked()], [BATCH, BATCH, 1])

    def test_cancelled(self) -> None:
        """Who waits no longer does not keep the others from learning."""
        first, second = self.end("i-1", "i-2")
        first.cancel()
        self.failureResultOf(first, defer.CancelledError)
        self.assertFalse(self.ec2.calls[0].cancelled)
        self.ec2.calls[0].answer()
        self.successResultOf(second)


class Refusals(TerminatorTestCase):
    def answer_all(self, unknown: set[str], error: EC2CallError) -> None:
        """EC2 refuses calls that have an *unknown* id among theirs, and accepts the others."""
        for call in self.ec2.calls:
            if call.waiting.called:
                continue
            if unknown & set(call.args):
                call.fail(error)
            else:
                call.answer()
        if any(not call.waiting.called for call in self.ec2.calls):
            self.answer_all(unknown, error)

    def test_found_by_halves(self) -> None:
        """The one that EC2 does not know is told; all others are ended, in few calls."""
        for code in ("InvalidInstanceID.NotFound", "OperationNotPermitted", "IncorrectInstanceState"):
            self.setUp()
            error = refusal(code)
            waiting = self.end(*[f"i-{number}" for number in range(64)])
            self.answer_all({"i-37"}, error)
            self.assertIs(self.failureResultOf(waiting.pop(37), EC2CallError).value, error)
            self.assertEqual([self.successResultOf(one) for one in waiting], [None] * 63)
            self.assertEqual(len(self.ec2.calls), 13)

    def test_all_refused(self) -> None:
        waiting = self.end("i-1", "i-2", "i-3")
        self.answer_all({"i-1", "i-2", "i-3"}, refusal("UnauthorizedOperation"))
        for one in waiting:
            self.failureResultOf(one, EC2CallError)

    def test_not_because_of_one(self) -> None:
        """What is nobody's fault is not asked again by halves."""
        for error in (refusal("RequestLimitExceeded"), NoAnswer("a bad day"), refusal("AuthFailure")):
            self.setUp()
            waiting = self.end("i-1", "i-2")
            self.ec2.calls[0].fail(error)
            for one in waiting:
                self.assertIs(self.failureResultOf(one, EC2CallError).value, error)
            self.assertEqual(len(self.ec2.calls), 1)

    def test_mistake_of_the_code(self) -> None:
        """Whatever it is, who waits is told."""
        (waiting,) = self.end("i-1")
        self.ec2.calls[0].fail(ZeroDivisionError("a bug"))
        self.failureResultOf(waiting, ZeroDivisionError)


class Stopping(TerminatorTestCase):
    def test_before_the_call(self) -> None:
        self.terminator.terminate("i-1")
        self.terminator.stop()
        self.assertEqual((self.clock.getDelayedCalls(), self.ec2.calls), ([], []))

    def test_while_the_one_to_blame_is_looked_for(self) -> None:
        """No further call is made."""
        waiting = self.end("i-1", "i-2", "i-3", "i-4")
        self.ec2.calls[0].fail(refusal("InvalidInstanceID.NotFound"))
        self.terminator.stop()
        self.assertEqual(self.asked(), [("i-1", "i-2", "i-3", "i-4"), ("i-1", "i-2")])
        for one in waiting[:2]:
            self.failureResultOf(one, defer.CancelledError)

    def test_during_the_call(self) -> None:
        (waiting,) = self.end("i-1")
        self.terminator.stop()
        self.assertTrue(self.ec2.calls[0].cancelled)
        self.failureResultOf(waiting, defer.CancelledError)
