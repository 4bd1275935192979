"""Look-ups of AWS credentials that end when and how a test says so."""

from __future__ import annotations

import datetime
import threading
from typing import Any

from botocore.credentials import Credentials, ReadOnlyCredentials, RefreshableCredentials
from botocore.session import Session
from twisted.internet import defer, reactor, task
from twisted.python import log

from tests.unit.credential_sources import SECRET, CredentialsTestCase


class LookUp:
    """One look-up, that ends when the test says so.

    :ivar thread: which it runs in.
    """

    def __init__(self) -> None:
        self.thread = threading.current_thread()
        self._end = threading.Event()
        self._outcome: Any = None

    def wait(self) -> Any:
        self._end.wait(20)
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    @defer.inlineCallbacks
    def ends(self, outcome: Any) -> Any:
        """With credentials, None or an exception; gives when that has been taken."""
        self._outcome = outcome
        self._end.set()
        while self.thread.is_alive():
            yield task.deferLater(reactor, 0.002)
        yield task.deferLater(reactor, 0)


class LookUpTestCase(CredentialsTestCase):
    """botocore's session finds what the test tells it to; all the rest is as it is, and time is the test's clock.

    :ivar look_ups: each that has begun.
    """

    def setUp(self) -> None:
        super().setUp()
        self.look_ups: list[LookUp] = []
        self.patch(Session, "get_credentials", self.get_credentials)
        self.addCleanup(self.end_all)
        self.creds = self.credentials()
        self.messages: list[str] = []
        log.addObserver(self.observe)
        self.addCleanup(log.removeObserver, self.observe)

    def observe(self, event: dict[str, Any]) -> None:
        self.messages.append(log.textFromEventDict(event) or "")

    def get_credentials(self, *_: Any) -> Any:
        look_up = LookUp()
        self.look_ups.append(look_up)
        return look_up.wait()

    def end_all(self) -> defer.Deferred[Any]:
        return defer.DeferredList([look_up.ends(None) for look_up in self.look_ups if look_up.thread.is_alive()])

    def keys(self, number: int) -> ReadOnlyCredentials:
        return ReadOnlyCredentials(f"AKID{number}", f"{SECRET}{number}", f"{SECRET}-token{number}")

    def fixed(self, number: int) -> Credentials:
        return Credentials(*self.keys(number))

    def temporary(self, number: int, lifetime: float) -> RefreshableCredentials:
        """botocore's own, but by the test's clock; they end *lifetime* seconds from now."""

        def now() -> datetime.datetime:
            return datetime.datetime.fromtimestamp(self.clock.seconds(), datetime.UTC)

        end = now() + datetime.timedelta(seconds=lifetime)
        again = dict(zip(("access_key", "secret_key", "token"), self.keys(number), strict=False), expiry_time=str(end))
        return RefreshableCredentials(*self.keys(number)[:3], end, lambda: again, "test", time_fetcher=now)

    def begun(self, count: int) -> defer.Deferred[Any]:
        """Wait until so many look-ups have begun."""
        return self.until(lambda: len(self.look_ups) >= count)

    @defer.inlineCallbacks
    def have(self, source: Credentials) -> Any:
        """Let the first look-up find *source*."""
        waiting = self.creds.resolve()
        yield self.begun(1)
        yield self.look_ups[0].ends(source)
        return (yield waiting)

    def at_hand(self) -> int:
        """The number of those that a call gets at once."""
        return int(self.successResultOf(self.creds.resolve()).access_key.removeprefix("AKID"))
