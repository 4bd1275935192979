"""Whom to believe: certificates, names and handshakes, over real connections."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet import defer, protocol, reactor, ssl, task
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseNeverReceived

from buildbot_ec2ud.ec2 import tls, transport
from buildbot_ec2ud.ec2.transport import Transport
from tests.unit.files import directory, write
from tests.unit.secure import LOOPBACK, Certificate, TransportTestCase, port_of, serve_tls
from tests.unit.servers import Answers, Scripted, serve


class TLSTests(TransportTestCase):
    """Whom a server's certificate convinces."""

    def serve_tls(self, *names: str) -> tuple[Answers, Certificate, str]:
        answers, certificate = Answers((200, b"hello")), Certificate(self, *names)
        return answers, certificate, serve_tls(self, answers.site(), certificate)

    @defer.inlineCallbacks
    def test_trusted(self) -> Any:
        """With its certificate in the bundle, a server is asked, by address and by name."""
        answers, certificate, url = self.serve_tls(*LOOPBACK)
        for address in (url, url.replace("127.0.0.1", "localhost")):
            self.assertEqual((yield self.get(address, certificate.bundle)), b"hello")
        self.assertEqual(len(answers.requests), 2)

    @defer.inlineCallbacks
    def test_not_trusted(self) -> Any:
        """Without it, it is not asked; nor with another certificate in the bundle."""
        answers, _, url = self.serve_tls(*LOOPBACK)
        other = Certificate(self, *LOOPBACK)
        yield self.not_sent(self.get(url), "certificate verify failed", "this machine's certificates")
        yield self.not_sent(self.get(url, other.bundle), "certificate verify failed", other.bundle)
        self.assertEqual(answers.requests, [])

    @defer.inlineCallbacks
    def test_exactly_the_bundle(self) -> Any:
        """With a bundle, this machine's own certificates do not count."""
        answers, certificate, url = self.serve_tls(*LOOPBACK)
        # OpenSSL's own variable; not that of the patched environment.
        before = os.getenv("SSL_CERT_FILE")
        os.putenv("SSL_CERT_FILE", certificate.bundle)
        self.addCleanup(*((os.unsetenv, "SSL_CERT_FILE") if before is None else (os.putenv, "SSL_CERT_FILE", before)))
        self.assertEqual((yield self.get(url)), b"hello")
        yield self.not_sent(self.get(url, Certificate(self, *LOOPBACK).bundle), "certificate verify failed")
        self.assertEqual(len(answers.requests), 1)

    @defer.inlineCallbacks
    def test_wrong_name(self) -> Any:
        """A trusted certificate for another name is refused, and the name is told."""
        for names, host in ((("localhost",), "127.0.0.1"), (("127.0.0.1", "example.org"), "localhost")):
            answers, certificate, url = self.serve_tls(*names)
            asked = self.get(url.replace("127.0.0.1", host), certificate.bundle)
            yield self.not_sent(asked, "certificate verify failed", f"not for '{host}'")
            self.assertEqual(answers.requests, [])

    @defer.inlineCallbacks
    def test_no_tls(self) -> Any:
        """A server without TLS is not asked."""
        server = Scripted(lambda transport: transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
        text = yield self.not_sent(self.get(serve(self, server).replace("http://", "https://")), "TLS: ")
        self.assertNotIn("[", text)
        self.assertNotIn("trusted", text)

    @defer.inlineCallbacks
    def test_closed_in_handshake(self) -> Any:
        """A server that closes the connection during the handshake was not asked."""
        for act in (lambda transport: transport.loseConnection(), lambda transport: transport.abortConnection()):
            url = serve(self, Scripted(act)).replace("http://", "https://")
            yield self.not_sent(self.get(url), "127.0.0.1 closed the connection during the TLS handshake")

    @defer.inlineCallbacks
    def test_hanging_handshake(self) -> Any:
        """A server that hangs in the handshake is given up in time, and the connection is closed."""
        self.patch(transport, "CONNECT_TIMEOUT", 1.0)
        server = Scripted(lambda transport: None)
        url = serve(self, server).replace("http://", "https://")
        yield self.not_sent(self.get(url), f"no connection to 127.0.0.1:{port_of(url)} within 1 s")
        yield server.closed

    @defer.inlineCallbacks
    def test_cancelled_in_handshake(self) -> Any:
        """A request that is cancelled then ends as such, and the connection is closed."""
        begun: defer.Deferred[None] = defer.Deferred()
        server = Scripted(lambda transport: begun.callback(None))
        asked = self.get(serve(self, server).replace("http://", "https://"))
        yield begun
        asked.cancel()
        yield self.assertFailure(asked, defer.CancelledError)
        yield server.closed

    @defer.inlineCallbacks
    def test_closed_after_handshake(self) -> Any:
        """A server that has a request, and closes the connection, may have done what it was asked."""
        certificate = Certificate(self, *LOOPBACK)
        url = serve_tls(self, Scripted(lambda transport: transport.abortConnection()), certificate)
        failure = yield self.assertFailure(self.get(url, certificate.bundle), ResponseNeverReceived)
        self.assertFalse(transport.was_not_sent(Failure(failure)))

    @defer.inlineCallbacks
    def test_certificates_are_loaded_once(self) -> Any:
        """They are not loaded for each request."""
        loaded = []
        patched = tls.BrowserLikePolicyForHTTPS.creatorForNetloc

        def creator(policy: Any, *args: Any) -> Any:
            loaded.append(args)
            return patched(policy, *args)

        self.patch(tls.BrowserLikePolicyForHTTPS, "creatorForNetloc", creator)
        _, certificate, url = self.serve_tls(*LOOPBACK)
        made = self.transport(certificate.bundle)
        for _ in range(3):
            response = yield made.agent.request(b"GET", url.encode())
            yield transport.read_body(response)
        self.assertEqual(loaded, [(b"127.0.0.1", port_of(url))])


class BundleTests(SynchronousTestCase):
    """Files of certificates."""

    def setUp(self) -> None:
        self.directory = directory(self)

    def refused(self, path: str, words: str) -> None:
        self.assertEqual(str(self.assertRaises(tls.BundleError, tls.read_bundle, path)), tls.check_bundle(path))
        self.assertEqual(str(self.assertRaises(tls.BundleError, Transport, reactor, path)), tls.check_bundle(path))
        text = tls.check_bundle(path) or ""
        self.assertIn(words, text)
        self.assertIn(repr(path), text)
        self.assertEqual(len(text.splitlines()), 1)

    def test_several(self) -> None:
        """All certificates of a file count; texts between them do not, nor line ends."""
        one, two = Certificate(self, "one"), Certificate(self, "two")
        bundle = b"# A comment\n" + one.pem + b"\nSubject: two\n" + two.pem.replace(b"\n", b"\r\n")
        path = write(self.directory, "ca.pem", bundle)
        self.assertEqual(
            [certificate.dump() for certificate in tls.read_bundle(path)],
            [ssl.Certificate.loadPEM(certificate.pem).dump() for certificate in (one, two)],
        )
        self.assertIsNone(tls.check_bundle(path))

    def test_unusable(self) -> None:
        """A file that cannot be used is named, with why."""
        self.refused(os.path.join(self.directory, "missing.pem"), "No such file")
        self.refused(self.directory, "Is a directory")
        for content in (b"", b"hello", Certificate(self, "one").pem[:60], b"\xff\x00", b"-----BEGIN CERTIFICATE-----"):
            self.refused(write(self.directory, "ca.pem", content), "no certificate")
        broken = Certificate(self, "one").pem.replace(b"MII", b"AAA").replace(b"\nMI", b"\nAA")
        self.refused(write(self.directory, "ca.pem", broken), "broken certificate")

    def test_changed(self) -> None:
        """A file that has changed is read again, and one that has not is not."""
        path = write(self.directory, "ca.pem", Certificate(self, "one").pem)
        first = tls.read_bundle(path)
        self.assertIs(tls.read_bundle(path), first)
        write(self.directory, "ca.pem", Certificate(self, "one").pem + Certificate(self, "two").pem)
        self.assertEqual(len(tls.read_bundle(path)), 2)


class ClosingTests(SynchronousTestCase):
    """A connection that is to be closed is, whether or not the other side agrees."""

    def setUp(self) -> None:
        self.clock = task.Clock()
        self.handshake = tls._Handshake(protocol.Factory.forProtocol(protocol.Protocol), "ec2", "all", self.clock)
        self.connection = StringTransport()
        self.aborted: list[float] = []
        self.connection.abortConnection = lambda: self.aborted.append(self.clock.seconds())
        self.connection.loseConnection = lambda: None  # the other side does not answer
        self.handshake.makeConnection(self.connection)
        self.handshake.handshakeCompleted()
        self.user = self.successResultOf(self.handshake.done)

    def test_silent(self) -> None:
        """After a while, without its consent."""
        self.user.transport.loseConnection()
        self.clock.advance(tls.CLOSE_TIMEOUT - 1)
        self.user.transport.loseConnection()
        self.assertEqual(self.aborted, [])
        self.clock.advance(1)
        self.assertEqual(self.aborted, [tls.CLOSE_TIMEOUT])

    def test_closed(self) -> None:
        """One that has been closed meanwhile is left alone."""
        self.user.transport.loseConnection()
        self.handshake.connectionLost()
        self.assertEqual((self.clock.getDelayedCalls(), self.aborted), ([], []))

    def test_everything_else(self) -> None:
        """Otherwise it is a connection as any."""
        self.user.transport.write(b"hello")
        self.assertEqual(self.connection.value(), b"hello")
        self.handshake.connectionLost()
        self.assertEqual(self.clock.getDelayedCalls(), [])
