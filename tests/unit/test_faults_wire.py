"""What the faults of the embedded EC2 make of an answer."""

from __future__ import annotations

import email.utils
import time
from typing import Any
from xml.etree import ElementTree

from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import Request

from buildbot_ec2ud.embedded.kinds import KINDS, Kind
from buildbot_ec2ud.embedded.wire import FaultySite


class Answering(Resource):
    """Answers at once, or when it is told to."""

    isLeaf = True

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.body = body
        self.requests: list[Request] = []

    def render(self, request: Request) -> bytes:
        self.requests.append(request)
        request.setHeader("X-From", "the resource")
        return self.body


class Transport(StringTransport):
    def abortConnection(self) -> None:
        self.aborting = True


class Wire(SynchronousTestCase):
    """What is sent, with a clock that the test turns."""

    BODY = b"<answer>eleven</answer>"
    FORM = b"Action=RunInstances&Version=2016-11-15&MinCount=1"

    def setUp(self):
        self.clock = Clock()
        self.kind: Kind | None = None
        self.latency = 0.0
        self.arrived: list[tuple[str, dict[str, str], str]] = []
        self.resource = Answering(self.BODY)

    def strike(self, *call: Any) -> Kind | None:
        self.arrived.append(call)
        return self.kind

    def send(self, form: bytes = FORM, headers: bytes = b"", aborted: bool = False) -> Any:
        """Send a request; gives the transport that has the answer."""
        site = FaultySite(self.resource, self.clock, self.strike, lambda: self.latency)
        channel = site.buildProtocol(None)
        transport = Transport()
        channel.makeConnection(transport)
        channel.dataReceived(
            b"POST / HTTP/1.1\r\nHost: ec2\r\nContent-Type: application/x-www-form-urlencoded; charset=utf-8\r\n"
            + headers
            + b"Content-Length: %d\r\n\r\n" % len(form)
            + form
        )
        transport.channel = channel
        return transport

    def answer(self, transport: Any) -> tuple[int, dict[str, str], bytes]:
        head, _, body = transport.value().partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        return int(status.split()[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}, body

    def test_untouched(self):
        status, headers, body = self.answer(self.send())
        self.assertEqual((status, body, headers["x-from"]), (200, self.BODY, "the resource"))
        self.assertEqual(headers["content-length"], str(len(self.BODY)))
        self.assertNotIn("transfer-encoding", headers)

    def test_what_arrives(self):
        """The action, the parameters, and the region of the signature."""
        scope = b"Authorization: AWS4-HMAC-SHA256 Credential=AKID/20260101/eu-west-1/ec2/aws4_request, Signature=x\r\n"
        self.send(headers=scope)
        self.send()
        self.send(b"Action=" + b"%C3%A4%ff&Name=")
        parameters = {"Action": "RunInstances", "Version": "2016-11-15", "MinCount": "1"}
        self.assertEqual(
            self.arrived,
            [
                ("RunInstances", parameters, "eu-west-1"),
                ("RunInstances", parameters, ""),
                ("ä�", {"Action": "ä�", "Name": ""}, ""),
            ],
        )

    def test_no_call(self):
        """A request without an action is no call."""
        self.kind = KINDS["reset"]
        transport = self.send(b"Name=x")
        self.assertEqual(self.answer(transport)[0], 200)
        self.assertEqual(self.arrived, [])

    def test_errors(self):
        """Errors in EC2's own form; the connection is kept."""
        for name, status, code, done in (
            ("throttled", 503, "RequestLimitExceeded", False),
            ("unavailable", 503, "Unavailable", False),
            ("server-fault", 500, "InternalError", True),
            ("wrong-date", 400, "RequestExpired", False),
        ):
            self.kind = KINDS[name]
            self.resource.requests.clear()
            transport = self.send()
            got, headers, body = self.answer(transport)
            self.assertEqual((got, headers["content-type"]), (status, "text/xml;charset=UTF-8"), name)
            self.assertEqual(headers["content-length"], str(len(body)))
            self.assertNotIn("x-from", headers)
            root = ElementTree.fromstring(body)
            self.assertEqual((root.tag, root.findtext("Errors/Error/Code")), ("Response", code))
            self.assertRegex(root.findtext("RequestID"), "^[0-9a-f-]{36}$")
            self.assertEqual(bool(self.resource.requests), done, name)
            self.assertFalse(transport.disconnecting)
            transport.clear()
            self.kind = None
            transport.channel.dataReceived(b"GET / HTTP/1.1\r\nHost: ec2\r\n\r\n")
            self.assertEqual(self.answer(transport)[2], self.BODY)

    def test_whose_message(self):
        """EC2 names the action; what a client writes there cannot break the answer."""
        self.kind = KINDS["throttled"]
        for form, action in ((self.FORM, "RunInstances"), (b"Action=%3C%26{request}%3E", "<&{request}>")):
            body = self.answer(self.send(form))[2]
            self.assertIn(f"throttled on ec2:{action} because", ElementTree.fromstring(body).findtext(".//Message"))

    def test_date(self):
        """Only EC2's wrong clock is wrong, by 20 minutes."""
        for name, ahead in (("wrong-date", 1200), ("throttled", 0), ("html", 0)):
            self.kind = KINDS[name]
            date = email.utils.parsedate_to_datetime(self.answer(self.send())[1]["date"])
            self.assertLess(abs(date.timestamp() - time.time() - ahead), 60, name)

    def test_html(self):
        self.kind = KINDS["html"]
        status, headers, body = self.answer(self.send())
        self.assertEqual((status, headers["content-type"]), (200, "text/html; charset=utf-8"))
        self.assertTrue(body.startswith(b"<!DOCTYPE html>"))
        self.assertEqual(self.resource.requests, [])

    def test_no_answer(self):
        for name, done, disconnecting, aborting in (
            ("lost-reply", True, True, False),
            ("hang-headers", True, False, False),
            ("reset", False, False, True),
        ):
            self.kind = KINDS[name]
            self.resource.requests.clear()
            transport = self.send()
            self.assertEqual(transport.value(), b"", name)
            self.assertEqual(bool(self.resource.requests), done, name)
            self.assertEqual(
                (transport.disconnecting, getattr(transport, "aborting", False)), (disconnecting, aborting)
            )

    def test_half_an_answer(self):
        for name, disconnecting in (("hang-body", False), ("truncated", True)):
            self.kind = KINDS[name]
            transport = self.send()
            status, headers, body = self.answer(transport)
            self.assertEqual((status, headers["content-length"]), (200, str(len(self.BODY))))
            self.assertEqual(body, self.BODY[: len(self.BODY) // 2])
            self.assertEqual(transport.disconnecting, disconnecting)
            self.assertEqual(len(self.resource.requests), 1)
            self.resource.requests.clear()

    def test_hang(self):
        """There is no time after which a call that hangs goes on."""
        for name in ("hang-headers", "hang-body"):
            self.kind = KINDS[name]
            transport = self.send()
            sent = transport.value()
            self.clock.pump([60] * 100)
            self.assertEqual(transport.value(), sent)
            self.assertFalse(transport.disconnecting)

    def test_latency(self):
        """Each answer is late, refusals too; what the call does is not."""
        self.latency = 3.0
        for kind in (None, "throttled", "html"):
            self.kind = kind and KINDS[kind]
            self.resource.requests.clear()
            transport = self.send()
            self.assertEqual(bool(self.resource.requests), kind is None)
            self.clock.advance(2.9)
            self.assertEqual(transport.value(), b"")
            self.clock.advance(0.2)
            self.assertEqual(self.answer(transport)[0], 503 if kind == "throttled" else 200)

    def test_gone_before_the_answer(self):
        """A client that goes away leaves no timer and no error."""
        self.latency = 3.0
        before = len(self.clock.getDelayedCalls())
        transport = self.send()
        transport.channel.connectionLost(Failure(ConnectionLost()))
        self.assertEqual(len(self.clock.getDelayedCalls()), before)
        self.clock.advance(5)
        self.assertEqual(transport.value(), b"")
