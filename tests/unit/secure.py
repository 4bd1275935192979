"""TLS servers on the loopback interface with certificates of their own, proxies that lead to them, and requests to both."""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet import defer, protocol, reactor, ssl
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from buildbot_ec2ud.ec2 import transport
from buildbot_ec2ud.ec2.transport import Transport
from tests.unit.files import directory, write
from tests.unit.servers import serve

#: What listens on the loopback interface, from the point of view of a certificate.
LOOPBACK = ("127.0.0.1", "localhost")


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Certificate:
    """A self-signed certificate for *names*.

    :ivar bundle: path of a file with it.
    :ivar both: path of a file with it and its key.
    """

    def __init__(self, test: TestCase, *names: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        # Each its own subject: among several with the same, OpenSSL does not look for the one that fits.
        serial = x509.random_serial_number()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"test {serial}")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .sign(key, hashes.SHA256())
        )
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self._options = ssl.PrivateCertificate.loadPEM(self.pem + private).options()
        self.bundle = write(directory(test), "ca.pem", self.pem)
        self.both = write(directory(test), "both.pem", self.pem + private, 0o600)

    def on(self, factory: protocol.Factory) -> protocol.Factory:
        """*factory*, with TLS on top of it."""
        wrapped = TLSMemoryBIOFactory(self._options, False, factory)
        wrapped.noisy = False
        return wrapped


def serve_tls(test: TestCase, factory: protocol.Factory, certificate: Certificate) -> str:
    """Listen with TLS until *test* has ended; gives the URL, with the IP address."""
    return serve(test, certificate.on(factory)).replace("http://", "https://")


def port_of(url: str) -> int:
    return int(url.rstrip("/").rpartition(":")[2])


def environment(test: TestCase, **variables: str) -> None:
    """Let *test* see *variables*, and no others of AWS's or of a proxy."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("AWS_") and not name.lower().endswith("_proxy")
    }
    test.patch(os, "environ", {**kept, **variables})


class _Relay(protocol.Protocol):
    """One half of a tunnel: gives what comes to the other half."""

    def __init__(self, other: Any) -> None:
        self._other = other

    def dataReceived(self, data: bytes) -> None:
        self._other.transport.write(data)

    def connectionLost(self, reason: Any = protocol.connectionDone) -> None:
        self._other.transport.loseConnection()


class _Side(protocol.Protocol):
    """The side of a proxy that a client sees."""

    _relay: _Relay | None = None

    def __init__(self) -> None:
        self._request = b""

    def dataReceived(self, data: bytes) -> None:
        if self._relay is not None:
            self._relay.transport.write(data)
            return
        self._request += data
        if b"\r\n\r\n" in self._request:
            self.factory.requests.append(self._request)
            self._request = b""
            self.factory.act(self)

    def connectionLost(self, reason: Any = protocol.connectionDone) -> None:
        if self._relay is not None:
            self._relay.transport.loseConnection()
        if not self.factory.closed.called:
            self.factory.closed.callback(None)

    @defer.inlineCallbacks
    def connect(self, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> Any:
        """Do as the client asks."""
        target = self.factory.requests[-1].split()[1].decode()
        port = self.factory.routes[target]
        self._relay = yield connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), _Relay(self))
        self.transport.write(answer)


class Proxy(protocol.Factory):
    """A proxy for CONNECT.

    :param routes: the local ports that names lead to: ``{"ec2.test.invalid:443": 12345}``.
    :param act: what to do with a request, by default as it says; is given the client's side.
    :ivar requests: what it was asked.
    :ivar closed: fires when a connection to it has ended.
    """

    protocol = _Side
    noisy = False

    def __init__(self, routes: Mapping[str, int] = {}, act: Callable[[_Side], Any] = _Side.connect) -> None:
        self.routes = routes
        self.act = act
        self.requests: list[bytes] = []
        self.closed: defer.Deferred[None] = defer.Deferred()


def unknown(*args: Any, **_: Any) -> Any:
    """A name server that knows nothing."""
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


class TransportTestCase(TestCase):
    """Requests to servers on this machine."""

    timeout = 20

    def setUp(self) -> None:
        environment(self)

    def transport(self, *args: Any) -> Transport:
        self.made = Transport(reactor, *args)
        self.addCleanup(self.made.close)
        return self.made

    @defer.inlineCallbacks
    def get(self, url: str, *args: Any) -> Any:
        """Ask once, with a transport made of *args*; fires with the body."""
        response = yield self.transport(*args).agent.request(b"POST", url.encode())
        return (yield transport.read_body(response))

    @defer.inlineCallbacks
    def not_sent(self, asked: defer.Deferred[Any], *words: str) -> Any:
        """Check that *asked* fails in words that are one line, and was not sent; fires with the words."""
        try:
            result = yield asked
        except Exception:
            failure = Failure()
        else:
            self.fail(f"answered: {result!r}")
        self.assertTrue(transport.was_not_sent(failure), failure)
        text = transport.describe(failure.value)
        self.assertEqual(len(text.splitlines()), 1)
        for word in words:
            self.assertIn(word, text)
        return text
