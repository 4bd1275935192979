"""The service that all workers of one (region, endpoint, credentials) share: launch, terminate, watch."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Generator, Mapping, Sequence
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
from buildbot_ec2ud.fleet.background import Background, observe, pauses
from buildbot_ec2ud.fleet.launches import Launch
from buildbot_ec2ud.fleet.metrics import Metrics
from buildbot_ec2ud.fleet.offer import Offer
from buildbot_ec2ud.fleet.pacing import Limit, Pacer
from buildbot_ec2ud.fleet.rental import FleetEvent, Listener, Rental
from buildbot_ec2ud.fleet.terminations import Terminator
from buildbot_ec2ud.fleet.watcher import ABSENT_LIMIT, Watcher

#: Seconds that a stopping master waits until EC2 has accepted the end of every instance.
STOP_TIMEOUT = 30.0


class Fleet(SharedService):
    """Rents instances in one region for all workers that use it.

    Get it with :meth:`getService`; Buildbot stops it after the workers.

    :param region: name of the region.
    :param endpoint_url: where its EC2 answers.
    :param access_key: AWS access key id, or None for the AWS credential chain.
    :param secret_key: the secret of *access_key*.
    :param limits: by action, how many calls AWS takes from this account, where that is not what it documents.
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
        limits: Mapping[str, Limit] | None = None,
    ) -> None:
        super().__init__()
        self.region = region
        self.endpoint_url = endpoint_url
        self.rentals: dict[str, Rental] = {}
        self.metrics = Metrics()
        self._keys = (access_key, secret_key)
        self.limits = limits or {}
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
        self._pacer = Pacer(reactor, self.limits)
        self._transport = Transport(reactor, endpoints.aws_settings().ca_bundle)
        queries = QueryFactory(
            self.region, reactor, self._transport.agent, admit=self._pacer.admit, answered=self._answered
        )
        self.client = EC2Client(AWSCredentials(*self._keys, reactor=reactor), self.endpoint_url, queries)
        self.watcher = Watcher(self.client, reactor)
        self._terminator = Terminator(self.client, reactor)
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

    def launch(self, worker: str, launch_id: str, offers: Sequence[Offer]) -> defer.Deferred[Rental]:
        """Start one instance: the first of *offers* that EC2 has capacity for.

        :param worker: name of the worker it is for.
        :param launch_id: value of the launch tag that *offers* carry.
        :param offers: what to ask for, in order of preference.
        :return: fires when EC2 has accepted. When it is cancelled and EC2 accepts all the same, the instance is ended.
        :raises EC2CallError: EC2 refused, or did not answer. An instance that was started by a call without an answer
            is searched for and ended.
        """
        return Launch(self, worker, launch_id).start(offers)

    def rent(self, worker: str, instance: Instance) -> Rental:
        """Take over an instance that EC2 has started for *worker*: it is watched until EC2 has confirmed its end."""
        rental = Rental(self, worker, instance)
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
        if rental.ended:
            del self.rentals[rental.instance_id]

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
            except defer.CancelledError:
                raise
            except Exception:
                log.err(None, f"cannot end {rental!r}, will try again")
            else:
                rental.accepted = True
                self.watcher.hurry()
                return
            yield task.deferLater(self.master.reactor, next(pause))


def fleets(services: Mapping[str, Any]) -> list[Fleet]:
    """The fleets among the ``namedServices`` of a master."""
    return [service for service in services.values() if isinstance(service, Fleet)]
