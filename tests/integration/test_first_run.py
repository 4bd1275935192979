"""A build on an instance that bootstrapped itself, end to end: nothing here is a stand-in but EC2's hardware."""

from __future__ import annotations

import base64
import json
import os
import socket

from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet import defer, protocol, reactor
from twisted.spread import pb
from twisted.web.client import Agent, readBody

from tests.integration.secrecy import files
from tests.support import FarmTestCase, configuration
from tests.userdata import variables

#: Collections of Buildbot's REST API; the answers name everything there is.
REST = (
    "application.spec", "builders", "builds", "buildrequests", "buildsets", "changes", "changesources",
    "forceschedulers", "masters", "patches", "projects", "schedulers", "sourcestamps", "spec", "steps", "workers",
)  # fmt: skip


def forms(secret: str) -> list[bytes]:
    """What to look for: the secret, and what it looks like anywhere inside of base64."""
    found = [secret.encode()]
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + secret.encode()).rstrip(b"=")
        found.append(encoded[4 if shift else 0 : -2])
    return found


def password_of(user_data: bytes) -> str:
    return variables(user_data)["BB_PASSWORD"]


class FirstRun(FarmTestCase):
    @defer.inlineCallbacks
    def get(self, path: str):
        response = yield Agent(reactor).request(b"GET", (self.master.www_url + path).encode())
        return (yield readBody(response))

    @defer.inlineCallbacks
    def log_in(self, name: str, password: str):
        """Log in as a worker does."""
        port = self.master.master.workers.registrations[name].getPBPort()
        factory = pb.PBClientFactory()
        connector = reactor.connectTCP("127.0.0.1", port, factory)
        try:
            return (yield factory.login(UsernamePassword(name.encode(), password.encode()), pb.Referenceable()))
        finally:
            connector.disconnect()
            factory.disconnect()

    @defer.inlineCallbacks
    def assert_refused(self, name: str, password: str):
        failed = yield self.assertFailure(self.log_in(name, password), pb.RemoteError)
        self.assertEqual(failed.remoteType, b"twisted.cred.error.UnauthorizedLogin")
        self.flushLoggedErrors(UnauthorizedLogin)

    @defer.inlineCallbacks
    def test_build(self):
        """The build succeeds, its page has what it should, and the instance is gone after it."""
        yield self.farm('echo "built by $BB_NAME"; env', bootstrap_env={"BB_EXTRA": "some 'text'"})
        build = yield self.master.force_build("b")
        self.assertEqual((build.outcome, build.worker, build.attempts), ("success", "w", ()))
        self.assertIn("built by w", build.text())
        self.assertIn("BB_EXTRA=some 'text'", build.text())
        self.assertNotIn("BB_PASSWORD", build.text())
        yield self.until_gone()
        described = yield self.boto3(lambda client: client.describe_instances())
        (instance,) = (i for reservation in described["Reservations"] for i in reservation["Instances"])
        self.assertEqual(instance["State"]["Name"], "terminated")
        wanted = {
            "instance": instance["InstanceId"],
            "ec2_instance_type": "t3.micro",
            "ec2_availability_zone": "us-east-1a",
            "ec2_market": "on-demand",
            "ec2_ami": "ami-embedded",
            "ec2_region": "us-east-1",
        }
        self.assertEqual({name: build.properties.get(name) for name in wanted}, wanted)
        tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
        self.assertEqual((tags["Name"], tags["buildbot:worker"]), ("w", "w"))
        self.assertEqual(tags["buildbot:master"], self.master.master.name)
        self.assertTrue(tags["buildbot:launch"])

    @defer.inlineCallbacks
    def test_again_and_again(self):
        """Each build gets a new instance with a new password."""
        yield self.farm()
        instances, passwords = [], []
        for _ in range(2):
            build = yield self.master.force_build("b")
            self.assertEqual(build.outcome, "success")
            instances.append(build.properties["instance"])
            passwords.append(password_of(self.ec2.user_data(instances[-1])))
            yield self.until_gone()
        self.assertEqual((len(set(instances)), len(set(passwords))), (2, 2))

    @defer.inlineCallbacks
    def test_password_is_nowhere(self):
        """Neither the master's directory, nor its log, nor its REST answers have the password in any form."""
        yield self.farm("env; sleep 0.5")
        build = yield self.master.force_build("b")
        (instance_id,) = self.ec2.states()
        needles = forms(password_of(self.ec2.user_data(instance_id)))
        self.assertGreater(min(map(len, needles)), 20)
        haystack = files(self.master.basedir)
        for collection in REST:
            haystack[collection] = yield self.get(f"api/v2/{collection}")
        for number in range(1, len(build.steps) + 1):
            answer = yield self.get(f"api/v2/steps/{number}/logs")
            for entry in json.loads(answer)["logs"]:
                haystack[f"log {entry['logid']}"] = yield self.get(f"api/v2/logs/{entry['logid']}/contents")
        haystack["properties"] = yield self.get("api/v2/builds/1/properties")
        haystack["config"] = yield self.get("config.json")
        haystack["index"] = yield self.get("")
        self.assertIn(b"EC2 launch", haystack[os.path.join(self.master.basedir, "twistd.log")])
        self.assertIn(b"BB_NAME=w", b"".join(text for name, text in haystack.items() if name.startswith("log ")))
        for name, text in haystack.items():
            for needle in needles:
                self.assertNotIn(needle, text, name)
        # The search does find what is there.
        self.assertTrue(any(needle in base64.b64encode(b"xy" + needles[0]) for needle in needles))

    @defer.inlineCallbacks
    def test_password_is_good_for_one_login(self):
        """Once the worker has attached, its password is refused: while it builds, and after that."""
        yield self.farm("sleep 1")
        building = self.master.force_build("b")
        yield self.until(lambda: self.master.master.workers.connections)
        worker = self.master.master.workers.workers["w"]
        yield self.until(lambda: worker.conn is not None)
        (instance_id,) = self.ec2.states()
        password = password_of(self.ec2.user_data(instance_id))
        yield self.assert_refused("w", password)
        build = yield building
        self.assertEqual(build.outcome, "success")
        yield self.assert_refused("w", password)

    @defer.inlineCallbacks
    def test_password_works_before_the_login(self):
        """The refusals above are not those of a worker that nobody could log in as."""
        yield self.farm(bootstrap_script="#!/bin/sh\nsleep 60\n")
        self.master.request_build("b")
        yield self.until(lambda: ("user-data started", "") in self.happened)
        (instance_id,) = self.ec2.states()
        yield self.assert_refused("w", "something else")
        done = self.log_in("w", password_of(self.ec2.user_data(instance_id)))
        failed = yield self.assertFailure(done, pb.RemoteError)
        # Let in, and asked something that only a worker can answer.
        self.assertEqual(failed.remoteType, b"twisted.spread.pb.RemoteError")
        self.assertIn("remote_print", " ".join(self.flush()))

    @defer.inlineCallbacks
    def test_port_stays_open(self):
        """Changing the password of a port's only user does not close the port."""
        yield self.farm("sleep 0.2")
        port = self.master.master.workers.registrations["w"].getPBPort()
        yield self.master.force_build("b")
        yield self.until_gone()
        self.assertEqual(self.master.master.workers.registrations["w"].getPBPort(), port)
        connected = protocol.ClientCreator(reactor, protocol.Protocol).connectTCP("127.0.0.1", port)
        (yield connected).transport.loseConnection()

    @defer.inlineCallbacks
    def test_many_at_once(self):
        """Workers start together, and one call watches all of them."""
        self.start_ec2()
        workers = [self.worker(f"w-{number}") for number in range(6)]
        yield self.start_master(configuration(workers, "sleep 4"))
        began = reactor.seconds()
        builds = yield defer.gatherResults([self.master.force_build("b") for _ in workers])
        self.assertEqual({build.outcome for build in builds}, {"success"})
        self.assertEqual(len({build.worker for build in builds}), 6)
        self.assertEqual(self.ec2.calls["RunInstances"], 6)
        # One look for all of them, a second apart at least; and the one for leftovers.
        self.assertLessEqual(self.ec2.calls["DescribeInstances"], reactor.seconds() - began + 2)
        yield self.until_gone()
        # With so many, one may not be gone yet when it tries its old password, 1.5 s after its connection has ended.
        self.flushLoggedErrors(UnauthorizedLogin)

    @defer.inlineCallbacks
    def test_waits_for_another_build(self):
        """Within build_wait_timeout, the next build runs on the same instance, and has its properties too."""
        yield self.farm(build_wait_timeout=30)
        first = yield self.master.force_build("b")
        second = yield self.master.force_build("b")
        self.assertEqual(self.ec2.calls["RunInstances"], 1)
        self.assertEqual(second.properties["instance"], first.properties["instance"])
        yield self.master.stop()
        yield self.until_gone()

    @defer.inlineCallbacks
    def test_reconnects_where_it_never_stops(self):
        """With build_wait_timeout < 0 the password lives as long as the instance: a lost connection comes back."""
        yield self.farm(build_wait_timeout=-1)
        yield self.master.force_build("b")
        worker = self.master.master.workers.workers["w"]
        lost = worker.conn
        lost.loseConnection()
        yield self.until(lambda: worker.conn is not None and worker.conn is not lost)
        build = yield self.master.force_build("b")
        self.assertEqual(build.outcome, "success")
        self.assertEqual(self.ec2.calls["RunInstances"], 1)
        (instance_id,) = self.ec2.alive()
        yield self.master.stop()
        yield self.until_gone()
        self.assertEqual(list(self.ec2.states()), [instance_id])

    @defer.inlineCallbacks
    def test_configured_password(self):
        """A password of the user's is used as it is, at each start."""
        yield self.farm(password="sekrit'")
        for _ in range(2):
            build = yield self.master.force_build("b")
            self.assertEqual(build.outcome, "success")
        self.assertEqual(password_of(self.ec2.user_data(build.properties["instance"])), "sekrit'")

    @defer.inlineCallbacks
    def test_default_address(self):
        """Without bb_master, the instance is told this machine's name and the port of the PB protocol."""
        yield self.farm(bb_master=None, bootstrap_script="#!/bin/sh\nsleep 60\n")
        self.master.request_build("b")
        yield self.until(lambda: ("user-data started", "") in self.happened)
        (instance_id,) = self.ec2.states()
        port = self.master.master.workers.registrations["w"].getPBPort()
        self.assertIn(f"export BB_MASTER={socket.getfqdn()}:{port}\n".encode(), self.ec2.user_data(instance_id))
