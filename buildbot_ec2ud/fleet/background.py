"""Work that goes on whoever waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from twisted.internet import defer
from twisted.python import log

#: Seconds between attempts at what must not be given up: the first pause, and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0


def pauses() -> Iterator[float]:
    """Seconds between attempts at what must not be given up, without end."""
    pause = FIRST_PAUSE
    while True:
        yield pause
        pause = min(pause * 2, LONGEST_PAUSE)


class Background:
    """Keeps track of work that nobody need wait for."""

    def __init__(self) -> None:
        self._work: set[defer.Deferred[Any]] = set()

    def run(self, work: defer.Deferred[Any]) -> defer.Deferred[Any]:
        """Go on with *work* whoever waits for it; an error is logged.

        :return: *work*, for :func:`observe`.
        """

        def done(result: Any) -> Any:
            self._work.discard(work)
            return result

        self._work.add(work)
        work.addBoth(done)
        work.addErrback(lambda failure: None if failure.check(defer.CancelledError) else log.err(failure))
        return work

    def __len__(self) -> int:
        return len(self._work)

    def wait(self) -> defer.Deferred[Any]:
        """Fires when all that is under way now has ended. Cancelling it cancels only the waiting."""
        return defer.DeferredList([observe(work) for work in self._work])

    def cancel(self) -> None:
        """Cancel all of it."""
        for work in list(self._work):
            work.cancel()


def observe(source: defer.Deferred[Any]) -> defer.Deferred[Any]:
    """A Deferred that fires as *source* does; cancelling it leaves *source* alone."""
    observer: defer.Deferred[Any] = defer.Deferred()

    def fired(result: Any) -> Any:
        if not observer.called:
            observer.callback(result)
        return result

    source.addBoth(fired)
    return observer
