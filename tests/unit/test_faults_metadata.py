"""Who may read the metadata of the embedded EC2's instances, by a clock that the test turns."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.embedded import _moto
from buildbot_ec2ud.embedded.instances import Notice
from buildbot_ec2ud.embedded.metadata import MetadataSite

TTL = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "X-aws-ec2-metadata-token"
PLAIN = {"instance_type": "t3.micro", "is_instance_type_default": False, "region_name": "us-east-1"}


class Metadata(SynchronousTestCase):
    def setUp(self):
        _moto.reset()
        self.addCleanup(_moto.reset)
        self.clock = Clock()
        self.told = Notice()
        self.site = MetadataSite(self.clock, lambda instance_id: self.told)
        self.backend = _moto.get_backend("ec2")["123456789012"]["us-east-1"]

    def launch(self, **options: str) -> Any:
        reservation = self.backend.run_instances("ami-embedded", 1, "", [], metadata_options=options, **PLAIN)
        return reservation.instances[0]

    def ask(self, instance: Any, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
        """What is answered: status and body."""
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        channel, transport = self.site.buildProtocol(None), StringTransport()
        channel.makeConnection(transport)
        request = f"{method} /{getattr(instance, 'id', instance)}/{path} HTTP/1.1\r\nHost: x\r\n{lines}"
        channel.dataReceived(f"{request}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
        head, _, body = transport.value().decode().partition("\r\n\r\n")
        channel.connectionLost(None)
        if "chunked" in head:
            body = body.split("\r\n")[1]
        return int(head.split()[1]), body

    def token(self, instance: Any, seconds: Any = 60, **headers: str) -> tuple[int, str]:
        return self.ask(instance, "latest/api/token", "PUT", **{TTL: str(seconds)}, **headers)

    def test_token(self):
        """Where a token is required, it is good for its time, and for its instance only."""
        one, other = self.launch(HttpTokens="required"), self.launch(HttpTokens="required")
        path = "latest/meta-data/instance-id"
        self.assertEqual(self.ask(one, path), (401, ""))
        self.assertEqual(self.ask(one, path, **{TOKEN: "guessed"}), (401, ""))
        status, token = self.token(one)
        self.assertEqual(status, 200)
        self.assertEqual(self.ask(one, path, **{TOKEN: token}), (200, one.id))
        self.assertEqual(self.ask(other, path, **{TOKEN: token}), (401, ""))
        self.clock.advance(59.9)
        self.assertEqual(self.ask(one, path, **{TOKEN: token})[0], 200)
        later = self.token(one, 21600)[1]
        self.assertNotEqual(later, token)
        self.clock.advance(0.1)
        self.assertEqual(self.ask(one, path, **{TOKEN: token}), (401, ""))
        self.assertEqual(self.ask(one, path, **{TOKEN: later})[0], 200)

    def test_optional(self):
        """Where none is required, a wrong one is refused all the same."""
        instance = self.launch(HttpTokens="optional")
        path = "latest/meta-data/instance-id"
        self.assertEqual(self.ask(instance, path), (200, instance.id))
        self.assertEqual(self.ask(instance, path, **{TOKEN: "guessed"}), (401, ""))
        self.assertEqual(self.ask(instance, path, **{TOKEN: self.token(instance)[1]}), (200, instance.id))

    def test_bad_tokens(self):
        instance = self.launch()
        for seconds in ("", "0", "21601", "-1", "1.5", "many", "²", "9" * 50):
            self.assertEqual(self.ask(instance, "latest/api/token", "PUT", **{TTL: seconds})[0], 400, seconds)
        self.assertEqual(self.ask(instance, "latest/api/token", "PUT")[0], 400)
        self.assertEqual(self.token(instance, X_Forwarded_For="192.0.2.1")[0], 403)
        self.assertEqual(self.ask(instance, "latest/api/token")[0], 405)

    def test_disabled(self):
        instance = self.launch(HttpEndpoint="disabled")
        self.assertEqual(self.token(instance)[0], 403)
        self.assertEqual(self.ask(instance, "latest/meta-data/instance-id")[0], 403)

    def test_ended(self):
        """A terminated instance asks no more; one that shuts down does."""
        instance = self.launch()
        for state, status in (("pending", 200), ("shutting-down", 200), ("terminated", 404)):
            _moto.set_state(instance, state)
            self.assertEqual(self.ask(instance, "latest/meta-data/instance-id")[0], status, state)
        self.assertEqual(self.token(instance)[0], 404)

    def test_methods(self):
        instance = self.launch()
        path = "latest/meta-data/instance-id"
        for method in ("PUT", "POST", "DELETE"):
            self.assertEqual(self.ask(instance, path, method)[0], 405)
        self.assertEqual(self.ask(instance, path, "HEAD"), (200, ""))

    def test_nowhere(self):
        instance = self.launch()
        for path in (
            "",
            "latest/user-data",
            "latest/meta-data/zzz",
            "latest/meta",
            "2009-04-04/meta-data",
            "latest/%ff",
        ):
            self.assertEqual(self.ask(instance, path)[0], 404, path)
        self.assertEqual(self.ask("i-0", "latest/meta-data/instance-id")[0], 404)
        self.assertEqual(self.ask("..", "latest/meta-data/instance-id")[0], 404)

    def test_notice(self):
        """What EC2 lets a spot instance know, each when it does."""
        instance = self.launch()
        rebalance, action, end = (
            "latest/meta-data/events/recommendations/rebalance",
            "latest/meta-data/spot/instance-action",
            "latest/meta-data/spot/termination-time",
        )
        self.assertEqual([self.ask(instance, path)[0] for path in (rebalance, action, end)], [404] * 3)
        self.told.advised_at = 1767225600.9
        self.assertEqual(self.ask(instance, rebalance), (200, '{"noticeTime": "2026-01-01T00:00:00Z"}'))
        self.assertEqual([self.ask(instance, path)[0] for path in (action, end)], [404] * 2)
        self.told.ends_at = 1767225720.0
        self.assertEqual(self.ask(instance, action), (200, '{"action": "terminate", "time": "2026-01-01T00:02:00Z"}'))
        self.assertEqual(self.ask(instance, end), (200, "2026-01-01T00:02:00Z"))
