"""The service that all workers of one (region, endpoint, credentials) share: launch, terminate, watch."""

from __future__ import annotations

import hashlib
import socket
import uuid
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from buildbot.util.service import SharedService
from buildbot.util.subscription import Subscription, SubscriptionPoint
from twisted.internet import defer, task
from twisted.python import log
from twisted.python.failure import Failure

from buildbot_ec2ud.ec2.client import EC2Client
from buildbot_ec2ud.ec2.credentials import AWSCredentials
from buildbot_ec2ud.ec2.errors import EC2CallError, ErrorClass
from buildbot_ec2ud.ec2.parser import Instance
from buildbot_ec2ud.ec2.query import QueryFactory
from buildbot_ec2ud.ec2.threads import in_thread
from buildbot_ec2ud.fleet.offer import LAUNCH_TAG, Offer
from buildbot_ec2ud.fleet.rental import FleetEvent, Listener, Rental
from buildbot_ec2ud.fleet.watcher import ABSENT_LIMIT, Watcher

#: Seconds between repeated terminate calls, and between looks for an instance whose launch was not answered: the first
#: pause, and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
#: Seconds that a stopping master waits until EC2 has accepted the end of every instance.
STOP_TIMEOUT = 30.0


class Fleet(SharedService):
    """Rents instances in one region for all workers that use it.

    Get it with :meth:`getService`; Buildbot stops it after the workers.

    :param region: name of the region.
    :param endpoint_url: where its EC2 answers.
    :param access_key: AWS access key id, or None for the AWS credential chain.
    :param secret_key: the secret of *access_key*.
    """

    def __init__(
        self, region: str, endpoint_url: str, access_key: str | None = None, secret_key: str | None = None
    ) -> None:
        super().__init__()
        self.region = region
        self.endpoint_url = endpoint_url
        self.rentals: dict[str, Rental] = {}
        self._keys = (access_key, secret_key)
        self._events = SubscriptionPoint(f"EC2 fleet of {region}")
        self._background: set[defer.Deferred[Any]] = set()
        self._closed = False

    @classmethod
    def getName(cls, *args: Any, **kwargs: Any) -> str:
        # Buildbot's own makes the name from str() of the arguments too, with SHA-1; they hold a secret.
        digest = hashlib.sha256(repr((args, sorted(kwargs.items()))).encode()).hexdigest()
        return f"{cls.__name__}_{digest[:32]}"

    def startService(self) -> defer.Deferred[Any]:
        reactor = self.master.reactor
        self._credentials = AWSCredentials(*self._keys, reactor=reactor)
        self._queries = QueryFactory(self.region, reactor)
        self.client = EC2Client(self._credentials, self.endpoint_url, self._queries)
        self.watcher = Watcher(self.client, reactor)
        # Begun now, so that no start has to wait for it.
        self._hostname = in_thread(reactor, socket.getfqdn)
        return super().startService()

    @defer.inlineCallbacks
    def stopService(self) -> Generator[Any, Any, None]:
        """End every instance that is left, as far as EC2 can be reached within :data:`STOP_TIMEOUT`."""
        settled = _observe(self.settle())
        settled.addTimeout(STOP_TIMEOUT, self.master.reactor, onTimeoutCancel=lambda *_: None)
        yield settled
        self._closed = True
        for rental in self.rentals.values():
            if not rental.accepted:
                log.msg(f"EC2 has not accepted the end of {rental!r}; it may still run")
        self.watcher.stop()
        for work in list(self._background):
            work.cancel()
        yield self._queries.close()
        yield super().stopService()

    @defer.inlineCallbacks
    def settle(self) -> Generator[Any, Any, None]:
        """End every instance, and wait until EC2 has accepted that and no launch is unanswered."""
        while not self._closed:
            for rental in list(self.rentals.values()):
                if not rental.ended:  # a stopped one has volumes that cost
                    self.terminate(rental)
            if not self._background:
                return
            yield defer.DeferredList([_observe(work) for work in self._background])

    def subscribe(self, listener: Listener) -> Subscription:
        """Call *listener* with each :class:`~buildbot_ec2ud.fleet.rental.FleetEvent` from now on."""
        return self._events.subscribe(listener)

    def _tell(self, kind: str, worker: str, instance_id: str | None = None, text: str = "") -> None:
        log.msg(f"EC2 {kind}: worker {worker} {instance_id or ''} {text}".rstrip())
        self._events.deliver(FleetEvent(kind, worker, instance_id, text))

    def hostname(self) -> defer.Deferred[str]:
        """This machine's fully qualified name; looked up once, when the service starts."""
        return _observe(self._hostname)

    # Launching

    def launch(self, worker: str, launch_id: str, offers: Sequence[Offer]) -> defer.Deferred[Rental]:
        """Start one instance: the first of *offers* that EC2 has capacity for.

        :param worker: name of the worker it is for.
        :param launch_id: value of the launch tag that *offers* carry.
        :param offers: what to ask for, in order of preference.
        :return: fires when EC2 has accepted. When it is cancelled and EC2 accepts all the same, the instance is ended.
        :raises EC2CallError: EC2 refused, or did not answer. An instance that was started by a call without an answer
            is searched for and ended.
        """
        caller: defer.Deferred[Rental] = defer.Deferred()

        def answered(result: Rental | Failure) -> defer.Deferred[None] | None:
            if not caller.called:
                caller.callback(result)
            elif isinstance(result, Rental):
                log.msg(f"nobody waits for {result!r} any more; ending it")
                return self.terminate(result)
            return None

        self._in_background(self._walk(worker, launch_id, offers, caller).addBoth(answered))
        return caller

    @defer.inlineCallbacks
    def _walk(
        self, worker: str, launch_id: str, offers: Sequence[Offer], caller: defer.Deferred[Rental]
    ) -> Generator[Any, Any, Rental]:
        for position, offer in enumerate(offers, start=1):
            self._tell("request", worker, None, str(offer))
            try:
                instances = yield self._run(offer.parameters)
            except EC2CallError as error:
                self._tell("refused", worker, None, f"{offer}: {error}")
                if error.outcome_unknown:
                    self._in_background(self._reclaim(worker, launch_id))
                last = position == len(offers) or caller.called  # nobody waits for another one
                if error.error_class is not ErrorClass.NO_CAPACITY or last:
                    raise
            except defer.CancelledError:
                self._give_up(worker, launch_id)
                raise
            else:
                return self._rent(worker, instances[0])
        raise ValueError("no offers")

    def _run(self, parameters: Mapping[str, Any]) -> defer.Deferred[list[Instance]]:
        # One token for each (attempt, offer): EC2 takes a repeated call with the same token for the same one.
        return self.client.run_instances({**parameters, "ClientToken": uuid.uuid4().hex})

    def _rent(self, worker: str, instance: Instance) -> Rental:
        rental = Rental(self, worker, instance)
        self.rentals[rental.instance_id] = rental
        self._tell(
            "launch",
            worker,
            rental.instance_id,
            f"{instance.instance_type} {instance.lifecycle} in {instance.placement}",
        )
        self._changed(rental)
        self.watcher.watch(rental, self._changed, self._absent)
        return rental

    def _changed(self, rental: Rental) -> None:
        self._tell(rental.state, rental.worker, rental.instance_id, rental.instance.why())
        if rental.ended:
            del self.rentals[rental.instance_id]

    def _absent(self, rental: Rental) -> None:
        self._in_background(self._confirm(rental))

    @defer.inlineCallbacks
    def _confirm(self, rental: Rental) -> Generator[Any, Any, None]:
        """EC2 has long not listed an instance: it is gone if EC2 says so when told to end it."""
        log.msg(f"EC2 has not listed {rental!r} for {ABSENT_LIMIT:g} s; ending it, to be sure")
        try:
            yield self.client.terminate_instances(rental.instance_id)
        except EC2CallError as error:
            if error.error_class is not ErrorClass.NOT_VISIBLE_YET:
                log.msg(f"cannot end {rental!r}: {error}")  # the watch goes on, and comes here again
            elif not rental.ended:
                rental.seen(None)
                self.watcher.forget(rental)
                self._changed(rental)

    @defer.inlineCallbacks
    def _reclaim(self, worker: str, launch_id: str) -> Generator[Any, Any, None]:
        """A launch was not answered: find out whether there is an instance, and end it.

        EC2 is given :data:`~buildbot_ec2ud.fleet.watcher.ABSENT_LIMIT` from the first look that it answers.
        """
        reactor = self.master.reactor
        deadline = None
        pause = FIRST_PAUSE
        while deadline is None or reactor.seconds() < deadline:
            try:
                yield task.deferLater(reactor, pause)
                pause = min(pause * 2, LONGEST_PAUSE)
                found = yield self.client.describe_instances(filters={f"tag:{LAUNCH_TAG}": [launch_id]})
            except EC2CallError as error:
                log.msg(f"worker {worker}: cannot look for the instance of an unanswered launch: {error}")
                continue
            except defer.CancelledError:
                self._give_up(worker, launch_id)
                raise
            if deadline is None:
                deadline = reactor.seconds() + ABSENT_LIMIT
            for instance in found:
                if instance.instance_id not in self.rentals and not instance.ended:
                    log.msg(f"worker {worker}: EC2 did start {instance.instance_id}; ending it")
                    yield self.terminate(self._rent(worker, instance))
            if found:
                return
        log.msg(f"worker {worker}: EC2 has started no instance by the unanswered launch")

    def _give_up(self, worker: str, launch_id: str) -> None:
        log.msg(
            f"worker {worker}: EC2 may have started an instance for it, tagged {LAUNCH_TAG}={launch_id}; it may run"
        )

    # Ending

    def terminate(self, rental: Rental) -> defer.Deferred[None]:
        """End an instance. It is watched until EC2 has confirmed its end.

        :return: fires when EC2 has accepted the call, which is repeated until then. Cancelling it cancels only the
            waiting.
        """
        if rental.returned is None:
            rental.returned = self._in_background(self._terminate(rental))
        return _observe(rental.returned)

    @defer.inlineCallbacks
    def _terminate(self, rental: Rental) -> Generator[Any, Any, None]:
        pause = FIRST_PAUSE
        while not rental.ended:
            self._tell("terminate", rental.worker, rental.instance_id)
            try:
                yield self.client.terminate_instances(rental.instance_id)
            except EC2CallError as error:
                log.msg(f"cannot end {rental!r}, will try again: {error}")
            except defer.CancelledError:
                raise
            except Exception:
                log.err(None, f"cannot end {rental!r}, will try again")
            else:
                rental.accepted = True
                self.watcher.hurry()
                return
            yield task.deferLater(self.master.reactor, pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _in_background(self, work: defer.Deferred[Any]) -> defer.Deferred[Any]:
        """Go on with *work* whoever waits for it; :meth:`settle` waits for all of it."""

        def done(result: Any) -> Any:
            self._background.discard(work)
            return result

        self._background.add(work)
        work.addBoth(done)
        work.addErrback(lambda failure: None if failure.check(defer.CancelledError) else log.err(failure))
        return work


def _observe(source: defer.Deferred[Any]) -> defer.Deferred[Any]:
    """A Deferred that fires as *source* does; cancelling it leaves *source* alone."""
    observer: defer.Deferred[Any] = defer.Deferred()

    def fired(result: Any) -> Any:
        if not observer.called:
            observer.callback(result)
        return result

    source.addBoth(fired)
    return observer


def fleets(services: Mapping[str, Any]) -> list[Fleet]:
    """The fleets among the ``namedServices`` of a master."""
    return [service for service in services.values() if isinstance(service, Fleet)]
