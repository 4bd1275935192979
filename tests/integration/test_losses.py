"""A worker that is lost while it builds, or while it waits for a build."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from buildbot.data.resultspec import Filter
from buildbot.process.results import RETRY, SUCCESS
from buildbot.worker.latent import States
from twisted.internet import defer

from buildbot_ec2ud import losses, workarounds
from buildbot_ec2ud.embedded.machine import Machine
from buildbot_ec2ud.fleet import region, watcher
from buildbot_ec2ud.userdata.scripts import packaged
from tests.support import FarmTestCase, configuration


class Builds(FarmTestCase):
    @defer.inlineCallbacks
    def build(self, **arguments: Any) -> Any:
        """A farm with a build under way, which would end at its second attempt only."""
        flag = os.path.abspath(self.mktemp())
        self.start_ec2()
        worker = self.worker(**arguments)
        yield self.start_master(configuration([worker], f"test -e {flag} || {{ touch {flag}; sleep 60; }}"))
        self.building = self.master.force_build("b")
        yield self.until(lambda: os.path.exists(flag), what="a build under way")
        (self.instance,) = self.ec2.alive()

    @defer.inlineCallbacks
    def lost(self) -> Any:
        """The attempt that was lost, and its log of that; the next one has succeeded."""
        build = yield self.building
        (first,) = build.attempts
        self.assertEqual((build.results, first.results), (SUCCESS, RETRY))
        (log,) = (log for log in first.step("worker_preparation").logs if log.name == "ec2 loss")
        self.assertTrue(log.complete)
        # Nothing of it belongs to the one that was not lost.
        self.assertEqual([log.name for log in build.step("worker_preparation").logs], ["ec2"])
        self.flush()
        return first, log.text

    @defer.inlineCallbacks
    def test_spot_interruption(self):
        """EC2 takes a spot instance away without notice: its reason is the build's text."""
        yield self.build(market="spot-then-on-demand")
        self.ec2.interrupt(self.instance, notice=0)
        first, text = yield self.lost()
        self.assertIn(f"the worker was lost: instance {self.instance} is ", first.state)
        self.assertIn("Server.SpotInstanceTermination", first.state)
        self.assertIn(first.state, text)
        self.assertIn("lines of its console", text)
        again = yield self.page(2)
        self.assertIn("an earlier attempt at this build has lost its spot instance", again)

    @defer.inlineCallbacks
    def test_notice(self):
        """The instance has seen the notice, and has ended its worker before EC2 ended it: its last words tell."""
        yield self.build(market="spot")
        self.ec2.interrupt(self.instance, notice=17)
        first, _ = yield self.lost()
        self.assertIn("spot-interruption at=20", first.state)

    @defer.inlineCallbacks
    def test_max_lifetime(self):
        """An instance that has ended itself says why. Its password is void by then, and not shown all the same."""
        sleep, commands, over = shutil.which("sleep"), Path(self.mktemp()).absolute(), Path(self.mktemp()).absolute()
        commands.mkdir()
        # This test says when the time is over; but for one instance only.
        wait = f"until rm {over} 2>/dev/null; do {sleep} 0.05; done"
        (commands / "sleep").write_text(f'#!/bin/sh\n[ "$1" = 4321 ] || exec {sleep} "$@"\n{wait}\n')
        (commands / "sleep").chmod(0o755)
        self.patch(os, "environ", {**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"})
        script = Path(packaged("embedded.sh")).read_text(encoding="utf-8")
        tells = script.replace("\n", '\necho "the password is $BB_PASSWORD"\n', 1)
        yield self.build(max_lifetime=4321, bootstrap_script=tells)
        over.touch()
        first, text = yield self.lost()
        self.assertIn("the password is (hidden)", text)
        self.assertIn("max_lifetime: 4321 s are over; powering off", first.state)

    @defer.inlineCallbacks
    def test_ec2_does_not_answer(self):
        """The build is told what is known."""
        yield self.build()
        self.patch(losses, "LOOK_TIMEOUT", 0.2)
        (fleet,) = region.fleets(self.master.master.namedServices)
        self.patch(fleet.client, "describe_instances", lambda *_: defer.Deferred())
        yield self.boto3(lambda client: client.terminate_instances(InstanceIds=[self.instance]))
        yield self.until(lambda: len(self.ec2.states()) > 1, what="another attempt")
        yield fleet.background.wait()
        self.flushLoggedErrors()
        (first,) = yield self.master.master.data.get(("builds",), filters=[Filter("number", "eq", [1])])
        text = f"EC2 does not say what has become of instance {self.instance}: no answer within 0.2 s"
        self.assertIn(text, first["state_string"])

    @defer.inlineCallbacks
    def test_before_it_begins(self):
        """A connection that ends between Buildbot's ping and the start of the build: the build is tried again."""
        self.patch(workarounds, "NOTICE", 0.5)
        yield self.farm()
        worker = self.master.master.workers.workers["w"]
        updates = self.master.master.data.updates
        finish = updates.finishStep

        @defer.inlineCallbacks
        def lose(*args: Any) -> Any:
            updates.finishStep = finish
            worker.conn.mind.broker.transport.abortConnection()
            yield self.until(lambda: worker.conn is None, what="the end of the connection")
            yield finish(*args)

        self.patch(updates, "finishStep", lose)
        build = yield self.master.force_build("b")
        self.assertEqual((build.results, [attempt.results for attempt in build.attempts]), (SUCCESS, [RETRY]))
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1)  # of Buildbot's, as it fails
        self.flush()
        yield self.until_gone()

    @defer.inlineCallbacks
    def test_connection_that_does_not_close(self):
        """A machine that is gone may close no connection: the build does not wait for TCP to notice."""
        self.patch(watcher, "STEADY_INTERVAL", 0.5)
        end = Machine.end
        self.patch(Machine, "end", lambda machine: defer.succeed(None))
        yield self.build()
        machine = self.ec2._instances._machines[self.instance]
        yield self.boto3(lambda client: client.terminate_instances(InstanceIds=[self.instance]))
        self.patch(Machine, "end", end)
        first, _ = yield self.lost()
        self.assertIn("Client.UserInitiatedShutdown", first.state)
        yield end(machine)

    @defer.inlineCallbacks
    def page(self, number: int) -> Any:
        data = self.master.master.data
        steps = yield data.get(("builds", number, "steps"))
        content = yield data.get(("steps", steps[0]["stepid"], "logs", "ec2", "contents"))
        return content["content"]


class Idle(FarmTestCase):
    @defer.inlineCallbacks
    def idle(self) -> Any:
        yield self.farm(build_wait_timeout=1000)
        build = yield self.master.force_build("b")
        self.worker = self.master.master.workers.workers["w"]
        return build.properties["instance"]

    @defer.inlineCallbacks
    def ended(self) -> Any:
        yield self.until(lambda: self.worker.state == States.NOT_SUBSTANTIATED, what="the worker's rest")
        self.assertIsNone(self.worker.rental)
        yield self.until_gone()
        build = yield self.master.force_build("b")
        self.assertEqual(build.outcome, "success")
        self.flush()

    @defer.inlineCallbacks
    def test_instance_ends(self):
        """A worker whose instance was ended while it waits for a build is at rest, and starts another one."""
        instance = yield self.idle()
        yield self.boto3(lambda client: client.terminate_instances(InstanceIds=[instance]))
        yield self.ended()

    @defer.inlineCallbacks
    def test_connection_ends(self):
        """An instance whose worker has lost its connection can do nothing more: it is ended, not paid for."""
        yield self.idle()
        self.worker.conn.mind.broker.transport.abortConnection()
        yield self.ended()

    @defer.inlineCallbacks
    def test_build_was_lost(self):
        """So is one whose worker was lost with a build, when that is not tried again here."""
        flag = os.path.abspath(self.mktemp())
        self.start_ec2()
        worker = self.worker("w", build_wait_timeout=1000)
        yield self.start_master(configuration([worker], f"touch {flag}; sleep 60"))
        self.worker = self.master.master.workers.workers["w"]
        self.master.request_build("b")
        yield self.until(lambda: os.path.exists(flag), what="a build under way")
        (instance,) = self.ec2.alive()
        self.worker.pause("test")
        self.worker.conn.mind.broker.transport.abortConnection()
        yield self.until(lambda: self.worker.state == States.NOT_SUBSTANTIATED, what="the worker's rest")
        yield self.until_gone()
        self.flush()
