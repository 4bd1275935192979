"""Two masters on one PostgreSQL, with Crossbar: builds on both; one is killed, and what it has left is taken over.

What docs/growth.md says is what is run here. Only with ``EC2UD_GROWTH=1``: it takes minutes, and installs Crossbar.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet import defer, threads
from twisted.trial.unittest import SkipTest

from tests.integration.several_masters import Crossbar, Master, PostgreSQL, example, free_port, postgresql
from tests.support import FarmTestCase

#: Seconds between two heart-beats of a master; without these for ten times as long, Buildbot calls it inactive. As with the
#: sixty and six hundred that they are without a test.
BEAT = 2.0
CONFIGURATION = """
from buildbot.data import masters
from buildbot.plugins import schedulers, steps, util
from buildbot.util.service import BuildbotService
from buildbot_ec2ud.fleet import leftovers
from buildbot_ec2ud.worker import EC2UserDataLatentWorker

masters.EXPIRE_MINUTES = 10 * {beat} / 60
leftovers.INTERVAL = {beat}
leftovers.LAST_LAUNCH = 5 * {beat}


class Heart(BuildbotService):
    name = "heart"

    def reconfigService(self):
        self.master.masterHeartbeatService.step = {beat}


def builder(name):
    command = ["sh", "-c", "until [ -e {gates}/%s ]; do sleep 0.1; done" % name]
    factory = util.BuildFactory([steps.ShellCommand(name="wait", command=command)])
    return util.BuilderConfig(name=name, workernames=["w"], factory=factory)


c = BuildmasterConfig = {{
    "workers": [EC2UserDataLatentWorker("w", build_wait_timeout=0, **{arguments!r})],
    "builders": [builder("of-{letter}")],
    "schedulers": [schedulers.ForceScheduler(name="force", builderNames=["of-a", "of-b"])] if {forcing} else [],
    "services": [Heart()],
    "protocols": {{"pb": {{"port": "tcp:{pb}:interface=127.0.0.1"}}}},
    "www": {{"port": "tcp:{www}:interface=127.0.0.1"}},
    "buildbotNetUsageData": None,
}}
"""


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    for old, new in pairs:
        assert text.count(old) == 1, (old, text)
        text = text.replace(old, new)
    return text


class Growth(FarmTestCase):
    timeout = 900

    @defer.inlineCallbacks
    def setUp(self) -> Any:
        if not os.environ.get("EC2UD_GROWTH"):
            raise SkipTest("takes minutes: only with EC2UD_GROWTH=1")
        if postgresql("initdb") is None:
            raise SkipTest("there is no PostgreSQL")
        self.directory = Path(self.mktemp()).absolute()
        self.gates = self.directory / "gates"
        self.gates.mkdir(parents=True)
        self.start_ec2()
        self.database = PostgreSQL()
        self.addCleanup(threads.deferToThread, self.database.stop)
        yield threads.deferToThread(self.database.start)
        self.router = Crossbar(self.directory)
        yield self.router.start(self)
        self.a = yield self.create("a")
        self.b = yield self.create("b", forcing=True)

    @defer.inlineCallbacks
    def create(self, letter: str, forcing: bool = False) -> Any:
        """A master with a builder of its own, and a worker with the same name as the other's."""
        environment = {**os.environ, "PGPASSFILE": str(self.database.password_file)}
        master = Master(self, self.directory / letter, environment)
        settings = replaced(
            example("python"),
            ("postgresql+psycopg2://buildbot@127.0.0.1:5432/buildbot", self.database.url),
            ("ws://127.0.0.1:8085", self.router.url),
        )
        # The address is without a port: that of the master which starts the instance. And a worker that has lost its master
        # is not to end its instance by itself.
        arguments = self.ec2.worker_arguments()
        script = Path(arguments["bootstrap_script"]).read_text()
        arguments["bootstrap_script"] = replaced(script, ("--maxretries=5", "--maxretries=1000"))
        text = CONFIGURATION.format(
            beat=BEAT,
            gates=self.gates,
            arguments=arguments,
            letter=letter,
            forcing=forcing,
            pb=free_port(),
            www=master.www,
        )
        yield threads.deferToThread(master.create, self.database.url, text + settings)
        return master

    @defer.inlineCallbacks
    def instances_of(self, master: Master) -> Any:
        """The ids of what a master has running, as boto3 sees it."""
        filters = [
            {"Name": "tag:buildbot:master", "Values": [master.name]},
            {"Name": "instance-state-name", "Values": ["pending", "running"]},
        ]
        answer = yield self.boto3(lambda client: client.describe_instances(Filters=filters))
        return [one["InstanceId"] for group in answer["Reservations"] for one in group["Instances"]]

    @defer.inlineCallbacks
    def until_yields(self, condition: Any, seconds: float = 60, what: str = "") -> Any:
        """Wait until the Deferred of *condition()* fires with something true; what it is."""
        from twisted.internet import reactor, task

        deadline = reactor.seconds() + seconds
        while not (found := (yield condition())):
            if reactor.seconds() > deadline:
                self.fail(f"waited {seconds} s in vain for {what}")
            yield task.deferLater(reactor, 0.3)
        return found

    @defer.inlineCallbacks
    def builds(self, results: str) -> Any:
        """Builder and number of the builds that have *results*, which the database has."""
        query = (
            "SELECT b.name, builds.number FROM builds JOIN builders b ON b.id = builds.builderid "
            f"WHERE builds.results {results} ORDER BY 1, 2"
        )
        return (yield threads.deferToThread(self.database.ask, query))

    def until_built(self, *names: str) -> defer.Deferred[Any]:
        @defer.inlineCallbacks
        def built() -> Any:
            return [name for name, _ in (yield self.builds("= 0"))] == sorted(names)

        return self.until_yields(built, what=f"the success of {names}")

    @defer.inlineCallbacks
    def until_building(self, *masters: Master) -> Any:
        """Wait until each has its instance, whose worker builds; the ids."""
        ids = []
        for master in masters:
            (one,) = yield self.until_yields(lambda master=master: self.instances_of(master), what=master.name)
            ids.append(one)
        waiting = "SELECT count(*) FROM steps WHERE name = 'wait' AND started_at IS NOT NULL AND results IS NULL"

        @defer.inlineCallbacks
        def all_build() -> Any:
            return (yield threads.deferToThread(self.database.ask, waiting)) == [[str(len(masters))]]

        yield self.until_yields(all_build, what="the steps")
        return ids

    @defer.inlineCallbacks
    def active(self) -> Any:
        """The names of the masters that Buildbot calls active."""
        answer = yield self.b.get("masters")
        return {one["name"] for one in answer["masters"] if one["active"]}

    @defer.inlineCallbacks
    def test_killed(self) -> Any:
        yield defer.gatherResults([self.a.start(), self.b.start()])
        self.assertEqual((yield self.active()), {self.a.name, self.b.name})

        # A build on each, both forced on the same master: the other one hears of it by the router.
        yield self.b.force("of-a")
        yield self.b.force("of-b")
        of_a, of_b = yield self.until_building(self.a, self.b)

        # It is killed; while Buildbot calls it active, nobody touches its instance.
        yield self.a.process.signal("KILL")
        alive = self.ec2.alive()
        while self.a.name in (yield self.active()):
            self.assertIn(of_a, alive)
            alive = self.ec2.alive()
        yield self.until(lambda: of_a not in self.ec2.alive(), seconds=60, what="the end of the leftover")
        said = [line for line in self.b.log().splitlines() if "EC2 leftover: ending" in line]
        self.assertEqual(len(said), 1, said)
        self.assertIn(f"ending {of_a} of worker w, ", said[0])
        self.assertIn(f"its master {self.a.name} is dead, since ", said[0])
        self.assertEqual((yield self.instances_of(self.b)), [of_b])

        # It comes back; its build, which Buildbot has given back, runs on a new instance, which is left alone.
        yield self.a.start()
        new, still = yield self.until_building(self.a, self.b)
        self.assertEqual(still, of_b)
        looks = self.ec2.calls["DescribeInstances"]
        yield self.until(lambda: self.ec2.calls["DescribeInstances"] > looks + 15, seconds=120, what="some looks")
        self.assertEqual(sorted(self.ec2.alive()), sorted([new, of_b]))
        for name in ("of-a", "of-b"):
            (self.gates / name).touch()
        yield self.until_built("of-a", "of-b")
        self.assertEqual((yield self.builds("= 0")), [["of-a", "2"], ["of-b", "1"]])
        self.assertEqual((yield self.builds("= 5")), [["of-a", "1"]])  # RETRY
        yield self.until_gone()
        yield defer.gatherResults([self.a.process.signal("TERM"), self.b.process.signal("TERM")])
        self.assertEqual((self.ec2.calls["RunInstances"], self.ec2.alive()), (3, []))
