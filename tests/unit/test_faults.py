"""Which calls the faults of the embedded EC2 hit, and how they are written."""

from __future__ import annotations

import math
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.embedded import Faults
from buildbot_ec2ud.embedded.faults import SETTINGS, describe
from buildbot_ec2ud.embedded.kinds import KINDS
from buildbot_ec2ud.fleet.pacing import INSTANCES, request_limit

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
        for name in ("latency", "visible_after"):
            for seconds in (-1, math.inf, math.nan):
                self.assertIn(name, str(self.assertRaises(ValueError, Faults, **{name: seconds})))


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


class Text(SynchronousTestCase):
    """``Faults.parse``."""

    def test_all(self):
        faults = Faults.parse(
            "throttle, lost-reply:RunInstances,html:DescribeInstances*3,reset*2,visible-after=5,latency=0.25,hang-body"
        )
        self.assertEqual((faults.throttle, faults.visible_after, faults.latency), (True, 5.0, 0.25))
        self.assertEqual(
            faults.waiting,
            [
                ("lost-reply", "RunInstances", 1),
                ("html", "DescribeInstances", 3),
                ("reset", "", 2),
                ("hang-body", "", 1),
            ],
        )

    def test_each_kind(self):
        for name in KINDS:
            faults = Faults.parse(f"{name}:RunInstances*7")
            self.assertEqual(faults.waiting, [(name, "RunInstances", 7)])
            self.assertEqual((faults.throttle, faults.visible_after, faults.latency), (False, 0.0, 0.0))

    def test_described(self):
        """What is described is what is understood, all of it."""
        lines = [line.split()[0] for line in describe().splitlines() if line.startswith("  ")]
        self.assertEqual(lines, [*KINDS, *SETTINGS])
        for name in lines:
            Faults.parse(name.replace("SECONDS", "1.5"))
        self.assertLessEqual(max(map(len, describe().splitlines())), 79)

    def test_mistakes(self):
        for text, words in (
            ("", "an empty part in ''"),
            ("reset,,html", "an empty part in 'reset,,html'"),
            ("reset,", "an empty part"),
            ("htlm", "unknown kind of fault 'htlm'; did you mean html?"),
            ("Reset", "did you mean reset?"),
            ("zzz", "known are throttled, server-fault, "),
            ("zzz", "throttle, visible-after=SECONDS, latency=SECONDS"),
            ("throttle:RunInstances", "unknown kind of fault 'throttle'; did you mean throttled?"),
            ("reset:", "no action after the colon in 'reset:'"),
            ("reset:*2", "no action after the colon in 'reset:*2'"),
            ("reset:RunInstance", "unknown action 'RunInstance'; did you mean RunInstances?"),
            ("reset:RunInstances:2", "unknown action 'RunInstances:2'"),
            ("reset:zzz", "unknown action 'zzz'"),
            ("reset*", "not a count of calls in 'reset*': ''"),
            ("reset*two", "not a count of calls in 'reset*two': 'two'"),
            ("reset*-1", "not a count of calls"),
            ("reset*1.5", "not a count of calls"),
            ("reset*²", "not a count of calls"),
            ("reset*2:RunInstances", "not a count of calls in 'reset*2:RunInstances'"),
            ("reset*0", "reset is to hit 0 calls"),
            ("throttle=1", "throttle has no value: 'throttle=1'"),
            ("latency", "not latency=SECONDS: 'latency'"),
            ("latency=", "not latency=SECONDS: 'latency='"),
            ("latency=1s", "not latency=SECONDS: 'latency=1s'"),
            ("latency=-1", "not latency=SECONDS: 'latency=-1'"),
            ("latency=nan", "not latency=SECONDS"),
            ("visible-after=inf", "not visible-after=SECONDS: 'visible-after=inf'"),
            ("visible_after=5", "unknown setting 'visible_after'; did you mean visible-after?"),
            ("zzz=1", "unknown setting 'zzz'; known are throttle, visible-after=SECONDS, latency=SECONDS"),
            ("reset=2", "only settings have a value: 'reset=2'"),
            ("reset:RunInstances=2", "only settings have a value"),
            ("latency=1,reset,latency=2", "latency is given twice"),
            ("throttle,throttle", "throttle is given twice"),
        ):
            self.assertIn(words, str(self.assertRaises(ValueError, Faults.parse, text)))
