"""Telling of what happens to instances: to everybody, and to those who follow one launch."""

from __future__ import annotations

from buildbot.util.subscription import Subscription, SubscriptionPoint
from twisted.python import log

from buildbot_ec2ud.fleet.rental import FleetEvent, Listener, Rental


class EventsMixin:
    """For a service to whose instances something happens.

    :param title: how Buildbot's messages call what listeners subscribe to.
    """

    def __init__(self, title: str) -> None:
        super().__init__()
        self._events = SubscriptionPoint(title)
        self._followed: dict[str, Listener] = {}

    def subscribe(self, listener: Listener) -> Subscription:
        """Call *listener* with each :class:`~buildbot_ec2ud.fleet.rental.FleetEvent` from now on."""
        return self._events.subscribe(listener)

    def follow(self, launch_id: str, listener: Listener) -> None:
        """Call *listener* with each event of one launch and its instance, until EC2 has confirmed its end."""
        self._followed[launch_id] = listener

    def unfollow(self, launch_id: str) -> None:
        """Nobody wants to hear of a launch any more."""
        self._followed.pop(launch_id, None)

    def hand_over_listener(self, launch_id: str | None, other: EventsMixin) -> None:
        """Let another service tell whoever follows a launch."""
        if launch_id is not None and launch_id in self._followed:
            other.follow(launch_id, self._followed.pop(launch_id))

    def tell(
        self, kind: str, worker: str, instance_id: str | None = None, text: str = "", launch_id: str | None = None
    ) -> None:
        """Log an event, and tell those who listen of it; see :class:`~buildbot_ec2ud.fleet.rental.FleetEvent`."""
        log.msg(f"EC2 {kind}: worker {worker} {instance_id or ''} {text}".rstrip())
        event = FleetEvent(kind, worker, instance_id, text, launch_id)
        self._events.deliver(event)
        if (follower := self._followed.get(launch_id or "")) is not None:
            try:
                follower(event)
            except Exception:
                log.err(None, f"while telling of {kind} of worker {worker}")
        if kind == "terminated" and launch_id is not None:
            self.unfollow(launch_id)

    def tell_of(self, rental: Rental, kind: str, text: str = "") -> None:
        """Log an event of an instance, and tell those who listen of it."""
        self.tell(kind, rental.worker, rental.instance_id, text, rental.launch_id)
