"""What the packaged ``master.cfg`` uses: a master's settings and platforms, and what they mean."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from buildbot import config
from buildbot.warnings import ConfigWarning
from twisted.internet.endpoints import quoteStringArgument

from buildbot_ec2ud.addresses import host_of, is_address
from buildbot_ec2ud.template import certificates, secret_sources, web
from buildbot_ec2ud.template.next_worker import prefer_running
from buildbot_ec2ud.template.platforms import Platform, load_platforms
from buildbot_ec2ud.template.site_settings import SETTINGS, Settings, load_settings
from buildbot_ec2ud.template_files import FILES, create_master, directory, find

__all__ = [
    "FILES",
    "SETTINGS",
    "Listening",
    "Platform",
    "Settings",
    "create_master",
    "directory",
    "find",
    "listening",
    "load_platforms",
    "load_settings",
    "prefer_running",
    "refuse_open",
    "secrets_providers",
    "web_users",
]


@dataclass(frozen=True)
class Listening:
    """Where a master listens for its workers.

    :ivar pb_port: a port as in ``c["protocols"]``.
    :ivar bb_tls: path of the certificate that instances are to trust; None without TLS.
    """

    pb_port: str
    bb_tls: str | None = None


def listening(basedir: str, settings: Settings, platforms: Sequence[Platform]) -> Listening:
    """Find out where to listen for workers. With ``tls``, the master's certificate is made where there is none.

    What is to be said of a certificate near its end is said as a :class:`buildbot.warnings.ConfigWarning`.

    :param basedir: the master's directory.
    :raises buildbot.config.ConfigErrors: all that is wrong.
    """
    port = settings["pb_port"]
    if not settings["tls"]:
        return Listening(port)
    where = settings.where("tls")
    # A platform that has its own bb_tls does not come to this certificate.
    addresses = [
        platform.worker.get("bb_master", settings.get("bb_master"))
        for platform in platforms
        if "bb_tls" not in platform.worker
    ]
    errors = []
    if None in addresses:
        errors.append(f"{where}: tls needs bb_master: the certificate is for its host")
    if port.isdigit():
        port = f"tcp:{port}"
    if not port.startswith("tcp:"):
        errors.append(f"{where}: tls needs a pb_port that begins with tcp:, not {port!r}")
    if errors:
        raise config.ConfigErrors(errors)
    try:
        identity = certificates.provide(basedir, [host_of(address) for address in addresses if is_address(address)])
    except certificates.CertificateError as error:
        raise config.ConfigErrors([f"{where}: tls: {error}"]) from None
    if notice := identity.notice():
        warnings.warn(notice, ConfigWarning, stacklevel=2)
    key, certificate = map(quoteStringArgument, (identity.key, identity.certificate))
    return Listening(f"ssl:{port.removeprefix('tcp:')}:privateKey={key}:certKey={certificate}", identity.certificate)


def secrets_providers(basedir: str, settings: Settings) -> list[Any]:
    """For ``c["secretsProviders"]``; and see to it that there is a secret for whatever the settings ask for.

    :param basedir: the master's directory.
    :raises buildbot.config.ConfigErrors: all that is wrong.
    """
    place = os.path.join(basedir, os.path.expandvars(settings["secrets"]))
    errors = [
        f"{settings.where(name)}: {name}: {line}"
        for name, wanted in _secrets_of(settings)
        for line in secret_sources.check(place, wanted)
    ]
    if errors:
        raise config.ConfigErrors(errors)
    return secret_sources.providers(place)


def _secrets_of(settings: Settings) -> Iterator[tuple[str, list[str]]]:
    """The names of the secrets that each setting asks for."""
    yield "users", [web.PREFIX + user for user in settings["users"]]
    if settings["try_port"]:
        yield "try_users", [f"try-{user}" for user in settings["try_users"]]
    if settings["github_hook"]:
        yield "github_hook", ["github-hook"]


def web_users(settings: Settings) -> dict[str, Any]:
    """Who may do what in the web UI, for ``c["www"]``."""
    return web.users(settings["users"])


def refuse_open(www: Mapping[str, Any], settings: Settings) -> None:
    """See to it that not everybody who can reach the web UI may start builds in it.

    :param www: ``c["www"]``.
    :raises buildbot.config.ConfigErrors: it listens not only on loopback, and nobody has to log in.
    """
    web.refuse_open(www, settings.where("www_port"))
