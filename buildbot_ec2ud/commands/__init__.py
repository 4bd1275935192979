"""What the commands have in common that look at a master's directory and ask EC2."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from twisted.internet import defer, task

from buildbot_ec2ud.account import Account
from buildbot_ec2ud.ec2.client import EC2Client
from buildbot_ec2ud.ec2.credentials import AWSCredentials
from buildbot_ec2ud.ec2.query import QueryFactory
from buildbot_ec2ud.ec2.transport import Transport

#: The exit status of what was interrupted, as of a shell's.
INTERRUPTED = 130

_Client = TypeVar("_Client", bound=EC2Client)


def client_of(kind: type[_Client], account: Account, transport: Transport, reactor: Any, **queries: Any) -> _Client:
    """A client that makes its calls for *account*.

    :param kind: its class.
    :param transport: what sends the requests.
    :param reactor: the clock.
    :param queries: further arguments of :class:`~buildbot_ec2ud.ec2.query.QueryFactory`.
    """
    credentials = AWSCredentials(account.access_key, account.secret_key, source=account.source, reactor=reactor)
    return kind(credentials, account.endpoint_url, QueryFactory(account.region, reactor, transport.agent, **queries))


def run(directory: str, command: Callable[[Any, str], defer.Deferred[int]]) -> int:
    """Do one command under Twisted's reactor, which cannot run again after that.

    :param directory: the master's; relative paths in its configuration begin there, as when the master runs.
    :param command: what to do; called with the reactor and the absolute path of *directory*.
    :return: the exit status.
    """
    directory = os.path.abspath(directory)
    status = INTERRUPTED

    @defer.inlineCallbacks
    def main(reactor: Any) -> Generator[Any, Any, None]:
        nonlocal status
        status = yield command(reactor, directory)

    there = contextlib.chdir(directory) if os.path.isdir(directory) else contextlib.nullcontext()
    try:
        with there:
            task.react(main)
    except SystemExit as end:
        return end.code or status  # 0 from react also when a signal has stopped the reactor
    except KeyboardInterrupt:  # while the configuration was loaded
        pass
    return status
