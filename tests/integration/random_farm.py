"""A whole farm that can be treated badly in any order, and what has to hold when the dust has settled."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from buildbot.plugins import schedulers, steps, util
from buildbot_worker.bot import Worker
from twisted.internet import defer, reactor, task

from buildbot_ec2ud.embedded import EmbeddedEC2, EmbeddedMaster, _moto
from buildbot_ec2ud.fleet.region import fleets
from buildbot_ec2ud.worker import EC2UserDataLatentWorker
from tests.support import LOOPBACK
from tests.userdata import variables

#: Seconds in which the dust has to settle.
SETTLED = 30.0
WORKERS = {"w1": 0, "w2": 1000}
BUILDERS = ("b1", "b2")


class LightMachine:
    """An instance whose user-data is not run but read: its worker runs in this process, so that thousands can start.

    Takes the place of :class:`~buildbot_ec2ud.embedded.machine.Machine`.
    """

    def __init__(self, reactor: Any, name: str, directory: Any, **_: Any) -> None:
        self._directory = str(directory)
        self._worker: Any = None

    def run(self, user_data: bytes) -> bool:
        values = variables(user_data)
        host, _, port = values["BB_MASTER"].rpartition(":")
        os.makedirs(os.path.join(self._directory, "info"))
        self._worker = Worker(host, int(port), values["BB_NAME"], values["BB_PASSWORD"], self._directory, 0)
        self._worker.startService()
        return True

    def console(self) -> bytes:
        return b"ec2ud: phase=start-worker t=1\n"

    def end(self) -> Any:
        worker, self._worker = self._worker, None
        return defer.maybeDeferred(worker.stopService) if worker is not None else defer.succeed(None)


class RandomFarm:
    """A master with two workers and two builders, on an embedded EC2.

    :param directory: for both; must not exist.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._removed: set[str] = set()
        self._tag = 0
        self.ec2 = EmbeddedEC2(os.path.join(directory, "instances"), pending=0.02, shutting_down=0.02)

    @defer.inlineCallbacks
    def start(self) -> Any:
        os.makedirs(os.path.join(self._directory, "master"))
        self.ec2.start()
        yield self._start_master()

    @defer.inlineCallbacks
    def _start_master(self) -> Any:
        self.master = EmbeddedMaster(self._configuration(), os.path.join(self._directory, "master"))
        yield self.master.start()

    @defer.inlineCallbacks
    def stop(self) -> Any:
        yield self.master.stop()
        yield self._until(lambda: not self.ec2.alive(), "the end of all instances")
        yield self.ec2.stop()

    def _configuration(self) -> dict[str, Any]:
        arguments = {**self.ec2.worker_arguments(), "max_launch_failures": 0, "tags": {"Number": str(self._tag)}}
        names = [name for name in WORKERS if name not in self._removed]
        factory = util.BuildFactory([steps.ShellCommand(name="command", command=["sleep", "0.1"])])
        return {
            "workers": [EC2UserDataLatentWorker(name, build_wait_timeout=WORKERS[name], **arguments) for name in names],
            "builders": [util.BuilderConfig(name=name, workernames=names, factory=factory) for name in BUILDERS],
            "schedulers": [schedulers.ForceScheduler(name="force", builderNames=list(BUILDERS))],
            "protocols": {"pb": {"port": LOOPBACK}},
            "collapseRequests": False,
        }

    # What can be done to it

    def force(self, builder: str) -> Any:
        return self.master.request_build(builder)

    @defer.inlineCallbacks
    def cancel(self) -> Any:
        """Cancel the newest build that is under way."""
        for build in reversed((yield self.master.master.data.get(("builds",)))):
            if not build["complete"]:
                yield self.master.master.data.control("stop", {}, ("builds", build["buildid"]))
                return

    def disconnect(self) -> None:
        """Cut the connection of a worker that has one."""
        for worker in self.master.master.workers.workers.values():
            if worker.conn is not None:
                worker.conn.mind.broker.transport.abortConnection()
                return

    def terminate(self) -> None:
        """Somebody else ends an instance."""
        for instance in _moto.instances():
            if _moto.state_of(instance) in ("pending", "running"):
                instance.terminate()
                return

    def change(self) -> Any:
        """A reconfig changes all workers."""
        self._tag += 1
        return self.master.reconfig(self._configuration())

    def remove(self, name: str) -> Any:
        """A reconfig removes a worker, or brings it back; one stays."""
        self._removed = set() if self._removed else {name}
        return self.master.reconfig(self._configuration())

    def fault(self, kind: str, action: str) -> None:
        self.ec2.faults.add(kind, action)

    @defer.inlineCallbacks
    def restart(self) -> Any:
        yield self.master.stop()
        yield self._start_master()

    # What has to hold

    @defer.inlineCallbacks
    def settle(self) -> Any:
        """Wait until the dust has settled; and hold what is then against what has to be."""
        yield self._until(self._settled, "the dust to settle")
        # The start of a build does not wait until its page is complete.
        yield self._until(lambda: self._unfinished().addCallback(lambda found: not found), "all logs to be complete")

    @defer.inlineCallbacks
    def _settled(self) -> Any:
        master = self.master.master
        requests = yield master.data.get(("buildrequests",))
        # Of those that are not complete, the workers say why on their builds' pages; and none can wait for ever here.
        if any(not request["complete"] for request in requests):
            return False
        all_fleets = fleets(master.namedServices)
        owned = {instance_id for fleet in all_fleets for instance_id in fleet.rentals}
        busy = any(fleet.launching or len(fleet.background) for fleet in all_fleets)
        rentals = [worker.rental for worker in master.workers.workers.values() if worker.rental is not None]
        idle = {rental.instance_id for rental in rentals}
        return not busy and set(self.ec2.alive()) == owned == idle

    @defer.inlineCallbacks
    def _unfinished(self) -> Any:
        data = self.master.master.data
        found = []
        for step in (yield self._steps()):
            for log in (yield data.get(("steps", step["stepid"], "logs"))):
                if not log["complete"]:
                    found.append((step["name"], log["name"]))
        return found

    @defer.inlineCallbacks
    def _steps(self) -> Any:
        data = self.master.master.data
        found = []
        for build in (yield data.get(("builds",)))[-5:]:
            found.extend((yield data.get(("builds", build["buildid"], "steps"))))
        return found

    @defer.inlineCallbacks
    def _until(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = reactor.seconds() + SETTLED
        while not (yield defer.maybeDeferred(condition)):
            if reactor.seconds() > deadline:
                raise AssertionError(f"waited {SETTLED:g} s in vain for {what}: {(yield self._state())}")
            yield task.deferLater(reactor, 0.02)

    @defer.inlineCallbacks
    def _state(self) -> Any:
        master = self.master.master
        requests = [] if not master.running else (yield master.data.get(("buildrequests",)))
        return {
            "requests": [r["buildrequestid"] for r in requests if not r["complete"]],
            "alive": self.ec2.alive(),
            "fleets": [(list(f.rentals), f.launching, len(f.background)) for f in fleets(master.namedServices)],
            "workers": {w.name: (w.state, w.rental) for w in master.workers.workers.values()},
        }
