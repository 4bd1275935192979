"""The examples of README.md, as they stand there."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from buildbot.config.master import FileLoader
from twisted.internet import defer
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

README = Path(__file__).parents[2] / "README.md"


class Examples(TestCase):
    timeout = 60

    def example(self, containing: str) -> str:
        blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)
        (example,) = (block for block in blocks if containing in block)
        return example

    def test_master_cfg(self):
        """Buildbot loads the first master.cfg, and its worker is what the text says."""
        directory = Path(self.mktemp())
        directory.mkdir()
        directory.joinpath("master.cfg").write_text(self.example("BuildmasterConfig"))
        loaded = FileLoader(str(directory), "master.cfg").loadConfig()
        (worker,) = loaded.workers
        self.assertEqual((worker.name, worker.instance_type), ("linux-1", ["c7i.large", "c6i.large"]))

    @defer.inlineCallbacks
    def test_own_test(self):
        """The example of a test passes, under trial."""
        directory = Path(self.mktemp())
        directory.mkdir()
        directory.joinpath("test_farm.py").write_text(self.example("class MyFarm"))
        out, err, status = yield getProcessOutputAndValue(
            sys.executable, ["-m", "twisted.trial", "test_farm"], env=os.environ, path=str(directory)
        )
        self.assertEqual(status, 0, (out + err).decode())
        self.assertIn(b"PASSED (successes=1)", out)
