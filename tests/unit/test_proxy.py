"""The proxy of the environment: which one, and the conversation with it."""

from __future__ import annotations

import base64
import os
from typing import Any

from botocore.httpsession import ProxyConfiguration
from botocore.utils import get_environ_proxies
from twisted.internet import defer, protocol
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from buildbot_ec2ud.ec2 import proxy, transport
from tests.unit.secure import environment

URL = "https://ec2.eu-central-1.amazonaws.com"
#: A name that only the proxy knows.
NAME = "ec2.test.invalid"
SECRET = "s3cret:/@%"
ENCODED = "s3cret%3A%2F%40%25"
AUTHORIZATION = b"Basic " + base64.b64encode(f"me:{SECRET}".encode())


class EnvironmentTests(SynchronousTestCase):
    """Which proxy leads where."""

    def set(self, **variables: str) -> None:
        environment(self, **variables)

    def test_urls(self) -> None:
        """A proxy's URL, and what is made of it."""
        for url, expected in (
            ("http://proxy.example:3128", proxy.Proxy("http", "proxy.example", 3128)),
            ("http://proxy.example:3128/", proxy.Proxy("http", "proxy.example", 3128)),
            ("HTTP://Proxy.Example", proxy.Proxy("http", "proxy.example", 80)),
            ("https://proxy.example", proxy.Proxy("https", "proxy.example", 443)),
            ("proxy.example:3128", proxy.Proxy("http", "proxy.example", 3128)),
            ("//proxy.example:3128", proxy.Proxy("http", "proxy.example", 3128)),
            ("http://[2001:db8::1]:3128", proxy.Proxy("http", "2001:db8::1", 3128)),
            (f"http://me:{ENCODED}@proxy.example:1", proxy.Proxy("http", "proxy.example", 1, AUTHORIZATION)),
            (f"me:{ENCODED}@proxy.example:1", proxy.Proxy("http", "proxy.example", 1, AUTHORIZATION)),
            ("http://me@proxy.example:1", proxy.Proxy("http", "proxy.example", 1, b"Basic bWU6")),
        ):
            self.set(HTTPS_PROXY=url)
            self.assertEqual(proxy.proxy_for(URL), expected, url)
            self.assertIsNone(proxy.check(URL))

    def test_same_as_botocore(self) -> None:
        """Variables, their precedence and their exceptions are botocore's."""
        a, b = "http://a:1", "http://b:2"
        for variables in (
            {},
            {"HTTPS_PROXY": a},
            {"https_proxy": a},
            {"HTTPS_PROXY": a, "https_proxy": b},
            {"HTTPS_PROXY": a, "https_proxy": ""},
            {"HTTP_PROXY": a},
            {"http_proxy": a, "https_proxy": b},
            {"ALL_PROXY": a},
            {"HTTPS_PROXY": a, "HTTP_PROXY": b, "NO_PROXY": "*"},
            {"HTTPS_PROXY": a, "HTTP_PROXY": b, "NO_PROXY": "amazonaws.com"},
            {"HTTPS_PROXY": a, "HTTP_PROXY": b, "no_proxy": ".amazonaws.com,other"},
            {"HTTPS_PROXY": a, "HTTP_PROXY": b, "NO_PROXY": "other, ec2.lab:8080"},
        ):
            self.set(**variables)
            for url in (URL, "https://ec2.lab/", "http://ec2.lab:8080/", "http://192.0.2.1/"):
                theirs = ProxyConfiguration(get_environ_proxies(url)).proxy_url_for(url)
                ours = proxy.proxy_for(url)
                self.assertEqual(ours and str(ours), theirs, (variables, url))

    def test_loopback(self) -> None:
        """No proxy leads to this machine itself."""
        self.set(HTTPS_PROXY="http://proxy.example:3128", HTTP_PROXY="socks5://proxy.example")
        for host in ("localhost", "LOCALHOST", "ec2.localhost", "localhost.", "127.0.0.1", "127.1.2.3", "[::1]"):
            for scheme in ("http", "https"):
                self.assertIsNone(proxy.proxy_for(f"{scheme}://{host}:5000/"), host)
        for host in ("notlocalhost", "192.0.2.1", "[2001:db8::1]", "localhost.example"):
            self.assertIsNotNone(proxy.proxy_for(f"https://{host}/"), host)

    def test_unusable(self) -> None:
        """What cannot be used is named with its variable; of its URL, which may have a password, nothing is told."""
        for url, words in (
            (f"socks5://me:{ENCODED}@proxy.example:1080", "SOCKS"),
            ("socks5h://proxy.example", "SOCKS"),
            ("ftp://proxy.example", "http:// or https://"),
            ("http://", "no host"),
            ("http://:3128", "no host"),
            (f"http://me:{ENCODED}@:3128", "no host"),
            ("http://proxy example:3128", "no host"),
            ("http://proxy.example:s3cret", "not a port"),
            ("http://proxy.example:0", "not a port"),
            ("http://proxy.example:65536", "not a port"),
            ("http://me:s3cret/x@proxy.example:3128", "percent-encoded"),
            ("http://me:1/s3cret@proxy.example:3128", "percent-encoded"),
            ("http://me:1#s3cret@proxy.example:3128", "percent-encoded"),
            ("http://[s3cret", "not a URL"),
        ):
            for variable in ("HTTPS_PROXY", "https_proxy"):
                self.set(**{variable: url})
                trouble = proxy.check(URL) or ""
                self.assertTrue(trouble.startswith(f"{variable}: "), trouble)
                self.assertIn(words, trouble)
                self.assertNotIn("s3cret", trouble)
                self.assertRaises(proxy.ProxyError, proxy.proxy_for, URL)
            # Who does not go that way, does not mind.
            self.assertIsNone(proxy.check("http://192.0.2.1/"))
            os.environ["NO_PROXY"] = "amazonaws.com"
            self.assertIsNone(proxy.check(URL))

    def test_http(self) -> None:
        """For an endpoint without TLS, the variable is another one."""
        self.set(HTTP_PROXY="socks5://proxy.example", HTTPS_PROXY="http://proxy.example")
        self.assertTrue((proxy.check("http://ec2.lab/") or "").startswith("HTTP_PROXY: "))
        self.assertIsNone(proxy.check("https://ec2.lab/"))

    def test_no_secret(self) -> None:
        """A proxy does not tell its password."""
        self.set(HTTPS_PROXY=f"http://me:{ENCODED}@proxy.example:3128")
        found = proxy.proxy_for(URL)
        for text in (str(found), repr(found)):
            self.assertIn("proxy.example", text)
            for secret in (SECRET, ENCODED, AUTHORIZATION.decode(), AUTHORIZATION.split()[1].decode()):
                self.assertNotIn(secret, text)


@implementer(IStreamClientEndpoint)
class Wire:
    """An endpoint whose connection is in the hands of the test."""

    def connect(self, protocolFactory: Any) -> defer.Deferred[Any]:
        self.transport = StringTransport()
        self.transport.abortConnection = self.transport.loseConnection
        self.protocol = protocolFactory.buildProtocol(None)
        self.protocol.makeConnection(self.transport)
        return defer.succeed(self.protocol)


class Inner(protocol.Protocol):
    """The user of a tunnel."""

    def __init__(self) -> None:
        self.received = b""
        self.lost: list[Any] = []

    def connectionMade(self) -> None:
        self.transport.write(b"hello")

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Any = protocol.connectionDone) -> None:
        self.lost.append(reason)


class TunnelTests(SynchronousTestCase):
    """The conversation with a proxy, byte by byte."""

    def tunnel(self, host: str = NAME, **more: Any) -> defer.Deferred[Any]:
        self.wire = Wire()
        endpoint = proxy.tunnel(proxy.Proxy("http", "proxy.example", 3128, **more), self.wire, host, 443)
        return endpoint.connect(protocol.Factory.forProtocol(Inner))

    def test_request(self) -> None:
        """The proxy is asked for host and port; the password goes along only where there is one."""
        self.tunnel()
        self.assertEqual(
            self.wire.transport.value(), b"CONNECT ec2.test.invalid:443 HTTP/1.1\r\nHost: ec2.test.invalid:443\r\n\r\n"
        )
        self.tunnel("2001:db8::1", authorization=AUTHORIZATION)
        self.assertEqual(
            self.wire.transport.value(),
            b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\nProxy-Authorization: "
            + AUTHORIZATION
            + b"\r\n\r\n",
        )

    def test_pieces(self) -> None:
        """However the answer is cut, what comes after it is the user's, and nothing before."""
        for answer in (
            b"HTTP/1.1 200 Connection established\r\nVia: 1.1 x\r\n\r\n",
            b"HTTP/1.0 200\r\n\r\n",
            b"HTTP/1.1 204 Fine\n\n",
        ):
            whole = answer + b"\r\n\r\nHTTP/1.1 500 of the inner server"
            for cut in range(len(whole) + 1):
                connected = self.tunnel()
                self.wire.transport.clear()
                self.wire.protocol.dataReceived(whole[:cut])
                self.assertEqual(self.wire.transport.value(), b"hello" if cut >= len(answer) else b"", cut)
                self.wire.protocol.dataReceived(whole[cut:])
                inner = self.successResultOf(connected)
                self.assertEqual(inner.received, whole[len(answer) :], cut)
                self.wire.protocol.dataReceived(b"more")
                self.assertTrue(inner.received.endswith(b"servermore"))
                self.wire.protocol.connectionLost(protocol.connectionDone)
                self.assertEqual(inner.lost, [protocol.connectionDone])

    def test_one_by_one(self) -> None:
        """An answer may come in single bytes."""
        connected = self.tunnel()
        for byte in b"HTTP/1.1 200 Connection established\r\n\r\nx":
            self.wire.protocol.dataReceived(bytes([byte]))
        self.assertEqual(self.successResultOf(connected).received, b"x")

    def refused(self, *pieces: bytes) -> str:
        connected = self.tunnel(authorization=AUTHORIZATION)
        for piece in pieces:
            self.wire.protocol.dataReceived(piece)
        failure = self.failureResultOf(connected, proxy.ProxyError)
        self.assertTrue(transport.was_not_sent(failure))
        self.assertTrue(self.wire.transport.disconnecting)
        # What comes later, and the end, change nothing.
        self.wire.protocol.dataReceived(b"HTTP/1.1 200 OK\r\n\r\n")
        self.wire.protocol.connectionLost(protocol.connectionDone)
        text = str(failure.value)
        self.assertTrue(text.startswith("proxy http://proxy.example:3128 "), text)
        self.assertNotIn(AUTHORIZATION.split()[1].decode(), text)
        return text

    def test_refusals(self) -> None:
        """A refusal is told with its status line."""
        for line in (
            b"HTTP/1.1 407 Proxy Authentication Required",
            b"HTTP/1.1 403 Forbidden",
            b"HTTP/1.0 502 Bad Gateway",
            b"HTTP/1.1 302 Found",
        ):
            text = self.refused(line[:7], line[7:] + b"\r\nContent-Length: 5\r\n", b"\r\nhello")
            self.assertTrue(text.endswith(f"refuses: {line.decode()}"), text)

    def test_one_line(self) -> None:
        """What a proxy says is told in one line, which is not endless, of plain characters."""
        text = self.refused(b"HTTP/1.1 403 a\rb\x1b[31m\xff" + b"c" * 5000 + b"\r\n\r\n")
        self.assertIn("refuses: HTTP/1.1 403 a b [31m c", text)
        self.assertLess(len(text), 300)
        self.assertTrue(text.isprintable())

    def test_not_http(self) -> None:
        """What is not HTTP is known by its first bytes, and not waited for any longer."""
        for pieces in (
            (b"SSH-2.0-OpenSSH_9.2\r\n",),
            (b"H", b"TTQ"),
            (b"\x15\x03\x01\x00\x02\x02F",),
            (b"HTTP/1.1 OK\r\n\r\n",),
            (b"HTTP/1.1 2000 OK\r\n\r\n",),
            (b"HTTP/2 200\r\n\r\n",),
            (b"\r\n\r\n",),
        ):
            self.assertIn("does not speak HTTP", self.refused(*pieces))

    def test_endless_header(self) -> None:
        """A header without an end is not collected for ever."""
        line = b"HTTP/1.1 200 OK\r\n"
        connected = self.tunnel()
        self.wire.protocol.dataReceived(line + b"x" * (proxy.HEADER_LIMIT - len(line)))
        self.assertNoResult(connected)
        self.wire.protocol.dataReceived(b"x")
        self.assertIn("16,384 bytes", str(self.failureResultOf(connected, proxy.ProxyError).value))
        self.refused(line, *[b"X: y\r\n"] * 3000)

    def test_closed(self) -> None:
        """A proxy that closes the connection has not sent anything on."""
        for beginning in (b"", b"HTTP/1.1 200 OK\r\n"):
            connected = self.tunnel()
            self.wire.protocol.dataReceived(beginning)
            self.wire.protocol.connectionLost(protocol.connectionDone)
            failure = self.failureResultOf(connected, proxy.ProxyError)
            self.assertIn("closed the connection before it answered", str(failure.value))

    def test_cancelled(self) -> None:
        """Cancelling closes the connection, and an answer that comes all the same finds nobody."""
        connected = self.tunnel()
        connected.cancel()
        self.failureResultOf(connected, defer.CancelledError)
        self.assertTrue(self.wire.transport.disconnecting)
        self.wire.transport.clear()
        self.wire.protocol.dataReceived(b"HTTP/1.1 200 OK\r\n\r\n")
        self.wire.protocol.connectionLost(protocol.connectionDone)
        self.assertEqual(self.wire.transport.value(), b"")
