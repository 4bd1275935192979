"""What several masters share: a PostgreSQL of Debian's package and a Crossbar, on loopback; and master processes."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.internet import defer, protocol, reactor, threads

GUIDE = Path(__file__).parents[2] / "docs" / "growth.md"
BUILDBOT = str(Path(sys.executable).with_name("buildbot"))
#: An executable of Crossbar, where it need not be installed anew: that takes a minute, and 400 MB.
CROSSBAR = os.environ.get("EC2UD_CROSSBAR") or shutil.which("crossbar")


def example(language: str) -> str:
    """The one block of docs/growth.md in *language*."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.M | re.S)
    return block


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def accepts(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0


def postgresql(program: str) -> str | None:
    """The path of a program of PostgreSQL; Debian has those of the server outside of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return shutil.which(program) or (str(found[-1]) if found else None)


class PostgreSQL:
    """A server of our own, with the role and the database of the guide.

    :ivar url: of the database; without the password, which is in :attr:`password_file`.
    """

    def __init__(self) -> None:
        # Not in the test's directory, which only root can enter; PostgreSQL does not run as root.
        self._directory = Path(tempfile.mkdtemp(prefix="ec2ud-postgresql-"))
        self._data = self._directory / "data"
        self._port = free_port()
        self.password_file = self._directory / "pgpass"
        self.url = f"postgresql+psycopg2://buildbot@127.0.0.1:{self._port}/buildbot"
        self._as_user = []
        if os.getuid() == 0:
            shutil.chown(self._directory, "postgres")
            self._as_user = ["runuser", "-u", "postgres", "--"]

    def _run(self, program: str, *arguments: str, text: str | None = None) -> str:
        command = [*self._as_user, postgresql(program), *arguments]
        environment = {**os.environ, "PGPASSFILE": str(self._directory / "superuser")}
        # Not a pipe: the server that pg_ctl starts would keep it open.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(
                command,
                cwd=self._directory,
                env=environment,
                input=text,
                stdout=output,
                stderr=output,
                text=True,
                timeout=60,
            )
            output.seek(0)
            said = output.read()
        if done.returncode:
            raise RuntimeError(f"{program}: {said}")
        return said

    def _secret(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o600)
        if self._as_user and path != self.password_file:
            shutil.chown(path, "postgres")

    def start(self) -> None:
        """Start the server, and do what the guide says; blocks."""
        sql = example("sql")
        (password,) = re.findall(r"PASSWORD '(.*?)'", sql)
        self._secret(self._directory / "initial", "of-the-superuser\n")
        self._secret(self._directory / "superuser", "127.0.0.1:*:*:postgres:of-the-superuser\n")
        self._secret(self.password_file, f"127.0.0.1:{self._port}:buildbot:buildbot:{password}\n")
        self._run(
            "initdb",
            *("--pgdata", str(self._data), "--username", "postgres", "--auth", "scram-sha-256"),
            *("--pwfile", str(self._directory / "initial"), "--no-sync"),
        )
        options = f"-p {self._port} -k {self._directory} -c listen_addresses=127.0.0.1 -c fsync=off"
        log = str(self._directory / "log")
        self._run("pg_ctl", "start", "-w", "--pgdata", str(self._data), "--log", log, "--options", options)
        self._run("psql", *self._where("postgres"), "--set", "ON_ERROR_STOP=1", "--file", "-", text=sql)

    def _where(self, database: str) -> list[str]:
        return ["--host", "127.0.0.1", "--port", str(self._port), "--username", "postgres", "--dbname", database]

    def ask(self, query: str) -> list[list[str]]:
        """The rows of a query, as texts; blocks."""
        said = self._run("psql", *self._where("buildbot"), "--no-align", "--tuples-only", "--command", query)
        return [line.split("|") for line in said.splitlines()]

    def stop(self) -> None:
        """End the server, and remove all it had; blocks."""
        if (self._data / "postmaster.pid").exists():
            self._run("pg_ctl", "stop", "--mode", "immediate", "--pgdata", str(self._data))
        shutil.rmtree(self._directory, ignore_errors=True)


class Process(protocol.ProcessProtocol):
    """A process of ours.

    :ivar output: what it has printed.
    :ivar ended: fires when it has.
    """

    def __init__(self, command: list[str], directory: Path, environment: Mapping[str, str]) -> None:
        self.output = b""
        self.ended: defer.Deferred[None] = defer.Deferred()
        reactor.spawnProcess(self, command[0], command, env=environment, path=str(directory))

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self.output += data

    def processEnded(self, reason: Any) -> None:
        self.ended.callback(None)

    def signal(self, name: str) -> defer.Deferred[None]:
        """Send it a signal, if it runs.

        :return: fires when it has ended.
        """
        if not self.ended.called:
            self.transport.signalProcess(name)
        return self.ended


class Crossbar:
    """A router with the configuration of the guide, on another port.

    :ivar url: of it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._port = free_port()
        self.url = f"ws://127.0.0.1:{self._port}"

    @defer.inlineCallbacks
    def start(self, case: Any) -> Any:
        """Start it, and wait until it listens; *case* ends it."""
        program = CROSSBAR or (yield threads.deferToThread(self._install))
        configuration = json.loads(example("json"))
        (transport,) = configuration["workers"][0]["transports"]
        transport["endpoint"]["port"] = self._port
        node = self._directory / "router" / ".crossbar"
        node.mkdir(parents=True)
        (node / "config.json").write_text(json.dumps(configuration))
        self._process = Process([program, "start"], node.parent, os.environ)
        case.addCleanup(self._process.signal, "TERM")
        yield case.until(
            lambda: self._process.ended.called or accepts(self._port), seconds=180, what="the router's port"
        )
        case.assertFalse(self._process.ended.called, self._process.output)

    def _install(self) -> str:
        """In a virtualenv of its own, as the guide says; its path."""
        venv = self._directory / "crossbar"
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=120)
        install = [str(venv / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "crossbar"]
        subprocess.run(install, check=True, timeout=600)
        return str(venv / "bin" / "crossbar")


class Master:
    """A master's directory, and its process.

    :ivar name: as Buildbot calls it.
    """

    def __init__(self, case: Any, directory: Path, environment: Mapping[str, str]) -> None:
        self._case = case
        self.directory = directory
        self.environment = environment
        self.www = free_port()
        self.name = f"{os.uname().nodename}:{directory}"

    def create(self, db_url: str, configuration: str) -> None:
        """Make the directory, and the tables where there are none; blocks."""
        command = [BUILDBOT, "create-master", "--relocatable", "--db", db_url, str(self.directory)]
        subprocess.run(command, env=self.environment, check=True, timeout=120, capture_output=True)
        (self.directory / "master.cfg").write_text(configuration)

    @defer.inlineCallbacks
    def start(self) -> Any:
        """Start it, and wait until it serves."""
        (self.directory / "twistd.pid").unlink(missing_ok=True)  # what a process that was killed has left
        command = [BUILDBOT, "start", "--nodaemon", str(self.directory)]
        self.process = process = Process(command, self.directory, self.environment)
        self._case.addCleanup(process.signal, "KILL")
        began = len(self.log())
        yield self._case.until(
            lambda: process.ended.called or "BuildMaster is running" in self.log()[began:],
            seconds=60,
            what=f"the start of {self.name}",
        )
        self._case.assertFalse(process.ended.called, process.output.decode() + self.log()[began:])

    def log(self) -> str:
        path = self.directory / "twistd.log"
        return path.read_text() if path.exists() else ""

    @defer.inlineCallbacks
    def get(self, path: str) -> Any:
        """What the master's REST API answers."""
        return (yield threads.deferToThread(self._request, path))

    def force(self, builder: str) -> defer.Deferred[Any]:
        """Ask this master for a build, whoever has the builder."""
        params = {"builderNames": [builder], "builderid": None}

        @defer.inlineCallbacks
        def ask() -> Any:
            found = yield self.get("builders")
            (params["builderid"],) = (one["builderid"] for one in found["builders"] if one["name"] == builder)
            call = {"jsonrpc": "2.0", "method": "force", "id": 1, "params": params}
            return (yield threads.deferToThread(self._request, "forceschedulers/force", call))

        return ask()

    def _request(self, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.www}/api/v2/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
