"""What all workers of a region share: ending instances, and that none is forgotten."""

from __future__ import annotations

from typing import Any

from twisted.internet import defer

from buildbot_ec2ud.ec2.errors import NoAnswer
from buildbot_ec2ud.fleet.background import LONGEST_PAUSE
from buildbot_ec2ud.fleet.region import STOP_TIMEOUT
from tests.unit.fleets import ENDPOINT, FleetTestCase, growing, instance, refusal


class Ending(FleetTestCase):
    def test_one_call_for_all(self):
        """However many ask for the end of an instance, EC2 is asked once; all learn when it has accepted."""
        rental = self.rent()
        waiting = [self.fleet.terminate(rental) for _ in range(3)]
        waiting[0].cancel()
        self.failureResultOf(waiting[0], defer.CancelledError)
        self.assertNoResult(waiting[1])
        self.assertEqual([call.args for call in self.ec2.made("terminate")], [("i-1",)])
        self.ec2.last("terminate").answer()
        waiting.append(self.fleet.terminate(rental))
        self.assertEqual([self.successResultOf(one) for one in waiting[1:]], [None] * 3)
        self.pump(1)
        self.assertEqual(len(self.ec2.made("terminate")), 1)
        self.assertIn("i-1", self.fleet.rentals)

    def test_repeated_until_accepted(self):
        """A call that fails is made again, after pauses that grow; the instance is not forgotten."""
        rental = self.rent()
        ended = self.fleet.terminate(rental)
        times = self.times("terminate", 400, lambda call: call.fail(refusal("RequestLimitExceeded")))
        self.assertEqual(times, [0, *growing(len(times) - 1)])
        self.assertEqual(times[-1] - times[-2], LONGEST_PAUSE)
        self.assertNoResult(ended)
        self.pump(LONGEST_PAUSE)
        self.ec2.last("terminate").answer()
        self.successResultOf(ended)
        self.assertIn("cannot end <Rental i-1 of w: pending>, will try again: RequestLimitExceeded: no", self.texts)

    def test_repeated_after_a_mistake_of_the_code(self):
        """Whatever goes wrong in a call, the instance is not left to itself."""
        ended = self.fleet.terminate(self.rent())
        self.ec2.last("terminate").fail(ZeroDivisionError("a bug"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertNoResult(ended)
        self.pump(1)
        self.ec2.last("terminate").answer()
        self.successResultOf(ended)

    def test_ends_by_itself_meanwhile(self):
        """No call is repeated for an instance whose end EC2 has confirmed."""
        ended = self.fleet.terminate(self.rent())
        self.ec2.last("terminate").fail(NoAnswer("a bad day"))
        self.pump(1)
        self.ec2.last("terminate").fail(NoAnswer("a bad day"))
        self.ec2.last("look").answer(instance(state="terminated"))
        self.pump(LONGEST_PAUSE)
        self.successResultOf(ended)
        self.assertEqual(len(self.ec2.made("terminate")), 2)


class OtherKeys(FleetTestCase):
    """EC2 does not take a fleet's keys any more, when a reconfig has brought others."""

    def setUp(self):
        super().setUp()
        self.rental = self.rent(state="running")
        self.ended = self.fleet.terminate(self.rental)

    def test_handed_over(self):
        """The fleet with the other keys ends the instance, and watches it until its end; who follows it is told."""
        followed: list[Any] = []
        self.fleet.follow("launch-1", followed.append)
        other = self.get_fleet("us-east-1", ENDPOINT, "OTHER", "other")
        elsewhere = self.get_fleet("us-west-2", ENDPOINT, "OTHER", "other")
        self.ec2.last("terminate").fail(refusal("AuthFailure"))
        self.assertNoResult(self.ended)
        self.assertEqual([call.args for call in self.ec2.made("terminate")], [("i-1",)] * 2)
        self.ec2.last("terminate").answer()
        self.successResultOf(self.ended)
        self.assertEqual((self.fleet.rentals, other.rentals, elsewhere.rentals), ({}, {"i-1": self.rental}, {}))
        self.pump(1)
        self.ec2.last("look").answer(instance("i-1", "terminated"))
        self.assertEqual((other.rentals, self.rental.ended, self.clock.getDelayedCalls()), ({}, True, []))
        self.assertEqual([event.kind for event in followed], ["terminated"])

    def test_nobody_can(self):
        """Where no other fleet can, this one goes on trying."""
        self.get_fleet("us-east-1", ENDPOINT, "OTHER", "other")
        for _ in range(2):
            self.ec2.last("terminate").fail(refusal("AuthFailure"))
        self.pump(1)
        self.assertEqual(len(self.ec2.made("terminate")), 3)
        self.ec2.last("terminate").answer()
        self.successResultOf(self.ended)
        self.assertEqual(self.fleet.rentals, {"i-1": self.rental})

    def test_other_trouble(self):
        """For what other keys would not mend, no other fleet is asked."""
        self.get_fleet("us-east-1", ENDPOINT, "OTHER", "other")
        self.ec2.last("terminate").fail(NoAnswer("a bad day"))
        self.assertEqual(len(self.ec2.made("terminate")), 1)


class Stopping(FleetTestCase):
    def stop(self) -> defer.Deferred[Any]:
        return self.master.stopService()

    def test_nothing_to_do(self):
        self.successResultOf(self.stop())
        self.assertEqual((self.ec2.calls, self.clock.getDelayedCalls()), ([], []))

    def test_ends_what_is_left(self):
        """Running instances are ended, and stopped ones, whose volumes cost, all in one call; not those that have ended."""
        for instance_id, state in (("i-1", "running"), ("i-2", "stopped"), ("i-3", "pending")):
            self.rent(instance_id, state)
        self.pump(1)
        self.ec2.last("look").answer(*(instance(i, s) for i, s in (("i-1", "terminated"), ("i-2", "stopped"))))
        stopped = self.stop()
        self.assertEqual([call.args for call in self.ec2.made("terminate")], [("i-2", "i-3")])
        self.assertNoResult(stopped)
        self.ec2.last("terminate").answer()
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertFalse([text for text in self.texts if "may still run" in text])

    def test_waits_for_pending_launches(self):
        """An instance that EC2 is about to start is not left behind."""
        launched = self.launch()
        stopped = self.stop()
        self.pump(STOP_TIMEOUT - 1)
        self.assertNoResult(stopped)
        self.ec2.last("run").answer(instance())
        self.successResultOf(launched)
        self.assertNoResult(stopped)
        self.ec2.last("terminate").answer()
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_gives_up(self):
        """A stopping master does not wait for ever, and says which instance may be left."""
        self.fleet.terminate(self.rent())
        self.ec2.last("terminate").answer()
        self.rent("i-2")
        stopped = self.stop()
        self.ec2.last("terminate").fail(NoAnswer("a bad day"))
        self.pump(STOP_TIMEOUT - 1)
        self.assertNoResult(stopped)
        self.pump(1)
        self.successResultOf(stopped)
        self.assertEqual(
            [text for text in self.texts if "may still run" in text],
            ["EC2 has not accepted the end of <Rental i-2 of w: pending>; it may still run"],
        )
        self.assertTrue(self.ec2.last("terminate").cancelled)
        self.assertTrue(self.ec2.last("look").cancelled)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_gives_up_a_launch(self):
        """A launch that EC2 never answers is cancelled; the log names the tag to look for."""
        launched = self.launch()
        stopped = self.stop()
        self.pump(STOP_TIMEOUT)
        self.successResultOf(stopped)
        self.failureResultOf(launched, defer.CancelledError)
        self.assertTrue(any("tagged buildbot:launch=launch-1" in text for text in self.texts))
        self.assertEqual(self.clock.getDelayedCalls(), [])
