"""Who may do what in the template's web UI, and where its secrets are."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

from buildbot.config import ConfigErrors
from buildbot.plugins import util
from buildbot.secrets.providers.base import SecretProviderBase
from buildbot.www.auth import NoAuth
from twisted.cred.credentials import DigestCredentialFactory, UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet import defer
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.template import secret_sources, web
from tests.unit.files import directory, write


class SecretTests(SynchronousTestCase):
    """Where secrets come from."""

    def test_environment(self) -> None:
        """One variable for each secret."""
        provider = secret_sources.SecretInEnvironment()
        provider.reconfigService({"BUILDBOT_SECRET_WEB_ANNA_2": "s3cret", "WEB_BERT": "no"})
        self.assertEqual(provider.get("web-anna.2"), "s3cret")
        self.assertIsNone(provider.get("web-bert"))

    def test_process(self) -> None:
        """The environment is that of the process, as it is when somebody asks."""
        provider = secret_sources.SecretInEnvironment()
        provider.reconfigService()
        self.patch(os, "environ", {**os.environ})
        os.environ["BUILDBOT_SECRET_A"] = "other"
        provider.reconfigService()
        self.assertEqual(provider.get("a"), "other")

    def test_providers(self) -> None:
        """Files first, where there is a directory of them."""
        basedir = directory(self)
        names = [type(each).__name__ for each in secret_sources.providers(basedir)]
        self.assertEqual(names, ["SecretInAFile", "SecretInEnvironment"])
        [only] = secret_sources.providers(os.path.join(basedir, "secrets"))
        self.assertIsInstance(only, secret_sources.SecretInEnvironment)
        self.assertIsInstance(only, SecretProviderBase)

    def test_open_file(self) -> None:
        """A file that others can read is an error."""
        basedir = directory(self)
        write(basedir, "a", "s3cret", 0o604)
        [error] = self.assertRaises(ConfigErrors, secret_sources.providers, basedir).errors
        self.assertNotIn("s3cret", error)


class LoginTests(SynchronousTestCase):
    """Users with passwords that are secrets."""

    def setUp(self) -> None:
        self.auth = web.users(["anna", "bert"])["auth"]
        secrets = {"web-anna": "pässword", "web-carl": "password", "web-bert": ""}

        def get(name: str) -> defer.Deferred[Any]:
            return defer.succeed(SimpleNamespace(value=secrets[name]) if name in secrets else None)

        self.auth.master = SimpleNamespace(namedServices={"secrets": SimpleNamespace(get=get)})

    def log_in(self, name: bytes, password: str) -> defer.Deferred[bytes]:
        return self.auth.requestAvatarId(UsernamePassword(name, password.encode()))

    def test_right(self) -> None:
        self.assertEqual(self.successResultOf(self.log_in(b"anna", "pässword")), b"anna")

    def test_wrong(self) -> None:
        """Wrong passwords, empty ones, users that are none, and one without a secret."""
        for name, password in (
            (b"anna", "password"),
            (b"anna", ""),
            (b"carl", "password"),
            (b"bert", ""),
            (b"\xff", ""),
        ):
            self.failureResultOf(self.log_in(name, password), UnauthorizedLogin)

    def test_digest(self) -> None:
        """With a digest, the password does not cross the wire."""
        factory = DigestCredentialFactory(b"MD5", b"buildbot")
        challenge = factory.getChallenge(b"127.0.0.1")

        def response(password: bytes) -> Any:
            from twisted.cred._digest import calcHA1, calcHA2, calcResponse

            fields = {
                "username": b"anna",
                "realm": b"buildbot",
                "nonce": challenge["nonce"],
                "opaque": challenge["opaque"],
                "uri": b"/auth/login",
            }
            ha1 = calcHA1(b"md5", b"anna", b"buildbot", password, challenge["nonce"], b"")
            ha2 = calcHA2(b"md5", b"GET", b"/auth/login", None, None)
            fields["response"] = calcResponse(ha1, ha2, b"md5", challenge["nonce"], None, None, None)
            text = b", ".join(key.encode() + b'="' + value + b'"' for key, value in fields.items())
            return factory.decode(text, b"GET", b"127.0.0.1")

        right = self.auth.requestAvatarId(response("pässword".encode()))
        self.assertEqual(self.successResultOf(right), b"anna")
        self.failureResultOf(self.auth.requestAvatarId(response(b"password")), UnauthorizedLogin)

    def test_rules(self) -> None:
        """Who has logged in may do everything; others may look."""
        authz = web.users(["anna"])["authz"]
        self.assertEqual(authz.getRolesFromUser({"username": "anna"}), {"users"})
        self.assertEqual(authz.getRolesFromUser({"username": "carl"}), set())
        self.assertEqual(authz.getRolesFromUser({"anonymous": True}), set())
        self.assertEqual(web.users([]), {})


class OpenTests(SynchronousTestCase):
    """A web UI that everybody could reach and use is refused."""

    def refused(self, port: Any, **www: Any) -> bool:
        try:
            web.refuse_open({"port": port, **www}, "place")
        except ConfigErrors as errors:
            [error] = errors.errors
            self.assertTrue(error.startswith("place: others can reach the web UI at "), error)
            return True
        return False

    def test_ports(self) -> None:
        """By where it listens."""
        here = [
            "tcp:1:interface=127.0.0.1",
            "tcp:1:interface=127.0.0.2",
            "tcp:interface=localhost:port=1",
            "unix:/run/www",
        ]
        here += [None, r"tcp6:1:interface=\:\:1", r"ssl:1:privateKey=a\:b:interface=127.0.0.1"]
        for port in here:
            self.assertFalse(self.refused(port), port)
        others = [8010, "8010", "tcp:8010", "tcp:1:interface=0.0.0.0", "tcp:1:interface=192.0.2.1", "ssl:1"]
        others += [r"tcp6:1:interface=\:\:", r"tcp:1:x=\:interface=127.0.0.1"]
        for port in others:
            self.assertTrue(self.refused(port), port)

    def test_users(self) -> None:
        """Rules are needed besides a way to log in: without them, Buildbot lets everybody do everything."""
        www = web.users(["anna"])
        self.assertFalse(self.refused("tcp:1", **www))
        self.assertTrue(self.refused("tcp:1", auth=www["auth"]))
        self.assertTrue(self.refused("tcp:1", authz=www["authz"]))
        self.assertTrue(self.refused("tcp:1", auth=www["auth"], authz=util.Authz()))
        self.assertTrue(self.refused("tcp:1", auth=NoAuth(), authz=www["authz"]))
