"""One batched DescribeInstances for everybody."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from twisted.internet import defer
from twisted.internet.interfaces import IDelayedCall
from twisted.python import log

from buildbot_ec2ud.ec2.client import FILTER_VALUES, EC2Client
from buildbot_ec2ud.ec2.errors import EC2CallError
from buildbot_ec2ud.ec2.parser import Instance
from buildbot_ec2ud.fleet.leftovers import tagged
from buildbot_ec2ud.fleet.offer import MASTER_TAG
from buildbot_ec2ud.fleet.rental import Rental

#: Seconds from a launch or a terminate call to the first look.
FIRST_LOOK = 1.0
#: Each look is this much later than the one before it ...
GROWTH = 1.5
#: ... up to this many seconds while an instance is starting or ending; as often, at least, those that just run are looked at
#: then ...
CHANGING_INTERVAL = 10.0
#: ... and this many when all just run (a spot interruption is noticed by the lost connection first).
STEADY_INTERVAL = 60.0
#: Seconds for which EC2 may not know an instance that it has accepted. EC2 is eventually consistent, "from a couple of
#: seconds up to minutes" (EC2 developer guide, "Eventual consistency").
ABSENT_LIMIT = 300.0

_CHANGING = ("pending", "shutting-down", "stopping")
#: In which states the instances of a large fleet are listed: those that have ended stay listed for an hour, and are many.
_LISTINGS = (("pending", "running", "shutting-down", "stopping", "stopped"), ("terminated",))


class Watcher:
    """Looks at the instances of a region with one call, and tells who is interested what has changed.

    :param client: what to ask.
    :param clock: the reactor.
    """

    def __init__(self, client: EC2Client, clock: Any) -> None:
        self._client = client
        self._clock = clock
        self._watched: dict[str, tuple[Rental, Callable[[Rental], Any], Callable[[Rental], Any]]] = {}
        self._absent_since: dict[str, float] = {}
        self._hurried: set[str] = set()
        self._all_due = 0.0
        self._interval = FIRST_LOOK
        self._timer: IDelayedCall | None = None
        self._look: defer.Deferred[None] | None = None
        self._trouble = ""

    def watch(self, rental: Rental, changed: Callable[[Rental], Any], absent: Callable[[Rental], Any]) -> None:
        """Look at *rental* from now on, until EC2 has confirmed its end.

        :param changed: called with the rental each time that its state has changed.
        :param absent: called with the rental when EC2 has not listed it for :data:`ABSENT_LIMIT`, and again after as long.
        """
        self._watched[rental.instance_id] = (rental, changed, absent)
        self.hurry(rental)

    def forget(self, rental: Rental) -> None:
        """Look at *rental* no more."""
        self._watched.pop(rental.instance_id, None)
        self._absent_since.pop(rental.instance_id, None)

    def hurry(self, rental: Rental) -> None:
        """Something is about to change, or has changed: look soon at *rental*."""
        self._hurried.add(rental.instance_id)
        self._interval = FIRST_LOOK
        self._schedule()

    def stop(self) -> None:
        """Look no more."""
        self._watched.clear()
        self._cancel_timer()
        if self._look is not None:
            self._look.cancel()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        if self._look is not None:
            return  # it schedules the next one itself
        if self._timer is not None and self._timer.getTime() <= self._clock.seconds() + self._interval:
            return  # who hurries often must not put it off for ever
        self._cancel_timer()
        if self._watched:
            self._timer = self._clock.callLater(self._interval, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._interval *= GROWTH
        self._look = self._look_once()
        self._look.addErrback(log.err, "while watching EC2 instances")
        self._look.addCallback(self._looked)

    def _looked(self, _: None) -> None:
        self._look = None
        self._interval = min(self._interval, CHANGING_INTERVAL if self._changing() else STEADY_INTERVAL)
        self._schedule()

    def _changing(self) -> set[str]:
        """The ids of those that are about to change."""
        watched = self._watched.items()
        return {i for i, (rental, *_) in watched if rental.state in _CHANGING or rental.returned is not None}

    def _whom(self) -> list[str]:
        """Whom to look at now. Where many just run, and others come and go, it is those others, as a rule."""
        hurried, self._hurried = self._hurried, set()
        changing = self._changing()
        if changing and self._clock.seconds() + min(self._interval, CHANGING_INTERVAL) <= self._all_due:
            changing |= hurried
            return [instance_id for instance_id in self._watched if instance_id in changing]
        self._all_due = self._clock.seconds() + CHANGING_INTERVAL
        return list(self._watched)

    @defer.inlineCallbacks
    def _look_once(self) -> Generator[Any, Any, None]:
        asked = self._whom()
        # A look that fails says nothing of anybody: the next one is for all.
        due, self._all_due = self._all_due, 0.0
        try:
            found = yield self._describe(asked)
        except (EC2CallError, defer.CancelledError) as error:
            self._report_trouble(str(error))
            return
        self._all_due = due
        self._compare(asked, found)
        self._report_trouble("")

    @defer.inlineCallbacks
    def _describe(self, ids: list[str]) -> Generator[Any, Any, dict[str, Instance]]:
        """Describe the instances with these ids, in as few calls as EC2 lets one.

        A call takes :data:`~buildbot_ec2ud.ec2.client.FILTER_VALUES` ids. Where there are more, those of our masters' tags
        are listed, 1,000 to a page; what is missing there has ended, or is too new: it is asked for after that.

        :return: fires with those that EC2 lists, by id.
        """
        found: dict[str, Instance] = {}
        missing = ids
        for states in _LISTINGS:
            if len(missing) <= FILTER_VALUES:
                break
            if owners := self._owners(missing):
                listed = yield tagged(self._client, owners, states)
                found.update((instance.instance_id, instance) for instance in listed)
                missing = [instance_id for instance_id in missing if instance_id not in found]
        for start in range(0, len(missing), FILTER_VALUES):
            listed = yield self._client.describe_instances(*missing[start : start + FILTER_VALUES])
            found.update((instance.instance_id, instance) for instance in listed)
        return found

    def _owners(self, ids: list[str]) -> set[str]:
        """The identities that masters have on these instances: one, as a rule."""
        rentals = (self._watched[instance_id][0] for instance_id in ids if instance_id in self._watched)
        owners = (rental.instance.tags.get(MASTER_TAG) for rental in rentals)
        return set(filter(None, owners))

    def _compare(self, asked: list[str], found: dict[str, Instance]) -> None:
        now = self._clock.seconds()
        for instance_id in asked:
            if instance_id not in self._watched:
                continue
            rental, changed, absent = self._watched[instance_id]
            instance = found.get(instance_id)
            if instance is None:
                # Listings never tell that an instance is gone.
                if now - self._absent_since.setdefault(instance_id, now) < ABSENT_LIMIT:
                    continue
                tell = absent
            elif rental.seen(instance):
                tell = changed
            else:
                tell = None
            self._absent_since.pop(instance_id, None)
            if rental.ended:
                self.forget(rental)
            if tell is not None:
                try:
                    tell(rental)
                except Exception:
                    log.err(None, f"while telling of {rental!r}")

    def _report_trouble(self, text: str) -> None:
        """Log trouble once, not at each look."""
        if text and text != self._trouble:
            log.msg(f"cannot watch EC2 instances, will go on trying: {text}")
        self._trouble = text
