"""``buildbot-ec2ud demo``, as a person runs it."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import sys
import tempfile
from pathlib import Path

from twisted.internet import defer, error, protocol, reactor
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent, FileBodyProducer, readBody
from twisted.web.http_headers import Headers


class Command(protocol.ProcessProtocol):
    """A running command; *said* fires when a line has come that matches."""

    def __init__(self):
        self.output = b""
        self.ended = defer.Deferred()
        self._waiting = []

    def childDataReceived(self, childFD, data):
        self.output += data
        for pattern, waiter in list(self._waiting):
            if found := re.search(pattern, self.output):
                self._waiting.remove((pattern, waiter))
                waiter.callback(found)

    def said(self, pattern: bytes):
        waiter = defer.Deferred()
        self._waiting.append((pattern, waiter))
        self.childDataReceived(1, b"")
        return waiter

    def processEnded(self, reason):
        for _, waiter in self._waiting:
            waiter.errback(AssertionError(self.output.decode()))
        self.ended.callback(reason.value)


class Demo(TestCase):
    timeout = 300

    def setUp(self):
        self.temporary = tempfile.mkdtemp()
        self.addCleanup(lambda: os.rmdir(self.temporary))  # fails where something has stayed

    def demo(self, *arguments: str) -> Command:
        command = Command()
        process = reactor.spawnProcess(
            command,
            sys.executable,
            [sys.executable, "-m", "buildbot_ec2ud.cli", "demo", *arguments],
            env={**os.environ, "TMPDIR": self.temporary},
        )
        command.process = process
        return command

    def processes(self) -> list[str]:
        """The command lines of the processes that this demo has started and that still run."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if self.temporary.encode() in entry.joinpath("environ").read_bytes():
                        found.append(entry.joinpath("cmdline").read_text())
                except OSError:
                    continue
        return found

    @defer.inlineCallbacks
    def ends(self, command: Command, *statuses: int):
        ended = yield command.ended
        status = 0 if isinstance(ended, error.ProcessDone) else ended.exitCode
        self.assertIn(status, statuses, command.output.decode())
        self.assertEqual(self.processes(), [])

    @defer.inlineCallbacks
    def test_once(self):
        """One line for each thing that happens, in order; status 0; nothing stays."""
        command = self.demo("--once", "--workers", "2", "--faults", "pending=3")
        yield self.ends(command, 0)
        lines = command.output.decode().splitlines()
        story = [re.sub(r"^ *[0-9.]+ s +", "", line) for line in lines if re.search(r"\bdemo-1\b", line)]
        order = (
            "ask EC2",
            "launch",
            "pending",
            "running",
            "user-data started",
            "worker attached",
            "terminate",
            "terminated",
        )
        self.assertEqual(
            [kind for line in story for kind in order if re.match(rf"{kind} ", line)],
            list(order),
            command.output.decode(),
        )
        text = command.output.decode()
        for what in ("request ", "step ", "result ", "build successful", "2 of 2 builds succeeded", "0 instances left"):
            self.assertIn(what, text)

    @defer.inlineCallbacks
    def test_interrupt(self):
        """Ctrl-C while a build runs ends everything: no process, no port, no directory stays."""
        command = self.demo("--port", "0")
        found = yield command.said(rb"web UI at (http://127\.0\.0\.1:([0-9]+)/)")
        yield self.force(found[1].decode())
        yield command.said(rb"worker attached")
        command.process.signalProcess("INT")
        yield self.ends(command, 0)
        with socket.socket() as nobody:
            self.assertNotEqual(nobody.connect_ex(("127.0.0.1", int(found[2]))), 0)

    @defer.inlineCallbacks
    def test_interrupt_early(self):
        """A signal before anything runs leaves nothing either."""
        command = self.demo("--once")
        yield command.said(rb"EC2 started")
        os.kill(command.process.pid, signal.SIGTERM)
        yield self.ends(command, 0, 1)

    @defer.inlineCallbacks
    def force(self, url: str):
        """Press the button of the web UI."""

        call = {"jsonrpc": "2.0", "id": 1, "method": "force", "params": {"builderid": "1"}}
        response = yield Agent(reactor).request(
            b"POST",
            f"{url}api/v2/forceschedulers/force".encode(),
            Headers({"Content-Type": ["application/json"]}),
            FileBodyProducer(io.BytesIO(json.dumps(call).encode())),
        )
        body = yield readBody(response)
        self.assertEqual(response.code, 200, body)

    @defer.inlineCallbacks
    def test_force_again_and_again(self):
        """In the web UI, a build can be forced more than once."""
        command = self.demo("--port", "0")
        found = yield command.said(rb"web UI at (http://127\.0\.0\.1:[0-9]+/)")
        for number in (1, 2):
            yield self.force(found[1].decode())
            yield command.said(rb"build %d: build successful" % number)
        command.process.signalProcess("INT")
        yield self.ends(command, 0)

    @defer.inlineCallbacks
    def test_port_in_use(self):
        """One clear line, status 1, nothing left."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            command = self.demo("--once", "--port", str(taken.getsockname()[1]))
            yield self.ends(command, 1)
            said = [line for line in command.output.decode().splitlines() if line.startswith("buildbot-ec2ud demo:")]
            self.assertEqual(len(said), 1, command.output.decode())
            self.assertIn(f"127.0.0.1:{taken.getsockname()[1]}", said[0])
            self.assertNotIn("Traceback", command.output.decode())

    @defer.inlineCallbacks
    def test_bad_faults(self):
        """A mistake in the list of faults is told before anything is started."""
        command = self.demo("--once", "--faults", "throttle,lostreply:RunInstances")
        yield self.ends(command, 2)
        text = command.output.decode()
        self.assertIn("argument --faults: unknown kind of fault 'lostreply'; did you mean lost-reply?", text)
        self.assertNotIn("master created", text)
        self.assertNotIn("Traceback", text)

    @defer.inlineCallbacks
    def test_throttle(self):
        """With EC2's own limits, the demo's own calls are not too many."""
        command = self.demo("--once", "--faults", "throttle")
        yield self.ends(command, 0)
        self.assertIn("1 of 1 builds succeeded", command.output.decode())
        self.assertEqual(self.faults(command), [])

    @defer.inlineCallbacks
    def test_faults(self):
        """Calls that are hit are made again: one line for each fault, one instance, and the build succeeds."""
        command = self.demo("--once", "--faults", "lost-reply:RunInstances,throttled:DescribeInstances")
        yield self.ends(command, 0)
        text = command.output.decode()
        self.assertCountEqual(self.faults(command), ["lost-reply of RunInstances", "throttled of DescribeInstances"])
        self.assertIn("1 of 1 builds succeeded", text)
        self.assertIn("2 RunInstances and ", text)
        self.assertEqual(len(set(re.findall(r" running .*?(i-[0-9a-f]+)", text))), 1, text)

    @defer.inlineCallbacks
    def test_interruption(self):
        """EC2 takes back spot instances only; its notice is shown."""
        command = self.demo(
            "--once", "--market", "spot-then-on-demand", "--faults", "interruption=0.1,notice=100,pending=3"
        )
        yield self.ends(command, 0)
        text = command.output.decode()
        self.assertRegex(text, r"ask EC2 +demo-1 +t3.micro spot\n")
        self.assertRegex(text, r"interruption notice +demo-1 +i-[0-9a-f]+ 100 s ahead\n")

    def faults(self, command: Command) -> list[str]:
        """What the demo has said of faults."""
        return re.findall(r"^ *[0-9.]+ s  fault +(\S.*)$", command.output.decode(), re.MULTILINE)
