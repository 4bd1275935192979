"""Instances of the embedded EC2 that end themselves: real workers, whose master goes, stays, or is not there at all."""

from __future__ import annotations

import os
import signal
from typing import Any

from buildbot.plugins import worker
from buildbot.process.results import RETRY
from twisted.cred.error import UnauthorizedLogin
from twisted.internet import defer

from buildbot_ec2ud.userdata import scripts
from buildbot_ec2ud.userdata.posix import UserData
from tests.integration.instances import InstanceTestCase, processes
from tests.support import configuration

PASSWORD = "p4ssw0rd-of-this-test"
INSIDE = "Client.InstanceInitiatedShutdown"
HANGS = "#!/bin/sh\nexec sleep 60\n"
SPOT = {"MarketType": "spot", "SpotOptions": {"SpotInstanceType": "one-time"}}


class DeadMan(InstanceTestCase):
    @defer.inlineCallbacks
    def start(self) -> Any:
        """An EC2, and a master that leaves the instances of its worker to others."""
        self.start_ec2()
        yield self.start_master(configuration([worker.Worker("w", PASSWORD, missing_timeout=0)], "exec sleep 60"))
        self.port = self.master.master.workers.registrations["w"].getPBPort()

    def launch_worker(
        self, script: str | None = None, password: str = PASSWORD, spot: bool = False, **watches: Any
    ) -> defer.Deferred[Any]:
        """Start an instance with a worker, or another bootstrap script; its id."""
        loaded = scripts.load(script or scripts.packaged("embedded.sh"), None, [])
        data = UserData(f"127.0.0.1:{self.port}", "w", password, {}, loaded, spot=spot, **watches).render()
        market = {"InstanceMarketOptions": SPOT} if spot else {}
        return self.launch(data, InstanceInitiatedShutdownBehavior="terminate", **market)

    def patient(self, retries: str) -> str:
        """A bootstrap script whose worker tries to log in that often."""
        with open(scripts.packaged("embedded.sh"), encoding="utf-8") as file:
            text = file.read()
        self.assertEqual(text.count("--maxretries=5\n"), 1)
        return text.replace("--maxretries=5\n", f"--maxretries={retries}\n")

    def until_attached(self) -> defer.Deferred[Any]:
        builders = self.master.master.workers.workers["w"].workerforbuilders
        return self.until(lambda: "b" in builders and builders["b"].isAvailable(), what="the worker")

    @defer.inlineCallbacks
    def ended(self, instance_id: str, said: str) -> Any:
        """The instance ends, by itself, and has said why."""
        yield self.until_state(instance_id, "terminated")
        found = yield self.describe(instance_id)
        self.assertEqual(found["StateReason"]["Code"], INSIDE)
        lines = self.ec2.console(instance_id).decode().splitlines()
        self.assertIn(f"ec2ud: {said}", lines)
        self.assertNotIn(PASSWORD, "\n".join(lines))
        self.assertEqual(processes(self.directory / instance_id), [])

    @defer.inlineCallbacks
    def test_max_lifetime(self):
        """Whatever it does, the instance ends when its time is over."""
        yield self.start()
        hanging = yield self.launch_worker(HANGS, max_lifetime=1)
        yield self.ended(hanging, "max_lifetime: 1 s are over; powering off")
        working = yield self.launch_worker(max_lifetime=15)
        yield self.until_attached()
        yield self.ended(working, "max_lifetime: 15 s are over; powering off")

    @defer.inlineCallbacks
    def test_master_goes(self):
        """An instance that is connected stays, while others beside it that are not go; until its master goes for good."""
        yield self.start()
        connected = yield self.launch_worker(self.patient("None"), orphan_timeout=12)
        yield self.until_attached()
        alone = yield self.launch_worker(HANGS, orphan_timeout=4)
        yield self.ended(alone, "orphan_timeout: no connection to the master for 4 s; powering off")
        self.assertEqual(self.ec2.states()[connected], "running")
        yield self.master.stop()
        yield self.ended(connected, "orphan_timeout: no connection to the master for 12 s; powering off")

    @defer.inlineCallbacks
    def test_worker_is_killed(self):
        """The instance ends with its worker."""
        yield self.start()
        instance_id = yield self.launch_worker(max_lifetime=3600, orphan_timeout=3600)
        yield self.until_attached()
        (pid,) = (pid for pid in processes(self.directory / instance_id) if b"buildbot-worker" in command_line(pid)[1])
        os.kill(pid, signal.SIGKILL)
        yield self.ended(instance_id, "the worker has ended; powering off")
        self.flush()

    @defer.inlineCallbacks
    def test_worker_gives_up(self):
        """A worker that its master does not let in ends, and its instance with it."""
        yield self.start()
        instance_id = yield self.launch_worker(self.patient("1"), "another", max_lifetime=3600)
        yield self.ended(instance_id, "the worker has ended; powering off")
        self.assertTrue(self.flushLoggedErrors(UnauthorizedLogin))

    @defer.inlineCallbacks
    def test_interrupted_while_idle(self):
        """A worker without a build ends as soon as there is notice, and its instance does not wait for its time."""
        yield self.start()
        instance_id = yield self.launch_worker(spot=True)
        yield self.until_attached()
        self.ec2.interrupt(instance_id, notice=120)
        yield self.until(lambda: b"ec2ud: spot-interruption at=20" in self.ec2.console(instance_id), what="the notice")
        yield self.ended(instance_id, "the worker has ended; powering off")

    @defer.inlineCallbacks
    def test_interrupted_while_it_builds(self):
        """The worker gets nothing more to do; its build is lost before the instance is, and is tried again."""
        yield self.start()
        instance_id = yield self.launch_worker(spot=True)
        building = self.master.force_build("b", first_attempt=True)
        yield self.until(lambda: any(b"60" in command_line(pid) for pid in processes(self.directory / instance_id)))
        self.ec2.interrupt(instance_id, notice=24)
        yield self.until(lambda: b"ec2ud: spot-interruption at=20" in self.ec2.console(instance_id), what="the notice")
        yield self.until(lambda: self.master.master.workers.workers["w"]._graceful, what="the worker's wish")
        self.assertFalse(building.called)
        build = yield building
        self.assertEqual(build.results, RETRY)
        yield self.ended(instance_id, "the worker has ended; powering off")


def command_line(pid: int) -> list[bytes]:
    """The arguments of a process, of which there are two at least."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return [*file.read().split(b"\0"), b"", b""]
    except OSError:
        return [b"", b""]
