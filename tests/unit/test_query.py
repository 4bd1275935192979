"""One call to EC2, over a real connection: its signature, its headers, its secrets."""

from __future__ import annotations

import base64
import datetime
import types
from collections.abc import Callable
from typing import Any

import boto3
from botocore import auth
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from twisted.internet import defer, reactor

from buildbot_ec2ud.ec2.client import EC2Client
from buildbot_ec2ud.ec2.credentials import AWSCredentials
from buildbot_ec2ud.ec2.errors import EC2CallError, NoCredentials
from tests.unit.servers import KEYS, NONE, REGION, Answers, QueryTestCase, Scripted, error, serve

NOW = datetime.datetime(2031, 2, 3, 4, 5, 6)
STARTED = (
    b"<RunInstancesResponse><instancesSet><item><instanceId>i-1</instanceId>"
    b"<instanceState><name>pending</name></instanceState></item></instancesSet></RunInstancesResponse>"
)

FILTERS = {"tag:Name": ["Größe & Maß", "日本語 +/=%~*"], "instance-state-name": ["running", ""]}
USER_DATA = "#!/bin/sh\necho 'Grüße' $(date) \"&\" +\n"
LAUNCH = {
    "ImageId": "ami-1",
    "InstanceType": "t3.micro",
    "MinCount": 1,
    "MaxCount": 1,
    "ClientToken": "token",
    "EbsOptimized": True,
    "SecurityGroupIds": ["sg-1", "sg-2"],
    "TagSpecifications": [
        {"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "wörker 1"}, {"Key": "empty", "Value": ""}]},
        {"ResourceType": "volume", "Tags": [{"Key": "a+b", "Value": "c/d=e"}]},
    ],
    "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"DeleteOnTermination": False, "VolumeSize": 8}}],
}


class WireTests(QueryTestCase):
    """What goes over the wire."""

    def boto3(self, url: str, call: Callable[[Any], Any], answer: bytes) -> Any:
        """The request that boto3 would send."""
        client = boto3.client(
            "ec2",
            region_name=REGION,
            endpoint_url=url,
            aws_access_key_id=KEYS[0],
            aws_secret_access_key=KEYS[1],
            aws_session_token=KEYS[2],
            config=Config(retries={"max_attempts": 0}),
        )
        sent = []

        def before_send(request: Any, **_: Any) -> AWSResponse:
            sent.append(request)
            return AWSResponse(url, 200, {}, types.SimpleNamespace(stream=lambda: [answer]))

        client.meta.events.register("before-send", before_send)
        call(client)
        self.assertEqual(len(sent), 1)
        return sent[0]

    @defer.inlineCallbacks
    def same_as_boto3(self, answer: bytes, ours: Callable[[EC2Client], Any], theirs: Callable[[Any], Any]) -> Any:
        self.patch(auth, "get_current_datetime", lambda *_, **__: NOW)
        server, url = self.serve((200, answer))
        yield ours(self.client(url))
        expected = self.boto3(url, theirs, answer)
        [(headers, body)] = server.requests
        self.assertEqual(body, expected.body.encode())
        for name in ("Authorization", "X-Amz-Date", "X-Amz-Security-Token", "Content-Type"):
            value = expected.headers[name]
            self.assertEqual(headers[name.lower().encode()], [value if isinstance(value, bytes) else value.encode()])
        return headers

    @defer.inlineCallbacks
    def test_describe_instances(self) -> Any:
        """With filters that are not ASCII, the body and the signature are boto3's, byte for byte."""
        filters = [{"Name": name, "Values": values} for name, values in FILTERS.items()]
        yield self.same_as_boto3(
            NONE,
            lambda client: client.describe_instances(filters=FILTERS),
            lambda client: client.describe_instances(Filters=filters, MaxResults=1000),
        )

    @defer.inlineCallbacks
    def test_run_instances(self) -> Any:
        """With user-data and nested tags, the body and the signature are boto3's, byte for byte."""
        encoded = base64.b64encode(USER_DATA.encode()).decode()
        headers = yield self.same_as_boto3(
            STARTED,
            lambda client: client.run_instances({**LAUNCH, "UserData": encoded}),
            lambda client: client.run_instances(**LAUNCH, UserData=USER_DATA),
        )
        # Our own name is sent, and not signed; hence the same signature.
        self.assertTrue(headers[b"user-agent"][0].startswith(b"buildbot-ec2ud/"))
        self.assertNotIn(b"user-agent", headers[b"authorization"][0])

    @defer.inlineCallbacks
    def test_transport_headers(self) -> Any:
        """There is one Content-Length and one Host, and they are right."""
        server, url = self.serve((200, NONE))
        yield self.client(url).describe_instances()
        [(headers, body)] = server.requests
        self.assertEqual(headers[b"content-length"], [str(len(body)).encode()])
        self.assertEqual(headers[b"host"], [url.split("/")[2].encode()])

    @defer.inlineCallbacks
    def test_connection_is_kept(self) -> Any:
        """One call after another uses the same connection."""
        peers = set()
        server, url = self.serve((200, NONE))
        render = server.render
        server.render = lambda request: peers.add(request.getClientAddress().port) or render(request)
        client = self.client(url)
        for _ in range(3):
            yield client.describe_instances()
        self.assertEqual((len(server.requests), len(peers)), (3, 1))

    @defer.inlineCallbacks
    def test_pages(self) -> Any:
        """The next page is asked for with the token of the one before, until there is none."""
        page = (
            b"<DescribeInstancesResponse><reservationSet><item>%s</item></reservationSet>%s</DescribeInstancesResponse>"
        )
        instance = STARTED.partition(b"<RunInstancesResponse>")[2].partition(b"</RunInstancesResponse>")[0]
        server, url = self.serve((200, page % (instance, b"<nextToken>a+b</nextToken>")), (200, page % (instance, b"")))
        found = yield self.client(url).describe_instances()
        self.assertEqual([instance.instance_id for instance in found], ["i-1", "i-1"])
        first, second = (body for _, body in server.requests)
        self.assertNotIn(b"NextToken", first)
        self.assertIn(b"&NextToken=a%2Bb", second)


class SecretTests(QueryTestCase):
    """What is secret is not in any text."""

    @defer.inlineCallbacks
    def test_no_credentials(self) -> Any:
        """Without credentials nothing is sent."""

        class Nothing:
            def resolve(self) -> Any:
                return defer.fail(NoCredentials("there are none"))

        server, url = self.serve((200, NONE))
        failure = yield self.assertFailure(self.client(url, Nothing()).describe_instances(), NoCredentials)
        self.assertFalse(failure.outcome_unknown)
        self.assertEqual(server.requests, [])

    @defer.inlineCallbacks
    def test_no_secret_in_texts(self) -> Any:
        """Neither the secret key nor the session token is in the text of an error, a query or the credentials."""
        failures: list[Any] = []
        for factory in (
            Answers((403, error("AuthFailure"))).site(),
            Answers((500, b"<html/>")).site(),
            Scripted(lambda transport: transport.loseConnection()),
            Scripted(lambda transport: None),
        ):
            client = self.client(serve(self, factory), timeout=0.2)
            failures.append((yield self.assertFailure(client.describe_instances(), EC2CallError)))
        creds = AWSCredentials(*KEYS[:2], reactor=reactor)
        yield creds.resolve()
        query = client.query_factory("DescribeInstances", creds, client.endpoint, {})
        for thing in (*failures, creds, query, client, client.query_factory):
            for text in (str(thing), repr(thing), f"{thing}", repr(getattr(thing, "args", ""))):
                self.assertNotIn(KEYS[1], text)
                self.assertNotIn(KEYS[2], text)
        self.assertIn(KEYS[0], repr(creds))
