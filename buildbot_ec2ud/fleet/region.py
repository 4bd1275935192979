"""The service that all workers of one (region, endpoint, credentials) share: launch, terminate, watch."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from buildbot.util.service import SharedService
from twisted.internet import defer
from twisted.python import log

from buildbot_ec2ud.ec2 import endpoints
from buildbot_ec2ud.ec2.client import EC2Client
from buildbot_ec2ud.ec2.credentials import AWSCredentials
from buildbot_ec2ud.ec2.errors import EC2CallError
from buildbot_ec2ud.ec2.parser import Instance
from buildbot_ec2ud.ec2.query import Attempt, QueryFactory
from buildbot_ec2ud.ec2.threads import in_thread
from buildbot_ec2ud.ec2.transport import Transport
from buildbot_ec2ud.fleet.attachments import Attacher, Attachments
from buildbot_ec2ud.fleet.background import Background, observe
from buildbot_ec2ud.fleet.capacity import MEMORY, Capacity
from buildbot_ec2ud.fleet.endings import Endings
from buildbot_ec2ud.fleet.events import EventsMixin
from buildbot_ec2ud.fleet.images import Images
from buildbot_ec2ud.fleet.launches import Launch
from buildbot_ec2ud.fleet.leftovers import Leftovers
from buildbot_ec2ud.fleet.masters import Masters, Others
from buildbot_ec2ud.fleet.metrics import Metrics
from buildbot_ec2ud.fleet.offer import LAUNCH_TAG, WORKER_TAG, Offer, Pool
from buildbot_ec2ud.fleet.pacing import Limit, Pacer
from buildbot_ec2ud.fleet.prices import SpotPrices
from buildbot_ec2ud.fleet.rental import Rental
from buildbot_ec2ud.fleet.turns import Turns
from buildbot_ec2ud.fleet.watcher import Watcher

#: Seconds that a stopping master waits until EC2 has accepted the end of every instance.
STOP_TIMEOUT = 30.0

_NOTHING = Attachments()


class Fleet(EventsMixin, SharedService):
    """Rents instances in one region for all workers that use it.

    Get it with :meth:`getService`; Buildbot stops it after the workers.

    :param region: name of the region.
    :param endpoint_url: where its EC2 answers.
    :param access_key: AWS access key id, or None for the AWS credential chain.
    :param secret_key: the secret of *access_key*.
    :param source: gives botocore's credentials instead; its ``repr`` tells it from others.
    :param limits: by action, how many calls AWS takes from this account, where that is not what it documents.
    :param capacity_memory: seconds for which an offer without capacity is not asked for again.
    :param owner: identity of this master, by which its instances are known; None for the master's name.
    :ivar rentals: the instances whose end EC2 has not confirmed, by id.
    :ivar launching: the launch tags of launches that are under way, or looked for.
    :ivar turns: for starts that are asked for in one moment.
    :ivar metrics: counts and latencies of the calls that were made.
    :ivar background: what has to go on whoever waits for it.
    :ivar closed: whether the service has ended what it could end; nothing new is begun then.
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
        owner: str | None = None,
    ) -> None:
        super().__init__(f"EC2 fleet of {region}")
        self.region = region
        self.endpoint_url = endpoint_url
        self.rentals: dict[str, Rental] = {}
        self.metrics = Metrics()
        self._keys = (access_key, secret_key)
        self._source = source
        self.limits = limits or {}
        self._capacity_memory = capacity_memory
        self._owner = owner
        self.launching: set[str] = set()
        self.background = Background()
        self._settled: defer.Deferred[None] | None = None
        self.closed = False

    @classmethod
    def getName(cls, *args: Any, **kwargs: Any) -> str:
        # Buildbot's own makes the name from str() of the arguments too, with SHA-1; they hold a secret.
        digest = hashlib.sha256(repr((args, sorted(kwargs.items()))).encode()).hexdigest()
        return f"{cls.__name__}_{digest[:32]}"

    def startService(self) -> defer.Deferred[Any]:
        reactor = self.master.reactor
        self.capacity = Capacity(reactor, self._capacity_memory)
        self.turns = Turns(reactor)
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
        self._attacher = Attacher(self.client, reactor)
        self._endings = Endings(self, self._attacher)
        # Begun now, so that no start has to wait for it.
        self._hostname = in_thread(reactor, socket.getfqdn)
        self._leftovers = Leftovers(
            self.client, reactor, self.owner, self._owned, self._end_leftover, self._other_masters
        )
        self._leftovers.start()
        return super().startService()

    @property
    def owner(self) -> str:
        """The identity of this master."""
        return self._owner or self.master.name

    def _owned(self) -> set[str]:
        """The ids of all instances that this master has, and the launch tags of its launches, in whatever fleet."""
        return {one for fleet in fleets(self.master.namedServices) for one in (*fleet.rentals, *fleet.launching)}

    @defer.inlineCallbacks
    def _other_masters(self) -> Generator[Any, Any, Others]:
        masters = yield Masters.getService(self.master)
        return (yield masters.others(self.owner))

    def _end_leftover(self, instance: Instance) -> None:
        worker = instance.tags.get(WORKER_TAG, "")
        self.terminate(self.rent(worker, instance, launch_id=instance.tags.get(LAUNCH_TAG), kind="leftover"))

    def _answered(self, attempt: Attempt) -> None:
        self._pacer.answered(attempt)
        self.metrics.answered(attempt)

    @defer.inlineCallbacks
    def stopService(self) -> Generator[Any, Any, None]:
        """End every instance that is left, as far as EC2 can be reached within :data:`STOP_TIMEOUT`."""
        # Buildbot stops one after the other: all begin with the first, or each would take its time.
        for fleet in fleets(self.master.namedServices):
            fleet.begin_to_stop()
        yield self._settled
        self.closed = True
        for rental in self.rentals.values():
            if not rental.accepted:
                log.msg(f"EC2 has not accepted the end of {rental!r}; it may still run")
        self.watcher.stop()
        self.images.stop()
        self.background.cancel()
        self._endings.stop()
        yield self._transport.close()
        yield super().stopService()

    def begin_to_stop(self) -> None:
        """Begin to end every instance."""
        self._leftovers.stop()
        if self._settled is None:
            self._settled = observe(self.settle())
            self._settled.addTimeout(STOP_TIMEOUT, self.master.reactor, onTimeoutCancel=lambda *_: None)

    @defer.inlineCallbacks
    def settle(self) -> Generator[Any, Any, None]:
        """End every instance, and wait until EC2 has accepted that and no launch is unanswered."""
        while not self.closed:
            for rental in list(self.rentals.values()):
                if not rental.ended:  # a stopped one has volumes that cost
                    self.terminate(rental)
            if not self.background:
                return
            yield self.background.wait()

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
        self,
        worker: str,
        instance: Instance,
        pool: Pool | None = None,
        attachments: Attachments | None = None,
        launch_id: str | None = None,
        kind: str = "launch",
    ) -> Rental:
        """Take over an instance that EC2 has started for *worker*: it is watched until EC2 has confirmed its end.

        :param pool: the pool it was asked from, if that is known.
        :param attachments: what it gets when it runs; None for an instance that is to be ended at once.
        :param launch_id: by which launch it came.
        :param kind: of the event that is told.
        """
        rental = Rental(self, worker, instance, pool, attachments, launch_id)
        self.rentals[rental.instance_id] = rental
        self.tell(
            kind,
            worker,
            rental.instance_id,
            f"{instance.instance_type} {instance.lifecycle} in {instance.placement}",
            launch_id,
        )
        self._changed(rental)
        self.watcher.watch(rental, self._changed, self._endings.absent)
        return rental

    def _changed(self, rental: Rental) -> None:
        self.tell_of(rental, rental.state, rental.instance.why())
        if rental.pool is not None and rental.instance.lacked_capacity:
            self.capacity.had_none(rental.pool, rental.instance.why())
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
            self.tell_of(rental, "trouble", str(error))

    # Ending

    def terminate(self, rental: Rental) -> defer.Deferred[None]:
        """End an instance. It is watched until EC2 has confirmed its end.

        :return: fires when EC2 has accepted the call, which is repeated until then. Cancelling it cancels only the
            waiting.
        """
        return self._endings.end(rental)

    def siblings(self) -> list[Fleet]:
        """The other fleets of this master that have their instances in the same place: with other keys, say."""
        here = (self.region, self.endpoint_url)
        alike = [one for one in fleets(self.master.namedServices) if (one.region, one.endpoint_url) == here]
        return [fleet for fleet in alike if fleet is not self]

    def end_now(self, instance_id: str) -> defer.Deferred[None]:
        """Ask EC2 once to end an instance."""
        return self._endings.ask(instance_id)

    def hand_over(self, rental: Rental, other: Fleet) -> None:
        """Let another fleet watch an instance from now on."""
        self.watcher.forget(rental)
        self.rentals.pop(rental.instance_id, None)
        rental.fleet = other
        other.rentals[rental.instance_id] = rental
        self.hand_over_listener(rental.launch_id, other)
        other.watcher.watch(rental, other._changed, other._endings.absent)

    def gone(self, rental: Rental) -> None:
        """EC2 knows an instance no more, and has said so."""
        rental.seen(None)
        self.watcher.forget(rental)
        self._changed(rental)


def fleets(services: Mapping[str, Any]) -> list[Fleet]:
    """The fleets among the ``namedServices`` of a master."""
    return [service for service in services.values() if isinstance(service, Fleet)]
