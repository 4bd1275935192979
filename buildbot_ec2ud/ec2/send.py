"""One request to EC2 and its answer: sign it, send it, wait no longer than a limit, and tell errors apart."""

from __future__ import annotations

import email.utils
import io
import json
import time
from collections.abc import Generator
from typing import Any

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from twisted.internet import defer
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.python import log
from twisted.python.failure import Failure
from twisted.web.client import FileBodyProducer, ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent

from buildbot_ec2ud import __version__
from buildbot_ec2ud.ec2 import transport
from buildbot_ec2ud.ec2.errors import EC2CallError, EC2Error, ErrorClass, NoAnswer, NotConnected
from buildbot_ec2ud.ec2.shapes import SERVICE

#: Seconds by which clocks must differ to explain that EC2 refuses a signature: it allows 5 minutes (EC2 API reference,
#: "Error codes", ``InvalidSecurity.RequestHasExpired``); a call and its answer take some of that.
SKEW_LIMIT = 240.0

_SIGNATURE = (ErrorClass.CREDENTIALS, ErrorClass.CLOCK)

# Set by Twisted itself from the URL and the body; a second one would be an error on the wire.
_TRANSPORT_HEADERS = ("content-length", "host")


class ConnectionClosed(NoAnswer):
    """The connection was closed before a byte of the answer came."""


class Sender:
    """Sends requests, signed with Signature Version 4.

    :param region: name of the region to sign for.
    :param reactor: the clock of the time limit.
    :param agent: what sends the requests.
    :param timeout: seconds for a request, the body of the answer included.
    """

    def __init__(self, region: str, reactor: Any, agent: IAgent, timeout: float) -> None:
        self._region = region
        self._reactor = reactor
        self._agent = agent
        self._timeout = timeout

    @defer.inlineCallbacks
    def send(self, action: str, url: str, body: bytes, credentials: ReadOnlyCredentials) -> Generator[Any, Any, bytes]:
        """Send one request.

        :param action: EC2's name of the call, for the texts of errors.
        :param url: the endpoint.
        :param body: the parameters, as a form.
        :param credentials: what to sign with.
        :return: fires with the body of the answer.
        :raises EC2Error: EC2 refused.
        :raises NotConnected: the endpoint could not be reached.
        :raises NoAnswer: no usable answer came in time.
        """

        def timed_out(result: Any, seconds: float) -> None:
            raise NoAnswer(f"{action}: no answer from {url} within {seconds:g} s")

        answer = self._request(self._signed(url, body, credentials), body)
        answer.addTimeout(self._timeout, self._reactor, timed_out)
        try:
            status, headers, answered = yield answer
        except (EC2CallError, defer.CancelledError):
            raise
        except Exception as reason:
            if isinstance(transport.cause(reason), defer.CancelledError):
                raise defer.CancelledError() from None  # Agent wraps it, as if the network had failed
            raise _failed(f"{action}: {url}", Failure()) from None
        if status != 200:
            raise _refused(action, status, headers, answered)
        return answered

    def _signed(self, url: str, body: bytes, credentials: ReadOnlyCredentials) -> AWSRequest:
        request = AWSRequest(
            method="POST",
            url=url,
            headers={
                "Content-Type": "application/x-www-form-urlencoded; charset=utf-8",
                "User-Agent": f"buildbot-ec2ud/{__version__}",
            },
            data=body,
        )
        SigV4Auth(credentials, SERVICE, self._region).add_auth(request)
        return request

    @defer.inlineCallbacks
    def _request(self, request: AWSRequest, body: bytes) -> Generator[Any, Any, tuple[int, Headers, bytes]]:
        headers = Headers(
            {name: [value] for name, value in request.headers.items() if name.lower() not in _TRANSPORT_HEADERS}
        )
        response = yield self._agent.request(
            b"POST", request.url.encode("ascii"), headers, FileBodyProducer(io.BytesIO(body))
        )
        return response.code, response.headers, (yield transport.read_body(response))


def _failed(what: str, failure: Failure) -> EC2CallError:
    """Put a failure of the transport into one line."""
    reason = transport.cause(failure.value)
    text = f"{what}: {transport.describe(reason)}"
    if transport.was_not_sent(failure):
        return NotConnected(text)
    if failure.check(ResponseNeverReceived) and isinstance(reason, (ConnectionDone, ConnectionLost)):
        return ConnectionClosed(text)
    return NoAnswer(text)


def _refused(action: str, status: int, headers: Headers, body: bytes) -> EC2CallError:
    try:
        error = EC2Error(body, status)
    except ValueError:
        excerpt = json.dumps(body[:80].decode("utf-8", "replace"))
        return NoAnswer(f"{action}: HTTP status {status}, and no error of EC2's in it: {excerpt}")
    if error.error_class in _SIGNATURE and abs(skew := _skew(headers)) > SKEW_LIMIT:
        error.blame_clock(skew)
    if error.authorization:
        # Long, and of use only to who may decode it: not for a build's page.
        log.msg(f"EC2 {action}: encoded authorization failure message: {error.authorization}")
    return error


def _skew(headers: Headers) -> float:
    """Seconds that this machine's clock is ahead of that of whoever sent *headers*; 0 when they do not tell."""
    (date, *_) = headers.getRawHeaders(b"Date", [b""])
    try:
        return time.time() - email.utils.parsedate_to_datetime(date.decode("ascii")).timestamp()
    except (ValueError, OverflowError):
        return 0.0
