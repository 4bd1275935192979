"""Buildbot's scenarios for latent workers: how instances end, what a new start meets then, and what a reconfig changes."""

from __future__ import annotations

from typing import Any

from buildbot.plugins import util
from buildbot.process.builder import Builder
from buildbot.process.results import RETRY, SUCCESS
from buildbot.worker.latent import States
from twisted.cred.error import UnauthorizedLogin
from twisted.internet import defer

from buildbot_ec2ud import sharing
from buildbot_ec2ud.ec2.errors import NoAnswer
from tests.integration.latent import LONG, Computer, LatentTestCase, Waiting


class StopTestCase(LatentTestCase):
    @defer.inlineCallbacks
    def idle(self, **configured: Any) -> Any:
        """A master that has had a build; its instance is idle."""
        yield self.start(**configured)
        yield self.results((yield self.request()), SUCCESS)
        yield self.until_settled()
        self.assertEqual(self.bot().state, States.SUBSTANTIATED)

    @defer.inlineCallbacks
    def stopping(self, **configured: Any) -> Any:
        """The same, when its instance's time is over, and EC2 does not answer yet; the call that is held."""
        yield self.idle(**configured)
        terminate = self.hold("terminate_instances")
        yield self.turn(LONG)
        yield self.until_held(terminate)
        self.assertEqual(self.bot().state, States.INSUBSTANTIATING)
        return terminate

    @defer.inlineCallbacks
    def second(self, request: int) -> Any:
        """The request has got a second instance."""
        yield self.results(request, SUCCESS)
        self.assertEqual(self.ec2.calls["RunInstances"], 2)
        first = next(iter(self.ec2.states()))
        yield self.until(lambda: self.ec2.states()[first] == "terminated", what="the end of the first instance")

    def hold_connection(self) -> None:
        """Let the master not notice that the worker's connection ends before it is cut."""
        Computer.all[-1].leaves = False
        Computer.all[-1].sever()
        self.patch(self.bot().conn, "loseConnection", lambda: None)


class Stops(StopTestCase):
    @defer.inlineCallbacks
    def test_build_comes(self):
        """A build that comes while an instance is ended waits for the next one."""
        terminate = yield self.stopping()
        request = yield self.request()
        yield self.until_state(States.INSUBSTANTIATING_SUBSTANTIATING)
        self.assertEqual(self.ec2.calls["RunInstances"], 1)
        terminate.go()
        yield self.second(request)

    @defer.inlineCallbacks
    def test_build_comes_late(self):
        """One that was to begin before, and begins when the end has begun."""
        yield self.idle(builders=("b", "c"))
        held: list[Any] = []
        real = Builder.maybeStartBuild

        def maybeStartBuild(*args: Any) -> Any:
            waiting = defer.Deferred().addCallback(lambda _: real(*args))
            held.append(waiting)
            return waiting

        patched = self.patch(Builder, "maybeStartBuild", maybeStartBuild)
        request = yield self.request("c")
        yield self.until(lambda: held, what="a build that is held")
        patched.restore()
        terminate = self.hold("terminate_instances")
        yield self.turn(LONG)
        yield self.until_held(terminate)
        held[0].callback(None)
        yield self.until_state(States.INSUBSTANTIATING_SUBSTANTIATING)
        terminate.go()
        yield self.second(request)

    @defer.inlineCallbacks
    def test_build_comes_and_goes(self):
        """One that waits for the end is given up when the worker is told to stop again."""
        terminate = yield self.stopping()
        request = yield self.request()
        yield self.until_state(States.INSUBSTANTIATING_SUBSTANTIATING)
        stopped = self.bot().insubstantiate()
        terminate.go()
        yield stopped
        yield self.results(request, RETRY)
        self.assertEqual(self.ec2.calls["RunInstances"], 1)
        yield self.turn(LONG)
        yield self.results(request, RETRY, SUCCESS)
        self.flush()

    @defer.inlineCallbacks
    def test_connection_ends_late(self):
        """The worker's connection lasts longer than its instance, until EC2 has answered to the next launch."""
        yield self.idle()
        self.hold_connection()
        yield self.turn(LONG)
        yield self.until_state(States.NOT_SUBSTANTIATED)
        yield self.until_gone()
        run = self.hold("run_instances")
        request = yield self.request()
        yield self.until_held(run)
        yield Computer.all[0].lose()
        yield self.until(lambda: self.bot().conn is None)
        run.go()
        yield self.second(request)

    @defer.inlineCallbacks
    def severed(self, meanwhile: bool) -> Any:
        """The connection is dead when the instance ends; TCP notices that later. A build comes then, or *meanwhile*."""
        yield self.idle()
        terminate = self.hold("terminate_instances")
        self.hold_connection()
        yield self.turn(LONG)
        yield self.until_held(terminate)
        request = (yield self.request()) if meanwhile else None
        terminate.go()
        yield self.turn(LONG / 10)
        yield Computer.all[0].lose()
        if request is None:
            yield self.until_state(States.NOT_SUBSTANTIATED)
            request = yield self.request()
        yield self.second(request)
        self.flush()

    def test_severed(self):
        return self.severed(meanwhile=False)

    def test_severed_and_build_comes(self):
        return self.severed(meanwhile=True)

    @defer.inlineCallbacks
    def test_mistake(self):
        """A mistake of this package's while an instance is ended does not keep the next build from starting."""
        yield self.idle()
        bot = self.bot()
        real, mistakes = bot.stop_instance, [ValueError("nobody has thought of this")]

        def stop_instance(fast: bool = False) -> Any:
            if mistakes:
                real(fast)
                raise mistakes.pop()
            return real(fast)

        bot.stop_instance = stop_instance
        yield self.turn(LONG)
        yield self.until_state(States.NOT_SUBSTANTIATED)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        yield self.second((yield self.request()))


class NeverStopping(StopTestCase):
    """Workers with build_wait_timeout < 0, which come back when they have lost their connection."""

    @defer.inlineCallbacks
    def insubstantiating(self) -> Any:
        yield self.idle(build_wait_timeout=-1)
        terminate = self.hold("terminate_instances")
        stopped = self.bot().insubstantiate()
        yield self.until_held(terminate)
        return terminate, stopped

    @defer.inlineCallbacks
    def test_comes_back_while_it_is_ended(self):
        """Its password is good until its end begins; the worker that comes back then is refused, and no build hangs."""
        terminate, stopped = yield self.insubstantiating()
        Computer.all[0].cut()
        yield self.until(lambda: self.flushLoggedErrors(UnauthorizedLogin), what="a login that is refused")
        self.assertEqual(self.bot().state, States.INSUBSTANTIATING)
        terminate.go()
        yield stopped
        self.assertEqual((self.bot().state, self.bot().conn), (States.NOT_SUBSTANTIATED, None))
        yield self.second((yield self.request()))
        self.flush()

    @defer.inlineCallbacks
    def test_stays_connected(self):
        """A worker whose connection outlives its instance does not get the next build: the next instance does."""
        terminate, stopped = yield self.insubstantiating()
        Computer.all[0].leaves = False
        terminate.go()
        yield stopped
        yield self.until_gone()
        yield self.results((yield self.request()), SUCCESS)
        yield self.until(lambda: len(Computer.all) == 2, what="the next instance")
        yield self.until_settled()
        page = yield self.text(2)
        yield self.bot().insubstantiate()
        yield self.until_gone()
        self.flush()
        self.assertIn("worker attached", page)


class Reconfigs(StopTestCase):
    def without(self) -> Any:
        """Remove the worker by a reconfig."""
        return self.master.reconfig(self.configuration(names=()))

    @defer.inlineCallbacks
    def test_removed_while_it_is_ended(self):
        """The reconfig waits for EC2's answer."""
        terminate = yield self.stopping()
        changed = self.without()
        yield self.turn(0)
        self.assertNoResult(changed)
        terminate.go()
        yield changed

    @defer.inlineCallbacks
    def removed(self, fails: bool) -> Any:
        """The worker is removed while EC2 has not answered to its launch: that is not waited for."""
        yield self.start()
        run = self.hold("run_instances", NoAnswer("a bad day") if fails else None)
        request = yield self.request()
        yield self.until_held(run)
        yield self.without()
        yield self.results(request, RETRY)
        yield self.until_unclaimed(request)
        run.go()
        yield self.until(lambda: list(self.ec2.states().values()) == ["terminated"])
        self.flush()

    def test_removed_while_it_starts(self):
        return self.removed(fails=False)

    def test_removed_before_it_fails(self):
        return self.removed(fails=True)

    @defer.inlineCallbacks
    def changed(self, answered: bool, connects: bool) -> Any:
        """A reconfig while the worker starts changes nothing of that: neither its password, nor how the master stops."""
        Computer.connects = False
        yield self.start()
        run = self.hold("run_instances")
        request = yield self.request()
        yield self.until_held(run)
        password = self.bot().password
        if answered:
            run.go()
            yield self.until(lambda: Computer.all, what="an instance")
        yield self.master.reconfig(self.configuration(max_builds=3))
        self.assertEqual((self.bot().password, self.bot().max_builds), (password, 3))
        if not answered:
            run.go()
            yield self.until(lambda: Computer.all, what="an instance")
        if connects:
            Computer.all[0].connect()
            yield self.results(request, SUCCESS)
        yield self.master.stop()
        yield self.until_gone()
        self.assertEqual(len(self.ec2.states()), 1)
        self.flush()

    def test_changed_before_the_answer(self):
        return self.changed(answered=False, connects=False)

    def test_changed_after_the_answer(self):
        return self.changed(answered=True, connects=False)

    def test_changed_before_the_answer_and_connects(self):
        return self.changed(answered=False, connects=True)

    def test_changed_after_the_answer_and_connects(self):
        return self.changed(answered=True, connects=True)


class Kinds(StopTestCase):
    """A build for another type of instance that comes while the first one is under way."""

    @defer.inlineCallbacks
    def another(self, build_wait_timeout: float) -> Any:
        """The second request; the first build has not ended."""
        self.patch(sharing, "PATIENCE", LONG / 2)
        kind = util.Property("kind")
        yield self.start(steps=(Waiting,), build_wait_timeout=build_wait_timeout, instance_type=kind)
        yield self.request("b", {"kind": "t3.micro"})
        yield self.until(lambda: Waiting.all)
        request = yield self.request("b", {"kind": "t3.large"})
        yield self.turn(1)
        yield self.results(request)
        Waiting.all[0].finish()
        return request

    @defer.inlineCallbacks
    def taken(self, request: int) -> Any:
        yield self.until(lambda: len(Waiting.all) == 2)
        properties = Waiting.all[1].build.getProperties()
        self.assertEqual(properties["ec2_instance_type"], "t3.large")
        Waiting.all[1].finish()
        yield self.second(request)

    @defer.inlineCallbacks
    def test_at_once(self):
        """Where no instance is kept, it has one as soon as the first build has ended."""
        yield self.taken((yield self.another(0)))

    @defer.inlineCallbacks
    def test_kept(self):
        """It does not begin on the idle instance, but when that has been given up."""
        request = yield self.another(LONG)
        yield self.until(lambda: not self.bot().building)
        # Buildbot asks whether the instance suits the build, when it gets to that.
        yield self.until(lambda: self.bot()._impatience is not None, what="a build that the instance does not suit")
        yield self.results(request)
        self.assertEqual(self.bot().state, States.SUBSTANTIATED)
        yield self.turn(LONG / 2)
        yield self.taken(request)
