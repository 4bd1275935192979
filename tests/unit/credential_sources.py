"""Where AWS credentials come from, on the loopback interface: STS, SSO, a container's and an instance's metadata service."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from botocore.credentials import SSOProvider
from botocore.tokens import SSOTokenProvider
from botocore.utils import ContainerMetadataFetcher
from twisted.internet import defer, reactor, task
from twisted.trial.unittest import TestCase
from twisted.web import resource, server

from buildbot_ec2ud.ec2.credentials import AWSCredentials
from tests.unit.files import directory, write
from tests.unit.servers import serve

#: In each secret that is handed out.
SECRET = "wJalr/secret"
ROLE = "arn:aws:iam::123456789012:role/builder"
START_URL = "https://farm.awsapps.com/start"

_STS = """
<{0}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{0}Result>
  <AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/builder/s</Arn><AssumedRoleId>A:s</AssumedRoleId>
  </AssumedRoleUser>
  <Credentials><AccessKeyId>{1[AccessKeyId]}</AccessKeyId><SecretAccessKey>{1[SecretAccessKey]}</SecretAccessKey>
  <SessionToken>{1[Token]}</SessionToken><Expiration>{1[Expiration]}</Expiration></Credentials>
</{0}Result></{0}Response>
"""
_STS_ERROR = (
    '<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>'
    "<Code>AccessDenied</Code><Message>builder is not yours</Message></Error></ErrorResponse>"
)

#: An answer instead of credentials.
DENIED = (403, _STS_ERROR.encode())


def timestamp(seconds: float) -> str:
    """The time *seconds* from now, as AWS writes it."""
    time = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


class Sources(resource.Resource):
    """Gives out new credentials at each request: keys ``AKID1``, ``AKID2`` and so on.

    :ivar lifetime: seconds until those given out end.
    :ivar issued: how many were.
    :ivar asked: the requests that came with the right means of proving who asks, as ``method path``.
    :ivar answer: given instead of credentials: a status and a body, or a function of the body.
    :ivar hanging: requests that wait for :meth:`release`; None when none is held.
    """

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.lifetime = 6 * 3600.0
        self.issued = 0
        self.asked: list[str] = []
        self.answer: tuple[int, bytes] | Callable[[bytes], bytes] | None = None
        self.hanging: list[server.Request] | None = None

    def release(self) -> None:
        """Drop the requests that hang, and hold no more."""
        hanging, self.hanging = self.hanging or [], None
        for request in hanging:
            request.loseConnection()

    def render(self, request: server.Request) -> Any:
        self.asked.append(f"{request.method.decode()} {request.path.decode()}")
        if request.path == b"/latest/api/token":
            request.setHeader("x-aws-ec2-metadata-token-ttl-seconds", "21600")
            return b"imds-token" if request.method == b"PUT" else b""
        body = self._body(request)
        if body is None:
            request.setResponseCode(401)
            return b""
        if self.hanging is not None:
            self.hanging.append(request)
            return server.NOT_DONE_YET
        if callable(self.answer):
            return self.answer(body)
        if self.answer is not None:
            request.setResponseCode(self.answer[0])
            return self.answer[1]
        return body

    def _body(self, request: server.Request) -> bytes | None:
        path, header = request.path, request.getHeader
        if path.startswith(b"/latest/meta-data/iam/security-credentials/"):
            if header("x-aws-ec2-metadata-token") != "imds-token":
                return None
            return b"builder" if path.endswith(b"/") else json.dumps(self._issue()).encode()
        if path == b"/container":
            return json.dumps(self._issue()).encode() if header("authorization") == "container-token" else None
        if path == b"/process":
            keys = self._issue()
            return json.dumps({"Version": 1, "SessionToken": keys.pop("Token"), **keys}).encode()
        if path == b"/federation/credentials":
            if header("x-amz-sso_bearer_token") != "sso-token" or request.args[b"role_name"] != [b"builder"]:
                return None
            keys = self._issue()
            end = datetime.datetime.strptime(keys["Expiration"] + "+0000", "%Y-%m-%dT%H:%M:%SZ%z").timestamp()
            role = {
                "accessKeyId": keys["AccessKeyId"],
                "secretAccessKey": keys["SecretAccessKey"],
                "sessionToken": keys["Token"],
                "expiration": int(end * 1000),
            }
            return json.dumps({"roleCredentials": role}).encode()
        return self._sts({name.decode(): values[0].decode() for name, values in request.args.items()}, header)

    def _sts(self, parameters: dict[str, str], header: Callable[[str], str | None]) -> bytes | None:
        signed_by_source = "Credential=AKIDSOURCE/" in (header("authorization") or "")
        web_identity = parameters.get("WebIdentityToken") == "web-token"
        if parameters["RoleArn"] != ROLE or not (signed_by_source or web_identity):
            return None
        return _STS.format(parameters["Action"], self._issue()).strip().encode()

    def _issue(self) -> dict[str, str]:
        self.issued += 1
        return {
            "AccessKeyId": f"AKID{self.issued}",
            "SecretAccessKey": f"{SECRET}{self.issued}",
            "Token": f"{SECRET}-token{self.issued}",
            "Expiration": timestamp(self.lifetime),
        }


class Reactor(task.Clock):
    """The clock is turned by the test; results come from threads as they do."""

    callFromThread = reactor.callFromThread


class CredentialsTestCase(TestCase):
    """Neither the environment nor the files of whoever runs the tests are seen; no secret is in any line of Python's log.

    :ivar home: the home directory.
    :ivar environ: the environment.
    :ivar clock: the reactor of the credentials.
    :ivar logged: what Python's log tells, from INFO upwards.
    """

    timeout = 30

    def setUp(self) -> None:
        self.home = directory(self)
        self.clock = Reactor()
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("AWS_") and not name.lower().endswith("_proxy")
        }
        self.environ = {**clean, "HOME": self.home, "AWS_EC2_METADATA_DISABLED": "true"}
        self.patch(os, "environ", self.environ)
        self.patch(reactor, "getThreadPool", lambda: self.fail("this pool is shared with Buildbot"))
        self.threads = set(threading.enumerate())
        self._watch_log()
        self.addCleanup(self.no_thread_left)

    def _watch_log(self) -> None:
        self.logged: list[str] = []
        handler = logging.Handler(logging.INFO)
        handler.emit = lambda record: self.logged.append(logging.Formatter().format(record))  # type: ignore
        root = logging.getLogger()
        level = root.level
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        self.addCleanup(lambda: self.assertNotIn(SECRET, "".join(self.logged)))
        self.addCleanup(root.setLevel, level)
        self.addCleanup(root.removeHandler, handler)

    def credentials(self, *keys: str) -> AWSCredentials:
        return AWSCredentials(*keys, reactor=self.clock)

    def new_threads(self) -> set[threading.Thread]:
        return set(threading.enumerate()) - self.threads

    @defer.inlineCallbacks
    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until *condition()* holds; the test's own limit ends it."""
        while not condition():
            yield task.deferLater(reactor, 0.005)

    @defer.inlineCallbacks
    def no_thread_left(self) -> Any:
        """Wait until the look-ups have ended, and what they found has been taken."""
        yield self.until(lambda: not self.new_threads())
        yield task.deferLater(reactor, 0)


class SourcesTestCase(CredentialsTestCase):
    """Credentials that are given out by a server of this process.

    :ivar sources: the server; ``url`` is where it listens.
    """

    def setUp(self) -> None:
        super().setUp()
        self.sources = Sources()
        self.url = serve(self, server.Site(self.sources)).rstrip("/")
        self.addCleanup(self.sources.release)
        self.environ.update(
            AWS_MAX_ATTEMPTS="1",
            AWS_METADATA_SERVICE_NUM_ATTEMPTS="1",
            AWS_METADATA_SERVICE_TIMEOUT="20",
            AWS_DEFAULT_REGION="eu-central-1",
            AWS_ENDPOINT_URL_STS=self.url,
            AWS_ENDPOINT_URL_SSO=self.url,
        )
        self.patch(ContainerMetadataFetcher, "SLEEP_TIME", 0)
        self.patch(ContainerMetadataFetcher, "TIMEOUT_SECONDS", 20)

    def assume_role(self) -> None:
        """A role, assumed with the keys of another profile."""
        self.environ["AWS_CONFIG_FILE"] = write(
            self.home,
            "config",
            f"[default]\nrole_arn = {ROLE}\nsource_profile = source\n"
            "[profile source]\naws_access_key_id = AKIDSOURCE\naws_secret_access_key = source\n",
        )

    def web_identity(self) -> None:
        """A role, assumed with a token that somebody else writes into a file; so Kubernetes does."""
        self.environ["AWS_WEB_IDENTITY_TOKEN_FILE"] = write(self.home, "token", "web-token")
        self.environ["AWS_ROLE_ARN"] = ROLE

    def sso(self, token_lifetime: float = 3600) -> None:
        """A role of the IAM Identity Center, with the token that ``aws sso login`` has left."""
        cache = os.path.join(self.home, ".aws", "sso", "cache")
        os.makedirs(cache)
        # botocore has made these paths when it was imported, from another home directory.
        self.patch(SSOProvider, "_SSO_TOKEN_CACHE_DIR", cache)
        self.patch(SSOTokenProvider, "_SSO_TOKEN_CACHE_DIR", cache)
        token = {
            "startUrl": START_URL,
            "region": "eu-central-1",
            "accessToken": "sso-token",
            "expiresAt": timestamp(token_lifetime),
        }
        # Source of the name: botocore.utils.SSOTokenLoader.
        write(cache, hashlib.sha1(START_URL.encode()).hexdigest() + ".json", json.dumps(token))
        self.environ["AWS_CONFIG_FILE"] = write(
            self.home,
            "config",
            f"[default]\nsso_start_url = {START_URL}\nsso_region = eu-central-1\n"
            "sso_account_id = 123456789012\nsso_role_name = builder\n",
        )

    def container(self) -> None:
        """The role of a container of ECS or EKS."""
        self.environ["AWS_CONTAINER_CREDENTIALS_FULL_URI"] = f"{self.url}/container"
        self.environ["AWS_CONTAINER_AUTHORIZATION_TOKEN"] = "container-token"

    def instance_role(self) -> None:
        """The role of an EC2 instance, asked for with a token (IMDSv2)."""
        del self.environ["AWS_EC2_METADATA_DISABLED"]
        self.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = self.url

    def process(self) -> None:
        """A program that prints keys."""
        program = write(
            self.home,
            "keys.py",
            "import urllib.request\n"
            "opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))\n"
            f"print(opener.open({self.url + '/process'!r}).read().decode())\n",
        )
        self.environ["AWS_CONFIG_FILE"] = write(
            self.home, "config", f"[default]\ncredential_process = {sys.executable} -S {program}\n"
        )
