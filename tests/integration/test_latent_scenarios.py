"""Buildbot's scenarios for latent workers: how starts end.

``test_latent_scenarios_table.py`` tells which of Buildbot's own tests each is.
"""

from __future__ import annotations

from typing import Any

from buildbot.process.results import CANCELLED, RETRY, SUCCESS
from buildbot.worker.latent import States
from buildbot_worker import base, pb
from twisted.internet import defer

from buildbot_ec2ud.ec2.errors import NoAnswer
from tests.integration.latent import LONG, Computer, LatentTestCase, Waiting


class Mistake(Exception):
    """Something that nobody has thought of."""


class Starts(LatentTestCase):
    @defer.inlineCallbacks
    def test_parallel(self):
        """Two workers start at the same time: the second one does not wait for EC2's answer to the first."""
        yield self.start(names=("w1", "w2"))
        run = self.hold("run_instances")
        requests = yield self.requests("b", "b")
        yield self.until_held(run, 2)
        run.go()
        for request in requests:
            yield self.results(request, SUCCESS)
        self.assertEqual(len(self.ec2.alive()), 2)

    @defer.inlineCallbacks
    def test_refused(self):
        """When there is no capacity, anybody can have the request, and this worker after its quarantine."""
        yield self.start()
        self.ec2.faults.capacity.limit("t3.micro", 0)
        request = yield self.request()
        yield self.results(request, RETRY)
        yield self.until_unclaimed(request)
        self.assertIn("InsufficientInstanceCapacity", (yield self.text(1)))
        self.assertEqual(self.ec2.states(), {})
        self.ec2.faults.capacity.limit("t3.micro", 5)
        yield self.turn(LONG)
        yield self.results(request, RETRY, SUCCESS)
        self.flush()

    @defer.inlineCallbacks
    def test_mistake(self):
        """A start that fails by a mistake of this package's is one that has failed, and no more."""
        yield self.start()
        mistakes = [Mistake("nobody has thought of this")]
        (fleet,) = self.fleets()
        real = fleet.client.run_instances

        def run_instances(*args: Any) -> Any:
            if mistakes:
                raise mistakes.pop()
            return real(*args)

        fleet.client.run_instances = run_instances
        request = yield self.request()
        yield self.results(request, RETRY)
        yield self.until_unclaimed(request)
        self.assertIn("nobody has thought of this", (yield self.text(1)))
        yield self.turn(LONG)
        yield self.results(request, RETRY, SUCCESS)
        self.assertEqual(len(self.flushLoggedErrors(Mistake)), 1)

    @defer.inlineCallbacks
    def test_quarantine(self):
        """After each failure the worker gets no build for twice as long."""
        yield self.start()
        self.ec2.faults.capacity.limit("t3.micro", 0)
        request = yield self.request()
        expected = [RETRY]
        for pause in (LONG, 2 * LONG):
            yield self.results(request, *expected)
            yield self.until_unclaimed(request)
            yield self.turn(pause * 0.9)
            yield self.results(request, *expected)
            self.assertEqual(self.bot().quarantine_timer.active(), True)
            if pause == 2 * LONG:
                self.ec2.faults.capacity.limit("t3.micro", 5)
            # What no offer has had is remembered for less than that.
            yield self.turn(pause * 0.1)
            expected.append(RETRY)
        yield self.results(request, RETRY, RETRY, SUCCESS)
        yield self.until(lambda: self.bot().quarantine_timeout == LONG, what="a worker that is trusted again")
        self.flush()

    @defer.inlineCallbacks
    def test_two_builders(self):
        """Builds of two builders that ask for the same worker run on one instance."""
        yield self.start(builders=("b", "c"))
        run = self.hold("run_instances")
        requests = yield self.requests("b", "c")
        yield self.until_held(run)
        run.go()
        for request in requests:
            yield self.results(request, SUCCESS)
        self.assertEqual(self.ec2.calls["RunInstances"], 1)

    @defer.inlineCallbacks
    def test_insubstantiated(self):
        """Told to stop while EC2 has not answered, a worker does so at once, and the instance that comes is ended."""
        yield self.start()
        run = self.hold("run_instances")
        request = yield self.request()
        yield self.until_held(run)
        yield self.bot().insubstantiate()
        self.assertEqual(self.bot().state, States.NOT_SUBSTANTIATED)
        yield self.results(request, RETRY)
        run.go()
        yield self.until(lambda: list(self.ec2.states().values()) == ["terminated"])
        yield self.turn(LONG)
        yield self.results(request, RETRY, SUCCESS)
        self.flush()

    @defer.inlineCallbacks
    def missing(self, **arguments: Any) -> Any:
        yield self.start(missing_timeout=LONG / 2, **arguments)
        run = self.hold("run_instances")
        request = yield self.request()
        yield self.until_held(run)
        yield self.turn(LONG / 2)
        yield self.results(request, RETRY)
        yield self.until_unclaimed(request)
        yield self.until_state(States.NOT_SUBSTANTIATED)
        return run, request

    @defer.inlineCallbacks
    def test_missing(self):
        """After missing_timeout, a build does not wait for EC2's answer any more; what EC2 starts after that is ended."""
        run, request = yield self.missing()
        run.go()
        yield self.until(lambda: list(self.ec2.states().values()) == ["terminated"])
        yield self.turn(LONG)
        yield self.results(request, RETRY, SUCCESS)
        self.flush()

    @defer.inlineCallbacks
    def stopped(self, results: int) -> Any:
        """A build that is stopped when it is announced; its request, and the launch that is held, if there was one."""
        yield self.start()
        run = self.hold("run_instances")
        stopped: list[int] = []

        def stop(_: Any, build: Any) -> None:
            if not stopped:
                stopped.append(build["buildid"])
                reason = {"reason": "no reason", "results": results}
                self.master.master.mq.produce(("control", "builds", str(build["buildid"]), "stop"), reason)

        consumer = yield self.master.master.mq.startConsuming(stop, ("builds", None, "new"))
        request = yield self.request()
        # Nothing keeps Buildbot from trying it again at once, if it is to be tried again.
        yield self.results(request, results, so_far=results != RETRY)
        yield consumer.stopConsuming()
        self.assertEqual(stopped, [1])
        self.assertEqual(self.ec2.states(), {})
        return run, request

    @defer.inlineCallbacks
    def test_cancelled(self):
        """A build that is cancelled when it has hardly begun ends so, and nothing is left."""
        run, _ = yield self.stopped(CANCELLED)
        run.go()
        yield self.results((yield self.request()), SUCCESS)
        self.flush()

    @defer.inlineCallbacks
    def test_stopped_to_be_retried(self):
        """One that is stopped by a master that shuts down, say, is tried again."""
        run, request = yield self.stopped(RETRY)
        run.go()
        yield self.results(request, RETRY, SUCCESS)
        self.flush()


class NoBuild(LatentTestCase):
    """Buildbot can start a latent worker for no build."""

    @defer.inlineCallbacks
    def test_starts_and_stops(self):
        yield self.start()
        self.assertTrue((yield self.bot().substantiate(None, None)))
        self.assertEqual(self.bot().state, States.SUBSTANTIATED)
        self.assertEqual(len(self.ec2.alive()), 1)
        yield self.bot().insubstantiate()
        self.assertEqual(self.bot().state, States.NOT_SUBSTANTIATED)
        yield self.until_gone()

    @defer.inlineCallbacks
    def test_build_comes_later(self):
        """The instance takes it, and ends after it as any other."""
        yield self.start(steps=(Waiting,))
        yield self.bot().substantiate(None, None)
        request = yield self.request()
        yield self.until(lambda: Waiting.all)
        Waiting.all[0].finish()
        yield self.results(request, SUCCESS)
        self.assertEqual(self.ec2.calls["RunInstances"], 1)
        yield self.until_settled()
        yield self.turn(LONG)
        yield self.until_gone()


class BadWorkers(LatentTestCase):
    """The worker attaches, and then it does not do what it is asked for."""

    @defer.inlineCallbacks
    def failing(self, said: str) -> Any:
        """A build whose worker fails; then the next try."""
        request = yield self.request()
        yield self.results(request, RETRY)
        yield self.until_unclaimed(request)
        self.assertIn(said, (yield self.text(1)))
        yield self.until_gone()
        self.failing_now = False
        yield self.turn(LONG)
        yield self.results(request, RETRY, SUCCESS)
        self.assertEqual(len(self.ec2.states()), 2)
        self.flush()

    @defer.inlineCallbacks
    def test_builders(self):
        """One that cannot make its builders' directories."""
        self.failing_now = True
        real = pb.BotPb.remote_setBuilderList

        def remote_setBuilderList(bot: Any, wanted: Any) -> Any:
            if self.failing_now:
                raise Mistake("no room")
            return real(bot, wanted)

        self.patch(pb.BotPb, "remote_setBuilderList", remote_setBuilderList)
        yield self.start()
        yield self.failing("no room")

    @defer.inlineCallbacks
    def test_ping(self):
        """One that does not take a ping."""
        self.failing_now = True
        real = base.BotBase.remote_print

        def remote_print(bot: Any, message: str) -> Any:
            if self.failing_now and message == "ping":
                raise Mistake("no ping")
            return real(bot, message)

        self.patch(base.BotBase, "remote_print", remote_print)
        yield self.start()
        yield self.failing("no ping")

    @defer.inlineCallbacks
    def test_severed_before_the_ping(self):
        """One whose connection is dead when it is asked whether it is there."""
        self.failing_now = True
        real = base.BotBase.remote_print
        severed = []

        def remote_print(bot: Any, message: str) -> Any:
            if self.failing_now and message == "ping":
                Computer.all[0].sever()
                severed.append(message)
                return defer.Deferred()
            return real(bot, message)

        self.patch(base.BotBase, "remote_print", remote_print)
        yield self.start()
        request = yield self.request()
        yield self.until(lambda: severed)
        yield self.turn(LONG / 10)
        yield self.results(request, None)
        self.failing_now = False
        yield Computer.all[0].lose()
        yield self.results(request, RETRY)
        yield self.turn(LONG)
        yield self.results(request, RETRY, SUCCESS)
        self.assertEqual(len(self.ec2.states()), 2)
        self.flush()

    @defer.inlineCallbacks
    def building(self) -> Any:
        yield self.start(steps=(Waiting,), build_wait_timeout=0)
        request = yield self.request()
        yield self.until(lambda: Waiting.all)
        yield self.results(request, None)
        return request

    @defer.inlineCallbacks
    def retried(self, request: int) -> Any:
        yield self.until(lambda: len(Waiting.all) == 2)
        yield self.results(request, RETRY, None)
        Waiting.all[1].finish()
        yield self.results(request, RETRY, SUCCESS)
        yield self.until_gone()
        self.assertEqual(len(self.ec2.states()), 2)
        self.flush()

    @defer.inlineCallbacks
    def test_goes_while_it_builds(self):
        """One that closes its connection: the build is tried again on another instance."""
        request = yield self.building()
        yield Computer.all[0].leave()
        yield self.retried(request)

    @defer.inlineCallbacks
    def test_severed_while_it_builds(self):
        """One whose connection is dead: the same, when TCP has noticed."""
        request = yield self.building()
        Computer.all[0].sever()
        yield self.turn(LONG / 10)
        yield self.results(request, None)
        yield Computer.all[0].lose()
        yield self.retried(request)


class Unanswered(LatentTestCase):
    @defer.inlineCallbacks
    def test_lost(self):
        """An answer that is lost: the request can be had by anybody, and the instance is found and ended."""
        # Its worker does not come before that. A build that has one and loses it is tried again at once, so that its request
        # can be claimed again before this looks at it: test_losses.
        self.patch(Computer, "connects", False)
        yield self.start()
        run = self.hold("run_instances", NoAnswer("a bad day"))
        request = yield self.request()
        yield self.until_held(run)
        run.go()
        yield self.results(request, RETRY)
        yield self.until_unclaimed(request)
        yield self.until(lambda: list(self.ec2.states().values()) == ["terminated"])
        self.flush()
