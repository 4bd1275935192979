"""The examples of docs/embedded.md, as they stand there."""

from __future__ import annotations

from pathlib import Path

from twisted.internet import defer

from tests.support import FarmTestCase, passes_under_trial
from tests.unit.test_doc_examples import blocks, page


class Embedded(FarmTestCase):
    timeout = 300

    def example(self, containing: str) -> str:
        (found,) = (block for block in blocks(page("docs/embedded.md"), "python") if containing in block)
        return found

    @defer.inlineCallbacks
    def test_own_test(self):
        """The tests pass, under trial."""
        yield passes_under_trial(self, self.example("class MyFarm"), 2)

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
