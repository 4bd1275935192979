"""The service that all workers of one (region, endpoint, credentials) share: launch, terminate, watch."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from buildbot.util.service import SharedService
from buildbot.util.subscription import Subscription, SubscriptionPoint
from twisted.internet import defer, task
from twisted.python import log

from buildbot_ec2ud.ec2 import endpoints
from buildbot_ec2ud.ec2.client import EC2Client
from buildbot_ec2ud.ec2.credentials import AWSCredentials
from buildbot_ec2ud.ec2.errors import EC2CallError, ErrorClass
from buildbot_ec2ud.ec2.parser import Instance
from buildbot_ec2ud.ec2.query import Attempt, QueryFactory
from buildbot_ec2ud.ec2.threads import in_thread
from buildbot_ec2ud.ec2.transport import Transport
from buildbot_ec2ud.fleet.attachments import Attacher, Attachments
from buildbot_ec2ud.fleet.background import Background, observe, pauses
from buildbot_ec2ud.fleet.capacity import MEMORY, Capacity
from buildbot_ec2ud.fleet.images import Images
from buildbot_ec2ud.fleet.launches import Launch
from buildbot_ec2ud.fleet.metrics import Metrics
from buildbot_ec2ud.fleet.offer import Offer
from buildbot_ec2ud.fleet.pacing import Limit, Pacer
from buildbot_ec2ud.fleet.prices import SpotPrices
from buildbot_ec2ud.fleet.rental import FleetEvent, Listener, Rental
from buildbot_ec2ud.fleet.terminations import Terminator
from buildbot_ec2ud.fleet.watcher import ABSENT_LIMIT, Watcher

#: Seconds that a stopping master waits until EC2 has accepted the end of every instance.
STOP_TIMEOUT = 30.0

_NOTHING = Attachments()


class Fleet(SharedService):
    """Rents instances in one region for all workers that use it.

    Get it with :meth:`getService`; Buildbot stops it after the workers.

    :param region: name of the region.
    :param endpoint_url: where its EC2 answers.
    :param access_key: AWS access key id, or None for the AWS credential chain.
    :param secret_key: the secret of *access_key*.
    :param source: gives botocore's credentials instead; its ``repr`` tells it from others.
    :param limits: by action, how many calls AWS takes from this account, where that is not what it documents.
    :param capacity_memory: seconds for which an offer without capacity is not asked for again.
    :ivar rentals: the instances whose end EC2 has not confirmed, by id.
    :ivar metrics: counts and latencies of the calls that were made.
    :ivar background: what has to go on whoever waits for it.
    """

    def __init__(
        self,
        region: str,
        endpoint_url: str,
        access_key: str | None = None,
        secret_key: str | None = None,
        source: Callable[[], Any] | None = None,
        limits: Mapping[str, Limit] | None = None,
        capacity_memory: float = MEMORY,
    ) -> None:
        super().__init__()
        self.region = region
        self.endpoint_url = endpoint_url
        self.rentals: dict[str, Rental] = {}
        self.metrics = Metrics()
        self._keys = (access_key, secret_key)
        self._source = source
        self.limits = limits or {}
        self._capacity_memory = capacity_memory
        self._events = SubscriptionPoint(f"EC2 fleet of {region}")
        self.background = Background()
        self._closed = False

    @classmethod
    def getName(cls, *args: Any, **kwargs: Any) -> str:
        # Buildbot's own makes the name from str() of the arguments too, with SHA-1; they hold a secret.
        digest = hashlib.sha256(repr((args, sorted(kwargs.items()))).encode()).hexdigest()
        return f"{cls.__name__}_{digest[:32]}"

    def startService(self) -> defer.Deferred[Any]:
        reactor = self.master.reactor
        self.capacity = Capacity(reactor, self._capacity_memory)
        self._pacer = Pacer(reactor, self.limits)
        self._transport = Transport(reactor, endpoints.aws_settings().ca_bundle)
        queries = QueryFactory(
            self.region, reactor, self._transport.agent, admit=self._pacer.admit, answered=self._answered
        )
        credentials = AWSCredentials(*self._keys, source=self._source, reactor=reactor)
        self.client = EC2Client(credentials, self.endpoint_url, queries)
        self.images = Images(self.client, reactor)
        self.prices = SpotPrices(self.client, reactor)
        self.watcher = Watcher(self.client, reactor)
        self._terminator = Terminator(self.client, reactor)
        self._attacher = Attacher(self.client, reactor)
        # Begun now, so that no start has to wait for it.
        self._hostname = in_thread(reactor, socket.getfqdn)
        return super().startService()

    def _answered(self, attempt: Attempt) -> None:
        self._pacer.answered(attempt)
        self.metrics.answered(attempt)

    @defer.inlineCallbacks
    def stopService(self) -> Generator[Any, Any, None]:
        """End every instance that is left, as far as EC2 can be reached within :data:`STOP_TIMEOUT`."""
        settled = observe(self.settle())
        settled.addTimeout(STOP_TIMEOUT, self.master.reactor, onTimeoutCancel=lambda *_: None)
        yield settled
        self._closed = True
        for rental in self.rentals.values():
            if not rental.accepted:
                log.msg(f"EC2 has not accepted the end of {rental!r}; it may still run")
        self.watcher.stop()
        self.images.stop()
        self.background.cancel()
        self._terminator.stop()
        yield self._transport.close()
        yield super().stopService()

    @defer.inlineCallbacks
    def settle(self) -> Generator[Any, Any, None]:
        """End every instance, and wait until EC2 has accepted that and no launch is unanswered."""
        while not self._closed:
            for rental in list(self.rentals.values()):
                if not rental.ended:  # a stopped one has volumes that cost
                    self.terminate(rental)
            if not self.background:
                return
            yield self.background.wait()

    def subscribe(self, listener: Listener) -> Subscription:
        """Call *listener* with each :class:`~buildbot_ec2ud.fleet.rental.FleetEvent` from now on."""
        return self._events.subscribe(listener)

    def tell(self, kind: str, worker: str, instance_id: str | None = None, text: str = "") -> None:
        """Log an event, and tell the listeners of it."""
        log.msg(f"EC2 {kind}: worker {worker} {instance_id or ''} {text}".rstrip())
        self._events.deliver(FleetEvent(kind, worker, instance_id, text))

    def hostname(self) -> defer.Deferred[str]:
        """This machine's fully qualified name; looked up once, when the service starts."""
        return observe(self._hostname)

    # Launching

    def launch(
        self, worker: str, launch_id: str, offers: Sequence[Offer], attachments: Attachments = _NOTHING
    ) -> defer.Deferred[Rental]:
        """Start one instance: the first of *offers* that EC2 has capacity for.

        :param worker: name of the worker it is for.
        :param launch_id: value of the launch tag that *offers* carry.
        :param offers: what to ask for, in order of preference.
        :param attachments: what the instance gets when it runs; the rental's ``trouble`` tells if it cannot have that.
        :return: fires when EC2 has accepted. When it is cancelled and EC2 accepts all the same, the instance is ended.
        :raises EC2CallError: EC2 refused, or did not answer. An instance that was started by a call without an answer
            is searched for and ended.
        """
        return Launch(self, worker, launch_id, attachments).start(offers)

    def rent(
        self, worker: str, instance: Instance, offer: Offer | None = None, attachments: Attachments | None = None
    ) -> Rental:
        """Take over an instance that EC2 has started for *worker*: it is watched until EC2 has confirmed its end.

        :param offer: what was asked for, if that is known.
        :param attachments: what it gets when it runs; None for an instance that is to be ended at once.
        """
        rental = Rental(self, worker, instance, offer, attachments)
        self.rentals[rental.instance_id] = rental
        self.tell(
            "launch",
            worker,
            rental.instance_id,
            f"{instance.instance_type} {instance.lifecycle} in {instance.placement}",
        )
        self._changed(rental)
        self.watcher.watch(rental, self._changed, self._absent)
        return rental

    def _changed(self, rental: Rental) -> None:
        self.tell(rental.state, rental.worker, rental.instance_id, rental.instance.why())
        if rental.offer is not None and rental.instance.lacked_capacity:
            self.capacity.had_none(rental.offer, rental.instance.why())
        if rental.state == "running" and rental.attaching is None and rental.returned is None:
            rental.attaching = self.background.run(self._attach(rental))
        elif not rental.alive and rental.attaching is not None:
            rental.attaching.cancel()
        if rental.ended:
            del self.rentals[rental.instance_id]

    @defer.inlineCallbacks
    def _attach(self, rental: Rental) -> Generator[Any, Any, None]:
        if rental.attachments is None:
            return
        try:
            yield self._attacher.attach(rental.attachments, rental.instance)
        except EC2CallError as error:
            rental.trouble = error
            self.tell("trouble", rental.worker, rental.instance_id, str(error))

    def _absent(self, rental: Rental) -> None:
        self.background.run(self._confirm(rental))

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
                rental.seen(None)
                self.watcher.forget(rental)
                self._changed(rental)

    # Ending

    def terminate(self, rental: Rental) -> defer.Deferred[None]:
        """End an instance. It is watched until EC2 has confirmed its end.

        :return: fires when EC2 has accepted the call, which is repeated until then. Cancelling it cancels only the
            waiting.
        """
        if rental.returned is None:
            if rental.attaching is not None:
                rental.attaching.cancel()
            rental.returned = self.background.run(self._terminate(rental))
        return observe(rental.returned)

    @defer.inlineCallbacks
    def _terminate(self, rental: Rental) -> Generator[Any, Any, None]:
        pause = pauses()
        while not rental.ended:
            self.tell("terminate", rental.worker, rental.instance_id)
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
                self.watcher.hurry()
                if rental.attachments is not None:
                    self.background.run(self._attacher.release(rental.attachments, rental.instance_id))
                return
            yield task.deferLater(self.master.reactor, next(pause))

    @defer.inlineCallbacks
    def _hand_over(self, rental: Rental) -> Generator[Any, Any, bool]:
        """EC2 does not take our keys any more: let a fleet with the ones that a reconfig has brought end an instance.

        :return: whether one could.
        """
        for other in fleets(self.master.namedServices):
            if other is self or (other.region, other.endpoint_url) != (self.region, self.endpoint_url):
                continue
            try:
                yield other._terminator.terminate(rental.instance_id)
            except EC2CallError as error:
                log.msg(f"nor can another fleet end {rental!r}: {error}")
                continue
            rental.accepted = True
            self.watcher.forget(rental)
            self.rentals.pop(rental.instance_id, None)
            rental.fleet = other
            other.rentals[rental.instance_id] = rental
            other.watcher.watch(rental, other._changed, other._absent)
            return True
        return False


def fleets(services: Mapping[str, Any]) -> list[Fleet]:
    """The fleets among the ``namedServices`` of a master."""
    return [service for service in services.values() if isinstance(service, Fleet)]
