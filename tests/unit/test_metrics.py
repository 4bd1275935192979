"""How many calls were made, how long they took, and how they failed."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.ec2.errors import NoAnswer
from buildbot_ec2ud.ec2.query import Attempt
from buildbot_ec2ud.fleet.metrics import BOUNDS, Metrics
from tests.unit.fleets import refusal


class MetricsTests(SynchronousTestCase):
    def test_nothing(self) -> None:
        self.assertEqual(Metrics().as_dict(), {})

    def test_counts(self) -> None:
        """Calls, latencies and classes of errors, by action; in types that JSON knows."""
        metrics = Metrics()
        for action, waited, seconds, error in (
            ("RunInstances", 0.0, 0.1, None),
            ("RunInstances", 4.0, 0.2, refusal("RequestLimitExceeded")),
            ("RunInstances", 0.0, 0.2, refusal("SlowDown")),
            ("RunInstances", 0.0, 30.0, NoAnswer("a bad day")),
            ("DescribeInstances", 0.0, 2.0, None),
        ):
            metrics.answered(Attempt(action, 100.0, waited, seconds, error))
        found = metrics.as_dict()
        self.assertEqual(json.loads(json.dumps(found)), found)
        self.assertEqual(set(found), {"RunInstances", "DescribeInstances"})
        run = found["RunInstances"]
        self.assertEqual(run["calls"], 4)
        self.assertEqual(
            {kind: (seconds["count"], seconds["total"]) for kind, seconds in run["errors"].items()},
            {"throttled": (2, 0.4), "server_fault": (1, 30.0)},
        )
        self.assertEqual((run["seconds"]["total"], run["seconds"]["longest"]), (30.5, 30.0))
        self.assertEqual(run["seconds"]["up_to"], {"0.1": 1, "0.3": 2, "1.0": 0, "3.0": 0, "10.0": 0, "more": 1})
        self.assertEqual((run["waited"]["total"], run["waited"]["longest"]), (4.0, 4.0))
        self.assertEqual(found["DescribeInstances"]["seconds"]["up_to"]["3.0"], 1)
        self.assertEqual(sum(run["seconds"]["up_to"].values()), run["calls"])
        self.assertEqual([*run["seconds"]["up_to"]], [*map(str, BOUNDS), "more"])

    def test_cancelled(self) -> None:
        """A call that nobody waited for any more is no fault of the server's."""
        metrics = Metrics()
        metrics.answered(Attempt("RunInstances", 0.0, 0.0, 5.0, NoAnswer("cancelled"), cancelled=True))
        self.assertEqual([*metrics.as_dict()["RunInstances"]["errors"]], ["cancelled"])
