"""Starts that are asked for in one moment take turns, so that the master does other things in between."""

from __future__ import annotations

from typing import Any

from twisted.internet import defer


class Turns:
    """One turn in each iteration of the reactor.

    Making the user-data of a start, signing the call and opening a connection takes some milliseconds, and as long the
    reactor does nothing else: a thousand starts at once would stop the master for seconds.

    :param reactor: whose iterations are meant.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._lock = defer.DeferredLock()

    def wait(self) -> defer.Deferred[None]:
        """Wait for a turn.

        :return: fires when it has come: at once, if this iteration has had none. It may be cancelled.
        """
        return self._lock.acquire().addCallback(self._taken)

    def _taken(self, lock: defer.DeferredLock) -> None:
        self._reactor.callLater(0, lock.release)
