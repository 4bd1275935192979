"""A worker's arguments: sorted to where they belong, and checked without asking anybody."""

from __future__ import annotations

import difflib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from buildbot.worker.base import AbstractWorker
from buildbot.worker.latent import AbstractLatentWorker

from buildbot_ec2ud.addresses import has_port, is_address
from buildbot_ec2ud.ec2 import aws_id, endpoints, proxy, tls
from buildbot_ec2ud.fleet import pacing
from buildbot_ec2ud.fleet.attachments import Attachments, check_elastic_ip, check_volumes
from buildbot_ec2ud.fleet.capacity import MEMORY
from buildbot_ec2ud.launch import TAG_LIMITS, LaunchConfig, is_dynamic
from buildbot_ec2ud.passwords import new_password
from buildbot_ec2ud.userdata import scripts
from buildbot_ec2ud.userdata.posix import LIMIT, UserData, UserDataError, check_environment

#: Seconds without a connection to the master after which an instance ends itself, unless another time is configured; at
#: least as long as its worker may take to connect at first.
ORPHAN_TIMEOUT = 3600

#: With any of these, the user-data is made here; without one and with a password of one's own, nothing is added to it.
_BOOTSTRAP = ("bb_master", "bootstrap_script", "bootstrap_sha256", "bootstrap_env")

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
            "user_data" not in given and (password is None or any(name in given for name in _BOOTSTRAP)),
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
        yield from self._check_credentials()
        yield from self._check_endpoint()
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
        yield from self._check_bootstrap(name) if self.bootstraps else self._check_user_data()

    def for_buildbots_check(self) -> dict[str, Any]:
        """What goes on to Buildbot's own classes, without what has been found to be wrong with it."""
        return {
            name: value
            for name, value in self.buildbot.items()
            if (name not in _DICTS or isinstance(value or {}, Mapping))
            and (name not in _NUMBERS or value is None or type(value) in (int, float))
        }

    def _check_credentials(self) -> Iterator[str]:
        if (self.identifier is None) != (self.secret_identifier is None):
            yield "identifier: goes with secret_identifier; give both or neither"
        for argument in ("identifier", "secret_identifier"):
            value = getattr(self, argument)
            if value is not None and not is_dynamic(value) and not (isinstance(value, str) and value):
                yield f"{argument}: not a text, or an empty one"
        if self.session is not None:
            if not callable(getattr(self.session, "get_credentials", None)) or not hasattr(self.session, "region_name"):
                yield f"session: not a boto3.Session: {self.session!r}"
            for argument in ("identifier", "aws_id_file_path"):
                if getattr(self, argument) is not None:
                    yield f"session: has credentials of its own; {argument} contradicts it"
        if self.aws_id_file_path is not None and self.identifier is not None:
            yield "aws_id_file_path: contradicts identifier"
        try:
            self.aws_id()
        except aws_id.FileError as error:
            yield f"aws_id_file_path: {error}"

    def aws_id(self) -> tuple[str, str] | None:
        """The access key of an aws_id file; None where there is none to be read.

        :raises FileError: it cannot be used.
        """
        path = self.aws_id_file_path
        if path is None and self.identifier is None and self.session is None:
            path = aws_id.default_path()
        return None if path is None else aws_id.read(path)

    def _check_user_data(self) -> Iterator[str]:
        """What is wrong with user-data that is sent as it is."""
        for argument in _BOOTSTRAP:
            if getattr(self, argument):
                yield f"user_data: is sent as it is, without {argument}; give one or the other"
        if self.password is None:
            yield "user_data: is sent as it is, so it cannot have a password that is made for each start: give password"
        for argument in ("max_lifetime", "orphan_timeout"):
            if getattr(self, argument) is not None:
                yield f"{argument}: not possible where the user-data is not made here"
        if self.user_data is None or is_dynamic(self.user_data):
            return
        if not isinstance(self.user_data, (str, bytes)):
            yield f"user_data: not a text: {type(self.user_data).__name__}"
        elif (size := len(self.user_data if isinstance(self.user_data, bytes) else self.user_data.encode())) > LIMIT:
            yield f"user_data: has {size:,} bytes; EC2 takes {LIMIT:,}"

    def _check_bootstrap(self, name: str) -> Iterator[str]:
        """What is wrong with what the user-data is to be made of."""
        environment = self._known_environment()
        master = str(self.bb_master or "x" * 80)
        try:
            check_environment(environment)
        except UserDataError as error:
            yield from str(error).splitlines()
            environment = {}
        try:
            self.make_user_data(
                name,
                # Of the address only its length matters here.
                master if is_address(master) and has_port(master) else f"{master}:65535",
                new_password(),
                environment,
                # While it loads a configuration, Buildbot has the master's directory at the end of the module path.
                (sys.path[-1],),
            )
        except (scripts.ScriptError, UserDataError) as error:
            yield str(error)

    @property
    def patience_of_orphans(self) -> int:
        """Seconds without a connection to the master after which an instance ends itself; it has to have time to boot."""
        boot = self.for_buildbots_check().get("missing_timeout") or AbstractWorker.DEFAULT_MISSING_TIMEOUT
        return max(self.orphan_timeout or ORPHAN_TIMEOUT, int(boot))

    @property
    def attachments(self) -> Attachments:
        """What the instance gets when it runs."""
        volumes = tuple((volume, device) for volume, device in self.volumes)
        return Attachments(volumes, self.elastic_ip, self.launch.keeps_volumes)

    @property
    def limits(self) -> dict[str, pacing.Limit]:
        """``api_limits``, in an order that does not depend on who wrote it."""
        return {action: pacing.Limit(*limit) for action, limit in sorted(self.api_limits.items())}

    def _check_endpoint(self) -> Iterator[str]:
        """What is wrong with where the calls to EC2 are to go, and with the way there."""
        try:
            aws = endpoints.aws_settings()
        except endpoints.RegionError as error:
            yield f"region: {error}" if self.region is None else str(error)
            aws = endpoints.AWSSettings()
        region = aws.region if self.region is None else self.region
        url = aws.endpoint_url if self.endpoint_url is None else self.endpoint_url
        if url is not None:
            if trouble := endpoints.check_url(url):
                yield f"endpoint_url: {trouble}"
                url = None
        elif trouble := endpoints.check_region(region):
            yield f"region: {trouble}"
        else:
            try:
                url = endpoints.endpoint_url(region, aws)
            except endpoints.RegionError as error:
                yield f"region: {error}"
        if url is not None and (trouble := proxy.check(url)):
            yield trouble
        if aws.ca_bundle is not None and (trouble := tls.check_bundle(aws.ca_bundle)):
            yield f"{'AWS_CA_BUNDLE' if os.environ.get('AWS_CA_BUNDLE') else 'ca_bundle'}: {trouble}"

    def _known_environment(self) -> Any:
        """``bootstrap_env``, as far as it is known without a build."""
        if is_dynamic(self.bootstrap_env):
            return {}
        if not isinstance(self.bootstrap_env, Mapping):
            return self.bootstrap_env
        return {name: "" if is_dynamic(value) else value for name, value in self.bootstrap_env.items()}

    def _unknown(self, argument: str) -> str:
        known = BUILDBOT_ARGUMENTS | {field.name for cls in (Settings, LaunchConfig) for field in fields(cls)}
        near = difflib.get_close_matches(argument, known, n=1)
        return f"{argument}: unknown argument" + (f"; did you mean {near[0]}?" if near else "")

    def make_user_data(
        self,
        worker: str,
        master: str,
        password: str,
        environment: Mapping[str, Any],
        directories: tuple[str, ...],
        spot: bool = True,
    ) -> bytes:
        """Make the user-data of one start; the script's file is read anew.

        :param worker: the worker's name.
        :param master: ``host:port`` of the master.
        :param password: the worker's password.
        :param environment: ``bootstrap_env``, rendered.
        :param directories: where a relative path of the script begins.
        :param spot: whether the instance may be a spot instance.
        :raises ScriptError: the bootstrap script cannot be used.
        :raises UserDataError: the user-data cannot be made of this.
        """
        script = scripts.load(self.bootstrap_script, self.bootstrap_sha256, directories)
        if "\0" in worker + master + password:
            raise UserDataError("bb_master: has a NUL in it")
        return UserData(
            master,
            worker,
            password,
            environment,
            script,
            max_lifetime=self.max_lifetime,
            orphan_timeout=self.patience_of_orphans,
            spot=spot,
        ).render()
