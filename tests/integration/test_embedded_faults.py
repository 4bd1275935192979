"""The faults of the embedded EC2, over TCP, as boto3 and a plain socket meet them."""

from __future__ import annotations

import threading
from typing import Any

from botocore.exceptions import BotoCoreError, ConnectionClosedError, ReadTimeoutError
from botocore.parsers import ResponseParserError
from moto.ec2.models import EC2Backend
from twisted.internet import defer, reactor
from twisted.internet.error import ConnectionDone, ConnectionLost

from buildbot_ec2ud.embedded import Faults
from tests.integration.faulty import LAUNCH, FaultTestCase

FOREVER = 1000.0


class Refusals(FaultTestCase):
    @defer.inlineCallbacks
    def test_errors(self):
        """EC2's errors, once each, and whether the call was done all the same."""
        self.start_ec2()
        instances = 0
        for kind, code, status, done in (
            ("throttled", "RequestLimitExceeded", 503, False),
            ("unavailable", "Unavailable", 503, False),
            ("wrong-date", "RequestExpired", 400, False),
            ("server-fault", "InternalError", 500, True),
        ):
            self.ec2.faults.add(kind, "RunInstances")
            yield self.refused(code, status, "run_instances", **LAUNCH)
            instances += done
            self.assertEqual(len(self.ec2.states()), instances, kind)
            yield self.ask("run_instances", **LAUNCH)
            instances += 1
            self.assertEqual(len(self.ec2.states()), instances, kind)
        self.assertEqual(self.ec2.calls, {"RunInstances": 8})
        self.assertEqual(
            self.ec2.faults.hits, dict.fromkeys(["throttled", "unavailable", "wrong-date", "server-fault"], 1)
        )

    @defer.inlineCallbacks
    def test_html(self):
        """A web page that calls itself a success; boto3 finds no instance in it, and there is none."""
        self.start_ec2(faults=Faults.parse("html:RunInstances"))
        answer = yield self.ask("run_instances", **LAUNCH)
        self.assertEqual(answer["ResponseMetadata"]["HTTPHeaders"]["content-type"], "text/html; charset=utf-8")
        self.assertNotIn("Instances", answer)
        self.assertEqual(self.ec2.states(), {})

    @defer.inlineCallbacks
    def test_told(self):
        """Whoever listens hears of each hit; a call that is hit counts as a call."""
        self.start_ec2(faults=Faults.parse("throttled:TerminateInstances,unavailable:DescribeInstances*2"))
        told = []
        self.ec2.subscribe(lambda *what: told.append(what))
        for _ in range(2):
            yield self.refused("Unavailable", 503, "describe_instances")
        yield self.ask("describe_instances")
        yield self.refused("RequestLimitExceeded", 503, "terminate_instances", InstanceIds=["i-1"])
        unavailable = ("", "fault", "unavailable of DescribeInstances")
        self.assertEqual(told, [unavailable, unavailable, ("", "fault", "throttled of TerminateInstances")])
        self.assertEqual(self.ec2.calls, {"DescribeInstances": 3, "TerminateInstances": 1})
        self.assertEqual(self.ec2.faults.hits, {"unavailable": 2, "throttled": 1})

    @defer.inlineCallbacks
    def test_throttle(self):
        """A call is refused that is about more instances than EC2 starts at once; a small one is not."""
        self.start_ec2(faults=Faults(throttle=True))
        too_many = {**LAUNCH, "MaxCount": 1001}
        answer = yield self.refused("RequestLimitExceeded", 503, "run_instances", **too_many)
        self.assertIn("throttled on ec2:RunInstances", answer["Error"]["Message"])
        self.assertEqual(self.ec2.states(), {})
        yield self.ask("run_instances", **LAUNCH)
        self.assertEqual(len(self.ec2.states()), 1)
        self.assertEqual(self.ec2.faults.hits, {"throttled": 1})
        self.ec2.faults.throttle = False
        self.ec2.faults.capacity.limit("*", 2)
        answer = yield self.ask("run_instances", **too_many)
        self.assertEqual(len(answer["Instances"]), 1)

    @defer.inlineCallbacks
    def test_connection_kept(self):
        """After a refusal, the next call can take the same connection."""
        self.start_ec2(faults=Faults.parse("throttled"))
        connection = yield self.raw("DescribeInstances")
        yield self.until(lambda: b"</Response>" in connection.data)
        connection.send("DescribeInstances")
        yield self.until(lambda: b"</DescribeInstancesResponse>" in connection.data)


class Connections(FaultTestCase):
    @defer.inlineCallbacks
    def test_lost_reply(self):
        """The connection ends in good order, without a byte, and the instance is there."""
        self.start_ec2(faults=Faults.parse("lost-reply:RunInstances"))
        connection = yield self.raw("RunInstances", ImageId="ami-embedded", MinCount="1", MaxCount="1")
        yield connection.lost
        self.assertEqual((connection.data, connection.reason.type), (b"", ConnectionDone))
        self.assertEqual(len(self.ec2.states()), 1)

    @defer.inlineCallbacks
    def test_lost_reply_again(self):
        """With the same client token, a second try finds the instance of the first."""
        self.start_ec2(faults=Faults.parse("lost-reply:RunInstances"))
        launch = {**LAUNCH, "ClientToken": "same"}
        yield self.assertFailure(self.ask("run_instances", **launch), ConnectionClosedError)
        answer = yield self.ask("run_instances", **launch)
        self.assertEqual([instance["InstanceId"] for instance in answer["Instances"]], list(self.ec2.states()))

    @defer.inlineCallbacks
    def test_reset(self):
        self.start_ec2(faults=Faults.parse("reset:RunInstances"))
        connection = yield self.raw("RunInstances", ImageId="ami-embedded", MinCount="1", MaxCount="1")
        yield connection.lost
        self.assertEqual((connection.data, connection.reason.type), (b"", ConnectionLost))
        self.ec2.faults.add("reset")
        yield self.assertFailure(self.ask("run_instances", **LAUNCH), ConnectionClosedError)
        self.assertEqual(self.ec2.states(), {})

    @defer.inlineCallbacks
    def test_truncated(self):
        self.start_ec2(faults=Faults.parse("truncated:RunInstances*2"))
        connection = yield self.raw("RunInstances", ImageId="ami-embedded", MinCount="1", MaxCount="1")
        yield connection.lost
        self.assertEqual(connection.reason.type, ConnectionDone)
        self.assertTrue(connection.data.startswith(b"HTTP/1.1 200 OK\r\n"))
        self.assertEqual(len(connection.body()), connection.length() // 2)
        yield self.assertFailure(self.ask("run_instances", **LAUNCH), ResponseParserError)
        self.assertEqual(len(self.ec2.states()), 2)

    @defer.inlineCallbacks
    def test_hang(self):
        """Nothing (more) comes though the call is done, EC2 answers others, and its end is the connection's."""
        self.start_ec2()
        for number, (kind, part) in enumerate((("hang-headers", 0), ("hang-body", 0.5)), 1):
            self.ec2.faults.add(kind, "RunInstances")
            connection = yield self.raw("RunInstances", ImageId="ami-embedded", MinCount="1", MaxCount="1")
            yield self.until_launched(number)
            yield self.until(lambda connection=connection, part=part: not part or connection.body())
            for _ in range(3):
                yield self.ask("describe_instances")
            if part:
                self.assertEqual(len(connection.body()), connection.length() // 2)
            else:
                self.assertEqual(connection.data, b"")
            self.assertNoResult(connection.lost)
        yield self.ec2.stop()
        yield connection.lost

    @defer.inlineCallbacks
    def test_hang_of_boto3(self):
        self.start_ec2(faults=Faults.parse("hang-headers,hang-body"))
        for number in (1, 2):
            yield self.assertFailure(self.ask("run_instances", read_timeout=0.5, **LAUNCH), ReadTimeoutError)
            yield self.until_launched(number)
        yield self.ask("describe_instances")

    @defer.inlineCallbacks
    def test_client_goes_away(self):
        """Nothing is logged, and nothing left, when a client ends a connection that hangs or that is to be answered."""
        self.start_ec2()
        for settings in ("hang-headers", "hang-body", f"latency={FOREVER}", f"latency={FOREVER},hang-headers"):
            self.ec2.faults = Faults.parse(settings)
            before = len(self.ec2.states())
            connection = yield self.raw("RunInstances", ImageId="ami-embedded", MinCount="1", MaxCount="1")
            yield self.until_launched(before + 1)
            yield connection.end()
        yield self.until(lambda: not self.ec2._connections.protocols, what="the end of the connections")
        self.assertEqual([call for call in reactor.getDelayedCalls() if call.getTime() > reactor.seconds() + 500], [])


class Latency(FaultTestCase):
    @defer.inlineCallbacks
    def test_holds_nothing_up(self):
        """Many late answers take none of EC2's threads: all calls are done meanwhile, and others answered."""
        self.start_ec2(faults=Faults(latency=FOREVER))
        waiting = []
        for number in range(1, 6):
            connection = yield self.raw("RunInstances", ImageId="ami-embedded", MinCount="1", MaxCount="1")
            waiting.append(connection)
            yield self.until_launched(number)
        self.ec2.faults.latency = 0.0
        answer = yield self.ask("describe_instances")
        self.assertEqual(len(answer["Reservations"]), 5)
        for connection in waiting:
            self.assertEqual(connection.data, b"")
        yield self.ec2.stop()
        for connection in waiting:
            yield connection.lost
        self.assertEqual([call for call in reactor.getDelayedCalls() if call.getTime() > reactor.seconds() + 500], [])

    @defer.inlineCallbacks
    def test_comes(self):
        self.start_ec2(faults=Faults(latency=0.1))
        answer = yield self.ask("run_instances", **LAUNCH)
        self.assertEqual([instance["InstanceId"] for instance in answer["Instances"]], list(self.ec2.states()))


class Stopping(FaultTestCase):
    @defer.inlineCallbacks
    def test_during_a_call(self):
        """EC2 can be stopped while it works on a call."""
        asked: defer.Deferred[None] = defer.Deferred()
        go_on = threading.Event()
        self.addCleanup(go_on.set)
        describe_instances = EC2Backend.describe_instances

        def slow(*args: Any, **kwargs: Any) -> Any:
            reactor.callFromThread(asked.callback, None)
            go_on.wait(20)
            return describe_instances(*args, **kwargs)

        self.patch(EC2Backend, "describe_instances", slow)
        self.start_ec2()
        asking = self.ask("describe_instances")
        yield asked
        stopping = self.ec2.stop()
        yield self.assertFailure(asking, BotoCoreError)
        self.assertNoResult(stopping)
        go_on.set()
        yield stopping
