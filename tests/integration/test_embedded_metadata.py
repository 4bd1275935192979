"""The metadata of the embedded EC2's instances, over TCP: as they, and AWS's own library, find it."""

from __future__ import annotations

import base64
import json
import urllib.request
from typing import Any
from unittest import mock
from urllib.error import HTTPError

from botocore.utils import InstanceMetadataRegionFetcher
from twisted.internet import defer, reactor, threads
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.protocol import Factory, Protocol

from tests.integration.instances import InstanceTestCase

REQUIRED = {"HttpTokens": "required", "HttpEndpoint": "enabled"}
#: Asks as cloud-init and curl do, by the environment that it finds.
ASK = """#!/bin/sh
exec python3 - <<'END'
import os, urllib.request
base = os.environ["EC2UD_METADATA_URL"]
assert base == os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"]
ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
token = urllib.request.urlopen(urllib.request.Request(base + "/latest/api/token", headers=ttl, method="PUT")).read()
for path in ("instance-id", "placement/availability-zone"):
    url = f"{base}/latest/meta-data/{path}"
    print(path, urllib.request.urlopen(urllib.request.Request(url, headers={"X-aws-ec2-metadata-token": token})).read())
END
"""


class Metadata(InstanceTestCase):
    @defer.inlineCallbacks
    def ask(self, instance_id: str, path: str, method: str = "GET", **headers: str) -> Any:
        """What is answered: status, headers and body."""
        url = f"{self.ec2.metadata_url}/{instance_id}/{path}"
        request = urllib.request.Request(url, headers=headers, method=method)

        def get() -> tuple[int, dict[str, str], bytes]:
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
            except HTTPError as error:
                with error:
                    return error.code, {}, error.read()

        answer = yield threads.deferToThread(get)
        return answer

    @defer.inlineCallbacks
    def text(self, instance_id: str, path: str, **headers: str) -> Any:
        status, _, body = yield self.ask(instance_id, path, **headers)
        self.assertEqual(status, 200, path)
        return body.decode()

    @defer.inlineCallbacks
    def test_what_it_says(self):
        """The same as EC2 says of the instance."""
        self.start_ec2()
        user_data = "#!/bin/sh\nexec sleep 60\n"
        zone = {"Placement": {"AvailabilityZone": "us-east-1b"}}
        instance_id = yield self.launch(user_data, InstanceType="c7i.large", **zone)
        yield self.until_state(instance_id, "running")
        found = yield self.describe(instance_id)
        for path, value in (
            ("instance-id", instance_id),
            ("ami-id", "ami-embedded"),
            ("instance-type", "c7i.large"),
            ("local-ipv4", found["PrivateIpAddress"]),
            ("local-hostname", found["PrivateDnsName"]),
            ("mac", found["NetworkInterfaces"][0]["MacAddress"]),
            ("placement/availability-zone", "us-east-1b"),
            ("placement/availability-zone/", "us-east-1b"),
            ("placement/region", "us-east-1"),
            ("instance-life-cycle", "on-demand"),
            ("placement", "availability-zone\nregion"),
        ):
            said = yield self.text(instance_id, f"latest/meta-data/{path}")
            self.assertEqual(said, value, path)
        said = yield self.text(instance_id, "latest/user-data")
        self.assertEqual(said, user_data)
        said = yield self.text(instance_id, "latest/dynamic/instance-identity/document")
        identity = json.loads(said)
        self.assertEqual((identity["instanceId"], identity["region"]), (instance_id, "us-east-1"))
        self.assertEqual(identity["privateIp"], found["PrivateIpAddress"])
        names = yield self.text(instance_id, "latest/meta-data/")
        self.assertIn("instance-id\n", names)
        self.assertIn("placement/\n", names)
        self.assertNotIn("spot/", names)
        said = yield self.text(instance_id, "latest")
        self.assertEqual(said, "dynamic/\nmeta-data/\nuser-data")
        status, _, _ = yield self.ask(instance_id, "latest/meta-data/spot/instance-action")
        self.assertEqual(status, 404)

    @defer.inlineCallbacks
    def test_binary_user_data(self):
        """As it was before base64, byte for byte."""
        self.start_ec2()
        sent = b"\x1f\x8b\0\xff" + base64.b64decode("AAEC")
        instance_id = yield self.launch(b"not gzip " + sent)
        status, headers, body = yield self.ask(instance_id, "latest/user-data")
        self.assertEqual((status, body), (200, b"not gzip " + sent))
        self.assertEqual(headers["content-length"], str(len(body)))

    @defer.inlineCallbacks
    def test_tokens(self):
        self.start_ec2()
        instance_id = yield self.launch(MetadataOptions=REQUIRED)
        path = "latest/meta-data/instance-id"
        status, _, body = yield self.ask(instance_id, path)
        self.assertEqual((status, body), (401, b""))
        status, headers, token = yield self.ask(
            instance_id, "latest/api/token", "PUT", **{"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        )
        self.assertEqual((status, headers["x-aws-ec2-metadata-token-ttl-seconds"]), (200, "60"))
        said = yield self.text(instance_id, path, **{"X-aws-ec2-metadata-token": token.decode()})
        self.assertEqual(said, instance_id)
        yield self.call("terminate_instances", InstanceIds=[instance_id])
        yield self.until_state(instance_id, "terminated")
        status, _, _ = yield self.ask(instance_id, path, **{"X-aws-ec2-metadata-token": token.decode()})
        self.assertEqual(status, 404)

    @defer.inlineCallbacks
    def test_from_inside(self):
        """Each instance finds its own, with a token."""
        self.start_ec2()
        ids = []
        for zone in ("us-east-1c", "us-east-1d"):
            where = {"Placement": {"AvailabilityZone": zone}, "MetadataOptions": REQUIRED}
            instance_id = yield self.launch(ASK, **where)
            ids.append(instance_id)
            yield self.until_printed(instance_id, f"instance-id b'{instance_id}'")
            yield self.until_printed(instance_id, f"placement/availability-zone b'{zone}'")

    @defer.inlineCallbacks
    def test_botocore(self):
        """AWS's library, which asks with a token, knows it by its environment."""
        self.start_ec2()
        where = {"Placement": {"AvailabilityZone": "us-east-1f"}, "MetadataOptions": REQUIRED}
        instance_id = yield self.launch(**where)
        url = f"{self.ec2.metadata_url}/{instance_id}"
        fetcher = InstanceMetadataRegionFetcher(timeout=20, num_attempts=3, base_url=url, env={})
        region = yield threads.deferToThread(fetcher.retrieve_region)
        self.assertEqual(region, "us-east-1")

    @defer.inlineCallbacks
    def test_loopback_only(self):
        """User-data has secrets: it is not to be had by another address, nor when EC2 is gone."""
        self.start_ec2()
        port = int(self.ec2.metadata_url.rpartition(":")[2])
        self.assertEqual(self.ec2.metadata_url, f"http://127.0.0.1:{port}")

        def connect(host: str) -> defer.Deferred[Any]:
            return TCP4ClientEndpoint(reactor, host, port, timeout=5).connect(Factory.forProtocol(Silent))

        yield self.assertFailure(connect("127.0.0.2"), ConnectionRefusedError)
        connection = yield connect("127.0.0.1")
        yield self.ec2.stop()
        yield connection.lost
        yield self.assertFailure(connect("127.0.0.1"), ConnectionRefusedError)

    @defer.inlineCallbacks
    def test_not_logged(self):
        """Neither requests nor tokens are in the log of whoever embeds it."""
        self.start_ec2()
        instance_id = yield self.launch()
        with mock.patch("twisted.web.http.HTTPFactory.log") as log, mock.patch("twisted.python.log.msg") as message:
            yield self.text(instance_id, "latest/meta-data/instance-id")
        self.assertEqual((log.mock_calls, message.mock_calls), ([], []))


class Silent(Protocol):
    def __init__(self):
        self.lost: defer.Deferred[None] = defer.Deferred()

    def connectionLost(self, reason: Any) -> None:
        self.lost.callback(None)
