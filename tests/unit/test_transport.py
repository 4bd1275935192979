"""HTTP below the calls to EC2, over real connections: names, kept connections, bodies, and what is told of failures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from OpenSSL import SSL
from twisted.internet import defer, error, protocol, reactor
from twisted.python import log
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import Agent, ResponseFailed, ResponseNeverReceived
from twisted.web.error import SchemeNotSupported

from buildbot_ec2ud.ec2 import transport
from buildbot_ec2ud.ec2.opening import ConnectFailed
from buildbot_ec2ud.ec2.resolver import Resolver
from tests.unit.secure import LOOPBACK, Certificate, TransportTestCase, serve_tls, unknown
from tests.unit.servers import Answers, Scripted, serve


class RequestTests(TransportTestCase):
    """Requests, their connections and their answers."""

    @defer.inlineCallbacks
    def test_without_thread_pool(self) -> Any:
        """A name is looked up, and a request answered, without the reactor's thread pool."""
        # Twisted's resolver has had the pool since the reactor began: what does not work any more is the pool itself.
        for thing, name in ((reactor.getThreadPool(), "callInThreadWithCallback"), (reactor, "getThreadPool")):
            self.patch(thing, name, lambda *_: self.fail("this pool is shared with Buildbot"))
        url = serve(self, Answers((200, b"hello")).site()).replace("127.0.0.1", "localhost")
        self.assertEqual((yield self.get(url)), b"hello")

    @defer.inlineCallbacks
    def test_connections(self) -> Any:
        """Connections are kept, with TLS and without, until the transport closes them; nothing of them is logged."""
        logged: list[str] = []
        log.addObserver(observer := lambda event: logged.append(log.textFromEventDict(event) or ""))
        self.addCleanup(log.removeObserver, observer)
        certificate = Certificate(self, *LOOPBACK)
        made = self.transport(certificate.bundle)
        for put, scheme in ((lambda factory: factory, "http"), (certificate.on, "https")):
            answers = Answers((200, b"hello"))
            peers, closed = set(), defer.Deferred()
            site = answers.site()
            build = site.buildProtocol

            def building(address: Any, build: Any = build, peers: Any = peers, closed: Any = closed) -> Any:
                peers.add(address.port)
                channel = build(address)
                lost = channel.connectionLost
                channel.connectionLost = lambda reason: (lost(reason), closed.callback(None))
                return channel

            site.buildProtocol = building
            url = serve(self, put(site)).replace("http", scheme)
            for _ in range(3):
                response = yield made.agent.request(b"GET", url.encode())
                yield transport.read_body(response)
            self.assertEqual((len(answers.requests), len(peers)), (3, 1))
            self.assertFalse(closed.called)
            yield made.close()
            yield closed
        self.assertEqual([text for text in logged if "ClientFactory" in text or "TLSMemoryBIO" in text], [])

    @defer.inlineCallbacks
    def test_close_does_not_wait_for_the_dead(self) -> Any:
        """A server that does not answer to the end of a connection does not keep the transport from closing."""
        self.patch(transport, "CLOSE_TIMEOUT", 0.1)

        def act(transport: Any) -> None:
            transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            transport.pauseProducing()

        certificate = Certificate(self, *LOOPBACK)
        server = Scripted(act)
        url = serve_tls(self, server, certificate)
        self.assertEqual((yield self.get(url, certificate.bundle)), b"hello")
        yield self.made.close()
        self.assertFalse(server.closed.called)

    @defer.inlineCallbacks
    def test_refused(self) -> Any:
        """Where nobody listens, nothing was sent."""
        port = reactor.listenTCP(0, protocol.Factory(), interface="127.0.0.1")
        number = port.getHost().port
        yield port.stopListening()
        for scheme in ("http", "https"):
            yield self.not_sent(self.get(f"{scheme}://127.0.0.1:{number}/"), "refused")

    @defer.inlineCallbacks
    def test_unknown_name(self) -> Any:
        """A name without an address is told."""
        resolver = Resolver(reactor, unknown)
        for scheme in ("http", "https"):
            asked = self.get(f"{scheme}://ec2.test.invalid/", None, resolver)
            yield self.not_sent(asked, "ec2.test.invalid")

    @defer.inlineCallbacks
    def test_not_a_url(self) -> Any:
        """What is no URL, or none for HTTP, fails like anything else that was not sent."""
        for url in ("ftp://127.0.0.1/", "http://[::1/", "https://foo_bar..baz/", "https://" + 64 * "a" + "/", "x"):
            yield self.not_sent(self.get(url))
        yield self.not_sent(self.get("https://grün.example/"))

    @defer.inlineCallbacks
    def test_hanging_connection(self) -> Any:
        """A name server that hangs is given up with the rest, whatever its own limit."""
        self.patch(transport, "CONNECT_TIMEOUT", 0.1)

        class Silent:
            def resolveHostName(self, receiver: Any, *_: Any, **__: Any) -> None:
                pass

        for scheme, port in (("http", 80), ("https", 443)):
            asked = self.get(f"{scheme}://ec2.test.invalid/", None, Silent())
            yield self.not_sent(asked, f"no connection to ec2.test.invalid:{port} within 0.1 s")
            asked = self.get(f"{scheme}://ec2.test.invalid/", None, Silent())
            asked.cancel()
            yield self.assertFailure(asked, defer.CancelledError)


class BodyTests(TransportTestCase):
    """Bodies of answers."""

    HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"

    @defer.inlineCallbacks
    def respond(self, act: Callable[[Any], None], secure: bool = False) -> Any:
        self.server = Scripted(act)
        certificate = Certificate(self, *LOOPBACK)
        url = serve_tls(self, self.server, certificate) if secure else serve(self, self.server)
        return (yield self.transport(certificate.bundle).agent.request(b"GET", url.encode()))

    @defer.inlineCallbacks
    def test_whole(self) -> Any:
        """A body may come in pieces, and may be empty."""
        for body in (b"", b"x" * 100_000):

            def act(transport: Any, body: bytes = body) -> None:
                transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
                reactor.callLater(0.01, transport.write, body)

            response = yield self.respond(act)
            self.assertEqual((yield transport.read_body(response)), body)

    @defer.inlineCallbacks
    def test_cancelled(self) -> Any:
        """Cancelling closes the connection, with TLS and without."""
        for secure in (False, True):
            response = yield self.respond(lambda transport: transport.write(self.HALF), secure)
            body = transport.read_body(response)
            body.cancel()
            yield self.assertFailure(body, defer.CancelledError)
            yield self.server.closed

    @defer.inlineCallbacks
    def test_early_end(self) -> Any:
        """A body that ends early is an error, and the request was sent."""
        for secure in (False, True):

            def act(transport: Any) -> None:
                transport.write(self.HALF)
                transport.loseConnection()

            response = yield self.respond(act, secure)
            failure = yield self.assertFailure(transport.read_body(response), ResponseFailed)
            self.assertFalse(transport.was_not_sent(Failure(failure)))
            self.assertEqual(len(transport.describe(failure).splitlines()), 1)


class ReasonTests(SynchronousTestCase):
    """What is told of failures, and whether they mean that nothing was sent."""

    def test_not_sent(self) -> None:
        """Failures before anything was sent."""
        for reason in (
            ConnectFailed("x"),
            error.ConnectionRefusedError(),
            error.TimeoutError(),
            error.NoRouteError(),
            error.DNSLookupError(),
            SchemeNotSupported(),
        ):
            self.assertTrue(transport.was_not_sent(Failure(reason)), reason)

    def test_perhaps_sent(self) -> None:
        """Failures after it, even of TLS."""
        for reason in (
            error.ConnectionLost(),
            error.ConnectionDone(),
            SSL.Error([("SSL routines", "", "bad record mac")]),
            ResponseNeverReceived([Failure(SSL.Error([("SSL routines", "", "certificate verify failed")]))]),
            ResponseNeverReceived([Failure(error.ConnectionLost())]),
            defer.CancelledError(),
            ValueError(),
        ):
            self.assertFalse(transport.was_not_sent(Failure(reason)), reason)

    def test_words(self) -> None:
        """Words are those of the cause."""
        lost = error.ConnectionLost("a\nb")
        for reason, text in (
            (ConnectFailed("no way"), "no way"),
            (ResponseNeverReceived([Failure(ResponseFailed([Failure(lost)]))]), " ".join(str(lost).split())),
            (SSL.Error([("SSL routines", "", "bad record mac"), ("", "", "alert")]), "TLS: bad record mac; alert"),
            (SSL.Error([]), "TLS: the connection was closed"),
            (SSL.Error(), "TLS: the connection was closed"),
            (ResponseNeverReceived([Failure(SSL.Error([("", "", "eof")]))]), "TLS: eof"),
            (ValueError(), "ValueError"),
        ):
            self.assertEqual(transport.describe(reason), text)

    def test_cause(self) -> None:
        """The cause is found below all that is wrapped around it."""
        cancelled = defer.CancelledError()
        self.assertIs(
            transport.cause(ResponseFailed([Failure(ResponseNeverReceived([Failure(cancelled)]))])), cancelled
        )
        self.assertIs(transport.cause(cancelled), cancelled)

    def test_any_agent(self) -> None:
        """What Twisted's own agent fails with is understood, too."""
        asked = Agent(reactor).request(b"GET", b"ftp://127.0.0.1/")
        self.assertTrue(transport.was_not_sent(self.failureResultOf(asked)))
