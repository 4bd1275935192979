"""A master whose directory is renamed ends what it has left by its former name; a copy of it ends nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from twisted.internet import defer

from buildbot_ec2ud.embedded import EmbeddedMaster
from buildbot_ec2ud.fleet import leftovers
from buildbot_ec2ud.fleet.offer import LAUNCH_TAG, MASTER_TAG
from tests.support import FarmTestCase, configuration


class FormerMaster(FarmTestCase):
    def setUp(self) -> None:
        self.patch(leftovers, "INTERVAL", 0.1)
        self.start_ec2()
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir()

    @defer.inlineCallbacks
    def start(self, name: str) -> Any:
        directory = self.home / name
        directory.mkdir(exist_ok=True)
        self.master = EmbeddedMaster(configuration([self.worker()]), str(directory))
        self.addCleanup(self.master.stop)
        yield self.master.start()
        yield self.looks()
        return self.master.master.name

    def looks(self) -> defer.Deferred[Any]:
        """Wait until the master has looked some times more."""
        before = self.ec2.calls["DescribeInstances"]
        return self.until(lambda: self.ec2.calls["DescribeInstances"] > before + 3, what="some looks")

    def left(self, master: str) -> defer.Deferred[str]:
        """What a master of that name would have left."""
        tags = [{"Key": MASTER_TAG, "Value": master}, {"Key": LAUNCH_TAG, "Value": "x"}]
        specification = [{"ResourceType": "instance", "Tags": tags}]

        def run(client: Any) -> str:
            answer = client.run_instances(
                ImageId="ami-embedded", MinCount=1, MaxCount=1, TagSpecifications=specification
            )
            return answer["Instances"][0]["InstanceId"]

        return self.boto3(run)

    @defer.inlineCallbacks
    def test_renamed(self) -> Any:
        former = yield self.start("farm")
        yield self.master.stop()
        left = yield self.left(former)
        other = yield self.left(f"{former}2")
        shutil.copytree(self.home / "farm", self.home / "copy")
        name = yield self.start("copy")
        self.assertNotEqual(name, former)
        yield self.master.stop()
        self.assertEqual(sorted(self.ec2.alive()), sorted([left, other]))
        (self.home / "farm").rename(self.home / "moved")
        yield self.start("moved")
        yield self.until(lambda: self.ec2.alive() == [other], what="the end of what is left by the former name")
        yield self.looks()
        self.assertEqual(self.ec2.alive(), [other])
