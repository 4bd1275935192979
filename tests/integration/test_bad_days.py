"""What goes wrong, what the person who waits for the build sees of it, and that nothing is left running."""

from __future__ import annotations

import os
from unittest import mock

from buildbot.interfaces import LatentWorkerSubstantiatiationCancelled
from buildbot.process.results import CANCELLED, EXCEPTION, RETRY
from twisted.cred.error import UnauthorizedLogin
from twisted.internet import defer, reactor, task
from twisted.internet.protocol import Factory, Protocol

from buildbot_ec2ud.ec2 import query
from buildbot_ec2ud.ec2.errors import NoAnswer
from buildbot_ec2ud.ec2.query import Call
from buildbot_ec2ud.embedded import StartFailed
from buildbot_ec2ud.fleet import pacing, region
from tests.support import FarmTestCase, configuration


class BadDays(FarmTestCase):
    @defer.inlineCallbacks
    def refused(self, results: int, said: str, **arguments):
        """Force a build that must not get an instance; its preparation step must say why."""
        yield self.farm(**arguments)
        build = yield self.master.force_build("b", first_attempt=True)
        self.assertEqual(build.results, results)
        step = build.step("worker_preparation")
        self.assertIn(said, "".join(entry.text for entry in step.logs))
        self.flush()
        yield self.until_gone()
        return build

    @defer.inlineCallbacks
    def test_ec2_error(self):
        """A mistake of the configuration ends the build: another try would not help."""
        build = yield self.refused(
            EXCEPTION, "no EC2 instance for worker w: InvalidSubnetID.NotFound: ", subnet_id="subnet-00000000"
        )
        self.assertEqual(build.state, "worker cannot substantiate")
        self.assertEqual(self.ec2.states(), {})

    @defer.inlineCallbacks
    def test_nobody_listens(self):
        """An endpoint that refuses connections is passing trouble: the build is tried again."""
        self.patch(query, "PATIENCE", 0.5)
        yield self.refused(RETRY, "RunInstances: http://127.0.0.1:1", endpoint_url="http://127.0.0.1:1")

    @defer.inlineCallbacks
    def test_no_credentials(self):
        self.patch_environment()
        yield self.refused(RETRY, "no AWS credentials found", identifier=None, secret_identifier=None)

    def patch_environment(self):
        """Nothing in the environment, no file, no instance role."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        kept |= {"HOME": self.mktemp(), "AWS_EC2_METADATA_DISABLED": "true"}
        patch = mock.patch.dict(os.environ, kept, clear=True)
        patch.start()
        self.addCleanup(patch.stop)

    @defer.inlineCallbacks
    def test_bootstrap_fails(self):
        """A bootstrap script that fails powers the instance off, and the build is told within seconds."""
        build = yield self.refused(
            RETRY, "Client.InstanceInitiatedShutdown", bootstrap_script="#!/bin/sh\necho oh no\nexit 3\n"
        )
        console = self.ec2.console(build.properties["instance"]).decode()
        self.assertIn("oh no", console)
        self.assertIn("ec2ud: the bootstrap script failed with status 3; powering off", console)
        for latest in (False, True):
            output = yield self.fleet().client.get_console_output(build.properties["instance"], latest)
            self.assertEqual(output, console)

    @defer.inlineCallbacks
    def test_instance_is_ended_by_somebody(self):
        """An instance that dies while it boots fails the build early, with EC2's reason."""
        yield self.farm(bootstrap_script="#!/bin/sh\nsleep 60\n")
        building = self.master.force_build("b", first_attempt=True)
        yield self.until(lambda: ("user-data started", "") in self.happened)
        (instance_id,) = self.ec2.states()
        yield self.boto3(lambda client: client.terminate_instances(InstanceIds=[instance_id]))
        build = yield building
        self.assertEqual(build.results, RETRY)
        self.assertIn(f"instance {instance_id} is ", build.text())
        self.flush()

    @defer.inlineCallbacks
    def test_never_attaches(self):
        """After missing_timeout, the instance is ended and the build tried again."""
        yield self.farm(bootstrap_script="#!/bin/sh\nsleep 60\n", missing_timeout=1)
        build = yield self.master.force_build("b", first_attempt=True)
        self.assertEqual(build.results, RETRY)
        self.flush()
        yield self.until(lambda: "terminated" in self.ec2.states().values())

    @defer.inlineCallbacks
    def test_cancel_while_it_boots(self):
        yield self.farm(bootstrap_script="#!/bin/sh\nsleep 60\n")
        building = self.master.force_build("b")
        yield self.until(lambda: ("user-data started", "") in self.happened)
        self.master.master.data.control("stop", {}, ("builds", 1))
        build = yield building
        self.assertEqual(build.results, CANCELLED)
        yield self.until_gone()

    @defer.inlineCallbacks
    def test_cancel_while_ec2_is_silent(self):
        """A build that waits for EC2's answer can be cancelled at once, and the master does not wait for ever."""
        self.patch(region, "STOP_TIMEOUT", 1)
        silent = SilentServer()
        port = reactor.listenTCP(0, silent, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        yield self.farm(endpoint_url=f"http://127.0.0.1:{port.getHost().port}")
        building = self.master.force_build("b")
        yield silent.asked
        began = reactor.seconds()
        self.master.master.data.control("stop", {}, ("builds", 1))
        build = yield building
        self.assertEqual(build.results, CANCELLED)
        self.assertLess(reactor.seconds() - began, 20)  # CALL_TIMEOUT is 30
        yield self.master.stop()
        for connection in list(silent.connections):
            connection.transport.loseConnection()
        yield self.until(lambda: not silent.connections, what="the end of all connections")

    @defer.inlineCallbacks
    def test_cancelled_launch_is_ended(self):
        """When EC2 accepts a launch that nobody waits for any more, the instance is ended."""
        yield self.farm()
        run = self.hold("run_instances")
        building = self.master.force_build("b")
        yield self.until(lambda: run.calls)
        self.master.master.data.control("stop", {}, ("builds", 1))
        build = yield building
        self.assertEqual((build.results, self.ec2.states()), (CANCELLED, {}))
        run.go()
        yield self.until(lambda: "terminated" in self.ec2.states().values())
        self.assertEqual(len(self.ec2.states()), 1)

    @defer.inlineCallbacks
    def test_master_stops_while_a_launch_is_pending(self):
        yield self.farm()
        run = self.hold("run_instances")
        self.master.request_build("b")
        yield self.until(lambda: run.calls)
        stopped = self.master.stop()
        yield task.deferLater(reactor, 0.2)
        self.assertNoResult(stopped)
        run.go()
        yield stopped
        yield self.until(lambda: list(self.ec2.states().values()) == ["terminated"])

    @defer.inlineCallbacks
    def test_build_that_was_stopped_before(self):
        """A build that was stopped before it came to its worker gets no instance; Buildbot asks for one all the same."""
        yield self.farm()
        build = mock.Mock(stopped=True)
        worker = self.master.master.workers.workers["w"]
        yield self.assertFailure(worker.start_instance(build), LatentWorkerSubstantiatiationCancelled)
        self.assertEqual(self.ec2.calls["RunInstances"], 0)

    @defer.inlineCallbacks
    def test_everybody_hears_of_the_end_of_a_build(self):
        """Who waits for a build does not keep Buildbot from telling others of its end."""
        yield self.farm()
        building = self.master.force_build("b")
        heard = []
        for _ in range(3):
            yield self.master.master.mq.startConsuming(lambda *_: heard.append(1), ("builds", None, "finished"))
        yield building
        self.assertEqual(len(heard), 3)

    @defer.inlineCallbacks
    def test_lost_reply(self):
        """An instance that a launch without an answer has started is found by its tag, and ended."""
        yield self.farm()
        run = self.hold("run_instances", lose=True)
        building = self.master.force_build("b", first_attempt=True)
        yield self.until(lambda: run.calls)
        run.go()
        build = yield building
        self.assertEqual(build.results, RETRY)
        first = next(iter(self.ec2.states()))
        yield self.until(lambda: self.ec2.states()[first] == "terminated", what=f"the end of {first}")
        self.flush()

    @defer.inlineCallbacks
    def test_terminate_is_repeated(self):
        """An instance is not forgotten because EC2 refused to end it."""
        yield self.farm()
        fleet = self.fleet()
        refused, looked = [], []
        real = fleet.client.terminate_instances

        def terminate_instances(*ids):
            if len(refused) < 2 or not looked:
                refused.append(ids)
                return defer.fail(self.trouble())
            return real(*ids)

        fleet.client.terminate_instances = terminate_instances
        build = yield self.master.force_build("b")
        self.assertEqual(build.outcome, "success")
        self.assertEqual(list(fleet.rentals), [build.properties["instance"]])
        looked.append(True)
        yield self.until_gone()
        yield self.until(lambda: not fleet.rentals)
        self.assertGreaterEqual(len(refused), 2)
        # Meanwhile, the worker has tried to come back with the password that it had used.
        self.flushLoggedErrors(UnauthorizedLogin)

    def trouble(self):
        return NoAnswer("a bad day")

    def fleet(self):
        (fleet,) = region.fleets(self.master.master.namedServices)
        return fleet

    def hold(self, call: str, lose: bool = False):
        """Hold a call of the fleet's client until told to go on; then make it, and perhaps lose the answer."""
        client = self.fleet().client
        held = Held(getattr(client, call), self.trouble() if lose else None)
        setattr(client, call, held)
        return held

    @defer.inlineCallbacks
    def test_limits(self):
        """Workers with the same limits, however they are written, share what paces their calls; others do not."""
        self.start_ec2()
        ways = (
            {"RunInstances": (20, 5), "DescribeInstances": [9, 1]},
            {"DescribeInstances": (9, 1), "RunInstances": [20, 5]},
        )
        workers = [self.worker(f"w{number}", api_limits=way) for number, way in enumerate((*ways, None))]
        yield self.start_master(configuration(workers))
        first, second, third = (worker.fleet for worker in workers)
        self.assertIs(first, second)
        self.assertIsNot(first, third)
        self.assertEqual(
            (first.limits, third.limits),
            ({"RunInstances": pacing.Limit(20, 5), "DescribeInstances": pacing.Limit(9, 1)}, {}),
        )

    @defer.inlineCallbacks
    def test_reconfig_applies_to_the_next_start(self):
        """A changed argument does not disturb a running instance, and shapes the next one."""
        yield self.farm("sleep 1")
        building = self.master.force_build("b")
        yield self.until(lambda: ("user-data started", "") in self.happened)
        yield self.master.reconfig(
            configuration([self.worker(instance_type="c7i.large", tags={"Team": "blue"})], "sleep 1")
        )
        build = yield building
        self.assertEqual((build.outcome, build.properties["ec2_instance_type"]), ("success", "t3.micro"))
        build = yield self.master.force_build("b")
        self.assertEqual((build.outcome, build.properties["ec2_instance_type"]), ("success", "c7i.large"))

    @defer.inlineCallbacks
    def test_image_that_is_none(self):
        """What is rendered for a build is checked too; and the page does not name an instance of an earlier build."""
        images = ["ami-first", None]
        yield self.farm(ami=lambda worker, build: images.pop(0))
        build = yield self.master.force_build("b")
        self.assertEqual((build.outcome, build.properties["ec2_ami"]), ("success", "ami-first"))
        yield self.until_gone()
        build = yield self.master.force_build("b", first_attempt=True)
        self.assertEqual(build.results, EXCEPTION)
        self.assertIn("no EC2 instance for worker w: ami: name an image", build.text())
        self.assertNotIn("instance", build.properties)
        self.assertEqual(self.ec2.calls["RunInstances"], 1)
        self.flush()

    @defer.inlineCallbacks
    def test_reconfig_of_an_idle_instance(self):
        """After a reconfig, a build on the same instance still tells which one it is."""
        yield self.farm(build_wait_timeout=30)
        first = yield self.master.force_build("b")
        yield self.master.reconfig(configuration([self.worker(build_wait_timeout=30, tags={"Team": "blue"})]))
        second = yield self.master.force_build("b")
        self.assertEqual(second.properties["instance"], first.properties["instance"])
        yield self.master.stop()
        yield self.until_gone()

    @defer.inlineCallbacks
    def test_reconfig_keeps_the_port(self):
        """A reconfig that changes a worker does not close the port that others connect to."""
        yield self.farm()
        port = self.master.master.workers.registrations["w"].getPBPort()
        yield self.master.reconfig(configuration([self.worker(tags={"Team": "blue"})]))
        self.assertEqual(self.master.master.workers.workers["w"].tags, {"Team": "blue"})
        self.assertEqual(self.master.master.workers.registrations["w"].getPBPort(), port)
        build = yield self.master.force_build("b")
        self.assertEqual(build.outcome, "success")

    @defer.inlineCallbacks
    def test_connection_ends_during_the_login(self):
        """A connection that ends while the worker logs in leaves a worker that can start again, and a master that stops."""
        yield self.farm()
        worker = self.master.master.workers.workers["w"]
        update = self.master.master.data.updates.workerConnected
        lost = []

        @defer.inlineCallbacks
        def cut(**arguments):
            if not lost:
                lost.append(worker.conn)
                worker.conn.mind.broker.transport.abortConnection()
                yield task.deferLater(reactor, 0.1)
            yield update(**arguments)

        self.patch(self.master.master.data.updates, "workerConnected", cut)
        build = yield self.master.force_build("b")
        self.assertEqual(build.outcome, "success")
        self.assertEqual([attempt.results for attempt in build.attempts], [RETRY])
        self.flush()

    @defer.inlineCallbacks
    def test_port_in_use(self):
        """A master that cannot listen says so, and leaves nothing."""
        self.start_ec2()
        port = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        taken = f"tcp:{port.getHost().port}:interface=127.0.0.1"
        starting = self.start_master(configuration([self.worker()], www={"port": taken}))
        failed = yield self.assertFailure(starting, StartFailed)
        self.assertIn(str(port.getHost().port), str(failed))
        self.flush()


class Silent(Protocol):
    """Takes requests and never answers."""

    def connectionMade(self):
        self.factory.connections.add(self)

    def connectionLost(self, reason):
        self.factory.connections.discard(self)

    def dataReceived(self, data):
        if b"Action=RunInstances" in data and not self.factory.asked.called:
            self.factory.asked.callback(None)


class SilentServer(Factory):
    """A server of these.

    :ivar asked: fires when a launch is asked for.
    """

    protocol = Silent
    noisy = False

    def __init__(self):
        self.asked = defer.Deferred()
        self.connections = set()


class Held:
    """A call that waits to be let go; after that it is as it was."""

    def __init__(self, real, error):
        self.real, self.error = real, error
        self.calls = []
        self.held = True

    def __call__(self, *args):
        if not self.held:
            return self.real(*args)
        for call in args:
            if isinstance(call, Call):
                call.exposed = call.under_way = True  # it is held by EC2, not by us
        waiting = defer.Deferred()
        self.calls.append(waiting)
        return waiting.addCallback(lambda _: self.real(*args)).addCallback(self.answered)

    def answered(self, result):
        if self.error is not None:
            raise self.error
        return result

    def go(self):
        self.held = False
        for waiting in self.calls:
            waiting.callback(None)
