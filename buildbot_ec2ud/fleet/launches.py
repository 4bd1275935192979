"""One launch: the offers one after the other, and the instance of a call that was not answered."""

from __future__ import annotations

import uuid
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from twisted.internet import defer, task
from twisted.python import log
from twisted.python.failure import Failure

from buildbot_ec2ud.ec2.errors import EC2CallError, ErrorClass
from buildbot_ec2ud.ec2.parser import Instance
from buildbot_ec2ud.ec2.query import Call
from buildbot_ec2ud.fleet.attachments import Attachments
from buildbot_ec2ud.fleet.background import pauses
from buildbot_ec2ud.fleet.capacity import NoOffer
from buildbot_ec2ud.fleet.offer import LAUNCH_TAG, Offer
from buildbot_ec2ud.fleet.rental import Rental
from buildbot_ec2ud.fleet.watcher import ABSENT_LIMIT

#: After these, the next offer may be to be had: of another pool, or on a market with another quota.
_NEXT = (ErrorClass.NO_CAPACITY, ErrorClass.QUOTA)


class Launch:
    """An attempt to get an instance for a worker.

    :param fleet: the fleet that gets it.
    :param worker: name of the worker.
    :param launch_id: value of the launch tag that all offers carry.
    :param attachments: what the instance gets when it runs.
    """

    def __init__(self, fleet: Any, worker: str, launch_id: str, attachments: Attachments) -> None:
        self._fleet = fleet
        self._worker = worker
        self._launch_id = launch_id
        self._attachments = attachments
        self._call = Call(worker)
        self._searched = False

    def start(self, offers: Sequence[Offer]) -> defer.Deferred[Rental]:
        """Ask for one offer after the other; see :meth:`~buildbot_ec2ud.fleet.region.Fleet.launch`."""

        def abandon(_: Any) -> None:
            self._call.abandoned = True
            if not self._call.under_way:
                work.cancel()

        def answered(result: Rental | Failure) -> defer.Deferred[None] | None:
            if not self._searched:
                self._fleet.launching.discard(self._launch_id)
                if isinstance(result, Failure):
                    self._fleet.unfollow(self._launch_id)
            if not caller.called:
                caller.callback(result)
            elif isinstance(result, Rental):
                log.msg(f"nobody waits for {result!r} any more; ending it")
                return self._fleet.terminate(result)
            return None

        caller: defer.Deferred[Rental] = defer.Deferred(abandon)
        self._fleet.launching.add(self._launch_id)
        work = self._walk(offers)
        self._fleet.background.run(work.addBoth(answered))
        return caller

    @defer.inlineCallbacks
    def _walk(self, offers: Sequence[Offer]) -> Generator[Any, Any, Rental]:
        capacity = self._fleet.capacity
        reasons: dict[str, str] = {}
        for offer in offers:
            why_not = capacity.why_not(offer)
            if why_not is not None:
                if offer.market not in reasons:  # else it has been said, of the whole market
                    self._tell("skipped", f"{offer}: {why_not}")
                    reasons[offer.market if capacity.quota_used_up(offer) else str(offer)] = why_not
                continue
            self._tell("request", str(offer))
            try:
                instances = yield self._run(offer.parameters)
            except EC2CallError as error:
                self._tell("refused", f"{offer}: {error}")
                capacity.refused(offer, error)
                if error.outcome_unknown:
                    # No other one is asked for: it would carry the tag by which the first is looked for, and ended.
                    self._search()
                    raise
                if error.error_class not in _NEXT or self._call.abandoned or len(offers) == 1:
                    raise
                reasons[offer.market if error.error_class is ErrorClass.QUOTA else str(offer)] = str(error)
            except BaseException:
                # It was cancelled; or a mistake of the code, which is no reason to lose an instance.
                if self._call.exposed:
                    if self._fleet.closed:
                        self._give_up()
                    else:
                        self._search()
                raise
            else:
                capacity.succeeded(offer)
                return self._fleet.rent(self._worker, instances[0], offer.pool, self._attachments, self._launch_id)
        raise NoOffer(reasons)

    def _tell(self, kind: str, text: str) -> None:
        self._fleet.tell(kind, self._worker, None, text, self._launch_id)

    @defer.inlineCallbacks
    def _run(self, parameters: Mapping[str, Any]) -> Generator[Any, Any, list[Instance]]:
        try:
            return (yield self._run_once(parameters))
        except EC2CallError as error:
            if error.error_class is not ErrorClass.STALE_TOKEN or self._call.abandoned:
                raise
        # The first reply was lost, and its instance had ended before the call was repeated.
        return (yield self._run_once(parameters))

    def _run_once(self, parameters: Mapping[str, Any]) -> defer.Deferred[list[Instance]]:
        # One token for each (attempt, offer): EC2 takes a repeated call with the same token for the same one.
        return self._fleet.client.run_instances({**parameters, "ClientToken": uuid.uuid4().hex}, self._call)

    def _search(self) -> None:
        self._searched = True
        search = self._reclaim().addBoth(self._found)
        self._fleet.background.run(search)

    def _found(self, result: Any) -> Any:
        self._fleet.launching.discard(self._launch_id)
        return result

    @defer.inlineCallbacks
    def _reclaim(self) -> Generator[Any, Any, None]:
        """A call was not answered: find out whether there is an instance, and end it.

        EC2 is given :data:`~buildbot_ec2ud.fleet.watcher.ABSENT_LIMIT` from the first look that it answers.
        """
        fleet, reactor = self._fleet, self._fleet.master.reactor
        deadline = None
        for pause in pauses():
            if deadline is not None and reactor.seconds() >= deadline:
                break
            try:
                yield task.deferLater(reactor, pause)
                found = yield fleet.client.describe_instances(filters={f"tag:{LAUNCH_TAG}": [self._launch_id]})
            except EC2CallError as error:
                log.msg(f"worker {self._worker}: cannot look for the instance of an unanswered launch: {error}")
                continue
            except defer.CancelledError:
                self._give_up()
                raise
            except Exception:
                log.err(None, f"worker {self._worker}: cannot look for the instance of an unanswered launch")
                continue
            if deadline is None:
                deadline = reactor.seconds() + ABSENT_LIMIT
            for instance in found:
                if instance.instance_id not in fleet.rentals and not instance.ended:
                    log.msg(f"worker {self._worker}: EC2 did start {instance.instance_id}; ending it")
                    yield fleet.terminate(fleet.rent(self._worker, instance, launch_id=self._launch_id))
            if found:
                return
        log.msg(f"worker {self._worker}: EC2 has started no instance by the unanswered launch")
        fleet.unfollow(self._launch_id)

    def _give_up(self) -> None:
        log.msg(
            f"worker {self._worker}: EC2 may have started an instance for it, tagged {LAUNCH_TAG}={self._launch_id}; "
            "it may run"
        )
