"""One instance, from the moment EC2 accepted it until EC2 has confirmed its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import defer

from buildbot_ec2ud.ec2.errors import EC2CallError
from buildbot_ec2ud.ec2.parser import Instance
from buildbot_ec2ud.fleet.attachments import Attachments
from buildbot_ec2ud.fleet.offer import Pool


class Rental:
    """An instance that this master pays for.

    :ivar fleet: the fleet that started it, and ends it.
    :ivar worker: name of the worker it was started for.
    :ivar instance: what EC2 last said of it.
    :ivar pool: the pool that it was asked from; None where that is not known. The whole offer would be kept as long as the
        instance runs, with the user-data and the password in it.
    :ivar attachments: what it gets when it runs, if anything.
    :ivar launch_id: by which launch it came; None where that is not known.
    :ivar attaching: None until it runs; then, its getting that.
    :ivar trouble: why it cannot have that; else None.
    :ivar returned: None until this master wants it to end; then fires when EC2 has accepted that.
    :ivar accepted: whether EC2 has accepted its end.
    """

    def __init__(
        self,
        fleet: Any,
        worker: str,
        instance: Instance,
        pool: Pool | None = None,
        attachments: Attachments | None = None,
        launch_id: str | None = None,
    ) -> None:
        self.fleet = fleet
        self.worker = worker
        self.instance = instance
        self.pool = pool
        self.attachments = attachments
        self.launch_id = launch_id
        self.attaching: defer.Deferred[None] | None = None
        self.trouble: EC2CallError | None = None
        self.returned: defer.Deferred[None] | None = None
        self.accepted = False
        self._gone = False

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

        :param instance: None when EC2 says that it knows no such instance, long after the launch.
        :return: whether its state has changed.
        """
        before = self.state
        if instance is None:
            self._gone = True
        else:
            self.instance = instance
        return self.state != before


class FleetEvent:
    """Something that happened to the instance of a worker.

    :ivar kind: ``request``, ``refused``, ``skipped``, ``launch``, ``leftover``, ``trouble``, ``terminate``, or a state of
        EC2's: ``pending``, ``running``, ``shutting-down``, ``terminated``, ``stopping``, ``stopped``.
    :ivar worker: name of the worker.
    :ivar instance_id: None before EC2 has given one.
    :ivar text: the details, one line.
    :ivar launch_id: by which launch the instance came, or is to come; None where that is not known.
    """

    def __init__(
        self, kind: str, worker: str, instance_id: str | None, text: str = "", launch_id: str | None = None
    ) -> None:
        self.kind = kind
        self.worker = worker
        self.instance_id = instance_id
        self.text = text
        self.launch_id = launch_id


#: What a fleet calls with each event.
Listener = Callable[[FleetEvent], Any]
