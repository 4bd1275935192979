"""The calls of a fleet to an EC2 that has bad days: each is survived, with one instance and not two."""

from __future__ import annotations

import copy
import os
from typing import Any

from buildbot.util.service import MasterService
from twisted.internet import defer, reactor

from buildbot_ec2ud.ec2 import query
from buildbot_ec2ud.ec2.errors import EC2CallError, ErrorClass
from buildbot_ec2ud.embedded import Faults
from buildbot_ec2ud.embedded.kinds import KINDS
from buildbot_ec2ud.fleet import background, region, watcher
from buildbot_ec2ud.fleet.masters import NOBODY, Masters
from buildbot_ec2ud.fleet.offer import LAUNCH_TAG, Offer
from buildbot_ec2ud.fleet.pacing import Limit
from buildbot_ec2ud.fleet.region import Fleet
from tests.integration.instances import InstanceTestCase

#: The kinds of faults after which a call is attempted again.
PASSING = set(KINDS) - {"wrong-date", "unauthorized"}


class CallsTestCase(InstanceTestCase):
    """A fleet without a master, on the embedded EC2."""

    @defer.inlineCallbacks
    def start_fleet(self, faults: Faults | None = None, *, call_timeout: float = 30.0, **arguments: Any) -> Any:
        self.patch(query, "CALL_TIMEOUT", call_timeout)
        self.patch(query, "LONGEST_BACKOFF", 0.2)
        self.patch(background, "FIRST_PAUSE", 0.1)
        self.patch(watcher, "FIRST_LOOK", 0.1)
        self.patch(Masters, "others", lambda *_: defer.succeed(NOBODY))  # there is no database
        self.start_ec2()
        master = MasterService()
        master.reactor = reactor
        master.name = "master.example.org:/farm"
        yield master.startService()
        self.addCleanup(master.stopService)
        arguments = {"access_key": self.ec2.access_key, "secret_key": self.ec2.secret_key, **arguments}
        url = arguments.pop("url", self.ec2.endpoint_url)
        self.fleet = yield Fleet.getService(master, self.ec2.region, url, **arguments)
        yield self.until(lambda: self.fleet.metrics.as_dict(), what="the look for leftovers")
        self.ec2.faults = faults or Faults()

    def launch(self, worker: str = "w") -> defer.Deferred[Any]:  # type: ignore[override]
        tags = [{"ResourceType": "instance", "Tags": [{"Key": LAUNCH_TAG, "Value": f"launch of {worker}"}]}]
        parameters = {"ImageId": "ami-embedded", "MinCount": 1, "MaxCount": 1, "TagSpecifications": tags}
        return self.fleet.launch(
            worker,
            f"launch of {worker}",
            [Offer("t3.micro", None, "on-demand", {**parameters, "InstanceType": "t3.micro"})],
        )

    @defer.inlineCallbacks
    def ids(self) -> Any:
        """The instances that boto3 sees, whatever their state."""
        answer = yield self.call("describe_instances")
        return [instance["InstanceId"] for item in answer["Reservations"] for instance in item["Instances"]]

    def errors(self, action: str) -> dict[str, int]:
        errors = self.fleet.metrics.as_dict()[action]["errors"]
        return {kind: seconds["count"] for kind, seconds in errors.items()}


class BadDays(CallsTestCase):
    @defer.inlineCallbacks
    def survived(self, kind: str, action: str) -> Any:
        """A life of an instance in which *action* is hit by *kind*: one instance, which ends."""
        # What hangs is waited for; whatever does not hang may take its time.
        yield self.start_fleet(Faults().add(kind, action), call_timeout=2.0 if kind.startswith("hang") else 30.0)
        rental = yield self.launch()
        yield self.until(lambda: rental.state == "running", what="running")
        yield self.fleet.terminate(rental)
        yield self.until(lambda: not self.fleet.rentals, what="the end")
        self.assertEqual(self.ec2.alive(), [])
        self.assertEqual(self.ec2.faults.hits, {kind: 1})
        self.assertEqual(self.errors(action), {"throttled" if kind == "throttled" else "server_fault": 1})
        self.assertEqual(self.fleet.metrics.as_dict()[action]["calls"], self.ec2.calls[action])
        self.assertEqual((yield self.ids()), [rental.instance_id])


def _add_tests() -> None:
    """One test for each fault of each call."""

    def add(kind: str, action: str) -> None:
        def test(self: BadDays) -> Any:
            return self.survived(kind, action)

        test.__doc__ = f"{action}: {kind}."
        name = f"test_{kind.replace('-', '_')}_{action}"
        test.__name__ = name
        setattr(BadDays, name, test)

    for kind in sorted(PASSING):
        for action in ("RunInstances", "DescribeInstances", "TerminateInstances"):
            add(kind, action)


_add_tests()


class WorseDays(CallsTestCase):
    @defer.inlineCallbacks
    def test_burst(self):
        """EC2 throttles many times in a row: one instance, in the end."""
        yield self.start_fleet(Faults().add("throttled", "RunInstances", 5), limits={"RunInstances": Limit(50, 50)})
        rental = yield self.launch()
        self.assertEqual((yield self.ids()), [rental.instance_id])
        self.assertEqual(self.errors("RunInstances"), {"throttled": 5})

    @defer.inlineCallbacks
    def test_one_after_the_other(self):
        """However many faults hit one launch, it is one launch."""
        faults = Faults()
        for kind in sorted(PASSING):
            faults.add(kind, "RunInstances")
        yield self.start_fleet(faults, call_timeout=3.0, limits={"RunInstances": Limit(50, 50)})
        rental = yield self.launch()
        self.assertEqual((yield self.ids()), [rental.instance_id])
        self.assertEqual(self.ec2.calls["RunInstances"], len(PASSING) + 1)

    @defer.inlineCallbacks
    def test_never(self):
        """A launch that is never answered fails; its instance, of which there is one, is found by its tag and ended."""
        self.patch(query, "PATIENCE", 1.0)
        yield self.start_fleet(Faults().add("lost-reply", "RunInstances", 1000))
        failure = yield self.assertFailure(self.launch(), EC2CallError)
        self.assertTrue(failure.outcome_unknown)
        self.assertRegex(str(failure), r"RunInstances: http://127.0.0.1:.*\(tried [0-9]+ times in [0-9] s\)")
        self.assertEqual(len((yield self.ids())), 1)
        yield self.until_gone()

    @defer.inlineCallbacks
    def test_wrong_date(self):
        """Where the clocks disagree, that is what is said, and no other keys are looked for."""
        yield self.start_fleet(Faults().add("wrong-date", "RunInstances"))
        failure = yield self.assertFailure(self.launch(), EC2CallError)
        self.assertIs(failure.error_class, ErrorClass.CLOCK)
        self.assertIn("this machine's clock is 20 min behind EC2's: set it (RequestExpired: ", str(failure))
        self.assertEqual(self.errors("RunInstances"), {"clock": 1})

    @defer.inlineCallbacks
    def test_delayed_visibility(self):
        """An instance that EC2 does not know yet is not taken for gone, and is ended as soon as EC2 knows it."""
        yield self.start_fleet(Faults(visible_after=1000.0))
        rental = yield self.launch()
        ending = self.fleet.terminate(rental)
        yield self.until(lambda: self.ec2.calls["TerminateInstances"] > 1, what="a second call")
        self.ec2.faults.visible_after = 0.0
        yield ending
        self.assertEqual(
            self.errors("TerminateInstances"), {"not_visible_yet": self.ec2.calls["TerminateInstances"] - 1}
        )
        yield self.until(lambda: not self.fleet.rentals, what="the end")
        self.assertEqual(self.ec2.alive(), [])

    @defer.inlineCallbacks
    def test_one_unknown_among_many(self):
        """An instance that EC2 does not know keeps neither the look nor the end of the others from coming."""
        self.patch(region, "STOP_TIMEOUT", 0.2)
        yield self.start_fleet()
        rentals = yield defer.gatherResults([self.launch(f"w{number}") for number in range(4)])
        ghost = copy.copy(rentals[0].instance)
        ghost.instance_id = "i-00000000000000000"
        unknown = self.fleet.rent("ghost", ghost)
        yield self.until(lambda: all(rental.state == "running" for rental in rentals), what="four that run")
        *ending, without_end = [self.fleet.terminate(rental) for rental in (*rentals, unknown)]
        yield defer.gatherResults(ending)
        self.assertNoResult(without_end)

    @defer.inlineCallbacks
    def test_slows_down(self):
        """After EC2 has throttled a call, the next one waits for its turn."""
        yield self.start_fleet(Faults().add("throttled", "RunInstances"), limits={"RunInstances": Limit(5, 1)})
        yield self.launch()
        self.assertGreater(self.waited("RunInstances"), 0.5)

    @defer.inlineCallbacks
    def test_limits(self):
        """With limits of one's own, calls wait as those ask for."""
        yield self.start_fleet(limits={"RunInstances": Limit(2, 0.5)})
        yield defer.gatherResults([self.launch("w1"), self.launch("w2")])
        self.assertGreater(self.waited("RunInstances"), 1.5)

    def waited(self, action: str) -> float:
        """How long a call has waited for its turn, at most."""
        return self.fleet.metrics.as_dict()[action]["waited"]["longest"]

    @defer.inlineCallbacks
    def test_merged(self):
        """Ten ends of one moment are one call; ten instances are one look."""
        yield self.start_fleet()
        rentals = yield defer.gatherResults([self.launch(f"w{number}") for number in range(5)])
        yield defer.gatherResults([self.fleet.terminate(rental) for rental in rentals])
        self.assertEqual(self.ec2.calls["TerminateInstances"], 1)
        yield self.until(lambda: not self.fleet.rentals, what="the end")

    @defer.inlineCallbacks
    def test_cancelled_in_the_queue(self):
        """A launch that waits for its turn and is cancelled is never made."""
        yield self.start_fleet()
        launches = [self.launch(f"w{number}") for number in range(8)]
        for launch in launches[4:]:
            launch.cancel()
            self.failureResultOf(launch, defer.CancelledError)
        yield defer.gatherResults(launches[:4])
        yield self.launch("another")
        self.assertEqual((len((yield self.ids())), self.ec2.calls["RunInstances"]), (5, 5))


class Threads(CallsTestCase):
    @defer.inlineCallbacks
    def test_without_the_reactors_pool(self):
        """No part of a call needs the reactor's threads: neither the keys, nor the name of the endpoint."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        self.patch(os, "environ", {**kept, "AWS_ACCESS_KEY_ID": "chain", "AWS_SECRET_ACCESS_KEY": "chain"})
        self.start_ec2()
        url = self.ec2.endpoint_url.replace("127.0.0.1", "localhost")
        yield self.ec2.stop()
        port = int(url.rpartition(":")[2])
        self.patch(type(self), "start_ec2", lambda case, **more: InstanceTestCase.start_ec2(case, port=port, **more))

        def unusable(*_: Any, **__: Any) -> None:
            raise AssertionError("the reactor's thread pool is Buildbot's")

        yield self.start_fleet(access_key=None, secret_key=None, url=url)
        with_pool = reactor.getThreadPool
        reactor.getThreadPool = unusable
        try:
            rental = yield self.launch()
            yield self.until(lambda: rental.state == "running", what="running")
            yield self.fleet.terminate(rental)
            yield self.until(lambda: not self.fleet.rentals, what="the end")
        finally:
            reactor.getThreadPool = with_pool
