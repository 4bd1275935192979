"""How instances of the embedded EC2 end against their will, as boto3 and they themselves see it."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet import defer, reactor

from buildbot_ec2ud.embedded import Faults
from tests.integration.faulty import LAUNCH, FaultTestCase

SPOT = {"InstanceMarketOptions": {"MarketType": "spot"}}
#: Waits for the notice, as an agent does, and for what follows.
WATCH = r"""#!/bin/sh
trap 'echo terminated; exit' TERM
ask() {
    python3 -c 'import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())' "$1" 2>/dev/null
}
echo ready
until notice=$(ask "$EC2UD_METADATA_URL/latest/meta-data/spot/instance-action"); do sleep 0.05; done
echo "notice $notice"
while :; do sleep 0.02; done
"""


class Launches(FaultTestCase):
    @defer.inlineCallbacks
    def test_failure(self):
        """Accepted, pending, and gone: with the reason, and without having run."""
        self.start_ec2(faults=Faults.parse("launch-failure=Client.VolumeLimitExceeded"))
        instance_id = yield self.launch("#!/bin/sh\necho never\n")
        yield self.until_state(instance_id, "terminated")
        found = yield self.describe(instance_id)
        message = "Client.VolumeLimitExceeded: Volume limit exceeded"
        self.assertEqual(found["StateReason"], {"Code": "Client.VolumeLimitExceeded", "Message": message})
        self.assertEqual(found["StateTransitionReason"], message)
        self.assertEqual(self.kinds(), ["pending", "fault", "shutting-down", "terminated"])
        self.assertFalse(self.directory.exists())
        second = yield self.launch()
        yield self.until_state(second, "running")

    @defer.inlineCallbacks
    def test_some_of_many(self):
        self.start_ec2(faults=Faults().fail_launches("Server.InternalError", 2))
        yield self.ask("run_instances", **{**LAUNCH, "MaxCount": 3})
        yield self.until(lambda: sorted(self.ec2.states().values()) == ["running", "terminated", "terminated"])
        self.assertEqual(self.ec2.faults.hits, {"launch-failure": 2})


class Interruptions(FaultTestCase):
    @defer.inlineCallbacks
    def test_notice(self):
        """The instance reads the notice in its metadata, and later gets SIGTERM; EC2 says why it is gone."""
        self.start_ec2()
        passes: defer.Deferred[None] = defer.Deferred()
        wait = self.ec2._instances._wait
        self.patch(self.ec2._instances, "_wait", lambda seconds: passes if seconds == 120.0 else wait(seconds))
        instance_id = yield self.launch(WATCH, **SPOT)
        yield self.until_printed(instance_id, "ready")
        self.ec2.interrupt(instance_id, advice=0.0)
        yield self.until_printed(instance_id, "notice {")
        self.assertEqual(self.ec2.states(), {instance_id: "running"})
        passes.callback(None)
        notice = json.loads(self.ec2.console(instance_id).decode().partition("notice ")[2].splitlines()[0])
        self.assertEqual(notice["action"], "terminate")
        self.assertRegex(notice["time"], "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z$")
        yield self.until_printed(instance_id, "terminated\n")
        yield self.until_state(instance_id, "terminated")
        found = yield self.describe(instance_id)
        self.assertEqual(
            found["StateReason"],
            {
                "Code": "Server.SpotInstanceTermination",
                "Message": "Server.SpotInstanceTermination: Spot instance termination",
            },
        )
        self.assertRegex(
            found["StateTransitionReason"], r"^Service initiated \([0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8} GMT\)$"
        )
        self.assertEqual(
            self.kinds(),
            [
                "pending",
                "running",
                "user-data started",
                "rebalance recommendation",
                "interruption notice",
                "shutting-down",
                "terminated",
            ],
        )

    @defer.inlineCallbacks
    def test_fault(self):
        """As one writes it: the first spot instance, so long after it runs."""
        self.start_ec2(faults=Faults.parse("interruption=0.1,notice=0.1"))
        on_demand = yield self.launch()
        yield self.until_state(on_demand, "running")
        spot = yield self.launch(**SPOT)
        yield self.until_state(spot, "terminated")
        self.assertEqual(self.ec2.states()[on_demand], "running")
        self.assertIn(("fault", f"interruption of {spot}"), self.happened)
        self.assertIn(("interruption notice", "0.1 s ahead"), self.happened)

    @defer.inlineCallbacks
    def test_refused(self):
        self.start_ec2()
        spot, on_demand, ended = yield defer.gatherResults([self.launch(**more) for more in (SPOT, {}, SPOT)])
        yield self.call("terminate_instances", InstanceIds=[ended])
        for wrong, words in (
            (lambda: self.ec2.interrupt("i-0"), "no such instance is pending or running: i-0"),
            (lambda: self.ec2.interrupt(ended), "no such instance is pending or running"),
            (lambda: self.ec2.interrupt(on_demand), f"not a spot instance: {on_demand}"),
            (lambda: self.ec2.interrupt(spot, -1), "notice: not seconds: -1"),
            (lambda: self.ec2.interrupt(spot, advice=float("inf")), "advice: not seconds: inf"),
        ):
            self.assertIn(words, str(self.assertRaises(ValueError, wrong)))
        self.assertNotIn("interruption notice", self.kinds())

    @defer.inlineCallbacks
    def test_stop(self):
        """An EC2 that is stopped leaves no timer of an interruption, nor of what is to be forgotten."""
        self.start_ec2(faults=Faults(vanish_after=5000.0).interrupt(3000.0, 9))
        first, second, third = yield defer.gatherResults([self.launch(**SPOT) for _ in range(3)])
        yield self.until(lambda: self.kinds().count("running") == 3)
        self.ec2.interrupt(first, 2000.0)
        self.ec2.interrupt(second, 2000.0, 2000.0)
        yield self.call("terminate_instances", InstanceIds=[third])
        yield self.until_state(third, "terminated")
        yield self.ec2.stop()
        self.assertEqual([call for call in reactor.getDelayedCalls() if call.getTime() > reactor.seconds() + 500], [])


class Slow(FaultTestCase):
    @defer.inlineCallbacks
    def test_pending_and_shutting_down(self):
        """Accepted is not done: the instance is long in between."""
        self.start_ec2(faults=Faults.parse("pending=1000,shutting-down=1000"))
        instance_id = yield self.launch()
        found = yield self.describe(instance_id)
        self.assertEqual(found["State"]["Name"], "pending")
        for _ in range(2):
            answer = yield self.ask("terminate_instances", InstanceIds=[instance_id])
            (change,) = answer["TerminatingInstances"]
            self.assertEqual(change["CurrentState"]["Name"], "shutting-down")
            found = yield self.describe(instance_id)
            self.assertEqual(found["State"]["Name"], "shutting-down")

    @defer.inlineCallbacks
    def test_vanishes(self):
        """What is long terminated is not found: as if it had never been."""
        self.start_ec2(faults=Faults.parse("vanish-after=0"))
        kept = yield self.launch()
        gone = yield self.launch()
        yield self.ask("terminate_instances", InstanceIds=[gone])
        yield self.until(lambda: list(self.ec2.states()) == [kept])
        for action in ("describe_instances", "terminate_instances"):
            yield self.refused("InvalidInstanceID.NotFound", 400, action, InstanceIds=[gone])
        answer: Any = yield self.ask("describe_instances")
        found = [instance["InstanceId"] for each in answer["Reservations"] for instance in each["Instances"]]
        self.assertEqual(found, [kept])
        self.assertEqual(self.ec2.console(gone), b"")
