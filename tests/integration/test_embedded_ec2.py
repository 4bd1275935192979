"""The embedded EC2 as somebody else's client sees it, and that nothing is left of it."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from typing import Any
from unittest import mock

from botocore.exceptions import BotoCoreError, ClientError
from moto.ec2.models import EC2Backend
from moto.ec2.models.instances import Instance
from twisted.internet import defer, reactor
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import CannotListenError, ConnectionRefusedError
from twisted.internet.protocol import Factory, Protocol

from buildbot_ec2ud.embedded import EmbeddedEC2, machine
from tests.integration.instances import InstanceTestCase, processes

SLEEP = "#!/bin/sh\nexec sleep 60\n"
STUBBORN = "#!/bin/sh\ntrap '' TERM\necho ready\nexec sleep 60\n"
PLAIN = (EC2Backend.run_instances, Instance.terminate, Instance.stop, Instance.start)


class OverTime(InstanceTestCase):
    @defer.inlineCallbacks
    def test_states(self):
        """An instance takes its time to start and to end, as boto3 sees it."""
        self.start_ec2(pending=1.5, shutting_down=1.5)

        def whole_life(client: Any) -> list[str]:
            (instance,) = client.run_instances(ImageId="ami-embedded", MinCount=1, MaxCount=1)["Instances"]
            ids = [instance["InstanceId"]]
            states = [instance["State"]["Name"]]

            def watch(until: str) -> None:
                while states[-1] != until:
                    time.sleep(0.02)
                    (found,) = client.describe_instances(InstanceIds=ids)["Reservations"][0]["Instances"]
                    states.append(found["State"]["Name"])

            watch("running")
            (change,) = client.terminate_instances(InstanceIds=ids)["TerminatingInstances"]
            states.append(change["PreviousState"]["Name"])
            states.append(change["CurrentState"]["Name"])
            watch("terminated")
            return states

        states = yield self.boto3(whole_life)
        changes = [state for before, state in zip([None, *states], states, strict=False) if state != before]
        self.assertEqual(changes, ["pending", "running", "shutting-down", "terminated"])
        self.assertEqual(self.happened, [(state, "") for state in changes])
        self.assertGreater(states.count("shutting-down"), 1)

    @defer.inlineCallbacks
    def test_terminated_while_pending(self):
        """An instance that ends before it runs never runs its user-data."""
        self.start_ec2(pending=1000.0)
        runs: defer.Deferred[None] = defer.Deferred()
        wait = self.ec2._instances._wait
        self.patch(self.ec2._instances, "_wait", lambda seconds: runs if seconds == 1000.0 else wait(seconds))
        instance_id = yield self.launch(SLEEP)
        yield self.call("terminate_instances", InstanceIds=[instance_id])
        yield self.until_state(instance_id, "terminated")
        runs.callback(None)
        yield self.until(lambda: not self.ec2._instances._work)
        self.assertEqual(self.kinds(), ["pending", "shutting-down", "terminated"])
        self.assertFalse(self.directory.exists())

    @defer.inlineCallbacks
    def test_terminated_while_it_stops(self):
        """The later call decides: it is never ``stopped`` after it was to be terminated."""
        self.start_ec2(shutting_down=3)
        instance_id = yield self.launch()
        yield self.until_state(instance_id, "running")

        def stop_and_terminate(client: Any) -> None:
            client.stop_instances(InstanceIds=[instance_id])
            client.terminate_instances(InstanceIds=[instance_id])

        yield self.boto3(stop_and_terminate)
        yield self.until_state(instance_id, "terminated")
        self.assertEqual(self.kinds(), ["pending", "running", "stopping", "shutting-down", "terminated"])

    @defer.inlineCallbacks
    def test_terminated_twice(self):
        self.start_ec2()
        instance_id = yield self.launch(SLEEP)
        yield self.until_happened("user-data started")
        for _ in range(2):
            yield self.call("terminate_instances", InstanceIds=[instance_id])
        yield self.until_gone()
        yield self.call("terminate_instances", InstanceIds=[instance_id])
        self.assertEqual(self.kinds()[3:], ["shutting-down", "terminated"])
        found = yield self.describe(instance_id)
        self.assertEqual(found["State"], {"Code": 48, "Name": "terminated"})


class Calls(InstanceTestCase):
    @defer.inlineCallbacks
    def test_counted(self):
        self.start_ec2()
        instance_id = yield self.launch()
        yield self.describe(instance_id)
        yield self.describe(instance_id)
        with self.assertRaises(ClientError):
            yield self.call("terminate_instances", InstanceIds=["i-00000000000000000"])
        self.assertEqual(self.ec2.calls, {"RunInstances": 1, "DescribeInstances": 2, "TerminateInstances": 1})

    @defer.inlineCallbacks
    def test_loopback_only(self):
        """What runs anybody's code is not reachable from elsewhere: not even by another address of this machine."""
        self.start_ec2()
        port = int(self.ec2.endpoint_url.rpartition(":")[2])
        self.assertEqual(self.ec2.endpoint_url, f"http://127.0.0.1:{port}")
        connection = yield connect("127.0.0.1", port)
        yield connection.end()
        yield self.assertFailure(connect("127.0.0.2", port), ConnectionRefusedError)


class Starting(InstanceTestCase):
    def setUp(self):
        temporary = os.path.abspath(self.mktemp())
        os.mkdir(temporary)
        self.patch(tempfile, "tempdir", temporary)
        self.temporary = lambda: os.listdir(temporary)

    @defer.inlineCallbacks
    def test_one_at_a_time(self):
        first = self.start_ec2()
        second = EmbeddedEC2()
        self.assertRaises(RuntimeError, second.start)
        self.assertRaises(RuntimeError, first.start)
        yield second.stop()
        yield self.call("describe_instances")
        yield first.stop()
        self.addCleanup(second.stop)
        second.start()
        self.assertEqual(second.states(), {})

    @defer.inlineCallbacks
    def test_port_in_use(self):
        """When it cannot listen, nothing runs and nothing is left; another port can be tried."""
        port = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        threads = set(threading.enumerate())
        interval = sys.getswitchinterval()
        failed = EmbeddedEC2(port=port.getHost().port)
        self.assertRaises(CannotListenError, failed.start)
        self.assertEqual(self.temporary(), [])
        self.assertEqual(set(threading.enumerate()) - threads, set())
        self.assertEqual(sys.getswitchinterval(), interval)
        self.assertEqual((EC2Backend.run_instances, Instance.terminate, Instance.stop, Instance.start), PLAIN)
        yield failed.stop()
        self.start_ec2()
        yield self.call("describe_instances")

    @defer.inlineCallbacks
    def test_started_again(self):
        """It forgets what was before."""
        self.start_ec2()
        yield self.launch()
        yield self.ec2.stop()
        self.ec2.start()
        self.assertEqual(self.ec2.states(), {})
        yield self.launch()
        yield self.until(lambda: list(self.ec2.states().values()) == ["running"])


class Stopping(InstanceTestCase):
    @defer.inlineCallbacks
    def test_leaves_nothing(self):
        """No process, thread, timer, port, file or patch."""
        temporary = os.path.abspath(self.mktemp())
        os.mkdir(temporary)
        threads = set(threading.enumerate())
        interval = sys.getswitchinterval()
        with mock.patch.object(tempfile, "tempdir", temporary):
            self.start_ec2(directory=None)
        (name,) = os.listdir(temporary)
        self.assertNotEqual(EC2Backend.run_instances, PLAIN[0])
        self.assertNotEqual(sys.getswitchinterval(), interval)
        instance_id = yield self.launch(SLEEP)
        yield self.until_happened("user-data started")
        yield self.launch(SLEEP)
        self.directory = self.directory.__class__(temporary, name)
        yield self.until(lambda: processes(self.directory / instance_id))
        yield self.ec2.stop()
        self.assertEqual(processes(self.directory / instance_id), [])
        self.assertEqual(os.listdir(temporary), [])
        self.assertEqual((EC2Backend.run_instances, Instance.terminate, Instance.stop, Instance.start), PLAIN)
        self.assertEqual(sys.getswitchinterval(), interval)
        self.assertEqual(self.ec2.states(), {})
        left = {thread.name for thread in set(threading.enumerate()) - threads}
        self.assertEqual([name for name in left if "embedded-ec2" in name], [])
        port = int(self.ec2.endpoint_url.rpartition(":")[2])
        yield reactor.listenTCP(port, Factory(), interface="127.0.0.1").stopListening()
        yield self.ec2.stop()

    @defer.inlineCallbacks
    def test_keeps_a_given_directory(self):
        self.start_ec2()
        instance_id = yield self.launch("#!/bin/sh\necho kept >kept\n")
        yield self.until_happened("user-data ended", "with status 0")
        yield self.ec2.stop()
        self.assertEqual((self.directory / instance_id / "kept").read_text(), "kept\n")

    @defer.inlineCallbacks
    def test_while_instances_change(self):
        """Stopping does not wait for instances that take their time, and leaves no timer of theirs."""
        self.patch(machine, "GRACE", 0.2)
        self.start_ec2(shutting_down=1000)
        instance_id = yield self.launch(STUBBORN)
        yield self.until_printed(instance_id, "ready")
        self.ec2.faults.pending = 1000
        yield self.launch(SLEEP)
        yield self.call("terminate_instances", InstanceIds=[instance_id])
        yield self.until_happened("shutting-down")
        yield self.ec2.stop()
        self.assertEqual([call for call in reactor.getDelayedCalls() if call.getTime() > reactor.seconds() + 500], [])
        self.assertEqual(processes(self.directory / instance_id), [])

    @defer.inlineCallbacks
    def test_call_meanwhile(self):
        """A launch that EC2 is about to accept does not outlive its end."""
        asked: defer.Deferred[None] = defer.Deferred()
        go_on = threading.Event()
        self.addCleanup(go_on.set)

        def slow(backend: Any, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("key_name") == "slow":
                reactor.callFromThread(asked.callback, None)
                go_on.wait(10)
            return PLAIN[0](backend, *args, **kwargs)

        self.patch(EC2Backend, "run_instances", slow)
        self.patch(machine, "GRACE", 3.0)
        self.start_ec2(pending=0)
        instance_id = yield self.launch(STUBBORN)
        yield self.until_printed(instance_id, "ready")
        yield self.call("create_key_pair", KeyName="slow")
        with mock.patch.dict(os.environ, {"AWS_MAX_ATTEMPTS": "1"}):
            launching = self.launch(SLEEP, KeyName="slow")
        yield asked
        stopping = self.ec2.stop()
        go_on.set()
        yield self.assertFailure(launching, BotoCoreError)
        self.assertNoResult(stopping)
        yield stopping
        self.assertEqual([entry.name for entry in self.directory.iterdir()], [instance_id])
        self.assertEqual(self.kinds(), ["pending", "running", "user-data started"])

    @defer.inlineCallbacks
    def test_closes_connections(self):
        """Clients that keep their connections do not keep them here."""
        self.start_ec2()
        connection = yield connect("127.0.0.1", int(self.ec2.endpoint_url.rpartition(":")[2]))
        yield self.ec2.stop()
        yield connection.lost


class Connection(Protocol):
    def __init__(self):
        self.lost: defer.Deferred[None] = defer.Deferred()

    def connectionLost(self, reason):
        self.lost.callback(None)

    def end(self):
        self.transport.loseConnection()
        return self.lost


def connect(host: str, port: int) -> defer.Deferred[Any]:
    return TCP4ClientEndpoint(reactor, host, port, timeout=5).connect(Factory.forProtocol(Connection))
