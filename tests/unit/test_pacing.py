"""Calls wait for their turn here, rather than being refused by EC2."""

from __future__ import annotations

from typing import Any

from twisted.internet import defer, task
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.ec2.errors import EC2CallError, NoAnswer
from buildbot_ec2ud.ec2.query import Attempt
from buildbot_ec2ud.fleet import pacing
from buildbot_ec2ud.fleet.pacing import RECOVERY, RESERVE, SLOWDOWN, SLOWEST, Bucket, Limit, Pacer
from tests.unit.fleets import refusal


class LimitTests(SynchronousTestCase):
    """What AWS documents."""

    def test_documented(self) -> None:
        """EC2 developer guide, "Request throttling"."""
        for action, burst, per_second in (
            ("RunInstances", 5, 2),
            ("TerminateInstances", 100, 5),
            ("DescribeInstances", 100, 20),
            ("DescribeAnythingElse", 100, 20),
            ("GetConsoleOutput", 100, 20),
            ("AttachVolume", 50, 5),
            ("CreateAnything", 50, 5),
        ):
            self.assertEqual(pacing.request_limit(action), Limit(burst, per_second), action)
        self.assertEqual(pacing.INSTANCES["RunInstances"], Limit(1000, 2))
        self.assertEqual(pacing.INSTANCES["TerminateInstances"], Limit(1000, 20))

    def test_configured(self) -> None:
        """What is wrong with limits of one's own is told, all of it."""
        self.assertEqual(list(pacing.check_limits({})), [])
        self.assertEqual(list(pacing.check_limits({"RunInstances": (20, 5), "DescribeInstances": [200, 0.5]})), [])
        for limits, *lines in (
            (7, "not a dict: 7"),
            ({"RunInstance": (20, 5)}, "unknown action 'RunInstance'; did you mean RunInstances?"),
            ({7: (20, 5)}, "unknown action 7"),
            (
                {"RunInstances": (20,), "DescribeInstances": 5},
                "RunInstances: not two numbers above 0, calls at once and calls per second: (20,)",
                "DescribeInstances: not two numbers above 0, calls at once and calls per second: 5",
            ),
            *(
                (
                    {"RunInstances": wrong},
                    f"RunInstances: not two numbers above 0, calls at once and calls per second: {wrong!r}",
                )
                for wrong in ((0, 5), (20, -1), ("20", 5), (True, 5), (20, float("inf")), (float("nan"), 1), None)
            ),
            (
                {"RunInstances": (1, 5)},
                "RunInstances: 1 call of a bucket is left for others, so it must hold more: (1, 5)",
            ),
        ):
            self.assertEqual(list(pacing.check_limits(limits)), lines)


class BucketTests(SynchronousTestCase):
    def test_full_at_first(self) -> None:
        bucket = Bucket(Limit(3, 2), 100.0)
        self.assertEqual([bucket.take(100.0) for _ in range(4)], [True, True, True, False])

    def test_fills(self) -> None:
        """It fills evenly, and not over its brim."""
        bucket = Bucket(Limit(3, 2), 0.0)
        self.assertTrue(bucket.take(0.0, 3))
        self.assertEqual([bucket.wait(0.0), bucket.wait(0.25), bucket.wait(0.5)], [0.5, 0.25, 0.0])
        self.assertEqual([bucket.take(1000.0) for _ in range(4)], [True, True, True, False])

    def test_wait_is_enough(self) -> None:
        """After the time that it asks for, there is what was asked for; however odd the numbers."""
        now = 1e9 + 0.1
        bucket = Bucket(Limit(3, 0.3), now)
        bucket.take(now, 3)
        for _ in range(100):
            now += bucket.wait(now, 1)
            self.assertTrue(bucket.take(now, 1))

    def test_more_than_it_holds(self) -> None:
        """Who wants more than there can ever be waits until it is full, and not for ever."""
        bucket = Bucket(Limit(3, 1), 0.0)
        bucket.take(0.0, 3)
        self.assertEqual(bucket.wait(0.0, 10), 3.0)
        self.assertTrue(bucket.take(3.0, 10))
        self.assertEqual(bucket.wait(3.0), 8.0)

    def test_speed(self) -> None:
        """It slows down by halves, to a limit, and regains its speed step by step, to what it was."""
        bucket = Bucket(Limit(3, 2), 0.0)
        bucket.slow_down(0.0)
        self.assertEqual(bucket.wait(0.0), 1 / (2 * SLOWDOWN))
        bucket.speed_up(0.0)
        self.assertAlmostEqual(bucket.wait(0.0), 1 / (2 * (SLOWDOWN + RECOVERY)))
        for _ in range(100):
            bucket.speed_up(0.0)
        self.assertEqual(bucket.wait(0.0), 0.5)
        for _ in range(100):
            bucket.slow_down(0.0)
        self.assertEqual(bucket.wait(0.0), 1 / (2 * SLOWEST))

    def test_debt_stays(self) -> None:
        """Slowing down forgives nothing that was taken in advance."""
        bucket = Bucket(Limit(3, 1), 0.0)
        bucket.take(0.0, 10)
        bucket.slow_down(0.0)
        self.assertEqual(bucket.wait(0.0), 8 / SLOWDOWN)


class PacerTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = task.Clock()
        self.pacer = Pacer(self.clock, {})
        self.served: list[tuple[float, str]] = []

    def ask(self, caller: str = "", action: str = "RunInstances", instances: int = 1) -> defer.Deferred[None]:
        return self.pacer.admit(action, caller, instances).addCallback(
            lambda _: self.served.append((self.clock.seconds(), caller))
        )

    def times(self) -> list[float]:
        return [round(time, 6) for time, _ in self.served]

    def callers(self) -> str:
        return "".join(caller for _, caller in self.served)

    def run_out(self, action: str = "RunInstances") -> None:
        """Take all that is there at once."""
        while not self.pacer.waiting():
            turn = self.pacer.admit(action)
        turn.cancel()
        self.failureResultOf(turn, defer.CancelledError)

    def answered(self, error: EC2CallError | None, sent_at: float = 0.0, action: str = "RunInstances") -> None:
        self.pacer.answered(Attempt(action, sent_at, 0.0, 0.1, error))


class PacerTests(PacerTestCase):
    def test_burst_and_rate(self) -> None:
        """AWS's burst but for the reserve goes at once, the others as fast as AWS takes them."""
        for _ in range(10):
            self.ask()
        self.assertEqual(self.times(), [0.0] * (5 - RESERVE))
        self.assertEqual(self.pacer.waiting(), {"RunInstances": 10 - (5 - RESERVE)})
        self.clock.pump([0.01] * 1000)
        later = [time for time in self.times() if time]
        self.assertEqual(len(later), 6)
        for number, time in enumerate(later, start=1):
            self.assertApproximates(time, number * 0.5, 0.011)
        self.assertEqual((self.pacer.waiting(), self.clock.getDelayedCalls()), ({}, []))

    def test_actions_are_apart(self) -> None:
        """One action's calls do not wait for another's."""
        self.run_out()
        self.ask("d", "DescribeInstances")
        self.ask("t", "TerminateInstances")
        self.assertEqual(self.callers(), "dt")

    def test_callers_take_turns(self) -> None:
        """However many calls one has made before, another one's call is next but one."""
        self.run_out()
        for caller in "aaaabbc":
            self.ask(caller)
        self.clock.pump([0.1] * 100)
        self.assertEqual(self.callers(), "abcabaa")

    def test_latecomer(self) -> None:
        """Who has just had a turn is behind those who wait already."""
        self.run_out()
        for caller in "ab":
            self.ask(caller)
        self.clock.pump([0.1] * 10)
        self.assertEqual(self.callers(), "a")
        self.ask("a")
        self.clock.pump([0.1] * 100)
        self.assertEqual(self.callers(), "aba")

    def test_asks_again_in_its_turn(self) -> None:
        """Who asks again from within its turn waits for another one."""
        self.run_out()
        self.ask("a").addCallback(lambda _: self.ask("a") and None)
        self.ask("b")
        self.clock.pump([0.1] * 100)
        self.assertEqual(self.callers(), "aba")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancel(self) -> None:
        """A call that is cancelled is out, wherever it stood; the others move up."""
        self.run_out()
        first, second, third, fourth = (self.ask(caller) for caller in "abcd")
        for turn in (first, third):
            turn.cancel()
            self.failureResultOf(turn, defer.CancelledError)
        self.assertEqual(self.pacer.waiting(), {"RunInstances": 2})
        self.clock.pump([0.01] * 200)
        self.assertEqual(self.callers(), "bd")
        self.successResultOf(second)
        self.successResultOf(fourth)

    def test_cancel_one_of_several(self) -> None:
        """A caller's other calls stay."""
        self.run_out()
        turns = [self.ask("a") for _ in range(3)]
        turns[1].cancel()
        self.failureResultOf(turns[1], defer.CancelledError)
        self.clock.pump([0.01] * 200)
        self.successResultOf(turns[0])
        self.successResultOf(turns[2])

    def test_cancel_the_last(self) -> None:
        """When nobody waits, there is no timer either."""
        self.run_out()
        turn = self.ask()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        turn.cancel()
        self.failureResultOf(turn, defer.CancelledError)
        self.assertEqual((self.pacer.waiting(), self.clock.getDelayedCalls()), ({}, []))

    def test_instances(self) -> None:
        """Calls about many instances wait for those, too."""
        self.ask("a", "TerminateInstances", 900)
        self.ask("b", "TerminateInstances", 300)
        self.ask("c", "TerminateInstances", 1)
        self.clock.pump([0.1] * 200)
        self.assertEqual(self.callers(), "abc")
        self.assertEqual(self.times()[0], 0.0)
        self.assertApproximates(self.times()[1], 200 / 20, 0.11)

    def test_configured(self) -> None:
        """Limits of one's own replace those of AWS, for their action."""
        self.pacer = Pacer(self.clock, {"RunInstances": Limit(21, 5)})
        for _ in range(30):
            self.ask()
        self.assertEqual(len(self.served), 20)
        for _ in range(101):
            self.ask("t", "TerminateInstances")
        self.assertEqual(self.callers().count("t"), 100 - RESERVE)

    def test_more_calls_are_more_instances(self) -> None:
        """AWS's limit of instances does not hold up who has more calls: each launches one, at least."""
        self.pacer = Pacer(self.clock, {"RunInstances": Limit(3000, 50)})
        for _ in range(3000 - RESERVE + 100):
            self.ask()
        self.assertEqual(len(self.served), 3000 - RESERVE)
        self.clock.advance(1)
        self.assertEqual(len(self.served), 3000 - RESERVE + 50)

    def test_without_a_limit_of_instances(self) -> None:
        """AWS has none for calls that only look."""
        self.pacer = Pacer(self.clock, {"DescribeInstances": Limit(11, 1)})
        for _ in range(20):
            self.ask("a", "DescribeInstances", 1000)
        self.assertEqual(len(self.served), 11 - RESERVE)

    def test_fewer_calls_are_not_fewer_instances(self) -> None:
        self.pacer = Pacer(self.clock, {"TerminateInstances": Limit(50, 1)})
        self.ask("a", "TerminateInstances", 1000)
        self.assertEqual(self.callers(), "a")
        self.ask("b", "TerminateInstances", 20)
        self.clock.advance(1)
        self.assertEqual(self.callers(), "ab")


class ThrottleTests(PacerTestCase):
    """EC2 refuses a call all the same: others use the account too."""

    def setUp(self) -> None:
        super().setUp()
        self.run_out()
        self.throttled = refusal("RequestLimitExceeded")
        for _ in range(40):
            self.ask()

    def rate(self, seconds: float = 20) -> float:
        before = len(self.served)
        self.clock.pump([0.05] * int(seconds * 20))
        return (len(self.served) - before) / seconds

    def test_halved(self) -> None:
        self.answered(self.throttled)
        self.assertApproximates(self.rate(), 2 * SLOWDOWN, 0.11)

    def test_once_for_the_calls_of_one_moment(self) -> None:
        """Calls that were sent before the last slow-down tell nothing new."""
        for _ in range(4):
            self.clock.advance(0.01)
            self.answered(self.throttled, sent_at=0.0)
        self.assertApproximates(self.rate(), 2 * SLOWDOWN, 0.11)

    def test_again(self) -> None:
        """Calls that were sent after it do."""
        for _ in range(2):
            self.clock.advance(0.01)
            self.answered(self.throttled, sent_at=self.clock.seconds())
        self.assertApproximates(self.rate(), 2 * SLOWDOWN**2, 0.11)

    def test_recovers(self) -> None:
        """With each call that EC2 takes, it is a little faster, until it is as fast as before."""
        self.answered(self.throttled)
        for _ in range(3):
            self.answered(None)
        self.assertApproximates(self.rate(10), 2 * (SLOWDOWN + 3 * RECOVERY), 0.21)
        for _ in range(30):
            self.answered(None)
        self.assertApproximates(self.rate(10), 2.0, 0.11)

    def test_recovery_moves_the_next_turn(self) -> None:
        """Who waits already profits from it."""
        self.answered(self.throttled)
        (before,) = (call.getTime() for call in self.clock.getDelayedCalls())
        self.answered(None)
        (after,) = (call.getTime() for call in self.clock.getDelayedCalls())
        self.assertLess(after, before)

    def test_other_errors(self) -> None:
        """What is no throttling changes nothing."""
        for error in (refusal("InvalidAMIID.NotFound"), NoAnswer("a bad day")):
            self.answered(error)
        self.assertApproximates(self.rate(), 2.0, 0.11)

    def test_other_actions(self) -> None:
        self.answered(self.throttled, action="DescribeInstances")
        self.assertApproximates(self.rate(), 2.0, 0.11)


class Server:
    """EC2's own bucket, as AWS describes it; written apart from the one under test."""

    def __init__(self, clock: Any, burst: float, per_second: float) -> None:
        self.clock, self.burst, self.per_second = clock, burst, per_second
        self.level, self.at, self.refused = burst, clock.seconds(), 0

    def takes(self) -> bool:
        now = self.clock.seconds()
        self.level = min(self.burst, self.level + (now - self.at) * self.per_second)
        self.at = now
        if self.level < 1:
            self.refused += 1
            return False
        self.level -= 1
        return True


class FortyLaunches(PacerTestCase):
    """40 launches in one moment, under the throttle that AWS documents; latencies vary as they do."""

    def launch_all(self, latencies: list[float], foreign: float = 0.0) -> tuple[float, int]:
        """Launch, each call repeated until EC2 takes it; seconds until all are taken, and calls refused."""
        server = Server(self.clock, 5, 2)
        done: list[float] = []

        @defer.inlineCallbacks
        def launch(number: int) -> Any:
            taken = False
            while not taken:
                yield self.pacer.admit("RunInstances", f"w{number}")
                sent_at = self.clock.seconds()
                yield task.deferLater(self.clock, latencies[number % len(latencies)])
                taken = server.takes()
                self.answered(None if taken else refusal("RequestLimitExceeded"), sent_at)
            done.append(self.clock.seconds())

        if foreign:
            loop = task.LoopingCall(server.takes)
            loop.clock = self.clock
            loop.start(foreign)
        for number in range(40):
            launch(number)
        self.clock.pump([0.01] * 10000)
        self.assertEqual(len(done), 40)
        return max(done), server.refused

    def test_alone(self) -> None:
        """All in 1.15 times what the bucket needs for them, and hardly one refused."""
        for latencies in ([0.1], [0.4, 0.02, 0.15, 0.3, 0.05], [0.3] * 5 + [0.01] * 35):
            self.setUp()
            seconds, refused = self.launch_all(latencies)
            self.assertLessEqual(seconds, 1.15 * 17.5)
            self.assertLessEqual(refused, 5)

    def test_with_others(self) -> None:
        """Somebody else takes half of what there is: all are launched, at a pace that EC2 mostly takes."""
        seconds, refused = self.launch_all([0.1], foreign=1.0)
        self.assertLess(seconds, 70)
        self.assertLess(refused, 20)
