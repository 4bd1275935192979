"""Which calls and instances the faults of the embedded EC2 hit."""

from __future__ import annotations

import math
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.embedded import Faults, _moto
from buildbot_ec2ud.fleet.pacing import INSTANCES, request_limit
from tests.unit.demands import demand

REGION = "us-east-1"


class Calls(SynchronousTestCase):
    def hit(
        self, faults: Faults, *actions: str, now: float = 0.0, region: str = REGION, **parameters: str
    ) -> list[str]:
        """What hits calls of *actions*, one after the other; empty for nothing."""
        kinds = [faults.strike(action, parameters, region, now) for action in actions]
        return ["" if kind is None else kind.name for kind in kinds]


class Adding(Calls):
    def test_nothing(self):
        """Nothing goes wrong unless it is asked for, however many calls there are."""
        faults = Faults()
        self.assertEqual(set(self.hit(faults, *["RunInstances"] * 1000)), {""})
        self.assertEqual((faults.hits, faults.waiting), ({}, []))

    def test_once(self):
        """By default one call is hit, of whatever action."""
        faults = Faults()
        faults.add("reset")
        self.assertEqual(self.hit(faults, "DescribeImages", "RunInstances"), ["reset", ""])
        self.assertEqual((faults.hits, faults.waiting), ({"reset": 1}, []))

    def test_action_and_count(self):
        """Calls of other actions are not hit, and do not count."""
        faults = Faults()
        faults.add("html", "RunInstances", 2)
        calls = ["DescribeInstances", "RunInstances", "TerminateInstances", "RunInstances", "RunInstances"]
        self.assertEqual(self.hit(faults, calls[0], calls[1]), ["", "html"])
        self.assertEqual(faults.waiting, [("html", "RunInstances", 1)])
        self.assertEqual(self.hit(faults, *calls[2:]), ["", "html", ""])
        self.assertEqual(faults.hits, {"html": 2})

    def test_order(self):
        """A call is hit once, by what was added first; the rest waits for the next."""
        faults = Faults().add("html", "RunInstances").add("reset", count=2).add("truncated", "RunInstances")
        self.assertEqual(
            self.hit(faults, "DescribeInstances", "RunInstances", "RunInstances", "RunInstances", "RunInstances"),
            ["reset", "html", "reset", "truncated", ""],
        )

    def test_while_it_runs(self):
        faults = Faults()
        self.assertEqual(self.hit(faults, "RunInstances"), [""])
        faults.add("reset", count=3)
        self.assertEqual(self.hit(faults, "RunInstances"), ["reset"])
        faults.clear()
        self.assertEqual(faults.waiting, [])
        self.assertEqual(self.hit(faults, "RunInstances"), [""])
        self.assertEqual(faults.hits, {"reset": 1})

    def test_mistakes(self):
        faults = Faults()
        for arguments, words in (
            (("lost-replies",), "'lost-replies'; did you mean lost-reply?"),
            (("",), "known are throttled, "),
            (("reset", "runinstances"), "unknown action 'runinstances'; did you mean RunInstances?"),
            (("reset", "RunInstances", 0), "reset is to hit 0 calls"),
            (("reset", "", -1), "-1"),
        ):
            self.assertIn(words, str(self.assertRaises(ValueError, faults.add, *arguments)))
        self.assertEqual(faults.waiting, [])
        for name in ("latency", "visible_after", "pending", "shutting_down", "vanish_after", "notice"):
            for seconds in (-1, math.inf, math.nan):
                self.assertIn(name, str(self.assertRaises(ValueError, Faults, **{name: seconds})))


class OfInstances(SynchronousTestCase):
    """Faults that hit instances, not calls."""

    def test_launch_failures(self):
        faults = Faults().fail_launches("Server.InternalError", 2)
        faults.fail_launches("Server.InternalError", message="Client.VolumeLimitExceeded: Volume limit exceeded")
        reasons = [faults.take_launch_failure() for _ in range(4)]
        self.assertEqual(
            [reason and (reason.code, reason.message) for reason in reasons],
            [
                *[("Server.InternalError", "Server.InternalError: Internal error on launch")] * 2,
                ("Server.InternalError", "Client.VolumeLimitExceeded: Volume limit exceeded"),
                None,
            ],
        )
        self.assertEqual(faults.hits, {"launch-failure": 3})

    def test_interruptions(self):
        faults = Faults().interrupt(5, 2).interrupt(0.5)
        self.assertEqual([faults.take_interruption() for _ in range(4)], [5, 5, 0.5, None])
        self.assertEqual(faults.hits, {"interruption": 3})

    def test_waiting(self):
        """They stand beside those of calls, and go with them; the settings stay."""
        faults = Faults(pending=3.0).add("reset").interrupt(2.5, 3).fail_launches("Client.InternalError", 2)
        faults.capacity.quota("spot", 0)
        faults.take_interruption()
        self.assertEqual(
            faults.waiting,
            [("reset", "", 1), ("launch-failure", "Client.InternalError", 2), ("interruption", "2.5", 2)],
        )
        faults.clear()
        self.assertEqual((faults.waiting, faults.take_launch_failure(), faults.take_interruption()), ([], None, None))
        self.assertEqual(faults.pending, 3.0)
        self.assertRaises(_moto.EC2Error, faults.capacity.place, demand("t3.micro", "us-east-1a", "spot"), [])

    def test_mistakes(self):
        faults = Faults()
        for wrong, words in (
            (lambda: faults.fail_launches("Server.InternalErr"), "did you mean Server.InternalError?"),
            (lambda: faults.fail_launches("zzz"), "known are Server.InternalError, Server.Insuff"),
            (lambda: faults.fail_launches("Client.InternalError", 0), "launch-failure is to hit 0 instances"),
            (lambda: faults.interrupt(-1), "interruption: not seconds: -1"),
            (lambda: faults.interrupt(math.nan), "interruption: not seconds"),
            (lambda: faults.interrupt(1, -1), "interruption is to hit -1 instances"),
        ):
            self.assertIn(words, str(self.assertRaises(ValueError, wrong)))
        self.assertEqual(faults.waiting, [])
        self.assertEqual(faults.fail_launches("Server.New", message="Server.New: news").waiting[0][1], "Server.New")


class Throttling(Calls):
    """``throttle``: the buckets are those that the fleet paces itself by."""

    def taken(self, faults: Faults, calls: int, **more: Any) -> int:
        return self.hit(faults, *[more.pop("action", "RunInstances")] * calls, **more).count("")

    def test_calls(self):
        """As many calls at once as EC2 documents, and as many in each second after."""
        for action in ("RunInstances", "DescribeInstances", "DescribeRegions", "StopInstances"):
            limit = request_limit(action)
            faults = Faults(throttle=True)
            tried = int(limit.burst) + 10
            self.assertEqual(self.taken(faults, tried, action=action), limit.burst, action)
            self.assertEqual(faults.hits, {"throttled": 10})
            self.assertEqual(self.taken(faults, tried, action=action, now=1.0), limit.per_second, action)
            self.assertEqual(self.taken(faults, tried, action=action, now=1000.0), limit.burst, action)

    def test_apart(self):
        """Each action and each region has buckets of its own."""
        faults = Faults(throttle=True)
        self.assertEqual(self.taken(faults, 100), 5)
        self.assertEqual(self.taken(faults, 1), 0)
        self.assertEqual(self.taken(faults, 1, action="TerminateInstances"), 1)
        self.assertEqual(self.taken(faults, 100, region="eu-central-1"), 5)

    def test_instances(self):
        """Calls take as many tokens of the other bucket as they have instances."""
        burst, speed = INSTANCES["RunInstances"].burst, INSTANCES["RunInstances"].per_second
        faults = Faults(throttle=True)
        self.assertEqual(self.taken(faults, 1, MaxCount=str(int(burst) + 1)), 0)
        self.assertEqual(self.taken(faults, 1, MinCount="1", MaxCount=str(int(burst))), 1)
        self.assertEqual(self.taken(faults, 1), 0)
        self.assertEqual(self.taken(faults, 1, now=10.0, MaxCount=str(int(10 * speed) + 1)), 0)
        self.assertEqual(self.taken(faults, 1, now=10.0, MaxCount=str(int(10 * speed))), 1)

    def test_instances_by_id(self):
        most = int(INSTANCES["TerminateInstances"].burst)
        faults = Faults(throttle=True)
        ids = {f"InstanceId.{number}": f"i-{number}" for number in range(1, most + 2)}
        self.assertEqual(self.taken(faults, 1, action="TerminateInstances", **ids), 0)
        del ids["InstanceId.1"]
        self.assertEqual(self.taken(faults, 1, action="TerminateInstances", **ids), 1)
        self.assertEqual(self.taken(faults, 1, action="TerminateInstances", **{"InstanceId.1": "i-1"}), 0)

    def test_nonsense(self):
        """A count that is none is for moto to refuse."""
        for count in ("", "many", "-1", "²", "1.5"):
            self.assertEqual(self.taken(Faults(throttle=True), 1, MaxCount=count), 1)

    def test_with_other_faults(self):
        """A call that another fault hits has taken its token; one that EC2 would refuse is hit all the same."""
        faults = Faults(throttle=True).add("lost-reply", "RunInstances", 5)
        self.assertEqual(self.hit(faults, *["RunInstances"] * 6), ["lost-reply"] * 5 + ["throttled"])
        faults.add("reset")
        self.assertEqual(self.hit(faults, *["RunInstances"] * 2), ["reset", "throttled"])
        self.assertEqual(faults.hits, {"lost-reply": 5, "throttled": 2, "reset": 1})

    def test_while_it_runs(self):
        faults = Faults()
        self.assertEqual(self.taken(faults, 100), 100)
        faults.throttle = True
        self.assertEqual(self.taken(faults, 100), 5)
        faults.throttle = False
        self.assertEqual(self.taken(faults, 100), 100)
