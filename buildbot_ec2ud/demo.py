"""The whole thing on one machine: a master from the packaged template, and an EC2 whose instances really run."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from buildbot.config import ConfigErrors
from buildbot.process.results import SUCCESS, statusToString
from twisted.internet import defer, error, task
from twisted.internet.interfaces import IReactorCore
from twisted.python import log

from buildbot_ec2ud import template
from buildbot_ec2ud.embedded import Build, EmbeddedEC2, EmbeddedMaster, Faults
from buildbot_ec2ud.embedded.master import StartFailed
from buildbot_ec2ud.fleet.region import fleets
from buildbot_ec2ud.fleet.rental import FleetEvent

PLATFORM = "demo"
#: The web UI's port, unless another is asked for; a run of one build takes any.
PORT = 8010
#: Seconds after which a run of one build gives up.
ONCE_TIMEOUT = 300
#: Seconds that the instances may take to be gone after the last build.
GONE_TIMEOUT = 60


#: What is shown of what the embedded EC2 tells of an instance.
_SHOWN = ("running", "user-data started", "user-data ended", "rebalance recommendation", "interruption notice")


class DemoFailed(Exception):
    """The demo cannot go on; the text is one line."""


def _toml(table: Mapping[str, Any]) -> str:
    """A table of texts, numbers and lists of them: TOML and JSON write these alike."""
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in table.items())


class Demo:
    """One run of the demo.

    :param reactor: Twisted's; it is run and stopped by :meth:`run`.
    :param workers: how many workers, and with *once* how many builds.
    :param port: TCP port of the web UI; None for the usual one.
    :param once: run one build on each worker and end, instead of waiting for Ctrl-C.
    :param faults: what goes wrong in EC2; nothing, unless given.
    :param market: on which the instances are rented.
    """

    def __init__(
        self,
        reactor: IReactorCore,
        workers: int = 1,
        port: int | None = None,
        once: bool = False,
        faults: Faults | None = None,
        market: str = "on-demand",
    ) -> None:
        self._reactor: Any = reactor
        self._workers = workers
        self._port = (0 if once else PORT) if port is None else port
        self._once = once
        self._faults = faults
        self._market = market
        self._began = reactor.seconds()  # type: ignore[attr-defined]
        self._worker_of: dict[str, str] = {}
        self._interrupted: defer.Deferred[None] = defer.Deferred()
        self._status = 1

    def run(self) -> int:
        """Run until it is done or interrupted; nothing is left when it returns.

        :return: the exit status.
        """
        directory = tempfile.mkdtemp(prefix="buildbot-ec2ud-demo-")
        try:
            self._basedir = Path(directory, "master")
            self._create_master()
            with open(self._basedir / "twistd.log", "a", encoding="utf-8") as logfile:
                log.startLogging(logfile, setStdout=False)
                self._reactor.callWhenRunning(self._main, Path(directory))
                self._reactor.run()
        except DemoFailed as failure:
            print(f"buildbot-ec2ud demo: {failure}", file=sys.stderr)
        except KeyboardInterrupt:
            self._status = 130
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        return self._status

    def _say(self, what: str, who: str = "", text: str = "") -> None:
        seconds = self._reactor.seconds() - self._began
        print(f"{seconds:7.2f} s  {what:<18} {who:<9} {text}".rstrip(), flush=True)

    def _create_master(self) -> None:
        done = template.create_master(self._basedir, str(template.directory() / "master.cfg"))
        if done.returncode != 0:
            raise DemoFailed(f"buildbot create-master failed: {done.stdout.strip()}")
        self._say("master created", "", "buildbot create-master, from the packaged template")

    def _main(self, directory: Path) -> None:
        # The reactor has its handlers in place by now; these end the demo in good order.
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: self._reactor.callFromThread(self._interrupt))
        done = self._farm(directory)
        done.addErrback(self._failed)
        done.addBoth(lambda _: self._reactor.stop())

    def _interrupt(self) -> None:
        if not self._interrupted.called:
            self._say("interrupted", "", "ending everything")
            self._interrupted.callback(None)

    def _failed(self, failure: Any) -> None:
        self._status = 1
        if failure.check(DemoFailed, StartFailed, ConfigErrors, error.CannotListenError, defer.TimeoutError):
            text = " ".join(str(failure.value).split())
        else:
            log.err(failure)
            text = failure.getTraceback()
        print(f"buildbot-ec2ud demo: {text}", file=sys.stderr)

    @defer.inlineCallbacks
    def _farm(self, directory: Path) -> Generator[Any, Any, None]:
        """Start everything, do the work, and end everything."""
        self._ec2 = EmbeddedEC2(str(directory / "instances"), reactor=self._reactor, faults=self._faults)
        self._ec2.subscribe(self._instance_event)
        self._ec2.start()
        try:
            self._say("EC2 started", "", self._ec2.endpoint_url)
            self._configure()
            config_file = str(template.directory() / "master.cfg")
            self._farm_master = EmbeddedMaster(None, str(self._basedir), config_file, reactor=self._reactor)
            yield self._farm_master.start()
            try:
                self._say("master started", "", f"web UI at {self._farm_master.www_url}")
                yield self._observe()
                work = self._builds() if self._once else self._until_interrupted()
                yield defer.DeferredList(
                    [work, self._interrupted], fireOnOneCallback=True, fireOnOneErrback=True, consumeErrors=True
                )
            except defer.FirstError as first:
                first.subFailure.raiseException()
            finally:
                yield self._farm_master.stop()
                self._say("master stopped")
                yield self._wait_until_gone()
        finally:
            yield self._ec2.stop()
            self._say("EC2 stopped")

    def _configure(self) -> None:
        """Write the master's own settings: this is all that makes the template a demo."""
        settings = {
            "title": "buildbot-ec2ud demo",
            "www_port": f"tcp:{self._port}:interface=127.0.0.1",
            "www_url": f"http://127.0.0.1:{self._port}/",
            "pb_port": "tcp:0:interface=127.0.0.1",
            "collapse_requests": False,
            "keep_logs": 0,  # no janitor: the only scheduler and the only builder are those to be shown
        }
        # Long enough for all to build at the same time, though their processes take turns to start.
        pause = max(1, self._workers // 2)
        platform = {
            "count": self._workers,
            "build_wait_timeout": 0,
            "market": self._market,
            "build": ["uname -sr", 'echo "this is $BB_NAME"', f"sleep {pause}"],
            **self._ec2.worker_arguments(),
        }
        (self._basedir / "settings.toml").write_text(_toml(settings), encoding="utf-8")
        (self._basedir / "platforms.toml").write_text(f"[platforms.{PLATFORM}]\n{_toml(platform)}", encoding="utf-8")

    # What happens, a line each

    @defer.inlineCallbacks
    def _observe(self) -> Generator[Any, Any, None]:
        master = self._farm_master.master
        for fleet in fleets(master.namedServices):
            fleet.subscribe(self._fleet_event)
        for consumer, topic in (
            (self._request_event, ("buildrequests", None, "new")),
            (self._attached_event, ("workers", None, "connected")),
            (self._step_event, ("steps", None, "finished")),
            (self._build_event, ("builds", None, "finished")),
        ):
            yield master.mq.startConsuming(consumer, topic)

    def _fleet_event(self, event: FleetEvent) -> None:
        if event.instance_id:
            self._worker_of[event.instance_id] = event.worker
        if event.kind == "running":
            return  # the embedded EC2 tells it earlier than the master's next look
        kind = "ask EC2" if event.kind == "request" else event.kind
        self._say(kind, event.worker, f"{event.instance_id or ''} {event.text}".strip())

    def _instance_event(self, instance_id: str, what: str, details: str) -> None:
        if what == "fault":
            self._say("fault", "", details)
        elif what in _SHOWN:
            self._say(what, self._worker_of.get(instance_id, ""), f"{instance_id} {details}")

    def _request_event(self, _: Any, request: Mapping[str, Any]) -> None:
        self._say("request", "", f"build request {request['buildrequestid']}")

    def _attached_event(self, _: Any, worker: Mapping[str, Any]) -> None:
        self._say("worker attached", worker["name"])

    def _step_event(self, _: Any, step: Mapping[str, Any]) -> None:
        self._say("step", "", f"build {step['buildid']}: {step['name']}: {statusToString(step['results'])}")

    def _build_event(self, _: Any, build: Mapping[str, Any]) -> None:
        self._say("result", "", f"build {build['buildid']}: {build['state_string']}")

    # The work

    def _until_interrupted(self) -> defer.Deferred[None]:
        self._status = 0
        self._say("ready", "", "force a build in the web UI, again and again; Ctrl-C ends everything")
        return defer.Deferred()

    @defer.inlineCallbacks
    def _builds(self) -> Generator[Any, Any, None]:
        """Run a build on each worker at the same time, and judge."""
        work = defer.gatherResults(
            [self._farm_master.force_build(PLATFORM) for _ in range(self._workers)], consumeErrors=True
        )
        work.addTimeout(ONCE_TIMEOUT, self._reactor, onTimeoutCancel=self._too_late)
        builds = yield work
        yield self._wait_until_gone()
        successes = sum(build.results == SUCCESS for build in builds)
        self._say(
            "summary",
            "",
            f"{successes} of {len(builds)} builds succeeded, {_at_once(builds)} at the same time; "
            f"{self._ec2.calls['RunInstances']} RunInstances and {self._ec2.calls['DescribeInstances']} "
            f"DescribeInstances calls; {len(self._ec2.alive())} instances left",
        )
        self._status = 0 if successes == self._workers and not self._ec2.alive() else 1

    def _too_late(self, _: Any, seconds: float) -> None:
        raise DemoFailed(f"the builds did not end within {seconds:g} s")

    @defer.inlineCallbacks
    def _wait_until_gone(self) -> Generator[Any, Any, None]:
        """Wait until EC2 has ended every instance, and the fleets have seen it."""
        deadline = self._reactor.seconds() + GONE_TIMEOUT
        while self._reactor.seconds() < deadline:
            running = self._farm_master.master.running
            rented = any(fleet.rentals for fleet in fleets(self._farm_master.master.namedServices))
            if not self._ec2.alive() and not (running and rented):
                return
            yield task.deferLater(self._reactor, 0.05)


def _at_once(builds: list[Build]) -> int:
    """How many of *builds* had their steps running at the same time, at most."""
    spans = [(build.steps[1].started_at or 0, build.steps[-1].complete_at or 0) for build in builds if build.steps[1:]]
    return max((sum(a <= start < b or a == start for a, b in spans) for start, _ in spans), default=0)
