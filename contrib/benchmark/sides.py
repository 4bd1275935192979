"""The two sides of the comparison: the same workers, as this package's class and as Buildbot's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet import defer

_COMMON = {
    "instance_type": "c7i.large",
    "ami": "ami-1",
    "identifier": "benchmark",
    "secret_identifier": "benchmark",
    "region": "us-east-1",
    "keypair_name": "key",
    "security_name": "buildbot",
    # Longer than a run: a worker is kept until the benchmark ends it.
    "build_wait_timeout": 7200,
    "missing_timeout": 7200,
}
#: Calls at once and per second where EC2 has no limit.
_UNLIMITED = (1_000_000, 1_000_000)
#: About as much as a bootstrap script is.
_SCRIPT = "echo 'what makes a worker of a machine'\n" * 250


class Side:
    """One of the two.

    :param url: where EC2 answers.
    :param port: the master's for workers.
    :param throttled: whether EC2 has the limits that AWS documents.
    :ivar title: what a table calls it.
    :ivar running: how many instances the master knows to run.
    :ivar changed: called when that, or :meth:`left`, has changed.
    """

    title = ""

    def __init__(self, url: str, port: int, throttled: bool) -> None:
        self.url, self.port, self.throttled = url, port, throttled
        self.running = 0
        self.changed: Callable[[], Any] = lambda: None
        self.load()

    def load(self) -> None:
        """Import the class."""

    def worker(self, name: str) -> Any:
        """Make a worker."""
        raise NotImplementedError

    def begin(self, workers: list[Any]) -> None:
        """The master has started."""

    def left(self) -> int:
        """How many instances the master keeps an eye on, after it has ended them."""
        return 0


class Ours(Side):
    title = "EC2UserDataLatentWorker"

    def load(self) -> None:
        from buildbot_ec2ud.worker import EC2UserDataLatentWorker

        self._class = EC2UserDataLatentWorker

    def worker(self, name: str) -> Any:
        # What AWS takes can be raised; then the worker has to be told so.
        limits = {} if self.throttled else {"RunInstances": _UNLIMITED, "TerminateInstances": _UNLIMITED}
        master = f"127.0.0.1:{self.port}"
        return self._class(name, endpoint_url=self.url, bb_master=master, api_limits=limits, **_COMMON)

    def begin(self, workers: list[Any]) -> None:
        self.fleet = workers[0].fleet
        self.fleet.subscribe(self._happened)

    def _happened(self, event: Any) -> None:
        if event.kind == "running":
            self.running += 1
        # The fleet forgets an instance after it has told of its end.
        self.fleet.master.reactor.callLater(0, self.changed)

    def left(self) -> int:
        return len(self.fleet.rentals)


class Theirs(Side):
    title = "EC2LatentWorker"

    def load(self) -> None:
        os.environ["AWS_ENDPOINT_URL_EC2"] = self.url
        from buildbot.worker.ec2 import EC2LatentWorker

        side = self

        class Counted(EC2LatentWorker):
            """Tells when an instance runs, as far as the master knows."""

            def start_instance(self, build: Any) -> Any:
                return defer.maybeDeferred(super().start_instance, build).addCallback(self._count)

            def _count(self, result: Any) -> Any:
                side.running += 1
                side.changed()
                return result

        self._class = Counted

    def worker(self, name: str) -> Any:
        password = f"password-of-{name}"
        user_data = f"#!/bin/sh\nexport BB_NAME={name}\nexport BB_PASSWORD={password}\n{_SCRIPT}"
        return self._class(name, password, user_data=user_data, **_COMMON)


SIDES = {"ours": Ours, "theirs": Theirs}
