"""One instance: what its state means."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.fleet.rental import Rental
from tests.unit.fleets import instance

#: Each state of EC2's, and whether the instance is alive, and has ended.
STATES = {
    "pending": (True, False),
    "running": (True, False),
    "stopping": (False, False),
    "stopped": (False, False),
    "shutting-down": (False, False),
    "terminated": (False, True),
}


def rental(state: str = "pending") -> Rental:
    return Rental(None, "w", instance("i-1", state))


class States(SynchronousTestCase):
    def test_states(self):
        for state, expected in STATES.items():
            one = rental(state)
            self.assertEqual(((one.alive, one.ended), one.state), (expected, state))

    def test_seen(self):
        """It tells what is news."""
        one = rental()
        latest = instance("i-1", "running")
        self.assertEqual(
            [one.seen(instance("i-1", "pending")), one.seen(latest), one.seen(latest)], [False, True, False]
        )
        self.assertIs(one.instance, latest)
        self.assertTrue(one.seen(instance("i-1", "terminated")))

    def test_gone(self):
        """What EC2 no longer knows has ended, whatever it said last."""
        one = rental("running")
        self.assertTrue(one.seen(None))
        self.assertEqual((one.alive, one.ended, one.state), (False, True, "terminated"))
        self.assertFalse(one.seen(None))

    def test_repr(self):
        self.assertEqual(repr(rental()), "<Rental i-1 of w: pending>")
