"""Ending instances: until EC2 has accepted it, whatever fails, and with other keys if need be."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from twisted.internet import defer, task
from twisted.python import log

from buildbot_ec2ud.ec2.errors import EC2CallError, ErrorClass
from buildbot_ec2ud.fleet.attachments import Attacher
from buildbot_ec2ud.fleet.background import observe, pauses
from buildbot_ec2ud.fleet.rental import Rental
from buildbot_ec2ud.fleet.terminations import Terminator
from buildbot_ec2ud.fleet.watcher import ABSENT_LIMIT


class Endings:
    """Ends the instances of a fleet.

    :param fleet: the fleet.
    :param attacher: takes from an instance what outlives it.
    """

    def __init__(self, fleet: Any, attacher: Attacher) -> None:
        self._fleet = fleet
        self._attacher = attacher
        self._terminator = Terminator(fleet.client, fleet.master.reactor)

    def stop(self) -> None:
        """Make no call any more, and cancel those under way."""
        self._terminator.stop()

    def ask(self, instance_id: str) -> defer.Deferred[None]:
        """Ask EC2 once."""
        return self._terminator.terminate(instance_id)

    def end(self, rental: Rental) -> defer.Deferred[None]:
        """End an instance; see :meth:`~buildbot_ec2ud.fleet.region.Fleet.terminate`."""
        if rental.returned is None:
            if rental.attaching is not None:
                rental.attaching.cancel()
            rental.returned = self._fleet.background.run(self._terminate(rental))
        return observe(rental.returned)

    @defer.inlineCallbacks
    def _terminate(self, rental: Rental) -> Generator[Any, Any, None]:
        pause = pauses()
        while not rental.ended:
            self._fleet.tell_of(rental, "terminate")
            try:
                yield self._terminator.terminate(rental.instance_id)
            except EC2CallError as error:
                log.msg(f"cannot end {rental!r}, will try again: {error}")
                if error.error_class is ErrorClass.CREDENTIALS and (yield self._hand_over(rental)):
                    return
            except defer.CancelledError:
                raise
            except Exception:
                log.err(None, f"cannot end {rental!r}, will try again")
            else:
                rental.accepted = True
                self._fleet.watcher.hurry(rental)
                if rental.attachments is not None:
                    self._fleet.background.run(self._attacher.release(rental.attachments, rental.instance_id))
                return
            yield task.deferLater(self._fleet.master.reactor, next(pause))

    @defer.inlineCallbacks
    def _hand_over(self, rental: Rental) -> Generator[Any, Any, bool]:
        """EC2 does not take our keys any more: let a fleet with the ones that a reconfig has brought end an instance.

        :return: whether one could.
        """
        for other in self._fleet.siblings():
            try:
                yield other.end_now(rental.instance_id)
            except EC2CallError as error:
                log.msg(f"nor can another fleet end {rental!r}: {error}")
            else:
                rental.accepted = True
                self._fleet.hand_over(rental, other)
                return True
        return False

    def absent(self, rental: Rental) -> None:
        """EC2 has not listed an instance for long."""
        self._fleet.background.run(self._confirm(rental))

    @defer.inlineCallbacks
    def _confirm(self, rental: Rental) -> Generator[Any, Any, None]:
        """EC2 has long not listed an instance: it is gone if EC2 says so when told to end it."""
        log.msg(f"EC2 has not listed {rental!r} for {ABSENT_LIMIT:g} s; ending it, to be sure")
        try:
            yield self._terminator.terminate(rental.instance_id)
        except EC2CallError as error:
            if error.error_class is not ErrorClass.NOT_VISIBLE_YET:
                log.msg(f"cannot end {rental!r}: {error}")  # the watch goes on, and comes here again
            elif not rental.ended:
                self._fleet.gone(rental)
