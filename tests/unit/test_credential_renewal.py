"""AWS credentials that EC2 refuses, and look-ups that hang."""

from __future__ import annotations

from typing import Any

from twisted.internet import defer

from buildbot_ec2ud.ec2.credentials import HUNG_AFTER, LAST_MOMENT, REFRESH_AHEAD, REFRESH_INTERVAL
from buildbot_ec2ud.ec2.errors import NoCredentials
from tests.unit.credential_sources import SECRET
from tests.unit.look_ups import LookUpTestCase


class RenewalTests(LookUpTestCase):
    """EC2 has refused credentials."""

    @defer.inlineCallbacks
    def test_one_lookup(self) -> Any:
        """Calls that were refused at the same time share a look-up; who comes later has at once what it found."""
        refused = yield self.have(self.fixed(1))
        waiting = [self.creds.renew(refused) for _ in range(3)]
        yield self.begun(2)
        yield self.look_ups[1].ends(self.fixed(2))
        self.assertEqual([self.successResultOf(one) for one in waiting], [self.keys(2)] * 3)
        self.assertEqual(self.successResultOf(self.creds.renew(refused)), self.keys(2))
        self.assertEqual(len(self.look_ups), 2)

    @defer.inlineCallbacks
    def test_the_same(self) -> Any:
        """When the look-up finds the same ones, that is said, to all who were refused; the next one looks again."""
        refused = yield self.have(self.fixed(1))
        for number in (1, 2):
            waiting = [self.creds.renew(refused) for _ in range(3)]
            yield self.begun(number + 1)
            yield self.look_ups[number].ends(self.fixed(1))
            for one in waiting:
                text = self.failureResultOf(one, NoCredentials).getErrorMessage()
                self.assertEqual(text, "EC2 refuses the AWS credentials AKID1, and a new look-up finds the same ones")
        self.assertEqual(len(self.look_ups), 3)

    @defer.inlineCallbacks
    def test_failure(self) -> Any:
        """When the look-up fails, both are said: that EC2 refuses them, and why there are no others."""
        refused = yield self.have(self.fixed(1))
        for number, outcome, text in ((1, OSError("disk on fire"), "disk on fire"), (2, None, "IAM role")):
            waiting = self.creds.renew(refused)
            yield self.begun(number + 1)
            yield self.look_ups[number].ends(outcome)
            failure = self.failureResultOf(waiting, NoCredentials).getErrorMessage()
            self.assertIn("EC2 refuses the AWS credentials AKID1", failure)
            self.assertIn(text, failure)
            self.assertNotIn(SECRET, failure)
            self.assertEqual(len(failure.splitlines()), 1)
        self.assertEqual(self.at_hand(), 1)

    @defer.inlineCallbacks
    def test_refused_while_refreshing(self) -> Any:
        """What was begun before the refusal may find the refused ones again: that proves nothing."""
        refused = yield self.have(self.temporary(1, REFRESH_INTERVAL + LAST_MOMENT))
        self.clock.advance(REFRESH_INTERVAL)
        self.assertEqual(self.at_hand(), 1)
        yield self.begun(2)
        waiting = self.creds.renew(refused)
        yield self.begun(3)
        yield self.look_ups[1].ends(self.temporary(1, 3600))
        self.assertNoResult(waiting)
        yield self.look_ups[2].ends(self.temporary(3, 3600))
        self.assertEqual(self.successResultOf(waiting), self.keys(3))
        self.assertEqual(len(self.look_ups), 3)

    @defer.inlineCallbacks
    def test_refreshed_meanwhile(self) -> Any:
        """What was begun before the refusal and finds others is as good; a failure after that changes nothing."""
        refused = yield self.have(self.temporary(1, REFRESH_INTERVAL + LAST_MOMENT))
        self.clock.advance(REFRESH_INTERVAL)
        self.assertEqual(self.at_hand(), 1)
        yield self.begun(2)
        waiting = self.creds.renew(refused)
        yield self.begun(3)
        yield self.look_ups[1].ends(self.temporary(2, 3600))
        self.assertEqual(self.successResultOf(waiting), self.keys(2))
        yield self.look_ups[2].ends(OSError("disk on fire"))
        self.assertEqual(self.at_hand(), 2)

    @defer.inlineCallbacks
    def test_failed_meanwhile(self) -> Any:
        """A failure of what was begun before the refusal is not the last word."""
        refused = yield self.have(self.temporary(1, REFRESH_INTERVAL + LAST_MOMENT))
        self.clock.advance(REFRESH_INTERVAL)
        self.assertEqual(self.at_hand(), 1)
        yield self.begun(2)
        waiting = self.creds.renew(refused)
        yield self.begun(3)
        yield self.look_ups[1].ends(OSError("disk on fire"))
        self.assertNoResult(waiting)
        yield self.look_ups[2].ends(self.temporary(3, 3600))
        self.assertEqual(self.successResultOf(waiting), self.keys(3))

    @defer.inlineCallbacks
    def test_cancelled(self) -> Any:
        """Who waits for a renewal no longer does not disturb the others."""
        refused = yield self.have(self.fixed(1))
        first, second = self.creds.renew(refused), self.creds.renew(refused)
        first.cancel()
        self.failureResultOf(first, defer.CancelledError)
        yield self.begun(2)
        yield self.look_ups[1].ends(self.fixed(2))
        self.assertEqual(self.successResultOf(second), self.keys(2))

    @defer.inlineCallbacks
    def test_calls_go_on(self) -> Any:
        """A renewal that hangs keeps no call waiting that was not refused."""
        refused = yield self.have(self.temporary(1, 3600))
        waiting = self.creds.renew(refused)
        yield self.begun(2)
        self.assertEqual(self.at_hand(), 1)
        yield self.look_ups[1].ends(self.fixed(2))
        self.assertEqual(self.successResultOf(waiting), self.keys(2))


class HungTests(LookUpTestCase):
    """Look-ups that hang."""

    @defer.inlineCallbacks
    def test_bounded(self) -> Any:
        """After a time another one may begin; each that hangs doubles that time, however many calls there are."""
        times = []
        for _ in range(int(HUNG_AFTER / 10) * 20):
            before = len(self.look_ups)
            waiting = self.creds.resolve()
            count = len(self.new_threads())
            yield self.begun(count)
            times.extend([self.clock.seconds()] * (count - before))
            waiting.cancel()
            self.failureResultOf(waiting, defer.CancelledError)
            self.clock.advance(10)
        self.assertEqual(times, [n * HUNG_AFTER for n in (0, 1, 3, 7, 15)])
        self.assertEqual(self.creds._waiting, [])
        self.assertEqual(sum("has not ended" in message for message in self.messages), 4)

    @defer.inlineCallbacks
    def hang(self) -> Any:
        """The first look-up hangs, a second one has begun; gives two calls, one of each time."""
        first = self.creds.resolve()
        yield self.begun(1)
        self.clock.advance(HUNG_AFTER)
        second = self.creds.resolve()
        yield self.begun(2)
        return first, second

    @defer.inlineCallbacks
    def test_the_next_one_finds(self) -> Any:
        """What the next one finds is for all who wait; what the hung one finds in the end does no harm."""
        first, second = yield self.hang()
        yield self.look_ups[1].ends(self.fixed(2))
        self.assertEqual([self.successResultOf(one) for one in (first, second)], [self.keys(2)] * 2)
        yield self.look_ups[0].ends(self.fixed(1))
        self.assertEqual(self.at_hand(), 2)

    @defer.inlineCallbacks
    def test_afterwards(self) -> Any:
        """When another one has found something, the hung one neither delays nor concerns those that come later."""
        first, second = yield self.hang()
        yield self.look_ups[1].ends(self.temporary(2, LAST_MOMENT + 1))
        self.successResultOf(first)
        self.successResultOf(second)
        self.clock.advance(2)
        waiting = self.creds.resolve()
        yield self.begun(3)
        yield self.look_ups[2].ends(self.temporary(3, 3600))
        self.assertEqual(self.successResultOf(waiting), self.keys(3))
        self.assertEqual(sum("has not ended" in message for message in self.messages), 1)

    @defer.inlineCallbacks
    def test_the_hung_one_finds(self) -> Any:
        """What is found late is better than nothing; what the next one finds replaces it."""
        first, second = yield self.hang()
        yield self.look_ups[0].ends(self.fixed(1))
        self.assertEqual([self.successResultOf(one) for one in (first, second)], [self.keys(1)] * 2)
        yield self.look_ups[1].ends(self.fixed(2))
        self.assertEqual(self.at_hand(), 2)

    @defer.inlineCallbacks
    def test_the_hung_one_fails(self) -> Any:
        """A late failure is nobody's, as long as another one is under way; nor is it after that."""
        first, second = yield self.hang()
        yield self.look_ups[0].ends(OSError("disk on fire"))
        self.assertNoResult(first)
        self.assertNoResult(second)
        yield self.look_ups[1].ends(self.fixed(2))
        self.assertEqual([self.successResultOf(one) for one in (first, second)], [self.keys(2)] * 2)
        self.assertNotIn("disk on fire", "".join(self.messages))

    @defer.inlineCallbacks
    def test_the_hung_one_fails_after_all(self) -> Any:
        """A failure that comes after an answer is not even logged."""
        first, second = yield self.hang()
        yield self.look_ups[1].ends(self.fixed(2))
        yield self.look_ups[0].ends(OSError("disk on fire"))
        self.assertEqual(self.at_hand(), 2)
        self.assertNotIn("disk on fire", "".join(self.messages))

    @defer.inlineCallbacks
    def test_the_next_one_fails(self) -> Any:
        """When the next one fails, all who wait learn of it; the hung one may still find something."""
        first, second = yield self.hang()
        yield self.look_ups[1].ends(OSError("disk on fire"))
        for one in (first, second):
            self.failureResultOf(one, NoCredentials)
        yield self.look_ups[0].ends(self.fixed(1))
        self.assertEqual(self.at_hand(), 1)

    @defer.inlineCallbacks
    def test_renewal(self) -> Any:
        """One that hangs keeps no renewal from beginning, and what it finds late, the refused ones, is not given."""
        refused = yield self.have(self.temporary(1, REFRESH_AHEAD))
        self.clock.advance(REFRESH_INTERVAL)
        self.assertEqual(self.at_hand(), 1)
        yield self.begun(2)
        waiting = [self.creds.renew(refused)]
        yield self.begun(3)
        waiting.append(self.creds.renew(refused))
        yield self.look_ups[2].ends(self.temporary(3, 3600))
        self.assertEqual([self.successResultOf(one) for one in waiting], [self.keys(3)] * 2)
        yield self.look_ups[1].ends(self.temporary(1, 3600))
        self.assertEqual(self.at_hand(), 3)
        self.assertEqual(len(self.look_ups), 3)
