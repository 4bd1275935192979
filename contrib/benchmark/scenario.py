"""One measured run, in a process of its own: a real master with workers of one side, configured, started, stopped."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from typing import Any
from urllib.request import urlopen

from buildbot.config.master import MasterConfig
from buildbot.interfaces import IConfigLoader
from buildbot.master import BuildMaster
from buildbot.plugins import util
from buildbot.process.results import SUCCESS
from buildbot.scripts.create_master import createDB
from children import child
from sides import SIDES, Side
from stalls import Stalls
from twisted.internet import defer, task, threads
from twisted.python import log
from zope.interface import implementer

_DATABASE = "sqlite:///state.sqlite"
#: A directory in memory, where there is one: the disk is not what is measured.
_IN_MEMORY = "/dev/shm"
#: Seconds for which all instances that run are watched, and between two looks, where that is measured.
WATCHED_FOR, LOOK_EVERY = 20.0, 4.0
_MEGABYTE = 1 << 20


def memory() -> float:
    """Megabytes of memory that this process has in use."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / _MEGABYTE


def cpu() -> float:
    """Seconds of processor time that this process has used, in all its threads."""
    return time.process_time()


class Meter:
    """Measures a part of a run.

    :param ec2: the stand-in's URL.
    """

    def __init__(self, reactor: Any, ec2: str) -> None:
        self._reactor, self._ec2 = reactor, ec2
        self._stalls = Stalls()
        self._cpu = cpu()
        self.began = reactor.seconds()

    def since(self) -> float:
        return self._reactor.seconds() - self.began

    @defer.inlineCallbacks
    def stop(self) -> Generator[Any, Any, dict[str, Any]]:
        """End the measurement; fires with the figures, and with what EC2 has seen meanwhile."""
        figures = {"seconds": self.since(), "cpu": cpu() - self._cpu, "stall": self._stalls.stop()}
        seen = yield threads.deferToThread(lambda: json.load(urlopen(self._ec2)))
        # EC2's clock is this machine's.
        figures |= {f"ec2 {what}": at - self.began for what, at in seen["moments"].items()}
        return {**figures, "calls": seen["calls"], "refused": seen["refused"], "states": seen["states"]}


@implementer(IConfigLoader)
class _Loader:
    """Makes the workers, and measures that."""

    def __init__(self, side: Side, count: int) -> None:
        self._side, self._count = side, count
        self.workers: list[Any] = []
        self.figures: dict[str, float] = {}

    def loadConfig(self) -> MasterConfig:
        began, used = time.perf_counter(), cpu()
        self.workers = [self._side.worker(f"w{number:04d}") for number in range(self._count)]
        self.figures = {"seconds": time.perf_counter() - began, "cpu": cpu() - used}
        loopback = "tcp:{}:interface=127.0.0.1"
        return MasterConfig.loadFromDict(
            {
                "workers": self.workers,
                "builders": [
                    util.BuilderConfig(name=worker.name, workernames=[worker.name], factory=util.BuildFactory())
                    for worker in self.workers
                ],
                "protocols": {"pb": {"port": loopback.format(self._side.port)}},
                "www": {"port": loopback.format(0)},
                "db": {"db_url": _DATABASE},
                "buildbotNetUsageData": None,
                "multiMaster": True,  # there are no schedulers
                # Buildbot's own asks the database about each waiting builder, each time that a build is started.
                "prioritizeBuilders": lambda master, builders: builders,
            },
            "<benchmark>",
        )


class Farm:
    """A master with workers.

    :param options: see :func:`main`.
    """

    def __init__(self, reactor: Any, options: dict[str, Any]) -> None:
        self._reactor = reactor
        self._count = options["count"]
        self._limit = options["limit"]
        self._ec2, self._boots = options["ec2"], options["boots"]
        self.figures: dict[str, Any] = {"memory": {"before": memory()}}
        self._side = SIDES[options["side"]](self._ec2, options["port"], options["throttle"])
        self._side.changed = self._look
        self._loader = _Loader(self._side, self._count)
        self._waiting: list[tuple[Callable[[], bool], defer.Deferred[None]]] = []
        self._connected: set[int] = set()
        self._results: collections.Counter[int] = collections.Counter()

    @defer.inlineCallbacks
    def start(self) -> Generator[Any, Any, None]:
        basedir = os.getcwd()
        yield createDB({"basedir": basedir, "db": _DATABASE, "quiet": True})
        meter = Meter(self._reactor, self._ec2)
        self.master = BuildMaster(basedir, reactor=self._reactor, config_loader=self._loader)
        yield self.master.startService()
        figures = yield meter.stop()
        self.figures["configure"] = {**self._loader.figures, "calls": figures["calls"], "started": figures["seconds"]}
        self.figures["memory"]["configured"] = memory()
        self._side.begin(self._loader.workers)

    # Waiting

    def _look(self) -> None:
        for condition, waiting in self._waiting[:]:
            if condition() and not waiting.called:
                waiting.callback(None)

    @defer.inlineCallbacks
    def _until(self, condition: Callable[[], bool], meter: Meter) -> Generator[Any, Any, float | None]:
        """Wait until *condition* holds: seconds since *meter* began; None when the time is up."""
        waiting: defer.Deferred[None] = defer.Deferred().addTimeout(
            max(0.0, self._limit - meter.since()), self._reactor
        )
        self._waiting.append((condition, waiting))
        self._look()
        try:
            yield waiting
            return meter.since()
        except defer.TimeoutError:
            return None
        finally:
            self._waiting = [one for one in self._waiting if one[1] is not waiting]

    # The parts of a run

    @defer.inlineCallbacks
    def calls(self) -> Generator[Any, Any, None]:
        """Start and stop all instances, and nothing else: no build, no worker."""
        self._side.running = 0
        meter = Meter(self._reactor, self._ec2)
        starts = defer.DeferredList(
            [worker.start_instance(None) for worker in self._loader.workers], consumeErrors=True
        )
        known = yield self._until(lambda: self._side.running >= self._count, meter)
        outcomes = yield starts
        self.figures["launch"] = {
            **(yield meter.stop()),
            "running": known,
            "failed": sum(not succeeded for succeeded, _ in outcomes),
        }

    @defer.inlineCallbacks
    def ending(self) -> Generator[Any, Any, None]:
        meter = Meter(self._reactor, self._ec2)
        stops = defer.DeferredList([worker.stop_instance() for worker in self._loader.workers], consumeErrors=True)
        yield stops
        stopped = meter.since()
        ended = yield self._until(lambda: not self._side.left(), meter)
        self.figures["end"] = {**(yield meter.stop()), "stopped": stopped, "ended": ended}

    @defer.inlineCallbacks
    def watch(self) -> Generator[Any, Any, None]:
        """Watch all instances, which run and do nothing."""
        meter = Meter(self._reactor, self._ec2)
        fleet = self._side.fleet
        # Where all just run, all are looked at, whoever hurries. (Without one, all starts have failed.)
        hurry = task.LoopingCall(lambda: [fleet.watcher.hurry(one) for one in [*fleet.rentals.values()][:1]])
        hurry.start(LOOK_EVERY)
        yield task.deferLater(self._reactor, WATCHED_FOR)
        hurry.stop()
        self.figures["watch"] = yield meter.stop()

    @defer.inlineCallbacks
    def builds(self) -> Generator[Any, Any, None]:
        """Have a build on each worker, then stop all of them."""
        self._side.running = 0
        master = self.master
        yield master.mq.startConsuming(self._attached, ("workers", None, "connected"))
        yield master.mq.startConsuming(self._finished, ("builds", None, "finished"))
        children = contextlib.ExitStack()
        # Only now: nobody attaches to a worker that was not started for a build.
        started = child("workers.py", self._boots, self._side.port), child("rest.py", master.www.getPortnum())
        _, (_, rest) = yield threads.deferToThread(lambda: [children.enter_context(one) for one in started])
        meter = Meter(self._reactor, self._ec2)
        for worker in self._loader.workers:
            builder = yield master.data.updates.findBuilderId(worker.name)
            yield master.data.updates.addBuildset(
                waited_for=False,
                scheduler="benchmark",
                sourcestamps=[{"codebase": "", "repository": "", "branch": None, "revision": None, "project": ""}],
                reason="benchmark",
                builderids=[builder],
            )
        asked = meter.since()
        moments = yield defer.gatherResults(
            [
                self._until(lambda: self._side.running >= self._count, meter),
                self._until(lambda: len(self._connected) >= self._count, meter),
                self._until(lambda: self._results[SUCCESS] >= self._count, meter),
            ]
        )
        figures = dict(zip(("running", "attached", "built"), moments, strict=True)) | {"asked": asked}
        figures |= yield meter.stop()
        said, _ = yield threads.deferToThread(rest.communicate)
        figures["rest"] = json.loads(said)
        figures["results"] = {str(result): count for result, count in self._results.items()}
        self.figures["start"] = figures
        self.figures["memory"]["attached"] = memory()
        yield self._stop_workers()
        yield threads.deferToThread(children.close)

    @defer.inlineCallbacks
    def _stop_workers(self) -> Generator[Any, Any, None]:
        meter = Meter(self._reactor, self._ec2)
        yield defer.DeferredList([worker.insubstantiate() for worker in self._loader.workers], consumeErrors=True)
        stopped = meter.since()
        ended = yield self._until(lambda: not self._side.left(), meter)
        self.figures["stop"] = {**(yield meter.stop()), "stopped": stopped, "ended": ended}

    def _attached(self, key: Any, message: Any) -> None:
        self._connected.add(message["workerid"])
        self._look()

    def _finished(self, key: Any, message: Any) -> None:
        self._results[message["results"]] += 1
        self._look()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@defer.inlineCallbacks
def main(reactor: Any, options: dict[str, Any]) -> Generator[Any, Any, None]:
    """Run a scenario.

    :param options: *side*, *count* of workers, *parts* of the run, *limit* in seconds of each, *throttle*: whether EC2 has
        AWS's limits, *latency* of its answers, *pending* seconds of each instance; and maybe *log*, the path of its log.
    """
    options = {**options, "port": free_port()}
    behaviour = {"latency": options["latency"], "pending": options["pending"], "throttle": options["throttle"]}
    path = options.get("log") or "twistd.log"
    log.startLogging(open(path, "w", encoding="utf-8"), setStdout=False)  # noqa: SIM115
    with child("ec2_process.py", behaviour) as (ec2, _):
        farm = Farm(reactor, {**options, "ec2": ec2["url"], "boots": ec2["boots"]})
        yield farm.start()
        for part in options["parts"]:
            yield getattr(farm, part)()
        farm.figures["memory"]["most"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(farm.figures), flush=True)
    # No instance is left, and how the master ends is not measured.
    shutil.rmtree(os.getcwd(), ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    os.chdir(tempfile.mkdtemp(prefix="benchmark-", dir=_IN_MEMORY if os.path.isdir(_IN_MEMORY) else None))
    task.react(main, [given])
