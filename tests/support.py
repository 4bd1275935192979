"""What the tests of whole farms share."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import boto3
from buildbot.plugins import schedulers, steps, util
from twisted.internet import defer, task, threads
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python import log
from twisted.trial.unittest import TestCase

from buildbot_ec2ud.embedded import EmbeddedEC2, EmbeddedMaster
from buildbot_ec2ud.worker import EC2UserDataLatentWorker

LOOPBACK = "tcp:0:interface=127.0.0.1"


def configuration(workers: list[Any], command: str = "echo hello", **more: Any) -> dict[str, Any]:
    """A master with one builder, ``b``, that runs *command* on *workers*."""
    factory = util.BuildFactory([steps.ShellCommand(name="command", command=["sh", "-c", command])])
    return {
        "workers": workers,
        "builders": [util.BuilderConfig(name="b", workernames=[worker.name for worker in workers], factory=factory)],
        "schedulers": [schedulers.ForceScheduler(name="force", builderNames=["b"])],
        "protocols": {"pb": {"port": LOOPBACK}},
        "www": {"port": LOOPBACK},
        "collapseRequests": False,
        **more,
    }


@defer.inlineCallbacks
def passes_under_trial(test: TestCase, text: str, successes: int) -> Any:
    """Assert that a module of tests passes, in a process of its own."""
    directory = Path(test.mktemp())
    directory.mkdir()
    directory.joinpath("test_farm.py").write_text(text)
    out, err, status = yield getProcessOutputAndValue(
        sys.executable, ["-m", "twisted.trial", "test_farm"], env=os.environ, path=str(directory)
    )
    test.assertEqual(status, 0, (out + err).decode())
    test.assertIn(b"PASSED (successes=%d)" % successes, out)


class FarmTestCase(TestCase):
    """Tests with an embedded EC2 and a master, which are gone after each."""

    timeout = 240
    master: EmbeddedMaster

    def start_ec2(self, **settings: Any) -> EmbeddedEC2:
        self.ec2 = EmbeddedEC2(**{"pending": 0.2, "shutting_down": 0.2, **settings})
        self.happened: list[tuple[str, str]] = []
        self.ec2.subscribe(lambda instance_id, what, details: self.happened.append((what, details)))
        self.ec2.start()
        self.addCleanup(self.ec2.stop)
        return self.ec2

    def worker(self, name: str = "w", **arguments: Any) -> EC2UserDataLatentWorker:
        return EC2UserDataLatentWorker(name, **{**self.ec2.worker_arguments(), "build_wait_timeout": 0, **arguments})

    @defer.inlineCallbacks
    def start_master(self, configuration: dict[str, Any]) -> Any:
        """Start a master that logs to ``twistd.log`` in its directory, as one outside of a test does."""
        basedir = os.path.abspath(self.mktemp())
        os.mkdir(basedir)
        logfile = open(os.path.join(basedir, "twistd.log"), "w", encoding="utf-8")  # noqa: SIM115
        observer = log.FileLogObserver(logfile)
        observer.start()
        self.addCleanup(logfile.close)
        self.addCleanup(observer.stop)
        self.master = EmbeddedMaster(configuration, basedir)
        self.addCleanup(self.master.stop)
        yield self.master.start()

    @defer.inlineCallbacks
    def farm(self, command: str = "echo hello", **arguments: Any) -> Any:
        """An EC2 and a master with one worker."""
        self.start_ec2()
        yield self.start_master(configuration([self.worker(**arguments)], command))

    def boto3(self, function: Any) -> defer.Deferred[Any]:
        """Ask EC2 with somebody else's client: call *function* with a boto3 client, in a thread."""
        client = boto3.client(
            "ec2",
            endpoint_url=self.ec2.endpoint_url,
            region_name=self.ec2.region,
            aws_access_key_id="boto3",
            aws_secret_access_key="boto3",
        )
        return threads.deferToThread(function, client)

    @defer.inlineCallbacks
    def until(self, condition: Any, seconds: float = 60, what: str = "") -> Any:
        """Wait until *condition()* holds."""
        from twisted.internet import reactor

        deadline = reactor.seconds() + seconds
        while not condition():
            if reactor.seconds() > deadline:
                self.fail(f"waited {seconds} s in vain for {what or condition}")
            yield task.deferLater(reactor, 0.02)

    def until_gone(self) -> defer.Deferred[Any]:
        return self.until(lambda: not self.ec2.alive(), what="the end of all instances")

    def flush_removed(self) -> None:
        """Forget that Buildbot has looked at a builder which a reconfig has removed: it may be about to give it a build."""
        self.flushLoggedErrors(AttributeError)

    def flush(self) -> list[str]:
        """The texts of the errors that were logged, which are expected."""
        return [failure.getErrorMessage() for failure in self.flushLoggedErrors()]
