"""The proxy of the environment: ``HTTPS_PROXY``, ``HTTP_PROXY``, ``NO_PROXY``."""

from __future__ import annotations

import base64
import ipaddress
import os
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from botocore.utils import get_environ_proxies
from twisted.internet import defer
from twisted.internet.interfaces import IProtocolFactory, IStreamClientEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from buildbot_ec2ud.ec2.opening import ConnectFailed, Opening, OpeningEndpoint

#: Bytes that a proxy's answer to CONNECT may have.
HEADER_LIMIT = 16384

_PORTS = {"http": 80, "https": 443}
_END_OF_HEADER = re.compile(rb"\r?\n\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.\d +(\d{3})\b")


class ProxyError(ConnectFailed):
    """The proxy cannot be used, or refused; nothing came to the endpoint. The text never has the proxy's password."""


@dataclass(frozen=True)
class Proxy:
    """A proxy.

    :ivar scheme: ``http``, or ``https`` for TLS to the proxy itself.
    :ivar authorization: value of the Proxy-Authorization header; a secret.
    """

    scheme: str
    host: str
    port: int
    authorization: bytes | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.scheme}://{netloc(self.host, self.port)}"


def netloc(host: str, port: int) -> str:
    """``host:port``, also for an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def proxy_for(url: str) -> Proxy | None:
    """The proxy that leads to *url* by the rules of botocore; None when there is none.

    To this machine none leads, whatever the environment says: what listens on the loopback interface here (an embedded
    EC2, a tunnel) cannot be reached by way of another machine, where ``localhost`` is that one.

    :param url: an endpoint.
    :raises ProxyError: the environment names one that cannot be used.
    """
    target = urlsplit(url)
    if _is_loopback(target.hostname or ""):
        return None
    address = get_environ_proxies(url).get(target.scheme)
    if not address:
        return None
    variable = _variable(target.scheme)
    # As botocore does, and curl.
    address = address if "://" in address else "http://" + address.removeprefix("//")
    try:
        return _parse(urlsplit(address))
    except ValueError as error:
        # Of the URL nothing is told: what looks like its port may be a piece of a password.
        raise ProxyError(f"{variable}: {error if isinstance(error, _Refused) else 'not a URL'}") from None


class _Refused(ValueError):
    """Its text is fit to be told."""


def _parse(parts: SplitResult) -> Proxy:
    if parts.scheme not in _PORTS:
        raise _Refused("the URL of a proxy begins with http:// or https://; others, such as SOCKS, are not supported")
    if "@" in parts.path + parts.query + parts.fragment:
        raise _Refused("special characters in the user name and password have to be percent-encoded")
    host = parts.hostname
    if not host or any(c.isspace() for c in host):
        raise _Refused("no host in the proxy's URL")
    try:
        port = _PORTS[parts.scheme] if parts.port is None else parts.port
    except ValueError:
        port = 0
    if not port:
        raise _Refused("not a port in the proxy's URL")
    return Proxy(parts.scheme, host, port, _authorization(parts))


def _authorization(parts: SplitResult) -> bytes | None:
    if parts.username is None:
        return None
    plain = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return b"Basic " + base64.b64encode(plain.encode())


def _is_loopback(host: str) -> bool:
    if host.rstrip(".").rpartition(".")[2] == "localhost":  # RFC 6761, 6.3
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _variable(scheme: str) -> str:
    """The environment's variable that names the proxy; in lower case it comes first."""
    names = [name for name, value in os.environ.items() if name.lower() == f"{scheme}_proxy" and value]
    return max(names, default=f"{scheme.upper()}_PROXY")


def check(url: str) -> str | None:
    """Tell what is wrong with the proxy that the environment names for *url*, beginning with the variable's name.

    :param url: an endpoint.
    :return: one line; None when nothing is wrong.
    """
    try:
        proxy_for(url)
    except ProxyError as error:
        return str(error)
    return None


@implementer(IStreamClientEndpoint)
class ProxyEndpoint:
    """Connects to a proxy; failures are told as the proxy's.

    :param proxy: which one.
    :param endpoint: makes the connections to it, with TLS if that is needed.
    """

    def __init__(self, proxy: Proxy, endpoint: IStreamClientEndpoint) -> None:
        self._proxy = proxy
        self._endpoint = endpoint

    def connect(self, protocolFactory: IProtocolFactory) -> defer.Deferred[Any]:
        return self._endpoint.connect(protocolFactory).addErrback(self._failed)

    def _failed(self, failure: Failure) -> Failure:
        if failure.check(ProxyError, defer.CancelledError):
            return failure
        raise ProxyError(f"proxy {self._proxy}: {failure.value}")


def tunnel(proxy: Proxy, endpoint: IStreamClientEndpoint, host: str, port: int) -> IStreamClientEndpoint:
    """An endpoint that connects to *host* by way of a proxy, with CONNECT. It is the proxy that looks the name up.

    Source: RFC 9110, 9.3.6.

    :param proxy: which one.
    :param endpoint: connects to the proxy.
    :param host: a name, or an IP address.
    :param port: the port on *host*.
    """
    return ProxyEndpoint(proxy, OpeningEndpoint(endpoint, lambda factory: _Connect(factory, proxy, netloc(host, port))))


class _Connect(Opening):
    def __init__(self, factory: IProtocolFactory, proxy: Proxy, target: str) -> None:
        super().__init__(factory)
        self._proxy = proxy
        self._target = target.encode("ascii")
        self._answer = b""

    def connectionMade(self) -> None:
        lines = [b"CONNECT %b HTTP/1.1" % self._target, b"Host: " + self._target]
        if self._proxy.authorization is not None:
            lines.append(b"Proxy-Authorization: " + self._proxy.authorization)
        self.transport.write(b"\r\n".join([*lines, b"", b""]))

    def received(self, data: bytes) -> None:
        self._answer += data
        end = _END_OF_HEADER.search(self._answer)
        line = self._answer.partition(b"\n")[0]
        if end is None:
            if not self._answer.startswith(b"HTTP/"[: len(self._answer)]):
                self._fail("does not speak HTTP", line)
            elif len(self._answer) > HEADER_LIMIT:
                self._fail(f"sends more than {HEADER_LIMIT:,} bytes of headers", line)
            return
        status = _STATUS_LINE.match(line)
        if status is None:
            self._fail("does not speak HTTP", line)
        elif status[1].startswith(b"2"):
            self.hand_over(self._answer[end.end() :])
        else:
            self._fail("refuses", line)

    def _fail(self, what: str, line: bytes) -> None:
        said = " ".join(re.sub(r"[^ -~]", " ", line[:200].decode("latin-1")).split())
        self.give_up(ProxyError(f"proxy {self._proxy} {what}: {said}"))

    def lost(self, reason: Failure) -> ProxyError:
        return ProxyError(f"proxy {self._proxy} closed the connection before it answered")
