"""A sandbox whose machine ends itself: time that passes as a test wants, a worker, and a metadata service."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from typing import Any

from twisted.internet import defer, reactor, task
from twisted.trial.unittest import TestCase
from twisted.web import resource, server

from buildbot_ec2ud.userdata.posix import UserData
from buildbot_ec2ud.userdata.scripts import InlineScript
from tests.unit.files import write
from tests.unit.sandbox import PASSWORD, SHELLS, WORKER, Sandbox
from tests.unit.servers import serve

SLEEP = shutil.which("sleep")
HANGS = f"#!/bin/sh\nexec {SLEEP} 60\n"

#: What every instance asks for, once. Source of the paths: EC2 user guide, "Instance metadata categories".
FACTS = {
    "instance-id": "BB_INSTANCE_ID",
    "ami-id": "BB_AMI_ID",
    "placement/region": "BB_REGION",
    "placement/availability-zone": "BB_AVAILABILITY_ZONE",
    "local-ipv4": "BB_LOCAL_IPV4",
    "local-hostname": "BB_HOSTNAME",
}

#: Connects to an address, notes the signals that it knows, and ends at SIGTERM unless told to ignore it.
_WORKER = """
import signal, socket, sys
host, port, path, *knows = sys.argv[1:]
def note(number, frame):
    with open(path, "a") as file:
        file.write(signal.Signals(number).name + "\\n")
    if number == signal.SIGTERM and "stubborn" not in knows:
        sys.exit()
for number in [signal.SIGTERM] + [signal.SIGHUP] * ("deaf" not in knows):
    signal.signal(number, note)
connection = socket.create_connection((host, int(port)))
with open(path, "a") as file:
    file.write("connected\\n")
while True:
    signal.pause()
"""


class WatchTestCase(TestCase):
    """What user-data leaves running on its machine, and what that does there."""

    timeout = 300

    def machine(self, shell: str = "sh") -> Sandbox:
        """A sandbox in which every ``sleep`` is short, as long as it may ask for."""
        sandbox = Sandbox(self)
        sandbox.use(SHELLS[shell])
        sandbox.record("sleep", f"exec {SLEEP} 0.02")
        return sandbox

    def start(
        self, sandbox: Sandbox, script: str = HANGS, shell: str = "sh", port: int = 9989, url: str = "", **watches: Any
    ) -> subprocess.Popen[bytes]:
        """Start user-data with the bootstrap *script*. What it prints goes to the file ``output``."""
        data = UserData(f"master.example.org:{port}", WORKER, PASSWORD, {}, InlineScript(script), **watches).render()
        return self.spawn(
            [*SHELLS[shell], write(sandbox.root, "user-data", data)],
            sandbox,
            sandbox.environment(**{"EC2UD_METADATA_URL": url} if url else {}),
        )

    def spawn(self, command: list[str], sandbox: Sandbox, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        with open(sandbox.path("output"), "wb") as output:
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=sandbox.root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.addCleanup(process.wait)
        self.addCleanup(self.kill, process)
        return process

    def kill(self, process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
        """Signal the process group of what was started."""
        if process.returncode is None:
            os.killpg(process.pid, number)

    def listen(self, host: str = "127.0.0.1") -> socket.socket:
        """Something that a worker can connect to."""
        listening = socket.create_server(
            (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=16
        )
        self.addCleanup(listening.close)
        return listening

    def worker(self, sandbox: Sandbox, port: int, *knows: str, host: str = "127.0.0.1") -> str:
        """A bootstrap script that starts a worker, which notes in the file ``worker.calls`` what happens to it."""
        path = write(sandbox.root, "worker.py", _WORKER)
        arguments = " ".join((host, str(port), sandbox.path("worker.calls"), *knows))
        return f"#!/bin/sh\n{sys.executable} -S -E {path} {arguments}\nexec {SLEEP} 60\n"

    @defer.inlineCallbacks
    def until(self, condition: Any, what: str = "") -> Any:
        """Wait until *condition()* holds; the test's time limit is the limit."""
        while not condition():
            yield task.deferLater(reactor, 0.02)

    def until_called(self, sandbox: Sandbox, name: str, count: int = 1) -> defer.Deferred[Any]:
        return self.until(lambda: len(sandbox.calls(name)) >= count)

    def metadata(self, **settings: Any) -> tuple[Metadata, str]:
        service = Metadata(**settings)
        return service, serve(self, server.Site(service)).rstrip("/")


class Metadata(resource.Resource):
    """A metadata service.

    :param tokens: whether a token is "required" or "optional", or the service is of the time before there were any: "none".
    :ivar documents: what there is, by path.
    :ivar token: the token that is valid.
    :ivar asked: the paths that were asked for, of documents.
    :ivar facts: those of them that each instance asks for when it starts.
    :ivar granted: how many tokens were given.
    """

    isLeaf = True

    def __init__(self, tokens: str = "required", documents: dict[str, str] | None = None) -> None:
        super().__init__()
        self.tokens = tokens
        self.documents = dict(documents or {})
        self.token = b"t0ken/+==-1"
        self.asked: list[str] = []
        self.facts: list[str] = []
        self.granted = 0

    def render_PUT(self, request: Any) -> bytes:
        if self.tokens == "none" or request.path != b"/latest/api/token":
            request.setResponseCode(405)
            return b"<html>no</html>"
        seconds = request.getHeader("X-aws-ec2-metadata-token-ttl-seconds") or ""
        if not (seconds.isdigit() and 1 <= int(seconds) <= 21600):
            request.setResponseCode(400)
            return b""
        self.granted += 1
        return self.token

    def render_GET(self, request: Any) -> bytes:
        path = request.path.decode().removeprefix("/latest/meta-data/")
        token = request.getHeader("X-aws-ec2-metadata-token")
        right = token is not None and token.encode() == self.token
        if self.tokens != "none" and not right and (token is not None or self.tokens == "required"):
            request.setResponseCode(401)
            return b"<html>action time 401</html>"
        (self.facts if path in FACTS else self.asked).append(path)
        if path not in self.documents:
            request.setResponseCode(404)
            return b'<html>"action" 404</html>'
        return self.documents[path].encode()
