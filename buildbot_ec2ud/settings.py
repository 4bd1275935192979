"""A worker's arguments: sorted to where they belong, and checked without asking anybody."""

from __future__ import annotations

import difflib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from buildbot import config
from buildbot.worker.base import AbstractWorker
from buildbot.worker.latent import AbstractLatentWorker

from buildbot_ec2ud.ec2 import endpoints, proxy, tls
from buildbot_ec2ud.fleet import pacing
from buildbot_ec2ud.launch import LaunchConfig, is_dynamic
from buildbot_ec2ud.passwords import new_password
from buildbot_ec2ud.userdata import scripts
from buildbot_ec2ud.userdata.posix import UserData, UserDataError, check_environment

#: Arguments of the drop-in contract that are still to come; refused rather than ignored.
NOT_YET = (
    "valid_ami_owners",
    "valid_ami_location_regex",
    "elastic_ip",
    "aws_id_file_path",
    "user_data",
    "max_spot_price",
    "volumes",
    "price_multiplier",
    "product_description",
    "session",
    "max_lifetime",
    "orphan_timeout",
)

_HIDDEN = "(hidden)"


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
    :ivar buildbot: what goes on to Buildbot's own classes.
    :ivar unknown: what nobody knows.
    """

    launch: LaunchConfig
    buildbot: Mapping[str, Any]
    unknown: Mapping[str, Any]
    identifier: Any = None
    secret_identifier: Any = None
    region: str | None = None
    endpoint_url: str | None = None
    api_limits: Any = field(default_factory=dict)
    bb_master: str | None = None
    bootstrap_script: str | None = None
    bootstrap_sha256: str | None = None
    bootstrap_env: Any = field(default_factory=dict)

    @classmethod
    def parse(cls, arguments: Mapping[str, Any]) -> Settings:
        """Sort *arguments*. Those that are None are as if they had not been given."""
        given = {name: value for name, value in arguments.items() if value is not None}
        own = {field.name for field in fields(cls)} - {"launch", "buildbot", "unknown"}
        launch = {field.name for field in fields(LaunchConfig)}
        return cls(
            LaunchConfig(**{name: value for name, value in given.items() if name in launch}),
            {name: value for name, value in arguments.items() if name in BUILDBOT_ARGUMENTS},
            {
                name: value
                for name, value in given.items()
                if name not in own and name not in launch and name not in BUILDBOT_ARGUMENTS
            },
            **{name: value for name, value in given.items() if name in own},
        )

    def check(self, name: str) -> Iterator[str]:
        """Give a line for each thing that is wrong with the worker *name*, naming the argument."""
        for argument in self.unknown:
            yield self._unknown(argument)
        if (self.identifier is None) != (self.secret_identifier is None):
            yield "identifier: goes with secret_identifier; give both or neither"
        yield from self._check_endpoint()
        yield from (f"api_limits: {line}" for line in pacing.check_limits(self.api_limits))
        if self.bb_master is not None and not _is_address(self.bb_master):
            yield f"bb_master: neither host:port nor a host: {self.bb_master!r}"
        yield from self.launch.check()
        environment = self._known_environment()
        try:
            check_environment(environment)
        except UserDataError as error:
            yield from str(error).splitlines()
            environment = {}
        try:
            self.user_data(
                name,
                str(self.bb_master or "x" * 80),
                new_password(),
                environment,
                # While it loads a configuration, Buildbot has the master's directory at the end of the module path.
                (sys.path[-1],),
            )
        except (scripts.ScriptError, UserDataError) as error:
            yield str(error)

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
        if argument in NOT_YET:
            return f"{argument}: not supported yet"
        known = BUILDBOT_ARGUMENTS | {field.name for cls in (Settings, LaunchConfig) for field in fields(cls)}
        near = difflib.get_close_matches(argument, known, n=1)
        return f"{argument}: unknown argument" + (f"; did you mean {near[0]}?" if near else "")

    def user_data(
        self, worker: str, master: str, password: str, environment: Mapping[str, Any], directories: tuple[str, ...]
    ) -> bytes:
        """Make the user-data of one start; the script's file is read anew.

        :param worker: the worker's name.
        :param master: ``host:port`` of the master.
        :param password: the worker's password.
        :param environment: ``bootstrap_env``, rendered.
        :param directories: where a relative path of the script begins.
        :raises ScriptError: the bootstrap script cannot be used.
        :raises UserDataError: the user-data cannot be made of this.
        """
        script = scripts.load(self.bootstrap_script, self.bootstrap_sha256, directories)
        if "\0" in worker + master + password:
            raise UserDataError("bb_master: has a NUL in it")
        return UserData(master, worker, password, environment, script).render()


def has_port(address: str) -> bool:
    """Whether an address is ``host:port``, and not only a host."""
    host, colon, port = address.rpartition(":")
    return bool(colon and host and port.isascii() and port.isdigit() and not address.endswith("]"))


def _is_address(text: Any) -> bool:
    if not isinstance(text, str) or not text or any(c.isspace() for c in text):
        return False
    return 0 < int(text.rpartition(":")[2]) < 65536 if has_port(text) else ":" not in text or text[0] + text[-1] == "[]"


def report(errors: list[str]) -> None:
    """Give all errors to Buildbot, which collects them while it loads a configuration.

    :raises buildbot.config.ConfigErrors: with all of them, when no configuration is being loaded.
    """
    if not errors:
        return
    try:
        config.error(errors[0])
    except config.ConfigErrors:
        raise config.ConfigErrors(errors) from None
    for error in errors[1:]:
        config.error(error)


def without_secrets(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """A worker's ``getConfigDict()``, fit for a log."""
    args = [
        value if position != 1 or value is None else _HIDDEN for position, value in enumerate(configuration["args"])
    ]
    secret = ("secret_identifier", "bootstrap_env")
    kwargs = {key: _HIDDEN if key in secret else value for key, value in configuration["kwargs"].items()}
    return {**configuration, "args": tuple(args), "kwargs": kwargs}
