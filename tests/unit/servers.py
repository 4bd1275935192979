"""Web servers on the loopback interface, whose connections are gone after the test; and EC2 clients for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from botocore.credentials import ReadOnlyCredentials
from twisted.internet import defer, interfaces, protocol, reactor, task
from twisted.protocols.policies import WrappingFactory
from twisted.trial.unittest import TestCase
from twisted.web import resource, server

from buildbot_ec2ud.ec2.client import EC2Client
from buildbot_ec2ud.ec2.errors import NoCredentials
from buildbot_ec2ud.ec2.query import QueryFactory
from buildbot_ec2ud.ec2.transport import Transport

REGION = "eu-central-1"
KEYS = ("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+secret", "session+token/with=signs")
NONE = b"<DescribeInstancesResponse><reservationSet/></DescribeInstancesResponse>"


@defer.inlineCallbacks
def _stop(port: interfaces.IListeningPort, factory: WrappingFactory) -> Any:
    yield port.stopListening()
    for connection in list(factory.protocols):
        connection.loseConnection()
    while factory.protocols:
        yield task.deferLater(reactor, 0)


def serve(test: TestCase, factory: protocol.Factory) -> str:
    """Listen with *factory* until *test* has ended; gives the URL."""
    wrapped = WrappingFactory(factory)
    wrapped.noisy = False
    port = reactor.listenTCP(0, wrapped, interface="127.0.0.1")
    test.addCleanup(_stop, port, wrapped)
    return f"http://127.0.0.1:{port.getHost().port}/"


class Answers(resource.Resource):
    """Answers one request after the other with a status and a body.

    :ivar requests: the headers and the body of each.
    """

    isLeaf = True

    def __init__(self, *answers: tuple[int, bytes]) -> None:
        super().__init__()
        self.answers = list(answers)
        self.requests: list[tuple[dict[bytes, list[bytes]], bytes]] = []

    def render(self, request: server.Request) -> bytes:
        headers = {name.lower(): values for name, values in request.requestHeaders.getAllRawHeaders()}
        self.requests.append((headers, request.content.read()))
        # The last answer is given again and again.
        status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        request.setResponseCode(status)
        return body

    def site(self) -> server.Site:
        return server.Site(self)


class Script(protocol.Protocol):
    """Calls a function with the transport when a request comes."""

    def dataReceived(self, data: bytes) -> None:
        self.factory.act(self.transport)

    def connectionLost(self, reason: Any = protocol.connectionDone) -> None:
        if not self.factory.closed.called:
            self.factory.closed.callback(None)


class Scripted(protocol.Factory):
    """A server that does *act* with the transport of whoever sends something.

    :ivar closed: fires when a connection has ended.
    """

    protocol = Script
    noisy = False

    def __init__(self, act: Callable[[Any], None]) -> None:
        self.act = act
        self.closed: defer.Deferred[None] = defer.Deferred()


def error(code: str, message: str = "Because.") -> bytes:
    """An error as EC2 sends it."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>"
        "<RequestID>ea966190-f9aa-478e-9ede-example</RequestID></Response>"
    ).encode()


class Given:
    """Credentials that are there already.

    :ivar renewals: what :meth:`renew` gives, one after the other; it fails when there is no more.
    :ivar refused: what was given to :meth:`renew`.
    """

    def __init__(self, *renewals: ReadOnlyCredentials) -> None:
        self.access_key, self.secret_key, self.token = KEYS
        self.now = ReadOnlyCredentials(*KEYS)
        self.renewals = list(renewals)
        self.refused: list[ReadOnlyCredentials] = []

    def resolve(self) -> defer.Deferred[ReadOnlyCredentials]:
        return defer.succeed(self.now)

    def renew(self, refused: ReadOnlyCredentials) -> defer.Deferred[ReadOnlyCredentials]:
        self.refused.append(refused)
        if not self.renewals:
            return defer.fail(NoCredentials("there are no others"))
        self.now = self.renewals.pop(0)
        return defer.succeed(self.now)


class QueryTestCase(TestCase):
    """Calls of a client whose EC2 is a server on this machine."""

    timeout = 20

    def client(
        self,
        url: str,
        creds: Any = None,
        timeout: float = 10,
        patience: float = 0,
        resolver: Any = None,
        **more: Any,
    ) -> EC2Client:
        """A client that attempts no call again after a pause, unless it is given *patience*."""
        transport = Transport(reactor, resolver=resolver)
        self.addCleanup(transport.close)
        factory = QueryFactory(REGION, reactor, transport.agent, timeout=timeout, patience=patience, **more)
        return EC2Client(creds or Given(), url, factory)

    def serve(self, *answers: tuple[int, bytes]) -> tuple[Answers, str]:
        answers_ = Answers(*answers)
        return answers_, serve(self, answers_.site())
