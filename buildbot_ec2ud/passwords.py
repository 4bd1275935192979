"""The password of a start, and the single-use login on the master.

Buildbot registers a worker's password with ``registration.update()``, which drops the old registration first. When the
worker is the only user of the port, that closes the listening socket (and with the msgpack protocol locks the master
up, when done while a worker attaches). So the password is replaced in place, in the two tables that are asked at a
login: ``users`` of the port's dispatcher and ``_registrations`` of the protocol's listener. Both are Buildbot's own
affair; only this file touches them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

from twisted.internet import defer

#: Bytes of randomness in a password: 24 are 32 characters, and more than anybody guesses.
ENTROPY = 24


def new_password() -> str:
    """A password nobody can guess; only letters, digits, ``-`` and ``_``."""
    return secrets.token_urlsafe(ENTROPY)


def _listeners(master: Any) -> Iterator[tuple[Any, Any]]:
    """The protocols that ask for a password: their listener, and the manager of its ports."""
    yield master.workers.pb, master.pbmanager
    yield master.workers.msgpack, master.msgmanager


def set_login(master: Any, worker_name: str, password: str) -> bool:
    """From now on, accept only *password* from the worker; connections that stand are not touched.

    :return: whether a registration was found.
    """
    found = False
    for listener, manager in _listeners(master):
        registered = listener._registrations.get(worker_name)
        if registered is None:
            continue
        _, port, registration = registered
        dispatcher = manager.dispatchers.get(registration.portstr)
        if dispatcher is None or worker_name not in dispatcher.users:
            continue  # it is just being registered anew
        _, factory = dispatcher.users[worker_name]
        dispatcher.users[worker_name] = (password, factory)
        listener._registrations[worker_name] = (password, port, registration)
        found = True
    return found


@defer.inlineCallbacks
def replace_login(worker: Any, password: str) -> Any:
    """Give *worker* another password.

    :param worker: a Buildbot worker that is in service.
    :return: fires when logins with the old one are refused: at once, where the worker is registered.
    """
    worker.password = password
    if not set_login(worker.master, worker.name, password) and worker.registration is not None:
        yield worker.registration.update(worker, worker.master.config)
