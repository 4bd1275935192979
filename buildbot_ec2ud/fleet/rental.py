"""One instance, from the moment EC2 accepted it until EC2 has confirmed its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import defer

from buildbot_ec2ud.ec2.parser import Instance


class Rental:
    """An instance that this master pays for.

    :ivar fleet: the fleet that started it, and ends it.
    :ivar worker: name of the worker it was started for.
    :ivar launch_id: value of the tag that only this launch has.
    :ivar instance: what EC2 last said of it.
    :ivar returned: None until this master wants it to end; then fires when EC2 has accepted that.
    """

    def __init__(self, fleet: Any, worker: str, launch_id: str, instance: Instance) -> None:
        self.fleet = fleet
        self.worker = worker
        self.launch_id = launch_id
        self.instance = instance
        self.returned: defer.Deferred[None] | None = None
        self._gone = False
        self._waiting: list[defer.Deferred[None]] = []

    def __repr__(self) -> str:
        return f"<Rental {self.instance_id} of {self.worker}: {self.state}>"

    @property
    def instance_id(self) -> str:
        return self.instance.instance_id

    @property
    def state(self) -> str:
        """EC2's name of its state; ``terminated`` also when EC2 no longer knows it."""
        return "terminated" if self._gone else self.instance.instance_state

    @property
    def alive(self) -> bool:
        """Whether it runs, or is going to."""
        return not self._gone and not self.instance.ending

    @property
    def ended(self) -> bool:
        """Whether EC2 has confirmed its end."""
        return self._gone or self.instance.ended

    def seen(self, instance: Instance | None) -> bool:
        """Take note of what EC2 says.

        :param instance: None when EC2 has not known it for so long that it must be gone.
        :return: whether its state has changed.
        """
        before = self.state
        if instance is None:
            self._gone = True
        else:
            self.instance = instance
        if self.ended:
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                waiter.callback(None)
        return self.state != before

    def when_ended(self) -> defer.Deferred[None]:
        """Fires when EC2 has confirmed the end. Cancelling it cancels only the waiting."""
        if self.ended:
            return defer.succeed(None)
        waiter: defer.Deferred[None] = defer.Deferred(self._waiting.remove)
        self._waiting.append(waiter)
        return waiter


class FleetEvent:
    """Something that happened to the instance of a worker.

    :ivar kind: ``request``, ``refused``, ``launch``, ``terminate``, or a state of EC2's: ``pending``, ``running``,
        ``shutting-down``, ``terminated``, ``stopping``, ``stopped``.
    :ivar worker: name of the worker.
    :ivar instance_id: None before EC2 has given one.
    :ivar text: the details, one line.
    """

    def __init__(self, kind: str, worker: str, instance_id: str | None, text: str = "") -> None:
        self.kind = kind
        self.worker = worker
        self.instance_id = instance_id
        self.text = text


#: What a fleet calls with each event.
Listener = Callable[[FleetEvent], Any]
