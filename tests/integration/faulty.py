"""What the tests of the faults share: clients that do not try again."""

from __future__ import annotations

import urllib.parse
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from twisted.internet import defer, reactor, threads
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol

from buildbot_ec2ud.embedded import EmbeddedEC2
from tests.integration.instances import InstanceTestCase

#: The least that a launch needs.
LAUNCH = {"ImageId": "ami-embedded", "MinCount": 1, "MaxCount": 1}


class Raw(Protocol):
    """A connection of a client that only notes what comes."""

    def __init__(self):
        self.data = b""
        self.lost: defer.Deferred[None] = defer.Deferred()
        self.reason: Any = None

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Any) -> None:
        self.reason = reason
        self.lost.callback(None)

    def send(self, action: str, **parameters: str) -> None:
        body = urllib.parse.urlencode({"Action": action, "Version": "2016-11-15", **parameters}).encode()
        self.transport.write(
            b"POST / HTTP/1.1\r\nHost: ec2.us-east-1.amazonaws.com\r\n"
            b"Authorization: AWS4-HMAC-SHA256 Credential=AKID/20260101/us-east-1/ec2/aws4_request, Signature=x\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )

    def end(self) -> defer.Deferred[None]:
        self.transport.loseConnection()
        return self.lost

    def body(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[2]

    def length(self) -> int:
        """What the header says of the length of the body."""
        (line,) = [line for line in self.data.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        return int(line.partition(b":")[2])


class FaultTestCase(InstanceTestCase):
    def client(self, region: str = EmbeddedEC2.region, read_timeout: float = 20) -> Any:
        """A boto3 client that does not try again."""
        return boto3.client(
            "ec2",
            endpoint_url=self.ec2.endpoint_url,
            region_name=region,
            aws_access_key_id="boto3",
            aws_secret_access_key="boto3",
            config=Config(retries={"max_attempts": 0}, connect_timeout=20, read_timeout=read_timeout),
        )

    def ask(self, action: str, region: str = EmbeddedEC2.region, read_timeout: float = 20, **parameters: Any) -> Any:
        client = self.client(region, read_timeout)
        return threads.deferToThread(lambda: getattr(client, action)(**parameters))

    @defer.inlineCallbacks
    def refused(self, code: str, status: int, action: str, **parameters: Any) -> Any:
        """The answer of a call that boto3 understands as EC2's error."""
        error = yield self.assertFailure(self.ask(action, **parameters), ClientError)
        answer = error.response
        self.assertEqual((answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]), (code, status))
        self.assertTrue(answer["Error"]["Message"])
        self.assertTrue(answer["ResponseMetadata"]["RequestId"])
        return answer

    @defer.inlineCallbacks
    def raw(self, action: str, **parameters: str) -> Any:
        """Send a call by a connection of its own; gives that."""
        port = int(self.ec2.endpoint_url.rpartition(":")[2])
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port, timeout=20)
        connection = yield endpoint.connect(Factory.forProtocol(Raw))
        self.addCleanup(connection.end)
        connection.send(action, **parameters)
        return connection

    def until_launched(self, count: int = 1) -> defer.Deferred[Any]:
        return self.until(lambda: len(self.ec2.states()) == count, what=f"{count} instances")
