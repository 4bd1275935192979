"""AWS credentials that many calls share: one look-up, and when the next one is."""

from __future__ import annotations

import logging
import threading
from typing import Any

from twisted.internet import defer

from buildbot_ec2ud.ec2.credentials import HUNG_AFTER, LAST_MOMENT, REFRESH_AHEAD, REFRESH_INTERVAL, AWSCredentials
from buildbot_ec2ud.ec2.errors import NoCredentials
from tests.unit.credential_sources import SECRET
from tests.unit.look_ups import LookUpTestCase


class SharingTests(LookUpTestCase):
    """Many calls, one look-up."""

    @defer.inlineCallbacks
    def test_one_lookup(self) -> Any:
        """Calls that wait at the same time share a look-up, which does not run in the reactor's thread."""
        waiting = [self.creds.resolve() for _ in range(3)]
        yield self.begun(1)
        for one in waiting:
            self.assertNoResult(one)
        yield self.look_ups[0].ends(self.fixed(1))
        self.assertEqual([self.successResultOf(one) for one in waiting], [self.keys(1)] * 3)
        [look_up] = self.look_ups
        self.assertIsNot(look_up.thread, threading.current_thread())

    @defer.inlineCallbacks
    def test_found_once(self) -> Any:
        """Keys that do not end serve all calls that follow at once, for ever."""
        yield self.have(self.fixed(1))
        self.clock.advance(10 * 365 * 86400)
        self.assertEqual(self.at_hand(), 1)
        self.assertEqual(self.new_threads(), set())

    @defer.inlineCallbacks
    def test_cancelled(self) -> Any:
        """Who waits no longer does not disturb the others, and is not remembered."""
        first, second, third = (self.creds.resolve() for _ in range(3))
        first.cancel()
        third.cancel()
        self.failureResultOf(first, defer.CancelledError)
        self.failureResultOf(third, defer.CancelledError)
        self.assertEqual(len(self.creds._waiting), 1)
        yield self.begun(1)
        yield self.look_ups[0].ends(self.fixed(1))
        self.assertEqual(self.successResultOf(second), self.keys(1))

    @defer.inlineCallbacks
    def test_cancelled_by_another(self) -> Any:
        """One call that has its credentials may cancel another."""
        first, second = self.creds.resolve(), self.creds.resolve()
        first.addCallback(lambda _: second.cancel())
        yield self.begun(1)
        yield self.look_ups[0].ends(self.fixed(1))
        self.successResultOf(first)
        self.failureResultOf(second, defer.CancelledError)

    @defer.inlineCallbacks
    def test_everybody_learns_of_a_failure(self) -> Any:
        """A look-up that fails fails for all who wait; the next call looks again, even one made at that moment."""
        waiting = [self.creds.resolve() for _ in range(2)]
        again: list[defer.Deferred[Any]] = []
        waiting[0].addErrback(lambda failure: again.append(self.creds.resolve()) or failure)
        yield self.begun(1)
        yield self.look_ups[0].ends(OSError("disk on fire"))
        for one in waiting:
            failure = self.failureResultOf(one, NoCredentials)
            self.assertEqual(failure.getErrorMessage(), "cannot get AWS credentials: OSError: disk on fire")
        self.assertNoResult(again[0])
        yield self.begun(2)
        yield self.look_ups[1].ends(self.fixed(1))
        self.assertEqual(self.successResultOf(again[0]), self.keys(1))

    @defer.inlineCallbacks
    def test_thread(self) -> Any:
        """A source that hangs does not keep the process from ending: its thread is a daemon, and nobody joins it."""
        self.creds.resolve()
        [thread] = self.new_threads()
        self.assertTrue(thread.daemon)
        yield self.begun(1)
        yield self.look_ups[0].ends(self.fixed(1))

    def test_no_more_threads(self) -> None:
        """When the operating system has no more threads, there are no credentials."""

        def start(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        self.patch(threading.Thread, "start", start)
        failure = self.failureResultOf(self.creds.resolve(), NoCredentials)
        self.assertIn("can't start new thread", failure.getErrorMessage())


class RefreshTests(LookUpTestCase):
    """When credentials that end are looked up again."""

    @defer.inlineCallbacks
    def test_in_the_background(self) -> Any:
        """From a while before the end, others are looked up in the background, and not before."""
        yield self.have(self.temporary(1, 3600))
        self.clock.advance(3600 - REFRESH_AHEAD)
        self.assertEqual(self.at_hand(), 1)
        self.assertEqual(self.new_threads(), set())
        self.clock.advance(1)
        self.assertEqual([self.at_hand(), self.at_hand()], [1, 1])
        yield self.begun(2)
        yield self.look_ups[1].ends(self.temporary(2, 3600))
        self.assertEqual(self.at_hand(), 2)
        self.assertEqual(len(self.look_ups), 2)

    @defer.inlineCallbacks
    def test_until_the_last_moment(self) -> Any:
        """A look-up that hangs keeps no call waiting until the last moment, and those that wait then share it."""
        yield self.have(self.temporary(1, REFRESH_AHEAD + 1))
        self.clock.advance(REFRESH_AHEAD - LAST_MOMENT - HUNG_AFTER + 2)
        self.clock.advance(HUNG_AFTER - 1)
        self.assertEqual(self.at_hand(), 1)
        yield self.begun(2)
        self.clock.advance(1)
        waiting = [self.creds.resolve(), self.creds.resolve()]
        yield self.look_ups[1].ends(self.temporary(2, 3600))
        self.assertEqual([self.successResultOf(one) for one in waiting], [self.keys(2)] * 2)
        self.assertEqual(len(self.look_ups), 2)

    @defer.inlineCallbacks
    def test_failure_at_the_last_moment(self) -> Any:
        """Calls that wait learn of a failure; it is theirs to tell, so it is not logged."""
        yield self.have(self.temporary(1, REFRESH_INTERVAL))
        self.clock.advance(REFRESH_INTERVAL)
        waiting = self.creds.resolve()
        yield self.begun(2)
        yield self.look_ups[1].ends(OSError("disk on fire"))
        self.failureResultOf(waiting, NoCredentials)
        self.assertEqual(self.messages, [])

    @defer.inlineCallbacks
    def test_given_up(self) -> Any:
        """A failure that nobody waits for any more is logged."""
        waiting = self.creds.resolve()
        waiting.cancel()
        self.failureResultOf(waiting, defer.CancelledError)
        yield self.begun(1)
        yield self.look_ups[0].ends(OSError("disk on fire"))
        [message] = self.messages
        self.assertIn("disk on fire", message)


class SecretTests(LookUpTestCase):
    """What is told of credentials."""

    @defer.inlineCallbacks
    def test_repr(self) -> Any:
        """The access key's id, or where credentials come from; never the secret."""
        given = AWSCredentials("AKIDEXAMPLE", SECRET, reactor=self.clock)
        self.assertIn("AKIDEXAMPLE", repr(given))
        self.assertNotIn(SECRET, repr(given))
        refused = yield self.have(self.fixed(1))
        waiting = self.creds.renew(refused)
        yield self.begun(2)
        yield self.look_ups[1].ends(self.fixed(2))
        self.successResultOf(waiting)
        self.assertIn("chain", repr(self.creds))
        self.assertNotIn(SECRET, repr(self.creds))
        self.assertNotIn(SECRET, repr(self.creds._last))

    def test_log_of_others(self) -> None:
        """Only botocore's tracebacks of our look-ups are kept from Python's log: others may want theirs."""
        logger = logging.getLogger("botocore.credentials")
        try:
            raise OSError("disk on fire")
        except OSError:
            logger.warning("Refreshing failed", exc_info=True)
        self.assertIn("disk on fire", "".join(self.logged))
