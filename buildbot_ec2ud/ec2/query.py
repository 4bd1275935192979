"""One call to EC2: sign it, send it, wait no longer than a limit, and tell errors apart."""

from __future__ import annotations

import io
import json
from collections.abc import Generator, Mapping
from typing import Any
from urllib.parse import urlencode
from xml.etree.ElementTree import ParseError

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from lxml.etree import XMLSyntaxError
from twisted.internet import defer, error, protocol
from twisted.python.failure import Failure
from twisted.web.client import Agent, FileBodyProducer, HTTPConnectionPool, ResponseDone, ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent
from txaws.client.base import BaseQuery
from txaws.exception import AWSResponseParseError

from buildbot_ec2ud import __version__
from buildbot_ec2ud.ec2.errors import EC2CallError, EC2Error, NoAnswer, NoCredentials, NotConnected
from buildbot_ec2ud.ec2.shapes import SERVICE, api_version

#: Seconds until a TCP and TLS connection must stand.
CONNECT_TIMEOUT = 10
#: Seconds for a whole call, the body of the answer included.
CALL_TIMEOUT = 60
#: Seconds that an idle connection is kept for the next call.
IDLE_TIMEOUT = 30
#: Connections kept to one endpoint.
POOLED_CONNECTIONS = 8

_NOT_SENT = (
    error.ConnectError,
    error.DNSLookupError,
    error.UnsupportedAddressFamily,
    error.SSLError,
)

# Set by Twisted itself from the URL and the body; a second one would be an error on the wire.
_TRANSPORT_HEADERS = ("content-length", "host")


class Query(BaseQuery):
    """A call to EC2, signed with Signature Version 4.

    Takes the place of txAWS's ``Query``; the client makes one by calling a :class:`QueryFactory`.
    """

    def __init__(
        self, factory: QueryFactory, action: str, creds: Any, endpoint: Any, other_params: Mapping[str, str] | None
    ) -> None:
        super().__init__(action=action, creds=creds, endpoint=endpoint, reactor=factory.reactor)
        self._factory = factory
        self.params = {"Action": action, "Version": api_version(), **(other_params or {})}

    @defer.inlineCallbacks
    def submit(self) -> Generator[Any, Any, bytes]:
        """Send the call.

        :return: fires with the body of the answer, XML.
        :raises EC2Error: EC2 refused.
        :raises NotConnected: the endpoint could not be reached.
        :raises NoAnswer: no usable answer came in time.
        :raises NoCredentials: there are no credentials to sign with.
        """
        found = self.creds.resolve()
        found.addTimeout(self._factory.timeout, self.reactor, self._no_credentials_yet)
        credentials = yield found
        request = self._signed(credentials)
        answer = self._send(request)
        answer.addTimeout(self._factory.timeout, self.reactor, self._timed_out)
        try:
            status, body = yield answer
        except (EC2CallError, defer.CancelledError):
            raise
        except Exception as reason:
            if isinstance(_cause(reason), defer.CancelledError):
                raise defer.CancelledError() from None  # Agent wraps it, as if the network had failed
            raise self._explain(Failure()) from None
        if status != 200:
            raise self._refused(status, body)
        return body

    def _signed(self, credentials: ReadOnlyCredentials) -> AWSRequest:
        request = AWSRequest(
            method="POST",
            url=self.endpoint.get_uri(),
            headers={
                "Content-Type": "application/x-www-form-urlencoded; charset=utf-8",
                "User-Agent": f"buildbot-ec2ud/{__version__}",
            },
            data=urlencode(self.params).encode("ascii"),
        )
        SigV4Auth(credentials, SERVICE, self._factory.region).add_auth(request)
        return request

    @defer.inlineCallbacks
    def _send(self, request: AWSRequest) -> Generator[Any, Any, tuple[int, bytes]]:
        headers = Headers(
            {name: [value] for name, value in request.headers.items() if name.lower() not in _TRANSPORT_HEADERS}
        )
        response = yield self._factory.agent.request(
            b"POST", request.url.encode("ascii"), headers, FileBodyProducer(io.BytesIO(request.body))
        )
        body = _Body()
        response.deliverBody(body)
        return response.code, (yield body.complete)

    def _no_credentials_yet(self, result: Any, seconds: float) -> None:
        raise NoCredentials(f"{self.action}: no AWS credentials within {seconds:g} s")

    def _timed_out(self, result: Any, seconds: float) -> None:
        raise NoAnswer(f"{self.action}: no answer from {self.endpoint.get_uri()} within {seconds:g} s")

    def _explain(self, failure: Failure) -> EC2CallError:
        """Put a failure of the transport into one line."""
        reason = _cause(failure.value)
        text = f"{self.action}: {self.endpoint.get_uri()}: {' '.join(str(reason).split()) or type(reason).__name__}"
        tls_refused = failure.check(ResponseNeverReceived) and type(reason).__module__.startswith("OpenSSL")
        if tls_refused or failure.check(*_NOT_SENT):
            return NotConnected(text)
        return NoAnswer(text)

    def _refused(self, status: int, body: bytes) -> EC2CallError:
        try:
            return EC2Error(body, status)
        except (ValueError, LookupError, ParseError, XMLSyntaxError, AWSResponseParseError):
            return NoAnswer(f"{self.action}: HTTP status {status}, and no error of EC2's in it: {_excerpt(body)}")


class _Body(protocol.Protocol):
    """Collects the body of an answer; when nobody waits for it any more, it closes the connection.

    Twisted's own ``readBody`` leaves that connection open, and logs an error when it ends.
    """

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


def _cause(reason: BaseException) -> BaseException:
    """What is behind *reason*: ``ResponseNeverReceived`` and its like wrap the cause."""
    while getattr(reason, "reasons", None):
        reason = reason.reasons[-1].value
    return reason


def _excerpt(body: bytes) -> str:
    return json.dumps(body[:80].decode("utf-8", "replace"))


class QueryFactory:
    """Makes the queries of one client; what txAWS calls a ``query_factory``.

    :param region: name of the region to sign for.
    :param reactor: the clock of the time limit.
    :param agent: what sends the requests; by default one that pools connections.
    :param timeout: seconds for a whole call.
    """

    def __init__(self, region: str, reactor: Any, agent: IAgent | None = None, timeout: float = CALL_TIMEOUT) -> None:
        self.region = region
        self.reactor = reactor
        self.timeout = timeout
        self._pool: HTTPConnectionPool | None = None
        if agent is None:
            self._pool = HTTPConnectionPool(reactor)
            self._pool.maxPersistentPerHost = POOLED_CONNECTIONS
            self._pool.cachedConnectionTimeout = IDLE_TIMEOUT
            agent = Agent(reactor, connectTimeout=CONNECT_TIMEOUT, pool=self._pool)
        self.agent = agent

    def __call__(self, action: str, creds: Any, endpoint: Any, other_params: Mapping[str, str] | None = None) -> Query:
        return Query(self, action, creds, endpoint, other_params)

    def close(self) -> defer.Deferred[None]:
        """Close the pooled connections."""
        return defer.succeed(None) if self._pool is None else self._pool.closeCachedConnections()
