"""What is written to a build's page, and when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.internet import defer, task
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud import story


class PageTests(SynchronousTestCase):
    """A page whose build keeps what is written to it."""

    def setUp(self) -> None:
        self.clock = task.Clock()
        self.written: list[tuple[str, ...]] = []
        self.held: defer.Deferred[None] | None = None
        log = SimpleNamespace(addStdout=self.writes("log"), finish=self.writes("finish"))
        updates = SimpleNamespace(setStepStateString=lambda stepid, text: self.writes("line")(text))
        build = SimpleNamespace(
            _preparation_step=SimpleNamespace(
                stepid=1,
                addURL=self.writes("link"),
                addLog=lambda name: self.writes("new")(name).addCallback(lambda _: log),
            ),
            properties=SimpleNamespace(cleanupTextFromSecrets=lambda text: text),
            master=SimpleNamespace(data=SimpleNamespace(updates=updates)),
        )
        self.page = story.Page(self.clock, build)

    def writes(self, what: str) -> Any:
        def write(*texts: str) -> defer.Deferred[None]:
            self.written.append((what, *texts))
            return defer.succeed(None) if self.held is None else self.held

        return write

    def test_together(self) -> None:
        """What comes within the pause is written once, of the lines beside the step the last one; then what comes later."""
        self.page.tell("asked")
        self.page.say("asking")
        self.clock.advance(story.PAUSE / 2)
        self.page.tell("launched")
        self.page.say("starting")
        self.page.link("i-1", "https://aws.example/i-1")
        self.assertEqual(self.written, [])
        self.clock.advance(story.PAUSE / 2)
        together = [
            ("new", "ec2"),
            ("log", f"{0:7.1f} s  asked\n{story.PAUSE / 2:7.1f} s  launched\n"),
            ("line", "starting"),
            ("link", "i-1", "https://aws.example/i-1"),
        ]
        self.assertEqual(self.written, together)
        self.page.write("more\n")
        self.clock.advance(story.PAUSE)
        self.assertEqual(self.written, [*together, ("log", "more\n")])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_finish(self) -> None:
        """What has been told is written without a pause, before the end; nothing after it, and no timer is left."""
        self.page.write("last words\n")
        self.successResultOf(self.page.finish())
        self.page.write("too late\n")
        self.successResultOf(self.page.finish())
        self.assertEqual(self.written, [("new", "ec2"), ("log", "last words\n"), ("finish",)])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_slow_database(self) -> None:
        """One after the other; the end waits for what is being written."""
        self.held = held = defer.Deferred()
        self.page.write("one\n")
        self.clock.advance(story.PAUSE)
        self.page.write("two\n")
        finished = self.page.finish()
        self.assertNoResult(finished)
        self.assertEqual(self.written, [("new", "ec2")])
        self.held = None
        held.callback(None)
        self.successResultOf(finished)
        self.assertEqual(self.written, [("new", "ec2"), ("log", "one\n"), ("log", "two\n"), ("finish",)])

    def test_secret(self) -> None:
        """What is hidden is hidden when it is told, not only when it is written."""
        self.page.hide("p4ssw0rd")
        self.page.write("it is p4ssw0rd\n")
        self.page.say("p4ssw0rd")
        self.clock.advance(story.PAUSE)
        self.assertEqual(self.written, [("new", "ec2"), ("log", "it is (hidden)\n"), ("line", "(hidden)")])

    def test_trouble(self) -> None:
        """A page that cannot be written is logged, and what comes later is tried again."""
        self.held = defer.fail(RuntimeError("no database"))
        self.page.write("one\n")
        self.clock.advance(story.PAUSE)
        self.held = None
        self.page.write("two\n")
        self.successResultOf(self.page.finish())
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(self.written[-2:], [("log", "two\n"), ("finish",)])
