"""Who may do what in the web UI of a master of the template."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from buildbot import config
from buildbot.plugins import util
from buildbot.process.properties import Properties
from buildbot.www.auth import NoAuth, TwistedICredAuthBase
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernameHashedPassword, IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet import defer
from twisted.web.guard import BasicCredentialFactory, DigestCredentialFactory
from zope.interface import implementer

#: What the name of the secret begins with that is a user's password.
PREFIX = "web-"
ROLE = "users"


@implementer(ICredentialsChecker)
class SecretPasswordAuth(TwistedICredAuthBase):
    """Users whose passwords are Buildbot's secrets: that of ``anna`` is ``web-anna``, looked up at each login.

    :param users: their names.
    """

    credentialInterfaces = (IUsernamePassword, IUsernameHashedPassword)

    def __init__(self, users: Sequence[str], **kwargs: Any) -> None:
        factories = [DigestCredentialFactory(b"MD5", b"buildbot"), BasicCredentialFactory(b"buildbot")]
        super().__init__(factories, [self], **kwargs)
        self.users = tuple(users)

    @defer.inlineCallbacks
    def requestAvatarId(self, credentials: Any) -> Generator[Any, Any, bytes]:
        """:raises UnauthorizedLogin: there is no such user, or it is the wrong password."""
        name = credentials.username.decode("utf-8", "replace")
        if name not in self.users:
            raise UnauthorizedLogin
        properties = Properties()
        properties.master = self.master
        password = yield properties.render(util.Secret(PREFIX + name))
        if not password or not credentials.checkPassword(password.encode()):
            raise UnauthorizedLogin
        return credentials.username


def users(names: Sequence[str]) -> dict[str, Any]:
    """For ``c["www"]``: everybody may look, and those who log in may do everything. Without names, everybody may.

    :param names: of the users.
    """
    if not names:
        return {}
    return {
        "auth": SecretPasswordAuth(names),
        "authz": util.Authz(
            allowRules=[util.AnyControlEndpointMatcher(role=ROLE)],
            roleMatchers=[util.RolesFromUsername(roles=[ROLE], usernames=list(names))],
        ),
    }


def refuse_open(www: Mapping[str, Any], where: str) -> None:
    """See to it that not everybody who can reach the web UI may start builds in it.

    :param www: ``c["www"]``.
    :param where: what an error begins with.
    :raises buildbot.config.ConfigErrors: it listens not only on loopback, and nobody has to log in.
    """
    port = www.get("port")
    if not port or _only_here(str(port)):
        return
    authz = www.get("authz")
    if isinstance(www.get("auth", NoAuth()), NoAuth) or authz is None or not authz.allowRules:
        raise config.ConfigErrors(
            [
                f"{where}: others can reach the web UI at {port!r}, and nobody has to log in to start builds: "
                'name users, or let it listen on loopback, "tcp:8010:interface=127.0.0.1"'
            ]
        )


def _only_here(port: str) -> bool:
    """Whether what listens at *port*, as Twisted describes it, is for this machine only."""
    kind, *arguments = re.split(r"(?<!\\):", port)
    if kind == "unix":
        return True
    interface = dict(each.partition("=")[::2] for each in arguments).get("interface", "").replace("\\:", ":")
    try:
        return ipaddress.ip_address(interface).is_loopback
    except ValueError:
        return interface == "localhost"
