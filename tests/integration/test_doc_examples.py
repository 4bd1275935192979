"""The examples of docs/embedded.md, as they stand there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from twisted.internet import defer
from twisted.internet.utils import getProcessOutputAndValue

from tests.support import FarmTestCase
from tests.unit.test_doc_examples import blocks, page


class Embedded(FarmTestCase):
    timeout = 300

    def example(self, containing: str) -> str:
        (found,) = (block for block in blocks(page("docs/embedded.md"), "python") if containing in block)
        return found

    @defer.inlineCallbacks
    def test_own_test(self):
        """The tests pass, under trial."""
        directory = Path(self.mktemp())
        directory.mkdir()
        directory.joinpath("test_farm.py").write_text(self.example("class MyFarm"))
        out, err, status = yield getProcessOutputAndValue(
            sys.executable, ["-m", "twisted.trial", "test_farm"], env=os.environ, path=str(directory)
        )
        self.assertEqual(status, 0, (out + err).decode())
        self.assertIn(b"PASSED (successes=2)", out)

    @defer.inlineCallbacks
    def test_template(self):
        """The master of the template builds."""
        names = {}
        exec(compile(self.example("def make_master"), "docs/embedded.md", "exec"), names)  # noqa: S102
        self.start_ec2()
        self.master = names["make_master"](self.ec2, Path(self.mktemp()).absolute())
        self.addCleanup(self.master.stop)
        yield self.master.start()
        build = yield self.master.force_build("demo")
        self.assertEqual(build.outcome, "success", build.text())
        yield self.master.stop()
        yield self.until_gone()
