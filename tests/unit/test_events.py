"""Who is told of what happens to an instance."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.fleet.events import EventsMixin
from tests.unit.fleets import logged


class Events(SynchronousTestCase):
    def setUp(self) -> None:
        self.service = EventsMixin("events")
        self.all: list[Any] = []
        self.followed: list[Any] = []
        self.service.subscribe(self.all.append)
        self.service.follow("launch-1", self.followed.append)
        self.texts = logged(self)

    def test_tell(self) -> None:
        """All to everybody; to who follows a launch, what is of it."""
        for launch_id in ("launch-1", "launch-2", None):
            self.service.tell("running", "w", "i-1", "text", launch_id)
        self.assertEqual([event.launch_id for event in self.all], ["launch-1", "launch-2", None])
        (event,) = self.followed
        self.assertEqual(vars(event), vars(self.all[0]))
        self.assertEqual((event.kind, event.worker, event.instance_id, event.text), ("running", "w", "i-1", "text"))
        self.assertEqual(self.texts, ["EC2 running: worker w i-1 text"] * 3)

    def test_of_rental(self) -> None:
        self.service.tell_of(SimpleNamespace(worker="w", instance_id="i-1", launch_id="launch-1"), "pending")
        self.assertEqual([(event.kind, event.text) for event in self.followed], [("pending", "")])
        self.assertEqual(self.texts, ["EC2 pending: worker w i-1"])

    def test_until_terminated(self) -> None:
        """After that, nothing can come; the launch is forgotten."""
        for kind in ("shutting-down", "terminated", "terminated"):
            self.service.tell(kind, "w", "i-1", "", "launch-1")
        self.assertEqual([event.kind for event in self.followed], ["shutting-down", "terminated"])
        self.assertEqual(len(self.all), 3)

    def test_unfollow(self) -> None:
        self.service.unfollow("launch-1")
        self.service.unfollow("launch-1")
        self.service.tell("running", "w", "i-1", "", "launch-1")
        self.assertEqual(self.followed, [])

    def test_hand_over(self) -> None:
        """Another service tells from now on, and this one does not; of what nobody follows, nothing is handed over."""
        other = EventsMixin("others")
        for launch_id in ("launch-1", "launch-1", "launch-2", None):
            self.service.hand_over_listener(launch_id, other)
        self.service.tell("running", "w", "i-1", "from here", "launch-1")
        other.tell("running", "w", "i-1", "from there", "launch-1")
        self.assertEqual([event.text for event in self.followed], ["from there"])

    def test_bad_listener(self) -> None:
        """What goes wrong there is logged, and is nobody else's affair."""

        def fail(_: Any) -> None:
            raise ZeroDivisionError

        self.service.follow("launch-1", fail)
        self.service.tell("running", "w", "i-1", "", "launch-1")
        self.assertEqual((len(self.all), len(self.flushLoggedErrors(ZeroDivisionError))), (1, 1))
