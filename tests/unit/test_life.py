"""The life of an instance: which event is possible when, and what it leads to; and that it is drawn as it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from automat import NoTransition
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.life import STATES, TRANSITIONS, Life, Record, new_life

#: Events that lead from the beginning to each state.
WAYS: dict[str, list[str]] = {
    "requested": [],
    "launching": ["ask"],
    "pending": ["ask", "accept"],
    "running": ["ask", "accept", "run"],
    "attached": ["ask", "accept", "run", "attach"],
    "stopping": ["ask", "accept", "run", "attach", "stop"],
    "gone": ["ask", "accept", "run", "attach", "stop", "fade", "vanish"],
}
EVENTS = ("ask", "refuse", "accept", "run", "report", "attach", "stop", "fade", "vanish")


class LifeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.told: list[str] = []

    def life_in(self, state: str) -> tuple[Life, Record]:
        record = Record(self.told.append)
        life = new_life(record)
        for event in WAYS[state]:
            getattr(life, event)(event)
        self.assertEqual((record.state, record.died), (state, False))
        return life, record

    def test_each_event_in_each_state(self) -> None:
        """What the table says happens, and nothing else can."""
        table = {(before.name, event.__name__): (after.name, dies) for before, event, after, dies in TRANSITIONS}
        self.assertEqual(len(table), len(TRANSITIONS))
        for state in STATES:
            for event in EVENTS:
                life, record = self.life_in(state)
                expected = (state, False) if event == "report" else table.get((state, event))
                if expected is None:
                    self.assertRaises(NoTransition, getattr(life, event), "x")
                else:
                    getattr(life, event)("what has happened")
                    self.assertEqual((record.state, record.died), expected, (state, event))
                    self.assertEqual(self.told[-1], "what has happened")

    def test_without_trouble(self) -> None:
        """Each event is told, in order."""
        self.life_in("gone")
        self.assertEqual(self.told, WAYS["gone"])

    def test_death(self) -> None:
        """An instance that ends before anybody wanted that has died; the end of one that has died is no other death."""
        for state in ("pending", "running", "attached"):
            for event in ("fade", "vanish"):
                life, record = self.life_in(state)
                getattr(life, event)("bye")
                self.assertTrue(record.died)
                life.stop("late")
                life.vanish("gone")
                self.assertEqual((record.state, record.died), ("gone", True))

    def test_attached_before_it_was_accepted(self) -> None:
        """A worker may come before EC2's answer does, when the first one was lost."""
        life, record = self.life_in("launching")
        for event in ("attach", "refuse", "ask", "accept", "run", "stop", "fade", "vanish"):
            getattr(life, event)(event)
        self.assertEqual((record.state, record.died), ("gone", False))

    def test_unwanted_launch(self) -> None:
        """A launch that nobody wants any more may be accepted all the same, and is followed to its end."""
        life, record = self.life_in("launching")
        for event in ("stop", "accept", "stop", "fade", "vanish"):
            getattr(life, event)(event)
        self.assertEqual((record.state, record.died), ("gone", False))

    def test_every_state_leads_to_the_end(self) -> None:
        """From wherever it is, a life can end."""
        for state in STATES:
            life, record = self.life_in(state)
            life.stop("enough")
            life.vanish("gone")
            self.assertEqual(record.state, "gone")


class DrawingTests(SynchronousTestCase):
    """docs/life.md"""

    text = (Path(__file__).parents[2] / "docs" / "life.md").read_text(encoding="utf-8")

    def test_arrows(self) -> None:
        """The drawing has the arrows of the table, and no others."""
        drawn: set[tuple[str, str, str, bool]] = set()
        for before, after, events in re.findall(r"^    (\w+) --> (\w+): (.*)$", self.text, re.M):
            for event in events.split(", "):
                drawn.add((before, event.removesuffix(" (it dies)"), after, event.endswith(" (it dies)")))
        table: set[Any] = {
            (before.name, event.__name__, after.name, dies)
            for before, event, after, dies in TRANSITIONS
            if before is not after
        }
        self.assertEqual(drawn, table)

    def test_states(self) -> None:
        """Each state is explained."""
        self.assertEqual(tuple(re.findall(r"^\| (\w+) \| (?!means)", self.text, re.M)), STATES)
