"""What fails in the life of an instance, and what the person who waits for the build sees of it on its page."""

from __future__ import annotations

import os
from typing import Any

from buildbot.plugins import steps, util
from buildbot.process.results import CANCELLED, EXCEPTION, RETRY
from twisted.internet import defer, reactor, task

from buildbot_ec2ud import starts
from buildbot_ec2ud.ec2 import query
from buildbot_ec2ud.embedded.builds import builds_of
from buildbot_ec2ud.fleet import region
from tests.support import FarmTestCase, configuration

SLEEP = "#!/bin/sh\nsleep 60\n"
PHASES = """#!/bin/sh
echo "ec2ud: phase=install-python t=1"
echo "the password is $BB_PASSWORD"
echo "ec2ud: phase=install-worker t=7"
sleep 60
"""


class PageTestCase(FarmTestCase):
    def page(self, build: Any) -> str:
        """The log ``ec2``, which has to be complete."""
        (log,) = (log for log in build.step("worker_preparation").logs if log.name == "ec2")
        return log.text

    @defer.inlineCallbacks
    def unfinished(self) -> Any:
        """The logs that are not complete."""
        data = self.master.master.data
        found = []
        for build in (yield data.get(("builds",))):
            for step in (yield data.get(("builds", build["buildid"], "steps"))):
                logs = yield data.get(("steps", step["stepid"], "logs"))
                found.extend(log["name"] for log in logs if not log["complete"])
        return found

    @defer.inlineCallbacks
    def until_complete(self) -> Any:
        """Wait until all logs are. A build does not wait for that."""
        while (yield self.unfinished()):
            yield task.deferLater(reactor, 0.02)


class Pages(PageTestCase):
    @defer.inlineCallbacks
    def test_success(self):
        """The page tells the whole start, with seconds; the link leads to AWS's console."""
        yield self.farm()
        build = yield self.master.force_build("b")
        lines = [line.split(" s  ", 1) for line in self.page(build).splitlines()]
        instance = build.properties["instance"]
        self.assertEqual(
            [text for _, text in lines if not text.startswith("running")],
            [
                "request t3.micro on-demand",
                f"launch {instance} t3.micro on-demand in us-east-1a",
                f"pending {instance}",
                "worker attached",
            ],
        )
        seconds = [float(number) for number, _ in lines]
        self.assertEqual(seconds, sorted(seconds))
        yield self.until_complete()
        (step, *_) = yield self.master.master.data.get(("builds", 1, "steps"))
        self.assertEqual([url["name"] for url in step["urls"]], [instance])
        self.assertIn("us-east-1.console.aws.amazon.com", step["urls"][0]["url"])

    @defer.inlineCallbacks
    def test_no_capacity(self):
        """Each offer that was refused is on the page, with the reason; and what was tried instead."""
        yield self.farm(subnet_id=["subnet-00000000", "subnet-11111111"])
        build = yield self.master.force_build("b", first_attempt=True)
        self.assertEqual(build.results, EXCEPTION)
        page = self.page(build)
        self.assertIn("request t3.micro on-demand in subnet-00000000\n", page)
        self.assertIn("refused t3.micro on-demand in subnet-00000000: InvalidSubnetID.NotFound", page)
        self.assertIn("no instance: InvalidSubnetID.NotFound", page)
        self.assertNotIn("subnet-11111111", page)
        self.flush()

    @defer.inlineCallbacks
    def test_boot_failure(self):
        """An instance that ends while it boots: EC2's reason, the last phase, the console; no secret."""
        yield self.farm(bootstrap_script=PHASES.replace("sleep 60", "exit 3"))
        build = yield self.master.force_build("b", first_attempt=True)
        self.assertEqual(build.results, RETRY)
        page = self.page(build)
        for text in (
            "Client.InstanceInitiatedShutdown",
            "the last phase of its bootstrap was install-worker, begun after 7 s",
            "lines of its console",
            "the password is (hidden)",
            "the bootstrap script failed with status 3",
        ):
            self.assertIn(text, page)
        self.assertIn("the last phase of its bootstrap was install-worker", build.text())
        self.assertEqual((yield self.unfinished()), [])
        self.flush()

    @defer.inlineCallbacks
    def test_configured_password(self):
        """A password of one's own that a script prints is not on the page either."""
        yield self.farm(bootstrap_script=PHASES.replace("sleep 60", "exit 3"), password="one-of-my-own")
        build = yield self.master.force_build("b", first_attempt=True)
        self.assertIn("the password is (hidden)", self.page(build))
        self.assertNotIn("one-of-my-own", self.page(build) + build.text())
        self.flush()

    @defer.inlineCallbacks
    def test_never_attaches(self):
        """A worker that does not come in time: how long was waited for it, and what its instance did meanwhile."""
        yield self.farm(bootstrap_script=PHASES, missing_timeout=1000)
        building = self.master.force_build("b", first_attempt=True)
        yield self.until(lambda: any(b"phase=install-worker" in self.ec2.console(one) for one in self.ec2.states()))
        worker = self.master.master.workers.workers["w"]
        worker.pause("no second attempt")
        worker.missing_timer.reset(0)
        build = yield building
        self.assertEqual(build.results, RETRY)
        page = self.page(build)
        self.assertIn("has not connected within 1000 s; the last phase of its bootstrap was install-worker", page)
        self.assertIn("the password is (hidden)", page)
        self.assertIn("has not connected within 1000 s", build.text())
        self.flush()
        yield self.until_gone()

    @defer.inlineCallbacks
    def test_console_that_does_not_come(self):
        """The build does not wait for ever for a console."""
        self.patch(starts, "CONSOLE_TIMEOUT", 0.2)
        yield self.farm(bootstrap_script="#!/bin/sh\nexit 3\n")
        (fleet,) = region.fleets(self.master.master.namedServices)
        fleet.client.get_console_output = lambda *_: defer.Deferred()
        build = yield self.master.force_build("b", first_attempt=True)
        self.assertEqual(build.results, RETRY)
        self.assertIn("Client.InstanceInitiatedShutdown", self.page(build))
        self.assertNotIn("console", self.page(build))
        self.flush()

    @defer.inlineCallbacks
    def test_cancelled(self):
        """The page of a build that was cancelled is complete, too."""
        yield self.farm(bootstrap_script=SLEEP)
        building = self.master.force_build("b")
        yield self.until(lambda: ("user-data started", "") in self.happened)
        self.master.master.data.control("stop", {}, ("builds", 1))
        build = yield building
        self.assertEqual(build.results, CANCELLED)
        yield self.until_gone()
        yield self.until_complete()
        (build,) = yield builds_of(self.master.master, 1)
        self.assertIn("launch i-", self.page(build))


class Races(PageTestCase):
    @defer.inlineCallbacks
    def test_attaches_before_the_launch_is_answered(self):
        """The first answer of EC2 was lost, and the worker comes before the call is repeated: the build runs."""
        self.patch(query.QueryFactory, "jitter", lambda factory, longest: 2.0)
        yield self.farm()
        self.ec2.faults.add("server-fault", "RunInstances")
        build = yield self.master.force_build("b")
        self.assertEqual((build.outcome, len(self.ec2.states())), ("success", 1))
        page = self.page(build)
        self.assertIn("worker attached", page)
        yield self.until_gone()


class Limits(PageTestCase):
    @defer.inlineCallbacks
    def test_paused(self):
        """After too many failed starts in a row the worker is paused, and says why; unpaused, it tries again."""
        yield self.farm(bootstrap_script="#!/bin/sh\nexit 3\n", max_launch_failures=2)
        worker = self.master.master.workers.workers["w"]
        self.master.request_build("b")
        for attempt in (1, 2):
            yield self.until(lambda attempt=attempt: worker._failures == attempt or worker._paused)
            worker.resetQuarantine()
            worker.stopQuarantineTimer()
            worker.botmaster.maybeStartBuildsForWorker("w")
        yield self.until(lambda: worker._paused, what="a pause")
        yield self.until_gone()
        (data,) = yield self.master.master.data.get(("workers",))
        while not data["paused"]:  # it may not have been written yet
            yield task.deferLater(reactor, 0.02)
            (data,) = yield self.master.master.data.get(("workers",))
        self.assertIn("2 starts in a row have failed, the last one: instance i-", data["pause_reason"])
        self.assertIn("Client.InstanceInitiatedShutdown", data["pause_reason"])
        launches = self.ec2.calls["RunInstances"]
        worker.stopQuarantineTimer()
        worker.unpause()
        yield self.until(lambda: self.ec2.calls["RunInstances"] > launches, what="another try")
        self.flush()

    @defer.inlineCallbacks
    def test_success_forgives(self):
        """A start that succeeds ends the row."""
        yield self.farm(max_launch_failures=2)
        worker = self.master.master.workers.workers["w"]
        worker._failures = 1
        build = yield self.master.force_build("b")
        self.assertEqual((build.outcome, worker._failures), ("success", 0))


class Reconfigs(PageTestCase):
    def empty(self) -> dict[str, Any]:
        """A configuration without the worker, but with another one, so that the builder can stay."""
        return configuration([self.worker("other")])

    @defer.inlineCallbacks
    def test_removed_while_it_boots(self):
        """A worker that is removed while a build prepares on it: the build goes on elsewhere, and the master can stop."""
        yield self.farm(bootstrap_script=SLEEP)
        building = self.master.force_build("b")
        yield self.until(lambda: ("user-data started", "") in self.happened)
        yield self.master.reconfig(self.empty())
        build = yield building
        self.assertEqual((build.outcome, build.properties["workername"]), ("success", "other"))
        yield self.until_gone()
        yield self.master.stop()
        self.flush()

    @defer.inlineCallbacks
    def test_removed_while_it_builds(self):
        """The same with a build that runs."""
        runs = os.path.abspath(self.mktemp())
        yield self.farm(f"touch {runs}; sleep 60")
        building = self.master.force_build("b")
        yield self.until(lambda: os.path.exists(runs), what="a step that runs")
        yield self.master.reconfig({**self.empty(), **self.quick()})
        build = yield building
        self.assertEqual((build.outcome, build.properties["workername"]), ("success", "other"))
        yield self.until_gone()
        yield self.master.stop()
        self.flush()

    def quick(self) -> dict[str, Any]:
        factory = util.BuildFactory([steps.ShellCommand(name="command", command=["true"])])
        return {"builders": [util.BuilderConfig(name="b", workernames=["other"], factory=factory)]}

    @defer.inlineCallbacks
    def test_builder_comes_back(self):
        """A builder that is removed and added again by reconfigs has its worker again (Buildbot's issue 9135)."""
        self.start_ec2()
        worker = self.worker()
        both = configuration([worker])
        factory = both["builders"][0].factory
        more = util.BuilderConfig(name="more", workernames=["w"], factory=factory)
        both["builders"] = [*both["builders"], more]
        both["multiMaster"] = True
        yield self.start_master(both)
        build = yield self.master.force_build("more")
        self.assertEqual(build.outcome, "success")
        yield self.master.reconfig({"builders": both["builders"][:1]})
        yield self.master.reconfig({"builders": both["builders"]})
        build = yield self.master.force_build("more")
        self.assertEqual(build.outcome, "success")
        self.flush_removed()


class Shutdowns(PageTestCase):
    @defer.inlineCallbacks
    def test_asked_by_the_instance(self):
        """An idle worker that was told to shut down, as by a spot interruption, takes the next build on a new instance."""
        yield self.farm(build_wait_timeout=1000)
        first = yield self.master.force_build("b")
        worker = self.master.master.workers.workers["w"]
        worker.shutdownRequested()
        yield self.until(lambda: worker.conn is None, what="the end of the connection")
        second = yield self.master.force_build("b")
        self.assertEqual((first.outcome, second.outcome), ("success", "success"))
        self.assertNotEqual(first.properties["instance"], second.properties["instance"])
        yield self.master.stop()
        yield self.until_gone()
        self.flush()
