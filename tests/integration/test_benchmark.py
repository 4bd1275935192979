"""The parts of the benchmark: what they are made of is what is measured, so they have to behave as the real ones do."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from twisted.cred.error import UnauthorizedLogin
from twisted.internet import defer, reactor, task, threads
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.server import Site

from buildbot_ec2ud.userdata.posix import UserData
from buildbot_ec2ud.userdata.scripts import InlineScript
from tests.support import FarmTestCase
from tests.unit.servers import serve

_HERE = Path(__file__).parents[2] / "contrib" / "benchmark"


def load() -> Any:
    """The modules of the benchmark, which are scripts beside each other."""
    sys.path.insert(0, str(_HERE))
    try:
        import ec2
        import ec2_process
        import figures
        import hours
        import machines
        import sides
        import workers
    finally:
        sys.path.remove(str(_HERE))
    return ec2, ec2_process, figures, hours, machines, sides, workers


ec2, ec2_process, figures, hours, machines, sides, workers = load()
TEMPLATE = machines.Template()
TAGS = {"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": "<w>"}, {"Key": "buildbot:master", "Value": "m"}]}
LAUNCH = {"ImageId": "ami-7", "InstanceType": "m7i.large", "MinCount": 1, "MaxCount": 1, "TagSpecifications": [TAGS]}


class StandIn(TestCase):
    """The stand-in for EC2, asked by boto3; the time in it is a clock's, but for the latency."""

    timeout = 30

    def setUp(self) -> None:
        self.clock = task.Clock()
        self.behaviour = ec2.Behaviour(latency=0.0, pending=2.0, shutting_down=3.0)
        self.changes: list[tuple[str, str]] = []
        self.ec2 = ec2.EC2(self.clock, self.behaviour, TEMPLATE, lambda one: self.changes.append((one.id, one.state)))
        self.client = boto3.client(
            "ec2",
            endpoint_url=serve(self, Site(ec2_process.EC2Resource(self.ec2, reactor))),
            region_name="us-east-1",
            aws_access_key_id="a",
            aws_secret_access_key="s",
            config=Config(retries={"max_attempts": 0}),
        )
        self.addCleanup(self.client.close)

    def ask(self, action: str, **parameters: Any) -> defer.Deferred[Any]:
        return threads.deferToThread(getattr(self.client, action), **parameters)

    @defer.inlineCallbacks
    def listed(self, **parameters: Any) -> Any:
        found = yield self.ask("describe_instances", **parameters)
        return [one for reservation in found["Reservations"] for one in reservation["Instances"]]

    @defer.inlineCallbacks
    def refused(self, action: str, **parameters: Any) -> Any:
        error = yield self.assertFailure(self.ask(action, **parameters), ClientError)
        return error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]

    @defer.inlineCallbacks
    def launch(self, count: int = 1) -> Any:
        ids = []
        for _ in range(count):
            answer = yield self.ask("run_instances", **LAUNCH)
            ids.append(answer["Instances"][0]["InstanceId"])
        return ids

    @defer.inlineCallbacks
    def test_a_life(self) -> Any:
        """Launched, it is pending, then it runs; ended, it is shutting down, then gone; each told once."""
        (one,) = yield self.launch()
        states = []
        for seconds in (0, 1.9, 0.1):
            self.clock.advance(seconds)
            (found,) = yield self.listed(InstanceIds=[one])
            states.append(found["State"]["Name"])
        ended = yield self.ask("terminate_instances", InstanceIds=[one])
        (change,) = ended["TerminatingInstances"]
        states += [change["PreviousState"]["Name"], change["CurrentState"]["Name"]]
        self.clock.advance(3)
        (found,) = yield self.listed(InstanceIds=[one])
        self.assertEqual(
            [*states, found["State"]["Name"]],
            ["pending", "pending", "running", "running", "shutting-down", "terminated"],
        )
        self.assertEqual(found["StateReason"]["Code"], "Client.UserInitiatedShutdown")
        self.assertEqual((found["ImageId"], found["InstanceType"]), ("ami-7", "m7i.large"))
        self.assertEqual(found["Tags"], TAGS["Tags"])
        self.assertEqual(self.changes, [(one, "running"), (one, "terminated")])

    @defer.inlineCallbacks
    def test_ended_while_pending(self) -> Any:
        (one,) = yield self.launch()
        yield self.ask("terminate_instances", InstanceIds=[one])
        self.clock.advance(10)
        self.assertEqual(self.changes, [(one, "terminated")])

    @defer.inlineCallbacks
    def test_filters_and_pages(self) -> Any:
        ids = yield self.launch(7)
        self.clock.advance(2)
        yield self.ask("terminate_instances", InstanceIds=ids[:1])
        running = [
            {"Name": "instance-state-name", "Values": ["running"]},
            {"Name": "tag:buildbot:master", "Values": ["m"]},
        ]
        first = yield self.ask("describe_instances", Filters=running, MaxResults=5)
        found = yield self.listed(Filters=running, MaxResults=5, NextToken=first["NextToken"])
        self.assertEqual((len(first["Reservations"]), [one["InstanceId"] for one in found]), (5, ids[6:]))
        by_id = [{"Name": "instance-id", "Values": [ids[3], "i-unknown"]}]
        self.assertEqual([one["InstanceId"] for one in (yield self.listed(Filters=by_id))], [ids[3]])
        other = [{"Name": "tag:buildbot:master", "Values": ["another"]}]
        self.assertEqual((yield self.listed(Filters=other)), [])
        self.assertEqual((yield self.listed(Filters=[*running, *by_id]))[0]["InstanceId"], ids[3])

    @defer.inlineCallbacks
    def test_refusals(self) -> Any:
        unknown = {"InstanceIds": ["i-0123456789abcdef0"]}
        for action in ("describe_instances", "terminate_instances"):
            self.assertEqual((yield self.refused(action, **unknown)), ("InvalidInstanceID.NotFound", 400))
        self.assertEqual((yield self.refused("describe_regions")), ("InvalidAction", 400))
        yield self.launch()
        wrong = {"Filters": [{"Name": "no-such-filter", "Values": ["x"]}]}
        self.assertEqual((yield self.refused("describe_instances", **wrong)), ("InvalidParameterValue", 400))

    @defer.inlineCallbacks
    def test_client_token(self) -> Any:
        """A repeated call launches nothing more."""
        one = yield self.ask("run_instances", **LAUNCH, ClientToken="t")
        again = yield self.ask("run_instances", **LAUNCH, ClientToken="t")
        self.assertEqual(one["Instances"][0]["InstanceId"], again["Instances"][0]["InstanceId"])
        self.assertEqual(len(self.ec2.machines), 1)

    @defer.inlineCallbacks
    def test_throttle(self) -> Any:
        """As AWS documents it: 5 launches at once, then 2 in a second."""
        self.ec2.behaviour = ec2.Behaviour(latency=0.0, throttle=True)
        yield self.launch(5)
        self.assertEqual((yield self.refused("run_instances", **LAUNCH)), ("RequestLimitExceeded", 503))
        self.clock.advance(1)
        yield self.launch(2)
        yield self.refused("run_instances", **LAUNCH)
        report = self.ec2.report()
        self.assertEqual(report["calls"], {"RunInstances": 9})
        self.assertEqual(report["refused"], {"RunInstances RequestLimitExceeded": 2})
        self.assertEqual(report["moments"]["last launch"], 1)
        self.assertEqual(self.ec2.report()["calls"], {})

    @defer.inlineCallbacks
    def test_what_theirs_asks(self) -> Any:
        """Key pair, security group, console and tags, which EC2LatentWorker asks for."""
        pairs = yield self.ask("describe_key_pairs", KeyNames=["key"])
        groups = yield self.ask("describe_security_groups", GroupNames=["buildbot"])
        self.assertEqual(
            (pairs["KeyPairs"][0]["KeyName"], groups["SecurityGroups"][0]["GroupName"]), ("key", "buildbot")
        )
        (one,) = yield self.launch()
        console = yield self.ask("get_console_output", InstanceId=one)
        self.assertEqual(console["InstanceId"], one)
        yield self.ask("create_tags", Resources=[one], Tags=[{"Key": "more", "Value": "yes"}])
        (found,) = yield self.listed(InstanceIds=[one])
        self.assertIn({"Key": "more", "Value": "yes"}, found["Tags"])


class Credentials(SynchronousTestCase):
    """The light workers read their user-data."""

    def test_of_ours(self) -> None:
        text = UserData("127.0.0.1:9", "it's w", "pass word $(x)", {"A": "b"}, InlineScript("#!/bin/sh\n:\n")).render()
        self.assertEqual(workers.credentials(text.decode()), ("it's w", "pass word $(x)"))

    def test_of_theirs(self) -> None:
        text = "#!/bin/sh\nexport BB_NAME=w1\nexport BB_PASSWORD=p1\n"
        self.assertEqual(workers.credentials(text), ("w1", "p1"))

    def test_none(self) -> None:
        for text in ("", "export BB_NAME=w", "export BB_PASSWORD=p"):
            with self.assertRaises(ValueError):
                workers.credentials(text)


class LightWorkers(FarmTestCase):
    """A light worker takes the builds of a real master."""

    @defer.inlineCallbacks
    def test_build(self) -> Any:
        from buildbot.plugins import util, worker

        from tests.support import configuration

        plain = configuration([worker.Worker("w", "right")])
        plain["builders"] = [util.BuilderConfig(name="b", workernames=["w"], factory=util.BuildFactory())]
        yield self.start_master(plain)
        port = next(iter(self.master.master.pbmanager.dispatchers.values())).port.getHost().port
        machines = workers.Machines(reactor, port)
        wrong, right = (
            json.dumps(
                {"id": f"i-{word}", "state": "running", "user_data": f"export BB_NAME=w\nexport BB_PASSWORD={word}\n"}
            ).encode()
            for word in ("wrong", "right")
        )
        self.patch(workers, "RETRY", 0.01)
        self.addCleanup(lambda: [one.end() for one in machines.workers.values()])
        machines.lineReceived(wrong)
        while machines.workers["i-wrong"].attempts < 3:
            yield task.deferLater(reactor, 0.02)
        machines.lineReceived(json.dumps({"id": "i-wrong", "state": "terminated"}).encode())
        attached = self.master.master.workers.workers["w"]
        self.assertIsNone(attached.conn)
        machines.lineReceived(right)
        build = yield self.master.force_build("b")
        self.assertEqual(build.outcome, "success")
        machines.lineReceived(json.dumps({"id": "i-right", "state": "terminated"}).encode())
        while attached.conn is not None:
            yield task.deferLater(reactor, 0.02)
        # Only now: the last refused login may have come after its machine had ended.
        self.assertGreaterEqual(len(self.flushLoggedErrors(UnauthorizedLogin)), 2)


class Hours(SynchronousTestCase):
    """Simulated hours of watching."""

    def test_calls(self) -> None:
        """Above what a filter takes, each look is one call; the other is that for leftovers."""
        found = hours.simulate(instances=201, hours=0.1, template=TEMPLATE)
        self.assertEqual(found["calls for each hour"], {"DescribeInstances": 120})
        self.assertGreater(found["CPU seconds for each hour"], 0)


class Figures(SynchronousTestCase):
    def run_of(self, seconds: float | None, **more: Any) -> dict[str, Any]:
        return {"configure": {"seconds": seconds, "cpu": 1.0}, **more}

    def test_table(self) -> None:
        """Medians, spread, and how many times less; what one side lacks is left open."""
        ours, theirs = ([self.run_of(base * factor) for factor in (1, 3, 2)] for base in (0.5, 50))
        lines = figures.table(ours, theirs)
        self.assertIn("| configuration: time blocked | 1.00 (0.50..1.50) s | 100 (50.0..150) s | 100.0 |", lines)
        self.assertFalse([line for line in lines if "stall" in line])
        self.assertIn("| configuration: time blocked | - | 100 (50.0..150) s |  |", figures.table([], theirs))

    def test_overview(self) -> None:
        """Medians of all runs; nothing of what none of them has."""
        columns = {"10 ours": [self.run_of(base) for base in (1.0, 3.0, 2.0)], "10 other": [self.run_of(None)]}
        self.assertEqual(
            figures.overview(columns),
            [
                "| medians | 10 ours | 10 other |",
                "| --- | --- | --- |",
                "| configuration: time blocked | 2.00 s | - |",
                "| configuration: CPU | 1.00 s | 1.00 s |",
            ],
        )

    def test_never_came_to_it(self) -> None:
        """A run in which something never happened has no figure, and no median hides that."""
        (blocked, *_) = figures.FIGURES
        self.assertIsNone(blocked.of([self.run_of(1.0), self.run_of(None)]))
        self.assertEqual(blocked.of([self.run_of(1.0), self.run_of(2.0)]), [1.0, 2.0])


class UserDataOfBoth(SynchronousTestCase):
    def test_base64(self) -> None:
        """What an instance that runs is told is its user-data, in clear."""
        told: list[Any] = []
        boots = ec2_process.Boots()
        listener = boots.buildProtocol(None)
        listener.sendLine = told.append
        listener.connectionMade()
        machine = machines.Machine("i-1", {"UserData": base64.b64encode(b"#!/bin/sh\n").decode()}, {}, "running")
        boots.tell(machine)
        machine.state = "terminated"
        boots.tell(machine)
        listener.connectionLost(None)
        boots.tell(machine)
        self.assertEqual(
            list(map(json.loads, told)),
            [{"id": "i-1", "state": "running", "user_data": "#!/bin/sh\n"}, {"id": "i-1", "state": "terminated"}],
        )
