"""What has to happen on a new connection before its user may have it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import defer, error, protocol
from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer


class ConnectFailed(error.ConnectError):
    """A connection could not be made: certainly nothing of its user's was sent. The text is one line.

    :param text: why.
    """

    def __init__(self, text: str) -> None:
        super().__init__(string=text)

    def __str__(self) -> str:
        return str(self.args[0])


class Opening(protocol.Protocol):
    """Has a new connection to itself at first, and then hands it over to the protocol of its user.

    A subclass calls :meth:`hand_over`, or else :meth:`give_up`; before one of them, what comes is its own affair
    (:meth:`received`).

    :param factory: builds the protocol of the connection's user.
    :ivar done: fires with that protocol when it has the connection, and fails with :class:`ConnectFailed`. Cancelling it
        closes the connection.
    """

    def __init__(self, factory: IProtocolFactory) -> None:
        self._factory = factory
        self._user: IProtocol | None = None
        self.done: defer.Deferred[IProtocol] = defer.Deferred(lambda _: self.transport.abortConnection())

    def hand_over(self, rest: bytes = b"") -> None:
        """Give the connection to its user.

        :param rest: what has come for it already.
        """
        self._user = self._factory.buildProtocol(self.transport.getPeer())
        self._user.makeConnection(self.transport_for_user())
        self.done.callback(self._user)
        if rest:
            self._user.dataReceived(rest)

    def transport_for_user(self) -> Any:
        """What the protocol of the connection's user writes to."""
        return self.transport

    def give_up(self, reason: ConnectFailed) -> None:
        """Close the connection, and let :attr:`done` fail; but for the first time, nothing happens."""
        if not self.done.called:
            self.done.errback(reason)
            self.transport.abortConnection()

    def received(self, data: bytes) -> None:
        """Take bytes that have come before the connection is handed over."""

    def lost(self, reason: Failure) -> ConnectFailed:
        """Tell why there is nothing to hand over when the connection has been lost."""
        return ConnectFailed(f"the connection was closed: {reason.value}")

    def dataReceived(self, data: bytes) -> None:
        if self._user is not None:
            self._user.dataReceived(data)
        elif not self.done.called:
            self.received(data)

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        if self._user is not None:
            self._user.connectionLost(reason)
        else:
            self.give_up(self.lost(reason))


class _Openings(protocol.ClientFactory):
    noisy = False

    def __init__(self, build: Callable[[], Opening]) -> None:
        self._build = build

    def buildProtocol(self, addr: IAddress | None) -> Opening:
        return self._build()


@implementer(IStreamClientEndpoint)
class OpeningEndpoint:
    """An endpoint whose connections come after an opening. How long that may take is for its user to decide.

    :param endpoint: makes the connections.
    :param opening: makes an :class:`Opening` for the factory of a user.
    """

    def __init__(self, endpoint: IStreamClientEndpoint, opening: Callable[[IProtocolFactory], Opening]) -> None:
        self._endpoint = endpoint
        self._opening = opening

    def connect(self, protocolFactory: IProtocolFactory) -> defer.Deferred[Any]:
        connecting = self._endpoint.connect(_Openings(lambda: self._opening(protocolFactory)))
        return connecting.addCallback(lambda opening: opening.done)
