"""A master that is killed leaves its instances; when it comes back, they are gone, and nobody else's."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from twisted.internet import defer, protocol, reactor, threads

from buildbot_ec2ud import template
from buildbot_ec2ud.fleet.offer import LAUNCH_TAG, MASTER_TAG
from tests.support import FarmTestCase

COUNT = 10
BUILDBOT = str(Path(sys.executable).with_name("buildbot"))
CONFIGURATION = """
from buildbot.plugins import schedulers, steps, util
from buildbot_ec2ud.worker import ec2_fleet

workers = ec2_fleet("w", {count}, **{arguments!r})
factory = util.BuildFactory([steps.ShellCommand(command=["sleep", "1000"])])
names = [worker.name for worker in workers]
builders = [util.BuilderConfig(name=f"b-{{name}}", workernames=[name], factory=factory) for name in names]
c = BuildmasterConfig = {{
    "workers": workers,
    "builders": builders,
    "schedulers": [schedulers.Periodic(name="all", builderNames=[b.name for b in builders], periodicBuildTimer=10000)]
    if {building}
    else [schedulers.ForceScheduler(name="force", builderNames=[b.name for b in builders])],
    "protocols": {{"pb": {{"port": "tcp:0:interface=127.0.0.1"}}}},
    "db": {{"db_url": "sqlite:///state.sqlite"}},
    "buildbotNetUsageData": None,
}}
"""


class Process(protocol.ProcessProtocol):
    def __init__(self) -> None:
        self.output = b""
        self.ended: defer.Deferred[None] = defer.Deferred()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self.output += data

    def processEnded(self, reason: Any) -> None:
        self.ended.callback(None)


class KilledMaster(FarmTestCase):
    timeout = 240

    @defer.inlineCallbacks
    def create(self) -> Any:
        self.basedir = Path(self.mktemp()).absolute()
        done = yield threads.deferToThread(template.create_master, self.basedir)
        self.assertEqual(done.returncode, 0, done.stdout)

    def start(self, building: bool) -> Process:
        """Start the master as a process of its own."""
        # No real workers: those would end, and their instances with them, while their master is gone.
        script = "#!/bin/sh\nexec sleep 1000\n"
        arguments = {**self.ec2.worker_arguments(), "bb_master": "127.0.0.1", "bootstrap_script": script}
        text = CONFIGURATION.format(count=COUNT, arguments=arguments, building=building)
        (self.basedir / "master.cfg").write_text(text)
        # What the process that was killed has left.
        (self.basedir / "twistd.pid").unlink(missing_ok=True)
        process = Process()
        process.transport = reactor.spawnProcess(
            process,
            BUILDBOT,
            [BUILDBOT, "start", "--nodaemon", str(self.basedir)],
            env=os.environ,
        )

        @defer.inlineCallbacks
        def end() -> Any:
            if not process.ended.called:
                process.transport.signalProcess("KILL")
                yield process.ended

        self.addCleanup(end)
        return process

    def of_second_master(self, client: Any) -> str:
        """An instance of a master whose name begins like that of ours."""
        tags = [{"Key": MASTER_TAG, "Value": f"{os.uname()[1]}:{self.basedir}-2"}, {"Key": LAUNCH_TAG, "Value": "x"}]
        answer = client.run_instances(
            ImageId="ami-embedded",
            MinCount=1,
            MaxCount=1,
            TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
        )
        return answer["Instances"][0]["InstanceId"]

    @defer.inlineCallbacks
    def test_comes_back(self):
        """All of its instances are gone, within what a minute is on the embedded EC2; the second master's is still there."""
        self.start_ec2()
        yield self.create()
        second = yield self.boto3(self.of_second_master)
        process = self.start(building=True)
        yield self.until(lambda: len(self.ec2.alive()) == COUNT + 1, seconds=60, what="all instances")
        yield self.until(lambda: list(self.ec2.states().values()).count("running") == COUNT + 1, what="all run")
        process.transport.signalProcess("KILL")
        yield process.ended
        left = [one for one in self.ec2.alive() if one != second]
        self.assertEqual(len(left), COUNT)
        looks = self.ec2.calls["DescribeInstances"]
        back = self.start(building=False)
        # Its process takes its time to start, on a busy machine.
        yield self.until(
            lambda: self.ec2.calls["DescribeInstances"] > looks, seconds=120, what="the look for leftovers"
        )
        # Buildbot tries the builds again meanwhile, on new ones.
        yield self.until(lambda: not set(left) & set(self.ec2.alive()), what="the end of the leftovers")
        log = (self.basedir / "twistd.log").read_text() + back.output.decode()
        self.assertEqual(log.count("it is older than this process"), COUNT)
        os.kill(back.transport.pid, signal.SIGTERM)
        yield back.ended
        yield self.until(lambda: self.ec2.alive() == [second], what="the end of the others")
