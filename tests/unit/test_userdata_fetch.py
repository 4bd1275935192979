"""User-data that fetches its bootstrap script: from a web server on this machine, with whatever a system fetches with."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from typing import Any

from twisted.internet import defer
from twisted.trial.unittest import SkipTest, TestCase

from buildbot_ec2ud.userdata.scripts import RemoteScript
from tests.unit.sandbox import PASSWORD, SHELLS, Sandbox
from tests.unit.servers import Answers, Scripted, serve

SCRIPT = '#!/bin/sh\necho "fetched by $BB_NAME: wörk"\n'.encode()
SHA256 = hashlib.sha256(SCRIPT).hexdigest()
LAST = "fetched by worker-1: wörk"


class FetchTests(TestCase):
    """In every shell, with every command that fetches and every one that verifies."""

    timeout = 240

    def sandbox(self, *commands: str) -> Sandbox:
        sandbox = Sandbox(self)
        for command in commands or ("curl", "sha256sum"):
            if command == "python3":
                os.symlink(os.path.realpath(sys.executable), os.path.join(sandbox.bin, command))
            elif not sandbox.link(command):
                raise SkipTest(f"{command} is not installed")
        return sandbox

    def serve(self, *answers: tuple[int, bytes]) -> tuple[Answers, str]:
        answers_ = Answers(*answers)
        return answers_, serve(self, answers_.site()) + "a%20'script'?x=1&y=$(z)"

    @defer.inlineCallbacks
    def test_shells(self) -> Any:
        """The script runs when its checksum is right."""
        for shell in SHELLS:
            sandbox = self.sandbox()
            server, url = self.serve((200, SCRIPT))
            lines = yield sandbox.start(RemoteScript(url, SHA256), shell)
            phases = [line.partition(" t=")[0] for line in lines[:3]]
            self.assertEqual(phases, ["ec2ud: phase=start", "ec2ud: phase=fetch", "ec2ud: phase=bootstrap"])
            self.assertEqual(lines[3:], [LAST])
            self.assertEqual(len(server.requests), 1)
            self.assertEqual(sandbox.calls("shutdown") + sandbox.calls("sleep"), [])

    @defer.inlineCallbacks
    def fetch_with(self, *commands: str) -> Any:
        sandbox = self.sandbox(*commands)
        server, url = self.serve((503, b"<html>later</html>"), (200, SCRIPT))
        lines = yield sandbox.start(RemoteScript(url, SHA256))
        self.assertEqual(lines[-1], LAST)
        self.assertEqual(len(server.requests), 2)
        self.assertEqual(sandbox.calls("shutdown"), [])
        wrong = self.sandbox(*commands)
        lines = yield wrong.start(RemoteScript(url, "0" * 64))
        self.assertIn(f"has the wrong SHA-256: {SHA256}", lines[-2])
        self.assertEqual(wrong.calls("shutdown"), ["-P now"])

    def test_curl(self) -> Any:
        """With curl, as on most systems."""
        return self.fetch_with("curl", "sha256sum")

    def test_wget(self) -> Any:
        """With wget; and where a checksum comes from openssl."""
        return self.fetch_with("wget", "openssl")

    def test_python(self) -> Any:
        """With nothing but Python."""
        return self.fetch_with("python3", "sha256sum")

    def test_shasum(self) -> Any:
        """Where a checksum comes from shasum, as on macOS."""
        if shutil.which("shasum") is None or not self.sandbox().link("perl"):
            raise SkipTest("shasum is not installed")
        return self.fetch_with("curl", "shasum", "perl")

    @defer.inlineCallbacks
    def test_no_checksum(self) -> Any:
        """Without a checksum whatever comes is run."""
        _, url = self.serve((200, SCRIPT))
        lines = yield self.sandbox("curl").start(RemoteScript(url, None))
        self.assertEqual(lines[-1], LAST)

    @defer.inlineCallbacks
    def test_wrong_checksum(self) -> Any:
        """Another script is not run, and the machine goes."""
        for shell in SHELLS:
            sandbox = self.sandbox()
            evil = b"#!/bin/sh\necho evil\n"
            _, url = self.serve((200, evil))
            lines = yield sandbox.start(RemoteScript(url, SHA256), shell)
            self.assertNotIn("evil", lines)
            self.assertIn(f"wrong SHA-256: {hashlib.sha256(evil).hexdigest()}", lines[-2])
            self.assertEqual(lines[-1], "ec2ud: the bootstrap script failed with status 1; powering off")
            self.assertEqual(sandbox.calls("shutdown"), ["-P now"])

    @defer.inlineCallbacks
    def test_nothing_verifies(self) -> Any:
        """Where no command can verify, nothing is run."""
        sandbox = self.sandbox("curl")
        _, url = self.serve((200, SCRIPT))
        lines = yield sandbox.start(RemoteScript(url, SHA256))
        self.assertNotIn(LAST, lines)
        self.assertEqual(sandbox.calls("shutdown"), ["-P now"])

    @defer.inlineCallbacks
    def test_tries_again(self) -> Any:
        """A server that is busy is asked again, after longer and longer pauses."""
        for shell in SHELLS:
            sandbox = self.sandbox()
            server, url = self.serve((503, b"#!/bin/sh\necho evil\n"), (503, b""), (200, SCRIPT))
            lines = yield sandbox.start(RemoteScript(url, SHA256), shell)
            self.assertEqual(lines[-1], LAST)
            self.assertNotIn("evil", lines)
            self.assertEqual(len(server.requests), 3)
            self.assertEqual(sandbox.calls("sleep"), ["1", "2"])

    @defer.inlineCallbacks
    def test_gives_up(self) -> Any:
        """After two minutes of pauses the machine gives up, says so, lets that come to the console, and goes."""
        sandbox = self.sandbox()
        server, url = self.serve((404, b"#!/bin/sh\necho evil\n"))
        lines = yield sandbox.start(RemoteScript(url, None))
        self.assertEqual(sandbox.calls("sleep"), ["1", "2", "4", "8", "16", "32", "64", "1"])
        self.assertEqual(len(server.requests), 8)
        self.assertNotIn("evil", lines)
        self.assertEqual(lines[-2], f"ec2ud: cannot fetch {url}")
        self.assertEqual(lines[-1], "ec2ud: the bootstrap script failed with status 1; powering off")
        self.assertEqual(sandbox.calls("shutdown"), ["-P now"])
        self.assertNotIn(PASSWORD, sandbox.log)

    @defer.inlineCallbacks
    def test_cut_off(self) -> Any:
        """Half a script is not run."""
        sandbox = self.sandbox("curl")
        half = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + SCRIPT

        def act(transport: Any) -> None:
            transport.write(half)
            transport.loseConnection()

        lines = yield sandbox.start(RemoteScript(serve(self, Scripted(act)), None))
        self.assertNotIn(LAST, lines)
        self.assertEqual(sandbox.calls("shutdown"), ["-P now"])
