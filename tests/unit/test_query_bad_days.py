"""One call to EC2, over a real connection: every kind of bad day."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from twisted.internet import defer, reactor
from twisted.internet.interfaces import IHostnameResolver
from zope.interface import implementer

from buildbot_ec2ud.ec2.errors import EC2CallError, EC2Error, ErrorClass, NoAnswer, NotConnected
from tests.unit.servers import NONE, QueryTestCase, Scripted, error, serve

LAUNCH = {"ImageId": "ami-1", "MinCount": 1, "MaxCount": 1}


@implementer(IHostnameResolver)
class Nowhere:
    """A name server that knows no address."""

    def resolveHostName(self, receiver: Any, hostName: str, *_: Any, **__: Any) -> Any:
        resolution = types.SimpleNamespace(name=hostName)
        receiver.resolutionBegan(resolution)
        receiver.resolutionComplete()
        return resolution


class RefusalTests(QueryTestCase):
    """EC2 answers, and does not do it."""

    @defer.inlineCallbacks
    def refused(self, kind: type[EC2CallError], status: int, body: bytes) -> Any:
        _, url = self.serve((status, body))
        failure = yield self.assertFailure(self.client(url).run_instances(LAUNCH), kind)
        self.assertEqual(type(failure), kind)
        self.assertEqual(len(str(failure).splitlines()), 1)
        return failure

    @defer.inlineCallbacks
    def test_ec2_error(self) -> Any:
        """EC2's own error is told with its code and message."""
        failure = yield self.refused(EC2Error, 400, error("InvalidAMIID.NotFound", "The image id 'ami-1' is not there"))
        self.assertEqual(failure.code, "InvalidAMIID.NotFound")
        self.assertEqual(failure.message, "The image id 'ami-1' is not there")
        self.assertIs(failure.error_class, ErrorClass.CONFIGURATION)
        self.assertFalse(failure.outcome_unknown)

    @defer.inlineCallbacks
    def test_throttled(self) -> Any:
        """In a 503, EC2's form of an error is understood too."""
        failure = yield self.refused(EC2Error, 503, error("RequestLimitExceeded", "Request limit exceeded."))
        self.assertEqual(failure.code, "RequestLimitExceeded")
        self.assertIs(failure.error_class, ErrorClass.THROTTLED)
        self.assertFalse(failure.outcome_unknown)

    @defer.inlineCallbacks
    def test_no_capacity(self) -> Any:
        """No capacity comes as a 500, and yet its outcome is known."""
        failure = yield self.refused(EC2Error, 500, error("InsufficientInstanceCapacity"))
        self.assertIs(failure.error_class, ErrorClass.NO_CAPACITY)
        self.assertFalse(failure.outcome_unknown)

    @defer.inlineCallbacks
    def test_no_error_of_ec2(self) -> Any:
        """Anything else with a bad status is no answer; its status and its beginning are told."""
        for status, body in (
            (500, b"<html><head><title>Oops</title></head><body>An error</body></html>"),
            (502, b"<!doctype html>\n<p>Bad\ngateway"),
            (500, b""),
            (503, b"   "),
            (404, b"<Response><Errors/></Response>"),
            (403, b'{"message": "Forbidden"}'),
            (500, error("InternalError")[:-40]),
            (400, b'<?xml version="1.0" encoding="klingon"?><Response/>'),
            (307, b""),
        ):
            failure = yield self.refused(NoAnswer, status, body)
            self.assertIn(str(status), str(failure))
            self.assertIn(body[:5].decode().replace('"', r"\""), str(failure))
            self.assertTrue(failure.outcome_unknown)

    @defer.inlineCallbacks
    def test_something_else_with_200(self) -> Any:
        """A proxy's page with status 200 is no answer."""
        failure = yield self.refused(NoAnswer, 200, b"<html><body>Please log in</body></html>")
        self.assertTrue(failure.outcome_unknown)


class TransportTests(QueryTestCase):
    """EC2 cannot be reached, or does not answer."""

    @defer.inlineCallbacks
    def fails(self, kind: type[EC2CallError], act: Callable[[Any], None], timeout: float = 10) -> Any:
        self.server = Scripted(act)
        url = serve(self, self.server)
        failure = yield self.assertFailure(self.client(url, timeout=timeout).describe_instances(), kind)
        self.assertEqual(failure.outcome_unknown, kind is NoAnswer)
        self.assertIn("DescribeInstances", str(failure))
        self.assertIn(url, str(failure))
        self.assertEqual(len(str(failure).splitlines()), 1)
        return failure

    @defer.inlineCallbacks
    def test_refused(self) -> Any:
        """Where nobody listens, the call certainly had no effect."""
        port = reactor.listenTCP(0, Scripted(lambda transport: None), interface="127.0.0.1")
        number = port.getHost().port
        yield port.stopListening()
        failure = yield self.assertFailure(
            self.client(f"http://127.0.0.1:{number}/").describe_instances(), NotConnected
        )
        self.assertFalse(failure.outcome_unknown)
        self.assertIn("refused", str(failure))

    @defer.inlineCallbacks
    def test_unknown_host(self) -> Any:
        """A host that has no address was not called."""
        client = self.client("http://does-not-exist.invalid/", resolver=Nowhere())
        failure = yield self.assertFailure(client.describe_instances(), NotConnected)
        self.assertFalse(failure.outcome_unknown)
        self.assertIn("does-not-exist.invalid", str(failure))

    @defer.inlineCallbacks
    def test_silence(self) -> Any:
        """A server that never answers is waited for no longer than the limit."""
        failure = yield self.fails(NoAnswer, lambda transport: None, timeout=0.2)
        self.assertIn("within 0.2 s", str(failure))

    @defer.inlineCallbacks
    def test_stalled_body(self) -> Any:
        """The limit holds for the body too; the connection is closed, and nothing is logged as an error."""

        def half(transport: Any) -> None:
            transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n<Describe")

        failure = yield self.fails(NoAnswer, half, timeout=0.2)
        self.assertIn("within 0.2 s", str(failure))
        yield self.server.closed.addTimeout(5, reactor)

    @defer.inlineCallbacks
    def test_closed_without_an_answer(self) -> Any:
        """A connection that ends instead of an answer leaves the outcome unknown."""
        yield self.fails(NoAnswer, lambda transport: transport.loseConnection())

    @defer.inlineCallbacks
    def test_reset(self) -> Any:
        """So does one that is reset."""
        yield self.fails(NoAnswer, lambda transport: transport.abortConnection())

    @defer.inlineCallbacks
    def test_truncated(self) -> Any:
        """A body that ends early is no answer, even if what came of it is XML."""

        def act(transport: Any) -> None:
            transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + NONE)
            transport.loseConnection()

        yield self.fails(NoAnswer, act)

    @defer.inlineCallbacks
    def test_not_http(self) -> Any:
        """A server that speaks something else gives no answer."""
        yield self.fails(NoAnswer, lambda transport: transport.write(b"220 smtp.example.org ESMTP\r\n"))

    @defer.inlineCallbacks
    def test_cancelled(self) -> Any:
        """A call that is cancelled ends as such, whether or not its answer has begun."""
        for beginning in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n<Describe"):
            called: defer.Deferred[None] = defer.Deferred()

            def act(transport: Any, beginning: bytes = beginning, called: Any = called) -> None:
                transport.write(beginning)
                reactor.callLater(0.05, called.callback, None)

            call = self.client(serve(self, Scripted(act))).describe_instances()
            yield called
            call.cancel()
            yield self.assertFailure(call, defer.CancelledError)
