"""Platforms that come, go and get another name while the master runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twisted.internet import defer, reactor, task

from buildbot_ec2ud import template
from buildbot_ec2ud.embedded import EmbeddedMaster
from tests.support import LOOPBACK, FarmTestCase

SETTINGS = f'www_port = "{LOOPBACK}"\npb_port = "{LOOPBACK}"\nkeep_logs = 0\n'


class Reconfig(FarmTestCase):
    """A master of the packaged template."""

    def platforms(self, **commands: str) -> None:
        """Write ``platforms.toml``: by the names of the platforms, what they run."""
        defaults = {**self.ec2.worker_arguments(), "build_wait_timeout": 0}
        text = "[defaults]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in defaults.items())
        for name, command in commands.items():
            text += f"[platforms.{name}]\nbuild = [{json.dumps(command)}]\n"
        (self.basedir / "platforms.toml").write_text(text)

    @defer.inlineCallbacks
    def start_template(self, **commands: str) -> Any:
        self.start_ec2()
        self.basedir = Path(self.mktemp()).absolute()
        self.basedir.mkdir()
        (self.basedir / "settings.toml").write_text(SETTINGS)
        self.platforms(**commands)
        self.master = EmbeddedMaster(None, str(self.basedir), str(template.directory() / "master.cfg"))
        self.addCleanup(self.master.stop)
        yield self.master.start()

    def names(self) -> tuple[set[str], set[str]]:
        """Of the builders and of the workers."""
        master = self.master.master
        return set(master.botmaster.builders), set(master.workers.workers)

    @defer.inlineCallbacks
    def requests(self) -> Any:
        """The build requests: which of them are claimed, and which are complete."""
        found = yield self.master.master.data.get(("buildrequests",))
        return [(each["claimed"], each["complete"]) for each in sorted(found, key=lambda each: each["buildrequestid"])]

    @defer.inlineCallbacks
    def test_renamed(self):
        """A platform is renamed while a build of it runs: that ends, its instance too, and the new one builds."""
        marker = Path(self.mktemp()).absolute()
        yield self.start_template(one=f"touch {marker}; sleep 30", two="true")
        ending = self.master.force_build("one", first_attempt=True)
        yield self.until(marker.exists, what="a step that runs")
        self.platforms(uno="echo renamed", two="true")
        yield self.master.reconfig()
        self.assertEqual(self.names(), ({"uno", "two"}, {"uno-1", "two-1"}))
        build = yield ending
        self.assertEqual(build.outcome, "retry")
        yield self.until_gone()
        build = yield self.master.force_build("uno")
        self.assertEqual((build.outcome, build.worker), ("success", "uno-1"))
        self.assertIn("renamed", build.text())
        yield self.until_gone()
        self.assertEqual((yield self.requests()), [(False, False), (True, True)])
        # What was asked for under the former name is built when that comes back.
        self.platforms(one="true")
        yield self.master.reconfig()
        yield self.until_complete()
        self.flush_removed()

    @defer.inlineCallbacks
    def until_complete(self):
        while not all(complete for _, complete in (yield self.requests())):
            yield task.deferLater(reactor, 0.05)
        yield self.until_gone()

    @defer.inlineCallbacks
    def test_added_and_removed(self):
        """A platform comes and goes, and comes back; the others do not notice."""
        yield self.start_template(one="true")
        for commands in ({"one": "true", "two": "echo 2"}, {"one": "true"}, {"one": "true", "two": "echo 3"}):
            self.platforms(**commands)
            yield self.master.reconfig()
            self.assertEqual(self.names(), (set(commands), {f"{name}-1" for name in commands}))
        build = yield self.master.force_build("two")
        self.assertEqual(build.outcome, "success")
        self.assertIn("3\n", build.text())
        yield self.until_gone()
        self.flush_removed()

    @defer.inlineCallbacks
    def test_mistake(self):
        """A mistake changes nothing: the master goes on as it was."""
        yield self.start_template(one="true")
        before = self.names()
        path = self.basedir / "platforms.toml"
        text = path.read_text()
        path.write_text(text.replace("[platforms.one]", "[platforms.two]\ninstance_typ = 'x'\n"))
        yield self.master.reconfig()
        self.assertEqual(self.names(), before)
        path.write_text(text)
        build = yield self.master.force_build("one")
        self.assertEqual(build.outcome, "success")
        yield self.until_gone()
