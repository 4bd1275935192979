"""Many starts that are asked for in one moment: each has its turn, and what comes in between harms none of them."""

from __future__ import annotations

from typing import Any

from buildbot.interfaces import LatentWorkerSubstantiatiationCancelled
from twisted.internet import defer, reactor, task

from buildbot_ec2ud import preparation
from buildbot_ec2ud.bootstrapping import make_user_data
from tests.integration.launching import LaunchTestCase


class OneMoment(LaunchTestCase):
    """The user-data of all of them is not made in one go, which would hold up the master."""

    @defer.inlineCallbacks
    def farm(self, **arguments: Any) -> Any:
        """A master with four workers; who of them has got its user-data is noted in *made*."""
        self.start_ec2()
        self.made: list[str] = []

        def note(settings: Any, name: str, *more: Any) -> bytes:
            self.made.append(name)
            return make_user_data(settings, name, *more)

        self.patch(preparation, "make_user_data", note)
        self.workers = [self.worker(f"w{number}", **arguments) for number in range(4)]
        yield self.start_farm(*self.workers)
        self.rented_by = self.workers[0].fleet

    def start(self) -> list[defer.Deferred[Any]]:
        return [worker.start_instance(None) for worker in self.workers]

    @defer.inlineCallbacks
    def test_turns(self) -> Any:
        yield self.farm()
        starts = self.start()
        self.assertEqual(self.made, ["w0"])
        yield defer.gatherResults(starts)
        self.assertEqual(self.made, ["w0", "w1", "w2", "w3"])
        self.assertEqual(len(self.ec2.alive()), 4)

    @defer.inlineCallbacks
    def test_that_wait_for_the_same(self) -> Any:
        """What they all wait for, such as this machine's name, comes before the turn."""
        yield self.farm(bb_master=None)
        name: defer.Deferred[str] = defer.Deferred()
        self.patch(self.rented_by, "_hostname", name)
        starts = self.start()
        yield task.deferLater(reactor, 0.1)  # a turn would be over
        self.assertEqual(self.made, [])
        name.callback("master.example.org")
        self.assertEqual(self.made, ["w0"])
        yield defer.gatherResults(starts)
        self.assertEqual(len(self.ec2.alive()), 4)

    @defer.inlineCallbacks
    def test_cancelled(self) -> Any:
        """Who is cancelled before its turn asks EC2 for nothing, and leaves nothing behind."""
        yield self.farm()
        first, second, *others = self.start()
        second.cancel()
        yield self.assertFailure(second, LatentWorkerSubstantiatiationCancelled)
        yield defer.gatherResults([first, *others])
        self.assertEqual(self.made, ["w0", "w2", "w3"])
        self.assertEqual(len(self.calls("RunInstances")), 3)
        followed = {worker.lifeline.launch_id for worker in self.workers if worker.rental is not None}
        self.assertEqual(set(self.rented_by._followed), followed)

    @defer.inlineCallbacks
    def test_reconfig(self) -> Any:
        """A start that began in one fleet ends there, whatever a reconfig brings while it waits."""
        yield self.farm()
        starts = self.start()
        for worker in self.workers:
            worker.fleet = None
        yield defer.gatherResults(starts)
        self.assertEqual({worker.rental.fleet for worker in self.workers}, {self.rented_by})
        states = {worker.lifeline.record.state for worker in self.workers}
        self.assertLessEqual(states, {"pending", "running"})
