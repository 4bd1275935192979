"""Leftovers on an EC2 that somebody else's client fills: ended by the fleet's means, listed and ended by the commands."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from typing import Any

import boto3
from twisted.internet import defer, error, protocol, reactor, threads
from twisted.internet.utils import getProcessOutputAndValue

from buildbot_ec2ud.commands.instances import DONE, TO_REAP, TROUBLE, Instances
from buildbot_ec2ud.ec2 import query
from buildbot_ec2ud.ec2.client import EC2Client
from buildbot_ec2ud.ec2.credentials import AWSCredentials
from buildbot_ec2ud.ec2.query import QueryFactory
from buildbot_ec2ud.ec2.transport import Transport
from buildbot_ec2ud.fleet import leftovers
from buildbot_ec2ud.fleet.leftovers import Leftovers
from buildbot_ec2ud.fleet.terminations import Terminator
from tests.integration.launching import LaunchTestCase
from tests.unit.files import directory, write
from tests.unit.master_directory import make_master
from tests.unit.secure import environment

SECRET = "s3cret-of-the-account"
NOBODY = "http://127.0.0.1:1"


class LeftoversTestCase(LaunchTestCase):
    """An EC2, and the directory of a master whose workers use it.

    :cvar shutting_down: seconds from a termination to ``terminated``.
    """

    shutting_down = 0.05

    def setUp(self) -> None:
        environment(self, HOME=directory(self))
        self.start_ec2(shutting_down=self.shutting_down)
        self.basedir = os.path.join(directory(self), "farm")
        self.owner = f"{os.uname().nodename}:{self.basedir}"

    def make_master(self, *lines: str, **workers: dict[str, Any]) -> None:
        """The directory, with the worker ``w`` unless there are others."""
        make_master(self.basedir, workers or {"w": self.place()}, *lines)

    def place(self, **arguments: Any) -> dict[str, Any]:
        """The arguments of a worker with its instances here."""
        given = {"endpoint_url": self.ec2.endpoint_url, "region": "us-east-1"}
        return {**given, "identifier": "AKID", "secret_identifier": SECRET, **arguments}

    @defer.inlineCallbacks
    def instance(
        self, worker: str = "w", master: str | None = None, region: str = "us-east-1", runs: bool = True, **more: Any
    ) -> Any:
        """Start an instance as a master would, and wait until it runs, unless it cannot be seen to; its id."""
        tags = {"buildbot:master": master or self.owner, "buildbot:worker": worker, "buildbot:launch": f"of-{worker}"}
        tags = [{"Key": key, "Value": value} for key, value in tags.items()]

        def run(client: Any) -> Any:
            return client.run_instances(
                ImageId="ami-embedded",
                InstanceType="t3.micro",
                MinCount=1,
                MaxCount=1,
                TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
                **more,
            )["Instances"][0]["InstanceId"]

        instance_id = yield threads.deferToThread(run, self.regional_client(region))
        if runs:
            yield self.until_state(instance_id, "running")
        return instance_id

    def regional_client(self, region: str) -> Any:
        keys = {"aws_access_key_id": "boto3", "aws_secret_access_key": "boto3"}
        return boto3.client("ec2", endpoint_url=self.ec2.endpoint_url, region_name=region, **keys)

    @defer.inlineCallbacks
    def command(self, name: str, *args: Any, **options: Any) -> Any:
        """Do it in this process; its status, and what it printed to where."""
        out, err = io.StringIO(), io.StringIO()
        self.patch(sys, "stdout", out)
        self.patch(sys, "stderr", err)
        status = yield getattr(Instances(reactor, self.basedir), name)(*args, **options)
        self.assertNotIn(SECRET, out.getvalue() + err.getvalue())
        return status, out.getvalue(), err.getvalue()

    def reap(self, timeout: float = 30, **options: Any) -> defer.Deferred[Any]:
        return self.command("reap", timeout, **options)

    @defer.inlineCallbacks
    def listed(self, **options: Any) -> Any:
        """What ``instances --json`` says, by id; it must have gone well."""
        status, out, err = yield self.command("show", as_json=True, **options)
        self.assertEqual((status, err), (DONE, ""))
        return {row["id"]: row for row in json.loads(out)}


class Fleet(LeftoversTestCase):
    """``fleet.leftovers`` with our own client."""

    def leftovers(self, owned: set[str]) -> Leftovers:
        transport = Transport(reactor)
        self.addCleanup(transport.close)
        queries = QueryFactory("us-east-1", reactor, transport.agent)
        client = EC2Client(AWSCredentials("AKID", SECRET, reactor=reactor), self.ec2.endpoint_url, queries)
        terminator = Terminator(client, reactor)

        def end(leftover: Any) -> None:
            owned.add(leftover.instance_id)
            terminator.terminate(leftover.instance_id).addErrback(self.failures.append)

        self.failures: list[Any] = []
        found = Leftovers(client, reactor, self.owner, lambda: owned, end)
        self.addCleanup(terminator.stop)
        self.addCleanup(found.stop)
        return found

    @defer.inlineCallbacks
    def test_start(self) -> Any:
        """At once all that is older, the stopped one too; later what nobody owns. Others' instances, and owned ones, run."""
        self.patch(leftovers, "INTERVAL", 0.1)
        old, stopped = (yield self.instance("w")), (yield self.instance("stopped"))
        yield self.call("stop_instances", InstanceIds=[stopped])
        yield self.until_state(stopped, "stopped")
        foreign = []
        for master in (f"{self.owner}2", self.owner[:-1], self.owner.upper(), "*", "another"):
            foreign.append((yield self.instance("w", master)))
        owned = yield self.instance("owned")
        launching = yield self.instance("launching")
        looking = self.leftovers({owned, "of-launching"})
        looking.start()
        yield self.until_state(old, "terminated")
        yield self.until_state(stopped, "terminated")
        new = yield self.instance("new", runs=False)
        yield self.until_state(new, "terminated")
        yield self.until_looked(3)
        self.assertEqual(sorted(self.ec2.alive()), sorted([*foreign, owned, launching]))
        self.assertEqual(self.failures, [])

    def until_looked(self, times: int) -> defer.Deferred[Any]:
        before = len(self.calls("DescribeInstances", "AKID"))
        return self.until(lambda: len(self.calls("DescribeInstances", "AKID")) >= before + times)

    @defer.inlineCallbacks
    def test_bad_day(self) -> Any:
        """While EC2 does not answer nothing happens; when it does, the leftover goes."""
        self.patch(query, "PATIENCE", 0.1)
        left = yield self.instance()
        self.ec2.faults.add("html", "DescribeInstances", 100)
        looking = self.leftovers(set())
        looking.start()
        yield self.until_looked(2)
        self.assertEqual(self.ec2.alive(), [left])
        self.ec2.faults.clear()
        yield self.until_state(left, "terminated")
        self.assertEqual(self.failures, [])

    @defer.inlineCallbacks
    def test_name_with_wildcards(self) -> Any:
        """A master whose name would match others' ends its own."""
        self.owner = "host:/f*rm?\\[x]"
        own = yield self.instance()
        other = yield self.instance(master="host:/fxrmy\\[x]")
        self.leftovers(set()).start()
        yield self.until_state(own, "terminated")
        self.assertEqual(self.ec2.alive(), [other])


class Listing(LeftoversTestCase):
    """``instances``."""

    @defer.inlineCallbacks
    def test_json(self) -> Any:
        """What boto3 says of the same instance."""
        self.make_master()
        own = yield self.instance("w")
        yield self.instance("w", "another")
        described = yield self.describe(own)
        found = yield self.listed()
        self.assertEqual(list(found), [own])
        row = found[own]
        age = row.pop("age")
        self.assertIsInstance(age, int)
        launched = row.pop("launched")
        self.assertEqual(launched[:19], described["LaunchTime"].isoformat()[:19])
        self.assertEqual(
            row,
            {
                "worker": "w",
                "id": own,
                "state": "running",
                "type": "t3.micro",
                "market": "on-demand",
                "zone": described["Placement"]["AvailabilityZone"],
                "region": "us-east-1",
                "launch": "of-w",
                "master": self.owner,
            },
        )

    @defer.inlineCallbacks
    def test_states(self) -> Any:
        """A stopped one is shown, and a spot instance as such; one that is terminated is not."""
        self.make_master()
        stopped = yield self.instance("stopped")
        gone = yield self.instance("gone")
        spot = yield self.instance("spot", InstanceMarketOptions={"MarketType": "spot"})
        yield self.call("stop_instances", InstanceIds=[stopped])
        yield self.call("terminate_instances", InstanceIds=[gone])
        yield self.until_state(stopped, "stopped")
        yield self.until_state(gone, "terminated")
        found = yield self.listed()
        self.assertEqual(
            {i: (row["state"], row["market"]) for i, row in found.items()},
            {
                stopped: ("stopped", "on-demand"),
                spot: ("running", "spot"),
            },
        )

    @defer.inlineCallbacks
    def test_all_masters(self) -> Any:
        """Others' instances only when asked for; never one without our tag."""
        self.make_master()
        own, other = (yield self.instance()), (yield self.instance("x", "another"))
        yield self.launch()
        self.assertEqual(list((yield self.listed())), [own])
        found = yield self.listed(all_masters=True)
        self.assertEqual({i: row["master"] for i, row in found.items()}, {own: self.owner, other: "another"})
        status, out, err = yield self.command("show", all_masters=True)
        self.assertEqual((status, err), (DONE, ""))
        head, *lines = out.splitlines()
        self.assertEqual(head.split()[-1], "MASTER")
        self.assertEqual({line.split()[1]: line.split()[-1] for line in lines}, {own: self.owner, other: "another"})

    @defer.inlineCallbacks
    def test_table(self) -> Any:
        self.make_master()
        own = yield self.instance("a-worker")
        status, out, err = yield self.command("show")
        self.assertEqual((status, err), (DONE, ""))
        head, line = out.splitlines()
        self.assertNotIn("MASTER", head)
        self.assertEqual(line.split()[:5], ["a-worker", own, "running", "t3.micro", "on-demand"])
        self.assertEqual(line.split()[-1], "of-a-worker")

    @defer.inlineCallbacks
    def test_nothing(self) -> Any:
        """It is said whose instances there are none of: with another name, there may be some."""
        self.make_master()
        self.assertEqual((yield self.command("show")), (DONE, f"no instances of master {self.owner}\n", ""))
        self.assertEqual((yield self.command("show", all_masters=True)), (DONE, "no instances of any master\n", ""))
        self.assertEqual((yield self.command("show", as_json=True)), (DONE, "[]\n", ""))

    @defer.inlineCallbacks
    def test_regions_and_accounts(self) -> Any:
        """Every region and account is asked once; an instance that two of them see is listed once."""
        self.make_master(
            a=self.place(),
            b=self.place(),
            c=self.place(region="eu-west-1"),
            d=self.place(identifier="AKID2"),
        )
        east, west = (yield self.instance("a")), (yield self.instance("c", region="eu-west-1"))
        self.received.clear()
        found = yield self.listed()
        self.assertEqual({i: row["region"] for i, row in found.items()}, {east: "us-east-1", west: "eu-west-1"})
        self.assertEqual(len(found), 2)
        asked = [(call.key, call.region, call.action) for call in self.received]
        self.assertEqual(
            sorted(asked),
            [
                (key, region, "DescribeInstances")
                for key, region in (("AKID", "eu-west-1"), ("AKID", "us-east-1"), ("AKID2", "us-east-1"))
            ],
        )

    @defer.inlineCallbacks
    def test_secrets(self) -> Any:
        """The configuration's secrets are what is signed with."""
        secrets = directory(self)
        write(secrets, "id", "AKID-of-the-provider", 0o600)
        write(secrets, "key", SECRET, 0o600)
        keys = {"identifier": "=util.Secret('id')", "secret_identifier": "=util.Secret('key')"}
        self.make_master(f"c['secretsProviders'] = [secrets.SecretInAFile(dirname={secrets!r})]", w=self.place(**keys))
        own = yield self.instance()
        self.assertEqual(list((yield self.listed())), [own])
        self.assertEqual(len(self.calls("DescribeInstances", "AKID-of-the-provider")), 1)

    @defer.inlineCallbacks
    def test_partly(self) -> Any:
        """What can be had is shown; what cannot is told, and the status says so."""
        self.patch(query, "PATIENCE", 0.1)
        self.make_master(
            a=self.place(endpoint_url=NOBODY), b=self.place(), c=self.place(identifier="=util.Secret('nope')")
        )
        own = yield self.instance("b")
        status, out, err = yield self.command("show", as_json=True)
        self.assertEqual(status, TROUBLE)
        self.assertEqual([row["id"] for row in json.loads(out)], [own])
        secret, unreachable = err.splitlines()
        self.assertTrue(secret.startswith("worker c: cannot get its AWS credentials: KeyError: "), err)
        self.assertTrue(unreachable.startswith(f"us-east-1 ({NOBODY}): DescribeInstances: "), err)

    @defer.inlineCallbacks
    def test_unreachable(self) -> Any:
        """That nothing could be asked is not that nothing is there."""
        self.patch(query, "PATIENCE", 0.1)
        self.make_master(w=self.place(endpoint_url=NOBODY))
        for name, args in (("show", ()), ("reap", (1,)), ("reap", (1, True))):
            status, out, err = yield self.command(name, *args)
            self.assertEqual((status, out), (TROUBLE, ""))
            self.assertIn(NOBODY, err)

    @defer.inlineCallbacks
    def test_refused(self) -> Any:
        """EC2's refusal in one line."""
        self.make_master()
        self.ec2.faults.add("wrong-date", "DescribeInstances", 10)
        status, out, err = yield self.command("show")
        self.assertEqual((status, out, err.count("\n")), (TROUBLE, "", 1))
        self.assertIn("RequestExpired", err)

    @defer.inlineCallbacks
    def test_unusable(self) -> Any:
        """What is wrong with a configuration, and that nothing was asked."""
        self.make_master(w=self.place(ami=None))
        for name, args in (("show", ()), ("reap", (1,))):
            status, out, err = yield self.command(name, *args)
            self.assertEqual((status, out), (TROUBLE, ""))
            self.assertTrue(err.startswith("Configuration Errors:\n  worker w: ami: "), err)
        self.assertEqual(self.received, [])


class Reaping(LeftoversTestCase):
    """``reap``."""

    @defer.inlineCallbacks
    def test_dry(self) -> Any:
        """Without --yes it lists, and ends nothing."""
        self.make_master()
        own, other = (yield self.instance()), (yield self.instance("x", "another"))
        status, out, err = yield self.reap()
        self.assertEqual((status, err), (TO_REAP, ""))
        self.assertIn(own, out)
        self.assertNotIn(other, out)
        self.assertIn(f"1 to end, of master {self.owner}: nothing is ended without --yes\n", out)
        self.assertEqual(self.calls("TerminateInstances"), [])
        self.assertEqual(sorted(self.ec2.alive()), sorted([own, other]))

    @defer.inlineCallbacks
    def test_really(self) -> Any:
        """It ends this master's, in all regions and states, and comes back when EC2 has confirmed; then nothing is left."""
        self.make_master(a=self.place(), b=self.place(region="eu-west-1"))
        own = [(yield self.instance("a")), (yield self.instance("a")), (yield self.instance("b", region="eu-west-1"))]
        yield self.call("stop_instances", InstanceIds=[own[1]])
        yield self.until_state(own[1], "stopped")
        others = []
        for master in (f"{self.owner}2", self.owner[:-1], "another"):
            others.append((yield self.instance("a", master)))
        others.append((yield self.launch()))
        status, out, err = yield self.reap(really=True)
        states = self.ec2.states()
        self.assertEqual((status, err), (DONE, ""), out)
        self.assertEqual({states[instance_id] for instance_id in own}, {"terminated"})
        self.assertEqual(sorted(self.ec2.alive()), sorted(others))
        self.assertEqual(sorted(out.splitlines()[4:-1]), sorted(f"{instance_id}: terminated" for instance_id in own))
        self.assertEqual(out.splitlines()[-1], "3 of 3 ended")
        self.assertEqual(len(self.calls("TerminateInstances")), 2)
        for really in (False, True):
            result = yield self.reap(really=really)
            self.assertEqual(result, (DONE, f"no instances of master {self.owner} to end\n", ""))

    @defer.inlineCallbacks
    def test_owners(self) -> Any:
        """What carries the identity that a worker's *owner* gives is this master's; in its own region only."""
        self.make_master(a=self.place(owner="farm-7"), b=self.place(region="eu-west-1"))
        own = yield self.instance("a", "farm-7")
        other = [(yield self.instance("a")), (yield self.instance("b", "farm-7", "eu-west-1"))]
        status, out, err = yield self.reap(really=True)
        self.assertEqual((status, err, out.splitlines()[-1]), (DONE, "", "1 of 1 ended"))
        self.assertEqual(sorted(self.ec2.alive()), sorted(other))
        self.assertEqual(self.ec2.states()[own], "terminated")

    @defer.inlineCallbacks
    def test_running_master(self) -> Any:
        """Beside a running master it does nothing, unless that is forced."""
        self.make_master()
        own = yield self.instance()
        write(self.basedir, "twistd.pid", str(os.getpid()))
        for really in (False, True):
            status, out, err = yield self.reap(really=really)
            self.assertEqual((status, out), (TROUBLE, ""))
            self.assertIn(f"the master in {self.basedir} runs (process {os.getpid()})", err)
        self.assertEqual([call.action for call in self.received if call.key != "boto3"], [])
        write(self.basedir, "twistd.pid", "what?")
        status, _, err = yield self.reap(really=True)
        self.assertEqual((status, err), (TROUBLE, f"{self.basedir}/twistd.pid: not the id of a process\n"))
        self.assertEqual(self.ec2.alive(), [own])
        self.assertEqual(list((yield self.listed())), [own])
        status, _, err = yield self.reap(really=True, force=True)
        self.assertEqual((status, err, self.ec2.alive()), (DONE, "", []))

    @defer.inlineCallbacks
    def test_refused(self) -> Any:
        """One that EC2 does not end is told, with the reason; the others are ended."""
        self.make_master()
        kept, own = (yield self.instance()), (yield self.instance())
        yield self.call("modify_instance_attribute", InstanceId=kept, DisableApiTermination={"Value": True})
        status, out, err = yield self.reap(really=True)
        self.assertEqual((status, out.splitlines()[-1]), (TROUBLE, "1 of 2 ended"))
        self.assertEqual(err.count("\n"), 1)
        self.assertTrue(err.startswith(f"{kept}: EC2 does not end it: OperationNotPermitted: "), err)
        self.assertEqual(self.ec2.alive(), [kept])
        self.assertEqual(self.ec2.states()[own], "terminated")

    @defer.inlineCallbacks
    def test_bad_day(self) -> Any:
        """Calls that fail, of either kind, hold nothing up for good."""
        self.patch(query, "PATIENCE", 0.1)
        self.make_master()
        own = yield self.instance()
        self.ec2.faults.add("reset", "TerminateInstances", 3)

        def happened(_: str, what: str, details: str) -> None:
            if (what, details) == ("fault", "reset of TerminateInstances"):
                self.ec2.faults.add("html", "DescribeInstances")

        self.ec2.subscribe(happened)
        status, out, err = yield self.reap(really=True)
        self.assertEqual((status, err, out.splitlines()[-1]), (DONE, "", "1 of 1 ended"))
        self.assertEqual(self.ec2.states(), {own: "terminated"})
        self.assertIn(("fault", "html of DescribeInstances"), self.happened)

    @defer.inlineCallbacks
    def test_ends_by_itself(self) -> Any:
        """One that shuts itself down meanwhile is done, although EC2 answers no call to end it."""
        self.patch(query, "PATIENCE", 0.1)
        self.make_master()
        sign = os.path.join(directory(self), "now")
        wait = f"#!/bin/sh\nuntil [ -e {sign} ]; do sleep 0.05; done\nshutdown -h now\n"
        own = yield self.instance(UserData=wait, InstanceInitiatedShutdownBehavior="terminate")
        self.ec2.faults.add("html", "TerminateInstances", 1000)
        reaping = self.reap(really=True)
        yield self.until(lambda: self.calls("TerminateInstances"))
        write(os.path.dirname(sign), "now", "")
        status, out, err = yield reaping
        self.assertEqual((status, err, out.splitlines()[-1]), (DONE, "", "1 of 1 ended"))
        self.assertEqual(self.ec2.states(), {own: "terminated"})


class Process(LeftoversTestCase):
    """The commands themselves."""

    def run_command(self, *arguments: str) -> defer.Deferred[Any]:
        """Its status, and what it printed to where."""
        return getProcessOutputAndValue(
            sys.executable, ["-m", "buildbot_ec2ud.cli", *arguments], env=os.environ, path="/"
        ).addCallback(lambda result: (result[2], result[0].decode(), result[1].decode()))

    @defer.inlineCallbacks
    def test_all(self) -> Any:
        """From the list to "nothing left", and the statuses on the way."""
        self.make_master()
        own, other = (yield self.instance()), (yield self.instance("x", "another"))
        status, out, err = yield self.run_command("instances", "--json", self.basedir)
        self.assertEqual((status, err, [row["id"] for row in json.loads(out)]), (0, "", [own]))
        status, out, err = yield self.run_command("instances", "--all-masters", self.basedir)
        self.assertEqual((status, err, len(out.splitlines())), (0, "", 3))
        status, out, err = yield self.run_command("reap", self.basedir)
        self.assertEqual((status, err), (3, ""))
        self.assertIn(own, out)
        status, out, err = yield self.run_command("reap", "--yes", "--timeout", "30", self.basedir)
        self.assertEqual((status, err, out.splitlines()[-1]), (0, "", "1 of 1 ended"))
        self.assertEqual(self.ec2.alive(), [other])
        status, out, err = yield self.run_command("reap", self.basedir)
        self.assertEqual((status, err), (0, ""))

    @defer.inlineCallbacks
    def test_paths(self) -> Any:
        """Paths in a configuration begin in the master's directory, wherever the command is given."""
        self.make_master(
            "open('platforms.toml').close()",
            w=self.place(identifier=None, secret_identifier=None, aws_id_file_path="aws_id"),
        )
        write(self.basedir, "platforms.toml", "")
        write(self.basedir, "aws_id", f"AKID-of-the-file\n{SECRET}\n")
        own = yield self.instance()
        status, out, err = yield self.run_command("instances", "--json", self.basedir)
        self.assertEqual((status, err, [row["id"] for row in json.loads(out)]), (0, "", [own]))
        self.assertEqual(len(self.calls("DescribeInstances", "AKID-of-the-file")), 1)

    @defer.inlineCallbacks
    def test_wrong(self) -> Any:
        """Trouble is one line on stderr for each thing, without a traceback."""
        for command in ("instances", "reap"):
            status, out, err = yield self.run_command(command, f"{self.basedir}/nothing")
            self.assertEqual((status, out, err), (1, "", f"{self.basedir}/nothing: no such directory\n"))
        self.make_master(w=self.place(ami=None, zzz=1))
        status, out, err = yield self.run_command("instances", self.basedir)
        self.assertEqual((status, out, len(err.splitlines())), (1, "", 3), err)


class Slowly(LeftoversTestCase):
    """EC2 accepts the end of an instance, and does not come to it."""

    shutting_down = 1000

    @defer.inlineCallbacks
    def test_time_limit(self) -> Any:
        """What EC2 has accepted but not confirmed in time is told; nothing goes on after that."""
        self.make_master()
        own = yield self.instance()
        status, out, err = yield self.reap(1.5, really=True)
        self.assertEqual((status, err), (TROUBLE, f"{own}: EC2 has not confirmed its end within 1.5 s\n"))
        self.assertEqual(out.splitlines()[-1], "0 of 1 ended")
        self.assertEqual(self.ec2.states(), {own: "shutting-down"})

    @defer.inlineCallbacks
    def test_interrupted(self) -> Any:
        """Ctrl-C while it waits is not success."""
        self.make_master()
        own = yield self.instance()
        ended: defer.Deferred[Any] = defer.Deferred()
        watching = protocol.ProcessProtocol()
        watching.processEnded = lambda reason: ended.callback(reason.value)  # type: ignore[method-assign]
        command = [sys.executable, "-m", "buildbot_ec2ud.cli", "reap", "--yes", self.basedir]
        process = reactor.spawnProcess(watching, sys.executable, command, env=os.environ)
        yield self.until_state(own, "shutting-down")
        process.signalProcess(signal.SIGINT)
        reason = yield ended
        self.assertIsInstance(reason, error.ProcessTerminated)
        self.assertEqual(reason.exitCode, 130)
