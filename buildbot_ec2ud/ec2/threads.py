"""A thread for what can only block."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet import defer
from twisted.python.failure import Failure

_T = TypeVar("_T")

#: How the names of these threads begin.
THREAD_NAME = "buildbot-ec2ud"


def in_thread(reactor: Any, function: Callable[[], _T]) -> defer.Deferred[_T]:
    """Call *function* in a thread of its own.

    Not in the reactor's pool: that one is shared with Buildbot, and is full when it is needed most. And not in a pool at
    all: one waits for its threads when it stops, for ever if need be.

    :param reactor: whose thread the result is delivered in.
    :param function: what blocks; the thread is named after it.
    :return: fires in the reactor's thread. Cancelling it cancels only the waiting.
    :raises RuntimeError: the operating system has no more threads.
    """
    result: defer.Deferred[_T] = defer.Deferred()

    def done(value: Any) -> None:
        if not result.called:
            result.callback(value)

    def run() -> None:
        try:
            value: Any = function()
        except BaseException:
            value = Failure()
        reactor.callFromThread(done, value)

    try:
        threading.Thread(
            target=run, name=f"{THREAD_NAME} {getattr(function, '__name__', function)}", daemon=True
        ).start()
    except RuntimeError:
        result.errback(Failure())
    return result
