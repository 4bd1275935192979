"""What Buildbot's scenarios for latent workers share: time that can be turned, instances and an EC2 that wait to be told."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from buildbot.plugins import util
from buildbot.plugins import worker as worker_plugins
from buildbot.process.buildstep import BuildStep
from buildbot.process.results import SUCCESS
from buildbot.scripts.create_master import createDB
from buildbot.worker.base import AbstractWorker
from buildbot.worker.latent import States
from buildbot_worker import base, pb, pbutil
from twisted.internet import defer, reactor, task
from zope.interface import directlyProvides, providedBy

from buildbot_ec2ud.embedded import EmbeddedMaster, instances
from buildbot_ec2ud.fleet import background, watcher
from buildbot_ec2ud.fleet.region import fleets
from tests.integration.random_farm import LightMachine
from tests.integration.test_bad_days import Held
from tests.integration.test_random_life import Unstoppable
from tests.support import FarmTestCase, configuration

#: Seconds for which an idle instance is kept, and a worker that has failed gets no build: longer than a test takes.
LONG = 1000.0


class TurnedReactor(task.Clock):
    """Twisted's reactor, whose time a test can turn forward; else it goes by as it does."""

    def __init__(self) -> None:
        super().__init__()
        directlyProvides(self, providedBy(reactor))
        self._catching_up = task.LoopingCall(self.advance, 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)

    def seconds(self) -> float:
        return reactor.seconds() + self.rightNow  # which is how far ahead it is

    def start(self) -> None:
        self._catching_up.start(0.005, now=False)

    def end(self) -> None:
        self._catching_up.stop()


class Computer(LightMachine):
    """An instance whose worker comes and goes as the test wants it.

    :cvar all: those that run user-data, the first one first.
    :cvar connects: whether workers come by themselves.
    :cvar leaves: whether workers go when their instance ends.
    """

    all: ClassVar[list[Computer]] = []
    connects = True
    leaves = True

    def run(self, user_data: bytes) -> bool:
        self._user_data = user_data
        self.all.append(self)
        return self.connect() if self.connects else True

    def connect(self) -> bool:
        """Let the worker come, with the password that the user-data has."""
        return super().run(self._user_data)

    def end(self) -> Any:
        return super().end() if self.leaves else defer.succeed(None)

    def leave(self) -> Any:
        """Let the worker go, and not come again."""
        return super().end()

    def lose(self) -> Any:
        """End the connection, as TCP does after its time limit; the worker does not come again."""
        self._transport.abortConnection()
        return super().end()

    @property
    def _transport(self) -> Any:
        return self._worker.bf.perspective.broker.transport

    def sever(self) -> None:
        """From now on, the worker hears nothing and says nothing; the connection stands."""
        self._transport.pauseProducing()

    def cut(self) -> None:
        """End the connection; the worker tries to come again."""
        self._transport.abortConnection()


class Waiting(BuildStep):
    """A step that runs until the test ends it.

    :cvar all: those that run or have run, the first one first.
    """

    name = "waiting"
    all: ClassVar[list[Waiting]] = []

    def run(self) -> defer.Deferred[int]:
        self._end: defer.Deferred[int] = defer.Deferred()
        self.all.append(self)
        return self._end

    def finish(self) -> None:
        self._end.callback(SUCCESS)

    def interrupt(self, reason: Any) -> Any:
        if not self._end.called:
            self._end.callback(SUCCESS)
        return super().interrupt(reason)


class LatentTestCase(FarmTestCase):
    """Tests with an embedded EC2, a master whose time can be turned, and workers in this process.

    After each, the master stops, and no instance, no unfinished build or log may be left.
    """

    timeout = 120
    _database: ClassVar[bytes] = b""

    def setUp(self) -> None:
        for module, name, value in (
            (instances, "Machine", Computer),
            (background, "FIRST_PAUSE", 0.05),
            (watcher, "FIRST_LOOK", 0.05),
            (watcher, "CHANGING_INTERVAL", 0.2),
            (Computer, "all", []),
            (Computer, "connects", True),
            (Computer, "leaves", True),
            (Waiting, "all", []),
            (AbstractWorker, "quarantine_initial_timeout", LONG),
            (AbstractWorker, "quarantine_timeout", LONG),
            (AbstractWorker, "quarantine_max_timeout", 100 * LONG),
        ):
            self.patch(module, name, value)
        # A worker that cannot go on stops its process; here, that is everybody's.
        for module in (base, pb, pbutil):
            self.patch(module, "reactor", Unstoppable())
        self.time = TurnedReactor()
        self.time.start()
        self.addCleanup(self.time.end)
        self.start_ec2(pending=0.01, shutting_down=0.01)
        self.addCleanup(self._leave)

    @defer.inlineCallbacks
    def _leave(self) -> Any:
        for computer in Computer.all:
            yield computer.leave()

    @defer.inlineCallbacks
    def _settle(self) -> Any:
        """What has to hold when the dust has settled."""
        if not self.master.master.running:
            return
        yield self.until_settled()
        yield self.master.stop()
        yield self.until_gone()
        self.assertEqual([list(fleet.launching) for fleet in self.fleets()], [[] for _ in self.fleets()])

    @defer.inlineCallbacks
    def until_settled(self) -> Any:
        """Wait until no build is under way, and all their logs are complete."""
        for builder in self.master.master.botmaster.builders.values():
            yield self.until(lambda builder=builder: not builder.building, what="the end of all builds")
        # The start of a build does not wait until its page is complete.
        yield self.until_fires(
            lambda: self.unfinished().addCallback(lambda found: not found), "all logs to be complete"
        )

    @defer.inlineCallbacks
    def unfinished(self) -> Any:
        """The logs that are not complete: the numbers of their builds, and their names."""
        data = self.master.master.data
        found = []
        for build in (yield data.get(("builds",))):
            for step in (yield data.get(("builds", build["buildid"], "steps"))):
                logs = yield data.get(("steps", step["stepid"], "logs"))
                found += [(build["number"], log["name"]) for log in logs if not log["complete"]]
        return found

    # The farm

    def configuration(
        self, names: tuple[str, ...] = ("w",), builders: tuple[str, ...] = ("b",), steps: tuple = (), **arguments: Any
    ) -> dict[str, Any]:
        """Of a master whose builders can build on all workers. Instances are kept when a build has ended.

        Without names, the only worker is one of Buildbot's own, which never connects.
        """
        given = {"build_wait_timeout": LONG, **arguments}
        workers = [self.worker(name, **given) for name in names] or [worker_plugins.Worker("nobody", "never-comes")]
        plain = configuration(workers)
        factory = util.BuildFactory([step() for step in steps])
        plain["builders"] = [
            util.BuilderConfig(name=name, workernames=[worker.name for worker in workers], factory=factory)
            for name in builders
        ]
        plain["schedulers"] = []
        del plain["www"]
        return {**plain, "multiMaster": True}  # builders without a scheduler, or without a worker

    def start(self, **configured: Any) -> Any:
        """Start the master; for the arguments, see :meth:`configuration`."""
        return self.start_master(self.configuration(**configured))

    @defer.inlineCallbacks
    def start_master(self, configuration: dict[str, Any]) -> Any:
        basedir = os.path.abspath(self.mktemp())
        os.mkdir(basedir)
        database = Path(basedir, "state.sqlite")
        if not LatentTestCase._database:
            # To make one takes longer than all the rest.
            yield createDB({"basedir": basedir, "db": f"sqlite:///{database.name}", "quiet": True})
            LatentTestCase._database = database.read_bytes()
        database.write_bytes(LatentTestCase._database)
        self.master = EmbeddedMaster(configuration, basedir, reactor=self.time)
        self.addCleanup(self.master.stop)
        self.addCleanup(self._settle)
        yield self.master.start()
        yield self.until(lambda: self.ec2.calls["DescribeInstances"], what="the look for leftovers")

    def bot(self, name: str = "w") -> Any:
        """The worker, as the master has it."""
        return self.master.master.workers.workers[name]

    def fleets(self) -> list[Any]:
        return fleets(self.master.master.namedServices)

    def hold(self, call: str, error: Exception | None = None) -> Held:
        """Hold a call of the fleet's client until told to go on; then make it, and perhaps lose its answer."""
        (fleet,) = self.fleets()
        held = Held(getattr(fleet.client, call), error)
        setattr(fleet.client, call, held)
        return held

    def until_held(self, held: Held, count: int = 1) -> defer.Deferred[Any]:
        return self.until(lambda: len(held.calls) == count, what=f"{count} calls that are held")

    def until_state(self, state: States, name: str = "w") -> defer.Deferred[Any]:
        bot = self.bot(name)
        return self.until(lambda: bot.state == state, what=f"worker {name}: {state}, not {bot.state}")

    @defer.inlineCallbacks
    def turn(self, seconds: float) -> Any:
        """Let time pass, and what follows from it happen as far as it does at once."""
        self.time.advance(seconds)
        yield task.deferLater(reactor, 0.05)

    # Builds

    def request(self, builder: str = "b", properties: Mapping[str, Any] | None = None) -> Any:
        """Ask for a build; fires with the id of the request."""
        return self.master.request_build(builder, properties)

    @defer.inlineCallbacks
    def requests(self, *builders: str) -> Any:
        """Ask for several builds; fires with the ids of the requests."""
        ids = []
        for builder in builders:
            ids.append((yield self.request(builder)))
        return ids

    @defer.inlineCallbacks
    def results(self, request: int, *expected: int | None, so_far: bool = True) -> Any:
        """Wait until the builds of a request have these results: all its builds so far, the first one first.

        :param so_far: False where its next build may have begun meanwhile.
        """

        @defer.inlineCallbacks
        def arrived() -> Any:
            rows = yield self.master.master.data.get(("buildrequests", request, "builds"))
            found = tuple(row["results"] for row in sorted(rows, key=lambda row: row["buildid"]))
            return (found if so_far else found[: len(expected)]) == expected

        yield self.until_fires(arrived, f"results {expected} of request {request}")

    @defer.inlineCallbacks
    def until_unclaimed(self, request: int) -> Any:
        """Wait until a request can be taken by any worker again."""

        @defer.inlineCallbacks
        def unclaimed() -> Any:
            row = yield self.master.master.data.get(("buildrequests", request))
            return not row["claimed"] and not row["complete"]

        yield self.until_fires(unclaimed, f"request {request} to be unclaimed")

    @defer.inlineCallbacks
    def until_fires(self, condition: Callable[[], Any], what: str) -> Any:
        """As ``until``, with a condition that gives a Deferred."""
        deadline = reactor.seconds() + 60
        while not (yield condition()):
            if reactor.seconds() > deadline:
                self.fail(f"waited in vain for {what}")
            yield task.deferLater(reactor, 0.02)

    @defer.inlineCallbacks
    def text(self, build: int) -> Any:
        """All logs of the preparation of a build."""
        data = self.master.master.data
        steps = yield data.get(("builds", build, "steps"))
        logs = yield data.get(("steps", steps[0]["stepid"], "logs"))
        contents = []
        for log in logs:
            contents.append((yield data.get(("logs", log["logid"], "contents")))["content"])
        return "".join(contents)
