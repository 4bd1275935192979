"""Requests by way of a proxy, over real connections."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet import defer, protocol, reactor

from buildbot_ec2ud.ec2 import transport
from buildbot_ec2ud.ec2.resolver import Resolver
from tests.unit.secure import LOOPBACK, Certificate, Proxy, TransportTestCase, port_of, serve_tls, unknown
from tests.unit.servers import Answers, serve
from tests.unit.test_proxy import AUTHORIZATION, ENCODED, NAME


class WayTests(TransportTestCase):
    """Requests by way of a proxy, over real connections. Names are looked up by nobody but the proxy."""

    def setUp(self) -> None:
        super().setUp()
        self.asked: list[str] = []
        self.answers = Answers((200, b"hello"))
        self.certificate = Certificate(self, NAME)
        self.url = f"https://{NAME}/"
        self.port = port_of(serve_tls(self, self.answers.site(), self.certificate))

    def start_proxy(self, act: Callable[[Any], Any] | None = None, userinfo: str = "", secure: Any = None) -> None:
        self.proxy = Proxy({f"{NAME}:443": self.port}, *([act] if act else []))
        url = serve(self, self.proxy) if secure is None else serve_tls(self, self.proxy, secure)
        self.address = url.rstrip("/")
        os.environ["HTTPS_PROXY"] = url.replace("://", f"://{userinfo}")

    def ask(self, url: str = "") -> defer.Deferred[Any]:
        def look_up(name: str, *_: Any, **__: Any) -> Any:
            self.asked.append(name)
            return unknown()

        return self.get(url or self.url, self.certificate.bundle, Resolver(reactor, look_up))

    @defer.inlineCallbacks
    def test_tunnel(self) -> Any:
        """A request goes through the tunnel, encrypted for the endpoint, whose name is not looked up here."""
        self.start_proxy()
        self.assertEqual((yield self.ask()), b"hello")
        self.assertEqual(self.asked, [])
        self.assertEqual(self.proxy.requests[0].splitlines()[0], b"CONNECT ec2.test.invalid:443 HTTP/1.1")
        [(headers, _)] = self.answers.requests
        self.assertEqual(headers[b"host"], [NAME.encode()])
        self.assertNotIn(b"proxy-authorization", headers)

    @defer.inlineCallbacks
    def test_kept(self) -> Any:
        """The tunnel is kept for the next request."""
        self.start_proxy()
        yield self.ask()
        response = yield self.made.agent.request(b"GET", self.url.encode())
        yield transport.read_body(response)
        self.assertEqual((len(self.answers.requests), len(self.proxy.requests)), (2, 1))

    @defer.inlineCallbacks
    def test_password(self) -> Any:
        """The proxy gets user and password, the endpoint does not."""
        self.start_proxy(userinfo=f"me:{ENCODED}@")
        yield self.ask()
        self.assertIn(b"\r\nProxy-Authorization: " + AUTHORIZATION + b"\r\n", self.proxy.requests[0])
        [(headers, _)] = self.answers.requests
        self.assertNotIn(b"proxy-authorization", headers)

    @defer.inlineCallbacks
    def test_refused(self) -> Any:
        """A refusal is told, with the proxy and without its password; nothing was sent, and the connection is closed."""
        self.start_proxy(
            lambda side: side.transport.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"), f"me:{ENCODED}@"
        )
        text = yield self.not_sent(self.ask(), f"proxy {self.address} refuses: HTTP/1.1 407 Proxy Auth")
        self.assertNotIn("s3cret", text)
        yield self.proxy.closed
        self.assertEqual(self.answers.requests, [])

    @defer.inlineCallbacks
    def test_byte_by_byte(self) -> Any:
        """An answer that comes slowly is waited for."""

        @defer.inlineCallbacks
        def act(side: Any) -> Any:
            side.transport.setTcpNoDelay(True)
            for byte in b"HTTP/1.1 200 Connection established\r\n\r":
                side.transport.write(bytes([byte]))
                pause: defer.Deferred[None] = defer.Deferred()
                reactor.callLater(0.001, pause.callback, None)
                yield pause
            yield side.connect(b"\n")

        self.start_proxy(act)
        self.assertEqual((yield self.ask()), b"hello")

    @defer.inlineCallbacks
    def test_hanging(self) -> Any:
        """A proxy that never answers is given up in time, or when nobody waits any more; then the connection is closed."""
        begun: list[defer.Deferred[None]] = []
        for cancel in (False, True):
            begun.append(defer.Deferred())
            self.start_proxy(lambda side: begun[-1].callback(None))
            if cancel:
                asked = self.ask()
                yield begun[-1]
                asked.cancel()
                yield self.assertFailure(asked, defer.CancelledError)
            else:
                patch = self.patch(transport, "CONNECT_TIMEOUT", 1.0)
                yield self.not_sent(
                    self.ask(), f"no connection to {NAME}:443 by way of proxy {self.address} within 1 s"
                )
                patch.restore()
            yield self.proxy.closed

    @defer.inlineCallbacks
    def test_closing(self) -> Any:
        """A proxy that closes the connection, at once or later, is told as the one who did."""
        self.start_proxy(lambda side: side.transport.loseConnection())
        yield self.not_sent(self.ask(), f"proxy {self.address} closed the connection")

        def act(side: Any) -> None:
            side.transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
            side.transport.loseConnection()

        self.start_proxy(act)
        yield self.not_sent(self.ask(), f"{NAME} closed the connection during the TLS handshake")

    @defer.inlineCallbacks
    def test_unreachable(self) -> Any:
        """A proxy that is not there is told as the one that is missing."""
        port = reactor.listenTCP(0, protocol.Factory(), interface="127.0.0.1")
        number = port.getHost().port
        yield port.stopListening()
        os.environ["HTTPS_PROXY"] = os.environ["HTTP_PROXY"] = f"http://127.0.0.1:{number}"
        for url in (self.url, f"http://{NAME}/"):
            yield self.not_sent(self.ask(url), f"proxy http://127.0.0.1:{number}: ", "refused")
        self.assertEqual(self.asked, [])
        os.environ["HTTPS_PROXY"] = "http://proxy.test.invalid:3128"
        yield self.not_sent(self.ask(), "proxy http://proxy.test.invalid:3128: ", "hostname lookup")
        self.assertEqual(self.asked, ["proxy.test.invalid"])

    @defer.inlineCallbacks
    def test_unusable(self) -> Any:
        """A proxy that cannot be used is not passed by."""
        for scheme in ("http", "https"):
            os.environ[f"{scheme.upper()}_PROXY"] = "socks5://proxy.example"
            yield self.not_sent(self.ask(f"{scheme}://{NAME}/"), f"{scheme.upper()}_PROXY: ", "SOCKS")
        self.assertEqual(self.asked, [])

    @defer.inlineCallbacks
    def test_intercepted(self) -> Any:
        """A proxy that leads to somebody else's certificate does not get the request."""
        self.start_proxy()
        self.certificate = Certificate(self, NAME)
        yield self.not_sent(self.ask(), "certificate verify failed")
        self.assertEqual(self.answers.requests, [])

    @defer.inlineCallbacks
    def test_tls_to_the_proxy(self) -> Any:
        """TLS may lead to the proxy, too, and is verified: the password is not for everybody."""
        certificate = Certificate(self, *LOOPBACK)
        self.start_proxy(secure=certificate, userinfo=f"me:{ENCODED}@")
        yield self.not_sent(self.ask(), f"proxy {self.address}: TLS: certificate verify failed")
        self.assertEqual(self.proxy.requests, [])
        with open(self.certificate.bundle, "ab") as file:
            file.write(certificate.pem)
        self.assertEqual((yield self.ask()), b"hello")
        self.assertEqual(len(self.proxy.requests), 1)

    @defer.inlineCallbacks
    def test_loopback(self) -> Any:
        """What is on this machine is asked straight away."""
        self.start_proxy(lambda side: side.transport.loseConnection())
        os.environ["HTTP_PROXY"] = os.environ["HTTPS_PROXY"]
        self.assertEqual((yield self.ask(serve(self, self.answers.site()))), b"hello")
        self.assertEqual(self.proxy.requests, [])

    @defer.inlineCallbacks
    def test_forwarded(self) -> Any:
        """What is not encrypted is forwarded: the proxy gets the whole URL, and the password; its connection is kept."""
        url = serve(self, self.answers.site())
        seen: list[tuple[bytes, int]] = []
        render = self.answers.render
        self.answers.render = lambda request: (
            seen.append((request.uri, request.getClientAddress().port)) or render(request)
        )
        os.environ["HTTP_PROXY"] = url.replace("://", f"://me:{ENCODED}@")
        target = f"http://{NAME}:8080/path?query"
        self.assertEqual((yield self.ask(target)), b"hello")
        response = yield self.made.agent.request(b"GET", target.encode())
        yield transport.read_body(response)
        self.assertEqual(self.asked, [])
        self.assertEqual([uri for uri, _ in seen], [target.encode()] * 2)
        self.assertEqual(len({port for _, port in seen}), 1)
        for headers, _ in self.answers.requests:
            self.assertEqual(headers[b"host"], [f"{NAME}:8080".encode()])
            self.assertEqual(headers[b"proxy-authorization"], [AUTHORIZATION])

    @defer.inlineCallbacks
    def test_no_proxy(self) -> Any:
        """An exception is asked straight away."""
        self.start_proxy()
        os.environ["NO_PROXY"] = "test.invalid"
        yield self.not_sent(self.ask(), NAME)
        self.assertEqual(self.asked, [NAME])
        self.assertEqual(self.proxy.requests, [])
