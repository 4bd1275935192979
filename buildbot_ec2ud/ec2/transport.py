"""HTTP below the calls to EC2: connections, kept and verified, by way of a proxy where the environment names one."""

from __future__ import annotations

from typing import Any

from OpenSSL import SSL
from twisted.internet import defer, error, protocol
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import (
    IHostnameResolver,
    IProtocolFactory,
    IReactorPluggableNameResolver,
    IStreamClientEndpoint,
)
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, HTTPConnectionPool, ProxyAgent, ResponseDone
from twisted.web.error import SchemeNotSupported
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from buildbot_ec2ud.ec2.opening import ConnectFailed
from buildbot_ec2ud.ec2.proxy import Proxy, ProxyEndpoint, netloc, proxy_for, tunnel
from buildbot_ec2ud.ec2.resolver import Resolver
from buildbot_ec2ud.ec2.tls import Verified, explain

#: Seconds until a connection must stand: name, TCP, proxy and TLS.
CONNECT_TIMEOUT = 10
#: Seconds that an idle connection is kept for the next call.
IDLE_TIMEOUT = 30
#: Connections kept to one endpoint.
POOLED_CONNECTIONS = 8
#: Seconds that the end of the kept connections is waited for; the other side may be gone.
CLOSE_TIMEOUT = 5

_NOT_SENT = (
    error.ConnectError,
    error.DNSLookupError,
    error.UnsupportedAddressFamily,
    SchemeNotSupported,
)


class Transport:
    """Sends HTTP requests, and keeps their connections.

    :param reactor: makes the connections; the clock.
    :param ca_bundle: path of a file with the only certificates to trust; None for those of this machine. They hold for a
        proxy that is spoken TLS to, too.
    :param resolver: looks up names; by default one without the reactor's thread pool.
    :ivar agent: sends the requests. What fails before anything of a request is sent fails with
        :class:`~buildbot_ec2ud.ec2.opening.ConnectFailed`; a request that is cancelled, with ``CancelledError`` or a failure
        that has it as its :func:`cause`.
    :raises buildbot_ec2ud.ec2.tls.BundleError: the file of certificates cannot be used.
    """

    def __init__(self, reactor: Any, ca_bundle: str | None = None, resolver: IHostnameResolver | None = None) -> None:
        self._reactor = reactor
        self._pool = HTTPConnectionPool(reactor)
        self._pool.maxPersistentPerHost = POOLED_CONNECTIONS
        self._pool.cachedConnectionTimeout = IDLE_TIMEOUT
        endpoints = _Endpoints(reactor, Verified(reactor, ca_bundle), resolver or Resolver(reactor))
        self.agent: IAgent = _Agent(reactor, endpoints, self._pool)

    def close(self) -> defer.Deferred[None]:
        """Close the connections that are kept.

        :return: fires when they are closed, or after :data:`CLOSE_TIMEOUT`.
        """
        closed: defer.Deferred[None] = defer.Deferred()
        self._pool.closeCachedConnections().addBoth(lambda _: None if closed.called else closed.callback(None))
        return closed.addTimeout(CLOSE_TIMEOUT, self._reactor, onTimeoutCancel=lambda *_: None)


@implementer(IAgent)
class _Agent:
    """Sends each request straight, through a tunnel, or to a proxy that forwards it."""

    def __init__(self, reactor: Any, endpoints: _Endpoints, pool: HTTPConnectionPool) -> None:
        self._reactor = reactor
        self._endpoints = endpoints
        self._pool = pool
        self._direct = Agent.usingEndpointFactory(reactor, endpoints, pool)
        self._forwarding: dict[Proxy, ProxyAgent] = {}

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> defer.Deferred[IResponse]:
        try:
            return self._request(method, uri, headers, bodyProducer)
        except (ConnectFailed, ValueError) as reason:  # ValueError: Twisted's word for what is no URL, or no host
            return defer.fail(reason if isinstance(reason, ConnectFailed) else ConnectFailed(describe(reason)))

    def _request(
        self, method: bytes, uri: bytes, headers: Headers | None, body: IBodyProducer | None
    ) -> defer.Deferred[IResponse]:
        # A proxy forwards what is not encrypted; for the rest there are tunnels.
        proxy = proxy_for(uri.decode("ascii")) if uri[:5].lower() == b"http:" else None
        if proxy is None:
            return self._direct.request(method, uri, headers, body)
        if proxy not in self._forwarding:
            # One for each: the pool keeps connections by the identity of their endpoint.
            self._forwarding[proxy] = ProxyAgent(self._endpoints.to_proxy(proxy), self._reactor, self._pool)
        if proxy.authorization is not None:
            headers = Headers() if headers is None else headers.copy()
            headers.setRawHeaders(b"Proxy-Authorization", [proxy.authorization])
        return self._forwarding[proxy].request(method, uri, headers, body)


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """Makes the endpoints that requests go to."""

    def __init__(self, reactor: Any, verified: Verified, resolver: IHostnameResolver) -> None:
        self._reactor = reactor
        self._resolving = _Resolving(reactor, resolver)
        self._verified = verified

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        host = uri.host.decode("ascii")
        target = netloc(host, uri.port)
        if uri.scheme == b"http":
            return _Connecting(self._reactor, self._tcp(host, uri.port), target)
        if uri.scheme != b"https":
            raise SchemeNotSupported(f"unsupported scheme: {uri.scheme!r}")
        proxy = proxy_for(uri.toBytes().decode("ascii"))
        if proxy is None:
            endpoint = self._tcp(host, uri.port)
        else:
            endpoint = tunnel(proxy, self._proxy(proxy), host, uri.port)
            target = f"{target} by way of proxy {proxy}"
        return _Connecting(self._reactor, self._verified.wrap(endpoint, host, uri.port), target)

    def to_proxy(self, proxy: Proxy) -> IStreamClientEndpoint:
        return _Connecting(self._reactor, self._proxy(proxy), f"proxy {proxy}")

    def _proxy(self, proxy: Proxy) -> IStreamClientEndpoint:
        endpoint = self._tcp(proxy.host, proxy.port)
        if proxy.scheme == "https":
            endpoint = self._verified.wrap(endpoint, proxy.host, proxy.port)
        return ProxyEndpoint(proxy, endpoint)

    def _tcp(self, host: str, port: int) -> IStreamClientEndpoint:
        return HostnameEndpoint(self._resolving, host, port, timeout=CONNECT_TIMEOUT)


@implementer(IReactorPluggableNameResolver)
class _Resolving:
    """A reactor with another resolver: ``HostnameEndpoint`` takes the one of its reactor."""

    def __init__(self, reactor: Any, resolver: IHostnameResolver) -> None:
        self._reactor = reactor
        self.nameResolver = resolver

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        previous, self.nameResolver = self.nameResolver, resolver
        return previous

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


@implementer(IStreamClientEndpoint)
class _Connecting:
    """The outermost endpoint: it limits the time, and whatever fails is known to be not sent."""

    def __init__(self, reactor: Any, endpoint: IStreamClientEndpoint, target: str) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._target = target

    def connect(self, protocolFactory: IProtocolFactory) -> defer.Deferred[Any]:
        protocolFactory.noisy = False  # else Twisted logs the beginning and the end of each connection
        # What a cancelled endpoint fails with tells not that it was cancelled: hence a Deferred of our own.
        connected: defer.Deferred[Any] = defer.Deferred()
        connecting = self._endpoint.connect(protocolFactory)

        def ended(result: Any) -> None:
            if not connected.called:
                connected.callback(result)

        connecting.addBoth(ended)
        connected.addTimeout(CONNECT_TIMEOUT, self._reactor, onTimeoutCancel=self._too_late)
        connected.addErrback(self._failed, connecting)
        return connected

    def _too_late(self, result: Any, seconds: float) -> None:
        raise ConnectFailed(f"no connection to {self._target} within {seconds:g} s")

    def _failed(self, failure: Failure, connecting: defer.Deferred[Any]) -> Failure:
        connecting.cancel()
        if failure.check(ConnectFailed, defer.CancelledError):
            return failure
        raise ConnectFailed(describe(failure.value))


class _Body(protocol.Protocol):
    """Collects the body of an answer; when nobody waits for it any more, it closes the connection."""

    def __init__(self) -> None:
        self._data: list[bytes] = []
        self.complete: defer.Deferred[bytes] = defer.Deferred(lambda _: self.transport.loseConnection())

    def dataReceived(self, data: bytes) -> None:
        self._data.append(data)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        if self.complete.called:  # it was cancelled
            return
        if reason.check(ResponseDone):
            self.complete.callback(b"".join(self._data))
        else:
            self.complete.errback(reason)


def read_body(response: IResponse) -> defer.Deferred[bytes]:
    """Collect the body of an answer.

    Twisted's own ``readBody`` leaves the connection open when it is cancelled, and logs an error when it ends; and it takes
    a body that ended early for a whole one.

    :param response: what an agent's request has given.
    :return: fires with the whole body. Cancelling it closes the connection.
    """
    body = _Body()
    response.deliverBody(body)
    return body.complete


def cause(reason: BaseException) -> BaseException:
    """What is behind *reason*: ``ResponseNeverReceived`` and its like wrap the cause."""
    while getattr(reason, "reasons", None):
        reason = reason.reasons[-1].value
    return reason


def describe(reason: BaseException) -> str:
    """Put why a request failed into one line.

    :param reason: what the agent, or :func:`read_body`, failed with.
    """
    reason = cause(reason)
    text = explain(reason) if isinstance(reason, SSL.Error) else str(reason)
    return " ".join(text.split()) or type(reason).__name__.strip("_")


def was_not_sent(failure: Failure) -> bool:
    """Whether nothing at all of a request was sent, so that it certainly had no effect.

    :param failure: of :attr:`Transport.agent`, or of any agent of Twisted's.
    """
    return failure.check(*_NOT_SENT) is not None
