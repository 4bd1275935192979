"""A worker's arguments: sorted to where they belong, and checked without asking anybody."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from buildbot.worker.base import AbstractWorker
from buildbot.worker.latent import AbstractLatentWorker

from buildbot_ec2ud import access, bootstrapping
from buildbot_ec2ud.addresses import is_address
from buildbot_ec2ud.fleet import pacing
from buildbot_ec2ud.fleet.attachments import Attachments, check_elastic_ip, check_volumes
from buildbot_ec2ud.fleet.capacity import MEMORY
from buildbot_ec2ud.launch import TAG_LIMITS, LaunchConfig, has_dynamic

#: Seconds without a connection to the master after which an instance ends itself, unless another time is configured; at
#: least as long as its worker may take to connect at first.
ORPHAN_TIMEOUT = 3600

#: Arguments of Buildbot's own classes that those take for granted to be dicts.
_DICTS = ("properties", "defaultProperties")
#: ... and to be numbers.
_NUMBERS = ("build_wait_timeout", "check_instance_interval", "keepalive_interval", "max_builds", "missing_timeout")


def _parameters(function: Any) -> set[str]:
    return {
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }


#: What Buildbot's own classes take.
BUILDBOT_ARGUMENTS = (_parameters(AbstractWorker.checkConfig) | _parameters(AbstractLatentWorker.checkConfig)) - {
    "self",
    "name",
    "password",
}


@dataclass(frozen=True, repr=False)
class Settings:
    """The arguments of a worker. There may be secrets among them: it has no ``repr``.

    :ivar launch: what shapes the instance.
    :ivar bootstraps: whether the user-data is made here; else it is ``user_data``, as it is.
    :ivar buildbot: what goes on to Buildbot's own classes.
    :ivar unknown: what nobody knows.
    """

    launch: LaunchConfig
    buildbot: Mapping[str, Any]
    unknown: Mapping[str, Any]
    bootstraps: bool
    password: Any = None
    identifier: Any = None
    secret_identifier: Any = None
    aws_id_file_path: str | None = None
    session: Any = None
    user_data: Any = None
    volumes: Any = ()
    elastic_ip: Any = None
    capacity_memory: Any = MEMORY
    max_launch_failures: Any = 10
    owner: Any = None
    max_lifetime: Any = None
    orphan_timeout: Any = None
    region: str | None = None
    endpoint_url: str | None = None
    api_limits: Any = field(default_factory=dict)
    bb_master: str | None = None
    bootstrap_script: str | None = None
    bootstrap_sha256: str | None = None
    bootstrap_env: Any = field(default_factory=dict)
    bootstrap_insecure: Any = False
    gzip_user_data: Any = False
    bb_www: Any = None
    bb_tls: Any = None

    @classmethod
    def parse(cls, password: Any, arguments: Mapping[str, Any]) -> Settings:
        """Sort *arguments*. Those that are None are as if they had not been given.

        :param password: the worker's, None for one that is made for each start.
        """
        given = {name: value for name, value in arguments.items() if value is not None}
        own = {field.name for field in fields(cls)} - {"launch", "buildbot", "unknown", "bootstraps", "password"}
        launch = {field.name for field in fields(LaunchConfig)}
        return cls(
            LaunchConfig(**{name: value for name, value in given.items() if name in launch}),
            {name: value for name, value in arguments.items() if name in BUILDBOT_ARGUMENTS},
            {
                name: value
                for name, value in given.items()
                if name not in own and name not in launch and name not in BUILDBOT_ARGUMENTS
            },
            "user_data" not in given and (password is None or any(name in given for name in bootstrapping.ARGUMENTS)),
            password,
            **{name: value for name, value in given.items() if name in own},
        )

    def check(self, name: str) -> Iterator[str]:
        """Give a line for each thing that is wrong with the worker *name*, naming the argument."""
        for argument in self.unknown:
            yield self._unknown(argument)
        for argument in _DICTS:
            if not isinstance(self.buildbot.get(argument) or {}, Mapping):
                yield f"{argument}: not a dict: {self.buildbot[argument]!r}"
        for argument in _NUMBERS:
            value = self.buildbot.get(argument)
            if value is not None and type(value) not in (int, float):
                yield f"{argument}: not a number: {value!r}"
        yield from access.check_credentials(self)
        yield from access.check_endpoint(self)
        yield from (f"api_limits: {line}" for line in pacing.check_limits(self.api_limits))
        if self.bb_master is not None and not is_address(self.bb_master):
            yield f"bb_master: neither host:port nor a host: {self.bb_master!r}"
        yield from self.launch.check()
        yield from (f"volumes: {line}" for line in check_volumes(self.volumes))
        if self.elastic_ip is not None:
            yield from (f"elastic_ip: {line}" for line in check_elastic_ip(self.elastic_ip))
        if type(self.capacity_memory) not in (int, float) or not 0 <= self.capacity_memory < float("inf"):
            yield f"capacity_memory: not seconds: {self.capacity_memory!r}"
        if type(self.max_launch_failures) is not int or self.max_launch_failures < 0:
            yield f"max_launch_failures: not a number of starts, or 0 for no limit: {self.max_launch_failures!r}"
        if self.owner is not None and not (isinstance(self.owner, str) and 0 < len(self.owner) <= TAG_LIMITS[1]):
            yield f"owner: not a text of up to {TAG_LIMITS[1]} characters: {self.owner!r}"
        for argument in ("max_lifetime", "orphan_timeout"):
            value = getattr(self, argument)
            if value is not None and (type(value) is not int or value < 1):
                yield f"{argument}: not a number of seconds: {value!r}"
                return
        yield from bootstrapping.check(self, name) if self.bootstraps else bootstrapping.check_as_it_is(self)

    def for_buildbots_check(self) -> dict[str, Any]:
        """What goes on to Buildbot's own classes, without what has been found to be wrong with it."""
        return {
            name: value
            for name, value in self.buildbot.items()
            if (name not in _DICTS or isinstance(value or {}, Mapping))
            and (name not in _NUMBERS or value is None or type(value) in (int, float))
        }

    def aws_id(self) -> tuple[str, str] | None:
        """The access key of an aws_id file; None where there is none to be read.

        :raises FileError: it cannot be used.
        """
        return access.access_key(self)

    @property
    def shape(self) -> tuple[Mapping[str, Any], Any, Any]:
        """What may depend on the build: what to launch, ``bootstrap_env`` and ``user_data``."""
        return dict(vars(self.launch)), self.bootstrap_env, self.user_data

    @cached_property
    def depends_on_builds(self) -> bool:
        """Whether anything has to be rendered for each build: that is a third of the work of a start."""
        return has_dynamic(self.shape)

    @property
    def boot_timeout(self) -> int:
        """Seconds that an instance has to boot and attach its worker."""
        return int(self.for_buildbots_check().get("missing_timeout") or AbstractWorker.DEFAULT_MISSING_TIMEOUT)

    @property
    def patience_of_orphans(self) -> int:
        """Seconds without a connection to the master after which an instance ends itself; it has to have time to boot."""
        return max(self.orphan_timeout or ORPHAN_TIMEOUT, self.boot_timeout)

    @property
    def attachments(self) -> Attachments:
        """What the instance gets when it runs."""
        volumes = tuple((volume, device) for volume, device in self.volumes)
        return Attachments(volumes, self.elastic_ip, self.launch.keeps_volumes)

    @property
    def limits(self) -> dict[str, pacing.Limit]:
        """``api_limits``, in an order that does not depend on who wrote it."""
        return {action: pacing.Limit(*limit) for action, limit in sorted(self.api_limits.items())}

    def _unknown(self, argument: str) -> str:
        known = BUILDBOT_ARGUMENTS | {field.name for cls in (Settings, LaunchConfig) for field in fields(cls)}
        near = difflib.get_close_matches(argument, known, n=1)
        return f"{argument}: unknown argument" + (f"; did you mean {near[0]}?" if near else "")
