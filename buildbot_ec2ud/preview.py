"""The user-data that a start of a worker would make, without its secret, from a configuration whose master does not run."""

from __future__ import annotations

import contextlib
import gzip
import re
import socket
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet import defer

from buildbot_ec2ud.addresses import has_port
from buildbot_ec2ud.bootstrapping import make_user_data, server
from buildbot_ec2ud.configured import Configured
from buildbot_ec2ud.ec2.threads import in_thread
from buildbot_ec2ud.launch import has_dynamic, is_dynamic
from buildbot_ec2ud.passwords import new_password
from buildbot_ec2ud.served import plugin
from buildbot_ec2ud.userdata import scripts
from buildbot_ec2ud.userdata.posix import UserDataError
from buildbot_ec2ud.userdata.scripts import RemoteScript, ScriptError
from buildbot_ec2ud.worker import EC2UserDataLatentWorker

#: What stands where the password would.
MASK = "********"
#: What stands where a value would that only a build has.
UNKNOWN = "(known only when a build starts)"
#: Seconds to find this machine's name.
NAME_TIMEOUT = 10.0

#: Characters of the shortest password that is looked for in other places: one of two letters would be everywhere.
_SHORTEST = 4
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Preview:
    """What an instance of a worker would get. The password is masked.

    :ivar way: how it gets there: ``inline``; ``gzip``, packed; ``served``, with the bootstrap script fetched from the
        master; ``url``, with the script fetched from elsewhere; ``as it is``, the argument ``user_data``; ``none``.
    :ivar size: bytes that EC2 would get, of a real password; None where they are known only at a build.
    :ivar data: the user-data, masked, as EC2 would get it.
    :ivar text: the same, unpacked.
    :ivar windows: whether it is for Windows.
    :ivar notes: what is only known when a build starts, a line for each.
    :ivar troubles: what is wrong, a line for each; nothing else counts then.
    """

    way: str = "none"
    size: int | None = None
    data: bytes = b""
    text: str = ""
    windows: bool = False
    notes: tuple[str, ...] = ()
    troubles: tuple[str, ...] = ()


class Previews:
    """Makes previews of the workers of one master.

    :param configured: the master's configuration.
    :param hostname: this machine's fully qualified name, for workers without ``bb_master``; None if nobody knows it.
    """

    def __init__(self, configured: Configured, hostname: str | None) -> None:
        self._master = configured.master
        self._hostname = hostname
        # As when its web server starts: what would be served, and at what URL, is up to the plugin.
        plugin.setMaster(self._master)

    @classmethod
    @defer.inlineCallbacks
    def of(
        cls, configured: Configured, workers: Sequence[EC2UserDataLatentWorker], reactor: Any
    ) -> Generator[Any, Any, Previews]:
        """Make one for *workers*; this machine's name is looked up if they need it, for :data:`NAME_TIMEOUT` seconds."""
        hostname = None
        if any(worker.settings.bootstraps and worker.settings.bb_master is None for worker in workers):
            looking = in_thread(reactor, socket.getfqdn)
            with contextlib.suppress(defer.TimeoutError):
                hostname = yield looking.addTimeout(NAME_TIMEOUT, reactor)
        return cls(configured, hostname)

    def of_worker(self, worker: EC2UserDataLatentWorker) -> Preview:
        """The preview of one worker."""
        try:
            return self._made(worker) if worker.settings.bootstraps else _as_it_is(worker.settings)
        except (ScriptError, UserDataError) as error:
            return Preview(troubles=tuple(str(error).splitlines()))

    def _made(self, worker: EC2UserDataLatentWorker) -> Preview:
        settings = worker.settings
        notes: list[str] = []
        address = self._address(settings.bb_master, notes)
        variables: dict[str, Any] = {} if is_dynamic(settings.bootstrap_env) else dict(settings.bootstrap_env)
        for name, value in variables.items():
            if is_dynamic(value):
                variables[name] = UNKNOWN
                notes.append(f"bootstrap_env: {name} is known only when a build starts, and so is its part of the size")
        if is_dynamic(settings.bootstrap_env):
            notes.append("bootstrap_env: is known only when a build starts, and so is its part of the size")
        directories = (self._master.basedir,)
        launch = settings.launch
        spot = has_dynamic(launch.market) or has_dynamic(launch.spot_instance) or "spot" in launch.markets
        serve = server(settings, self._master, address)
        served = []

        def serve_and_note(content: bytes) -> str:
            served.append(content)
            return serve(content)

        password = settings.password if isinstance(settings.password, str) else new_password()
        if is_dynamic(settings.password):
            notes.append(f"password: is a secret; the size is that with one of {len(password)} characters")

        def make(password: str, secret: str = "") -> bytes:
            environment = {name: _without(value, secret) for name, value in variables.items()} if secret else variables
            serving = None if serve is None else serve_and_note
            return make_user_data(settings, worker.name, address, password, environment, directories, spot, serving)

        script = scripts.load(
            settings.bootstrap_script, settings.bootstrap_sha256, directories, settings.bootstrap_insecure
        )
        size, data = len(make(password)), make(MASK, password)
        if isinstance(script, RemoteScript):
            way = "url"
        elif served:
            way = "served"
            notes.append(
                "bb_www: the name of the script at the end of its URL is another one at each start of the master"
            )
        else:
            way = "gzip" if data.startswith(_GZIP) else "inline"
        return Preview(way, size, data, _unpacked(data), script.windows, tuple(notes))

    def _address(self, bb_master: str | None, notes: list[str]) -> str:
        """``host:port`` for the instance to connect to."""
        if bb_master is not None and has_port(bb_master):
            return bb_master
        port = self._master.config.protocols.get("pb", {}).get("port")
        if port is None:
            raise UserDataError("bb_master: c['protocols'] has no pb port for workers to connect to")
        hostname = bb_master or self._hostname
        if hostname is None:
            raise UserDataError(
                f"bb_master: this machine's name was not found within {NAME_TIMEOUT:g} s: give host:port"
            )
        # A number, or a description of an endpoint: tcp:9989:interface=127.0.0.1
        number = re.search(r"(?:^|:)(?:port=)?([0-9]{1,5})(?=:|$)", str(port))
        if number is None or int(number[1]) == 0:
            notes.append(f"bb_master: the port is known only when the master runs (c['protocols']: {port!r})")
            return f"{hostname}:65535"
        return f"{hostname}:{number[1]}"


def _without(value: Any, secret: str) -> Any:
    """A variable's value without the password, which somebody may have put there, too."""
    return value.replace(secret, MASK) if isinstance(value, str) and len(secret) >= _SHORTEST else value


def _as_it_is(settings: Any) -> Preview:
    """The preview of user-data that a person has made."""
    given = settings.user_data
    if given is None:
        return Preview(size=0)
    if is_dynamic(given):
        return Preview("as it is", notes=("user_data: is known only when a build starts",))
    data = given if isinstance(given, bytes) else given.encode("utf-8")
    size, text = len(data), _unpacked(data)
    if isinstance(settings.password, str) and settings.password:
        text = text.replace(settings.password, "*" * len(settings.password))
    # What is packed cannot be masked: no check sends it.
    data = b"" if data.startswith(_GZIP) else text.encode("utf-8")
    return Preview("as it is", size, data, text, text.lstrip().startswith(("<powershell>", "<script>")))


def _unpacked(data: bytes) -> str:
    if data.startswith(_GZIP):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError):
            return f"({len(data):,} bytes that begin as gzip does, and cannot be unpacked)"
    return data.decode("utf-8", "replace")
