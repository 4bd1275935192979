"""Host names to addresses, without the reactor's thread pool, and with a memory."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet import defer
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IHostnameResolver, IHostResolution, IResolutionReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from buildbot_ec2ud.ec2.threads import in_thread

#: Seconds that an answer is used without asking again. The addresses of AWS's endpoints are valid for about as long.
CACHE_TIME = 60
#: Seconds to wait for an answer.
LOOKUP_TIMEOUT = 5
#: Seconds after which a look-up counts as hung: another one may begin beside it.
HUNG_AFTER = 60
#: Seconds that an old answer is used further after a look-up has failed, before the next look-up.
RETRY_TIME = 10

_FAMILIES = {
    frozenset([IPv4Address]): socket.AF_INET,
    frozenset([IPv6Address]): socket.AF_INET6,
    frozenset([IPv4Address, IPv6Address]): socket.AF_UNSPEC,
}
_TYPES = {socket.AF_INET: IPv4Address, socket.AF_INET6: IPv6Address}

#: A name, and the family of the addresses that are looked for.
_Question = tuple[str, int]
#: A type of Twisted's addresses, and a host.
_Address = tuple[type, str]


@dataclass
class _Answer:
    addresses: list[_Address]
    expires: float


@implementer(IHostResolution)
class _Resolution:
    """One who waits for the addresses of *name*."""

    def __init__(self, name: str, waiting: defer.Deferred[list[_Address]]) -> None:
        self.name = name
        self._waiting = waiting

    def cancel(self) -> None:
        self._waiting.cancel()


@implementer(IHostnameResolver)
class Resolver:
    """Asks the system, in a thread for each look-up, and remembers the answers.

    Twisted's own resolver uses the reactor's thread pool. Buildbot fills that one, and then a call to EC2 would wait until
    Buildbot is done. A name server that is out of order for a while is bridged with the last answer that was good.

    :param reactor: the clock, and whose thread the answers are delivered in.
    :param getaddrinfo: looks up, as :func:`socket.getaddrinfo` does; may block.
    """

    def __init__(self, reactor: Any, getaddrinfo: Callable[..., Any] = socket.getaddrinfo) -> None:
        self._reactor = reactor
        self._getaddrinfo = getaddrinfo
        self._answers: dict[_Question, _Answer] = {}
        self._waiting: dict[_Question, list[defer.Deferred[list[_Address]]]] = {}
        self._asked_at: dict[_Question, float] = {}

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """Look for the addresses of *hostName*; none are delivered when there are none within :data:`LOOKUP_TIMEOUT`.

        :param resolutionReceiver: gets the addresses, in the system's order of preference.
        :param hostName: a name, or an IP address.
        :param portNumber: the port for the addresses.
        :param addressTypes: of ``IPv4Address`` and ``IPv6Address``, those that are wanted; None for both.
        :param transportSemantics: ``TCP`` or ``UDP``.
        """
        types = frozenset(addressTypes or (IPv4Address, IPv6Address))
        found = self._find(hostName, types)
        resolution = _Resolution(hostName, found)
        resolutionReceiver.resolutionBegan(resolution)

        def deliver(addresses: list[_Address]) -> None:
            for kind, host in addresses:
                resolutionReceiver.addressResolved(kind(transportSemantics, host, portNumber))
            resolutionReceiver.resolutionComplete()

        # Cancelled, nothing more is delivered; other failures there are none.
        found.addCallbacks(deliver, lambda failure: failure.trap(defer.CancelledError))
        return resolution

    def _find(self, name: str, types: frozenset[type]) -> defer.Deferred[list[_Address]]:
        for is_literal, kind in ((isIPAddress, IPv4Address), (isIPv6Address, IPv6Address)):
            if is_literal(name):
                return defer.succeed([(kind, name)] if kind in types else [])
        question = (name, _FAMILIES[types])
        answer = self._answers.get(question)
        if answer is not None and self._reactor.seconds() < answer.expires:
            return defer.succeed(answer.addresses)
        waiters = self._waiting.setdefault(question, [])
        waiter: defer.Deferred[list[_Address]] = defer.Deferred()
        waiters.append(waiter)
        waiter.addBoth(_leave, waiter, waiters)
        waiter.addTimeout(LOOKUP_TIMEOUT, self._reactor, onTimeoutCancel=lambda *_: self._old(question))
        now = self._reactor.seconds()
        if now >= self._asked_at.get(question, -HUNG_AFTER) + HUNG_AFTER:
            self._asked_at[question] = now
            self._ask(question)
        return waiter

    def _ask(self, question: _Question) -> None:
        name, family = question

        def look_up() -> list[_Address]:
            found = self._getaddrinfo(name, 0, family=family, type=socket.SOCK_STREAM)
            return [(_TYPES[kind], address[0]) for kind, *_, address in found if kind in _TYPES]

        in_thread(self._reactor, look_up).addBoth(self._answered, question)

    def _answered(self, result: list[_Address] | Failure, question: _Question) -> None:
        self._asked_at.pop(question, None)
        if isinstance(result, Failure) or not result:
            result = self._old(question)
        else:
            self._answers[question] = _Answer(result, self._reactor.seconds() + CACHE_TIME)
        for waiter in list(self._waiting.pop(question, [])):
            if not waiter.called:  # else an earlier one has cancelled it
                waiter.callback(result)

    def _old(self, question: _Question) -> list[_Address]:
        """The last answer that was good, to be used a little longer."""
        answer = self._answers.get(question)
        if answer is None:
            return []
        answer.expires = self._reactor.seconds() + RETRY_TIME
        return answer.addresses


def _leave(result: Any, waiter: defer.Deferred[Any], waiters: list[defer.Deferred[Any]]) -> Any:
    """Who was told, or waits no longer, is not told any more."""
    if waiter in waiters:
        waiters.remove(waiter)
    return result
