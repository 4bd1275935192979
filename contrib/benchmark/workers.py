"""Light workers: one process that holds the logins of all instances of the stand-in EC2.

They speak Buildbot's real PB protocol: log in, tell of themselves, take builds. They run no command, so that 164 processes
of a real worker are not what is measured. As on an instance, all that one knows is in its user-data.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from typing import Any

from children import run_until_closed
from twisted.cred.credentials import UsernamePassword
from twisted.internet import defer, task
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.protocols.basic import LineOnlyReceiver
from twisted.spread import pb

#: Seconds after which a login that was refused is tried again, as a worker does.
RETRY = 1.0
#: Seconds that a machine takes from "running" to the worker's first login: none, so that the master's own time is seen.
BOOT = 0.0


def credentials(user_data: str) -> tuple[str, str]:
    """The name and the password of the worker, which its user-data sets as variables of a shell.

    :raises ValueError: they are not there.
    """
    name = re.search(r"^(?:export )?BB_NAME=(.*)$", user_data, re.M)
    password = re.search(r"^(?:export )?BB_PASSWORD=(.*)$", user_data, re.M)
    # Or read from a here-document.
    read = re.search(r"^IFS= read -r BB_PASSWORD <<'(\S+)'\n(.*)\n\1$", user_data, re.M)
    if name is None or (password is None and read is None):
        raise ValueError("no name or no password of a worker in the user-data")
    return shlex.split(name[1])[0], read[2] if read else shlex.split(password[1])[0]  # type: ignore[index]


class _Builder(pb.Referenceable):
    """What the worker has of a builder."""

    def remote_setMaster(self, remote: Any) -> None:
        self.remote = remote

    def remote_print(self, message: str) -> None:
        pass

    def remote_startBuild(self) -> None:
        pass


class LightWorker(pb.Referenceable):
    """A worker that takes builds without commands.

    :param reactor: Twisted's.
    :param port: the master's.
    :param name: the worker's name; *password*: its password.
    :ivar attempts: how often it has tried to log in.
    """

    def __init__(self, reactor: Any, port: int, name: str, password: str) -> None:
        self._reactor = reactor
        self._port = port
        self._credentials = UsernamePassword(name.encode(), password.encode())
        self._connector: Any = None
        self._ended = False
        self.attempts = 0

    @defer.inlineCallbacks
    def start(self) -> Any:
        """Log in, and again until it succeeds."""
        while not self._ended:
            self.attempts += 1
            factory = pb.PBClientFactory()
            self._connector = self._reactor.connectTCP("127.0.0.1", self._port, factory)
            try:
                self._perspective = yield factory.login(self._credentials, client=self)
                return
            except Exception:
                self._connector.disconnect()
                yield task.deferLater(self._reactor, RETRY)

    def end(self) -> None:
        """Its machine is gone."""
        self._ended = True
        if self._connector is not None:
            self._connector.disconnect()

    def remote_print(self, message: str) -> None:
        pass

    def remote_getWorkerInfo(self) -> dict[str, Any]:
        return {
            "system": "posix",
            "basedir": "/var/lib/buildbot",
            "numcpus": 1,
            "version": "4.3.0",
            "worker_commands": {"shell": "3.3"},
            "environ": {},
        }

    def remote_setBuilderList(self, wanted: list[tuple[str, str]]) -> dict[str, _Builder]:
        return {name: _Builder() for name, _ in wanted}

    def remote_shutdown(self) -> None:
        self._reactor.callLater(0, self.end)


class Machines(LineOnlyReceiver):
    """Starts a worker on each machine that runs, and ends it with the machine."""

    MAX_LENGTH = 1 << 20

    def __init__(self, reactor: Any, port: int) -> None:
        self._reactor, self._port = reactor, port
        self.workers: dict[str, LightWorker] = {}

    def lineReceived(self, line: bytes) -> None:
        told = json.loads(line)
        if told["state"] == "running":
            worker = self.workers[told["id"]] = LightWorker(self._reactor, self._port, *credentials(told["user_data"]))
            self._reactor.callLater(BOOT, worker.start)
        elif worker := self.workers.pop(told["id"], None):
            worker.end()


def main() -> None:
    from twisted.internet import reactor

    boots, port = map(json.loads, sys.argv[1:])
    connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", boots), Machines(reactor, port))
    run_until_closed(reactor, {})


if __name__ == "__main__":
    main()
