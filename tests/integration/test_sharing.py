"""Which builds share an instance, which get another one, and that the latter do not wait for ever."""

from __future__ import annotations

import os
from typing import Any

from buildbot.plugins import secrets, util
from buildbot.process.results import RETRY
from twisted.internet import defer

from buildbot_ec2ud import sharing
from tests.support import FarmTestCase, configuration

#: Longer than any test: an instance that is there for its own good would still be there.
FOR_EVER = 1000


class Sharing(FarmTestCase):
    @defer.inlineCallbacks
    def share(self, first: dict[str, Any], second: dict[str, Any], **arguments: Any) -> Any:
        """Two builds, one after the other, on a worker whose instance stays; both builds."""
        self.patch(sharing, "PATIENCE", 0.5)
        self.start_ec2()
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        with open(os.path.join(directory, "token"), "w") as file:
            file.write("s3cret")
        os.chmod(os.path.join(directory, "token"), 0o600)
        worker = self.worker(build_wait_timeout=FOR_EVER, **arguments)
        providers = [secrets.SecretInAFile(dirname=directory)]
        yield self.start_master(configuration([worker], secretsProviders=providers))
        builds = []
        for properties in (first, second):
            build = yield self.master.force_build("b", properties)
            self.assertEqual(build.outcome, "success", build.text())
            builds.append(build)
        yield self.master.stop()
        yield self.until_gone()
        return builds

    def same(self, builds: list[Any]) -> bool:
        first, second = (build.properties["instance"] for build in builds)
        return first == second

    @defer.inlineCallbacks
    def test_same_shape(self):
        """Builds for which all that shapes the instance is the same share it."""
        builds = yield self.share({"kind": "t3.micro"}, {"kind": "t3.micro"}, instance_type=util.Property("kind"))
        self.assertTrue(self.same(builds))

    @defer.inlineCallbacks
    def test_other_shape(self):
        """One for which it is not gets an instance of its own, as soon as the idle one is ended; and that is soon."""
        builds = yield self.share({"kind": "t3.micro"}, {"kind": "t3.large"}, instance_type=util.Property("kind"))
        self.assertFalse(self.same(builds))
        self.assertEqual([build.properties["ec2_instance_type"] for build in builds], ["t3.micro", "t3.large"])

    @defer.inlineCallbacks
    def test_other_packages(self):
        """What the bootstrap script makes of the instance is of its shape too."""
        environment = {"BB_PACKAGES": util.Interpolate("%(prop:packages)s")}
        builds = yield self.share({"packages": "gcc"}, {"packages": "clang"}, bootstrap_env=environment)
        self.assertFalse(self.same(builds))

    @defer.inlineCallbacks
    def test_buildnumber(self):
        """What is known only when a build starts does not keep builds apart; the instance has it all the same."""
        builds = yield self.share({}, {}, tags={"Build": util.Interpolate("%(prop:buildnumber)s")})
        self.assertTrue(self.same(builds))
        (reservation,) = (yield self.boto3(lambda client: client.describe_instances()))["Reservations"]
        (instance,) = reservation["Instances"]
        self.assertIn({"Key": "Build", "Value": "1"}, instance["Tags"])

    @defer.inlineCallbacks
    def test_buildnumber_is_missed(self):
        """A renderable that cannot do without it gets an instance for each build, and no build waits for ever."""

        @util.renderer
        def tags(properties: Any) -> dict[str, str]:
            return {"Build": str(properties["buildnumber"])}

        builds = yield self.share({}, {}, tags=tags)
        self.assertFalse(self.same(builds))

    @defer.inlineCallbacks
    def test_secret(self):
        """A secret can be rendered before a build starts, so that builds can share an instance."""
        environment = {"TOKEN": util.Secret("token"), "MORE": util.Interpolate("%(secret:token)s")}
        builds = yield self.share({}, {}, bootstrap_env=environment)
        self.assertTrue(self.same(builds))

    @defer.inlineCallbacks
    def test_another_worker(self):
        """While another worker can take the build, nobody's idle instance is ended."""
        self.patch(sharing, "PATIENCE", 0.5)
        self.start_ec2()
        kind = util.Property("kind")
        workers = [self.worker(name, build_wait_timeout=FOR_EVER, instance_type=kind) for name in ("w1", "w2")]
        yield self.start_master(configuration(workers))
        used: dict[str, str] = {}
        for kinds in ("t3.micro", "t3.large", "t3.micro", "t3.large"):
            build = yield self.master.force_build("b", {"kind": kinds})
            self.assertEqual(build.outcome, "success", build.text())
            self.assertEqual(used.setdefault(kinds, build.properties["instance"]), build.properties["instance"])
            # Not while the next build is about to begin: that one would wait, too.
            yield self.until(
                lambda: all(worker._impatience is None for worker in workers), what="nobody to be impatient"
            )
        self.assertEqual(self.ec2.calls["RunInstances"], 2)

    @defer.inlineCallbacks
    def test_cannot_be_rendered(self):
        """A configuration that cannot be rendered for a build ends that build, with the reason."""

        @util.renderer
        def broken(properties: Any) -> str:
            raise KeyError("no such thing")

        yield self.farm(instance_type=broken)
        build = yield self.master.force_build("b", first_attempt=True)
        self.assertEqual(build.state, "worker cannot substantiate")
        self.assertIn("the configuration cannot be rendered for this build: KeyError('no such thing')", build.text())
        self.flush()


class Spot(FarmTestCase):
    @defer.inlineCallbacks
    def lost(self, market: str) -> Any:
        """A build whose instance is taken away; the build that comes of its retry."""
        flag = os.path.abspath(self.mktemp())
        self.start_ec2()
        worker = self.worker(market=market, instance_type=["t3.micro", "t3.small"])
        yield self.start_master(configuration([worker], f"test -e {flag} || {{ touch {flag}; sleep 60; }}"))
        building = self.master.force_build("b")
        yield self.until(lambda: os.path.exists(flag), what="a build under way")
        ids = self.ec2.alive()
        yield self.boto3(lambda client: client.terminate_instances(InstanceIds=ids))
        build = yield building
        self.flush()
        self.assertEqual((build.outcome, [attempt.results for attempt in build.attempts]), ("success", [RETRY]))
        return build

    @defer.inlineCallbacks
    def test_retried_on_demand(self):
        """A build that has lost its spot instance is retried on one that cannot be taken away."""
        build = yield self.lost("spot-then-on-demand")
        (first,) = build.attempts
        self.assertEqual((first.properties["ec2_market"], build.properties["ec2_market"]), ("spot", "on-demand"))

    @defer.inlineCallbacks
    def test_retried_on_spot(self):
        """Where only spot instances are wanted, on another one."""
        build = yield self.lost("spot")
        self.assertEqual(build.properties["ec2_market"], "spot")

    @defer.inlineCallbacks
    def test_other_builds(self):
        """Other builds go on as they are configured."""
        yield self.lost("spot-then-on-demand")
        build = yield self.master.force_build("b")
        self.assertEqual(build.properties["ec2_market"], "spot")


class Capacity(FarmTestCase):
    @defer.inlineCallbacks
    def test_sixth_of_six(self):
        """Where only the last of six offers has capacity, a build starts on it, and the next worker goes straight to it."""
        self.start_ec2()
        types = ["t3.micro", "t3.small", "t3.medium"]
        workers = [
            self.worker(name, instance_type=types, market="spot-then-on-demand", build_wait_timeout=0)
            for name in ("w1", "w2")
        ]
        yield self.start_master(configuration(workers))
        self.ec2.faults.capacity.limit("spot", 0).limit("t3.micro", 0).limit("t3.small", 0)
        calls = []
        for _ in range(2):
            before = self.ec2.calls["RunInstances"]
            build = yield self.master.force_build("b")
            self.assertEqual(
                (build.outcome, build.properties["ec2_instance_type"], build.properties["ec2_market"]),
                ("success", "t3.medium", "on-demand"),
            )
            calls.append(self.ec2.calls["RunInstances"] - before)
        self.assertEqual(calls, [6, 1])
        (log,) = (log for log in build.step("worker_preparation").logs if log.name == "ec2")
        self.assertEqual(log.text.count("skipped "), 5)
        self.assertIn("skipped t3.micro spot: InsufficientInstanceCapacity", log.text)
