"""Terminate calls of the same moment, merged into one."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from twisted.internet import defer
from twisted.internet.interfaces import IDelayedCall
from twisted.python.failure import Failure

from buildbot_ec2ud.ec2.client import EC2Client
from buildbot_ec2ud.ec2.errors import EC2CallError, ErrorClass

#: Instances in one call. EC2 takes 1,000, and recommends smaller batches (EC2 API reference, "TerminateInstances").
BATCH = 100

#: What EC2 may say because of one instance, and then ends none of a call's.
_OF_ONE = (ErrorClass.NOT_VISIBLE_YET, ErrorClass.CONFIGURATION, ErrorClass.UNKNOWN)

_Waiting = Mapping[str, list[defer.Deferred[None]]]


class Terminator:
    """Ends instances, together with those that others want ended in the same moment.

    :param client: what makes the calls.
    :param clock: the reactor.
    """

    def __init__(self, client: EC2Client, clock: Any) -> None:
        self._client = client
        self._clock = clock
        self._waiting: dict[str, list[defer.Deferred[None]]] = {}
        self._timer: IDelayedCall | None = None
        self._calls: set[defer.Deferred[None]] = set()
        self._stopped = False

    def terminate(self, instance_id: str) -> defer.Deferred[None]:
        """End an instance.

        :return: fires when EC2 has accepted that. Cancelling it cancels only the waiting.
        :raises EC2CallError: EC2 refused this instance, or did not answer.
        """
        waiter: defer.Deferred[None] = defer.Deferred()
        self._waiting.setdefault(instance_id, []).append(waiter)
        if self._timer is None:
            self._timer = self._clock.callLater(0, self._send)
        return waiter

    def stop(self) -> None:
        """Make no call any more, and cancel those under way."""
        if self._timer is not None:
            self._timer.cancel()
        self._stopped = True
        for call in list(self._calls):
            call.cancel()

    def _send(self) -> None:
        self._timer = None
        waiting, self._waiting = self._waiting, {}
        ids = list(waiting)
        for start in range(0, len(ids), BATCH):
            call = self._end({instance_id: waiting[instance_id] for instance_id in ids[start : start + BATCH]})
            self._calls.add(call)
            call.addBoth(lambda _, call=call: self._calls.discard(call))

    @defer.inlineCallbacks
    def _end(self, batch: _Waiting) -> Generator[Any, Any, None]:
        result: Failure | None = None
        try:
            yield self._client.terminate_instances(*batch)
        except EC2CallError as error:
            if len(batch) > 1 and error.error_class in _OF_ONE:
                # The one that is to blame is found by halves.
                ids = list(batch)
                for half in (ids[: len(ids) // 2], ids[len(ids) // 2 :]):
                    if not self._stopped:
                        yield self._end({instance_id: batch[instance_id] for instance_id in half})
                return
            result = Failure()
        except Exception:  # whoever waits has to be told, of a mistake of the code too
            result = Failure()
        for waiter in [waiter for waiters in batch.values() for waiter in waiters]:
            if not waiter.called:  # else it was cancelled
                waiter.callback(result)
