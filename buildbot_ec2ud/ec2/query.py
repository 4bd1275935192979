"""One call to EC2: wait for its turn, send it, and send it again where that helps."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from botocore.credentials import ReadOnlyCredentials
from twisted.internet import defer, task
from twisted.web.iweb import IAgent
from txaws.client.base import BaseQuery

from buildbot_ec2ud.ec2.errors import EC2CallError, EC2Error, ErrorClass, NoAnswer, NoCredentials
from buildbot_ec2ud.ec2.send import ConnectionClosed, Sender
from buildbot_ec2ud.ec2.shapes import api_version

#: Seconds for one attempt, the body of the answer included.
CALL_TIMEOUT = 30.0
#: Seconds after its first attempt in which a call is attempted again.
PATIENCE = 120.0
#: A pause between attempts is anything between 0 and this many seconds, the first time ...
FIRST_BACKOFF = 1.0
#: ... twice as many each further time, up to this many.
LONGEST_BACKOFF = 20.0

_AGAIN = (ErrorClass.THROTTLED, ErrorClass.SERVER_FAULT, ErrorClass.UNREACHABLE)

#: Actions that change something and yet can be repeated without a ClientToken.
_REPEATABLE = (
    "AssociateAddress",
    "CreateTags",
    "DisassociateAddress",
    "ModifyInstanceAttribute",
    "TerminateInstances",
)


class Call:
    """A call as whoever makes it sees it.

    :param caller: whom the call is for; calls of different callers take turns.
    :param instances: how many instances it is about.
    :ivar under_way: whether an attempt is under way at this moment.
    :ivar exposed: whether the call may have taken effect, as far as is known now.
    :ivar abandoned: set it when nobody wants the call's effect any more: an attempt that is under way is the last one then.
        One that waits is to be cancelled.
    """

    def __init__(self, caller: str = "", instances: int = 1) -> None:
        self.caller = caller
        self.instances = instances
        self.under_way = False
        self.exposed = False
        self.abandoned = False


@dataclass(frozen=True)
class Attempt:
    """What came of one attempt at a call.

    :ivar action: EC2's name of the call.
    :ivar sent_at: when it was sent, in seconds of the reactor's clock.
    :ivar waited: seconds that it waited for its turn before that.
    :ivar seconds: seconds that it took.
    :ivar error: why it failed, or None.
    :ivar cancelled: whether it failed because nobody waits for it any more.
    """

    action: str
    sent_at: float
    waited: float
    seconds: float
    error: EC2CallError | None
    cancelled: bool = False


class Query(BaseQuery):
    """A call to EC2, signed with Signature Version 4.

    Takes the place of txAWS's ``Query``; the client makes one by calling a :class:`QueryFactory`.

    :ivar call: how whoever makes the call sees it.
    :ivar parse: what is made of the body of an answer, or a Deferred of it; an answer that it refuses with an
        ``EC2CallError`` is none.
    """

    def __init__(
        self, factory: QueryFactory, action: str, creds: Any, endpoint: Any, other_params: Mapping[str, str] | None
    ) -> None:
        super().__init__(action=action, creds=creds, endpoint=endpoint, reactor=factory.reactor)
        self.call = Call()
        self.parse: Callable[[bytes], Any] = bytes
        self.params = {"Action": action, "Version": api_version(), **(other_params or {})}
        self._factory = factory
        self._repeatable = (
            action.startswith(("Describe", "Get")) or action in _REPEATABLE or "ClientToken" in self.params
        )
        self._used: ReadOnlyCredentials | None = None
        self._renewed = self._reconnected = self._after_unknown = False
        self._first_sent: float | None = None
        self._attempts = self._pauses = 0

    @defer.inlineCallbacks
    def submit(self) -> Generator[Any, Any, Any]:
        """Make the call; attempt it again, for :data:`PATIENCE` seconds, where that may help.

        A repeated call is the same call, with the same ClientToken, signed anew. Cancelling it leaves open whether it has
        taken effect: ``call.exposed`` tells whether it may have.

        :return: fires with what ``parse`` makes of the answer; without one, with its body.
        :raises EC2Error: EC2 refused.
        :raises NotConnected: the endpoint could not be reached.
        :raises NoAnswer: no usable answer came in time.
        :raises NoCredentials: there are no credentials to sign with, or EC2 refuses them.
        """
        while True:
            try:
                return (yield self._attempt())
            except EC2CallError as error:
                pause = yield self._again(error)
            if pause:
                yield task.deferLater(self.reactor, pause)

    @defer.inlineCallbacks
    def _attempt(self) -> Generator[Any, Any, Any]:
        """Make the call once, and tell the factory what came of it."""
        # Before the turn, so that calls which have waited for the same credentials do not go out together after it; and
        # again after it, because turns can be long in coming.
        yield self._in_time(self.creds.resolve())
        asked = self.reactor.seconds()
        yield self._factory.admit(self.action, self.call.caller, self.call.instances)
        waited = self.reactor.seconds() - asked
        self._used = yield self._in_time(self.creds.resolve())
        # Not before its turn: of user-data it is long, and many may wait.
        body = urlencode(self.params).encode("ascii")
        sent_at = self.reactor.seconds()
        if self._first_sent is None:
            self._first_sent = sent_at
        self._attempts += 1
        self.call.exposed = self.call.under_way = True
        error: EC2CallError | None = None
        cancelled = False
        try:
            answer = yield self._factory.sender.send(self.action, self.endpoint.get_uri(), body, self._used)
            return (yield self.parse(answer))
        except EC2CallError as caught:
            error = caught
            raise
        except BaseException as caught:
            error, cancelled = NoAnswer(repr(caught)), isinstance(caught, defer.CancelledError)
            raise
        finally:
            self.call.under_way = False
            seconds = self.reactor.seconds() - sent_at
            self._factory.answered(Attempt(self.action, sent_at, waited, seconds, error, cancelled))

    def _in_time(self, found: defer.Deferred[ReadOnlyCredentials]) -> defer.Deferred[ReadOnlyCredentials]:
        def too_late(result: Any, seconds: float) -> None:
            raise NoCredentials(f"{self.action}: no AWS credentials within {seconds:g} s")

        return found.addTimeout(self._factory.timeout, self.reactor, too_late)

    @defer.inlineCallbacks
    def _again(self, error: EC2CallError) -> Generator[Any, Any, float]:
        """Decide whether to attempt the call again after *error*, and prepare for it.

        :return: fires with the seconds to wait before that.
        :raises EC2CallError: why not.
        """
        error.after_unknown = self._after_unknown
        self._after_unknown = self.call.exposed = error.outcome_unknown
        seconds = 0.0 if self._first_sent is None else self.reactor.seconds() - self._first_sent
        if self._attempts > 1:
            error.history = f" (tried {self._attempts} times in {seconds:.0f} s)"
        if self.call.abandoned:
            raise error
        if isinstance(error, EC2Error) and error.error_class is ErrorClass.CREDENTIALS and not self._renewed:
            self._renewed = True
            yield self._renew(error)
            return 0.0
        if error.error_class not in _AGAIN or (error.outcome_unknown and not self._repeatable):
            raise error
        if isinstance(error, ConnectionClosed) and not self._reconnected:
            # A server closes connections that were idle when it likes; Twisted's pool cannot know.
            self._reconnected = True
            return 0.0
        pause = self._factory.jitter(min(FIRST_BACKOFF * 2**self._pauses, LONGEST_BACKOFF))
        self._pauses += 1
        if seconds + pause > self._factory.patience:
            raise error
        return pause

    @defer.inlineCallbacks
    def _renew(self, refused: EC2CallError) -> Generator[Any, Any, None]:
        """EC2 has refused the credentials: look for others.

        :raises NoCredentials: there are none.
        """
        try:
            yield self._in_time(self.creds.renew(self._used))
        except NoCredentials as error:
            nothing = NoCredentials(f"{refused}; {error}")
            nothing.after_unknown = refused.outcome_unknown
            raise nothing from None


def _at_once(action: str, caller: str, instances: int) -> defer.Deferred[None]:
    return defer.succeed(None)


class QueryFactory:
    """Makes the queries of one client; what txAWS calls a ``query_factory``.

    :param region: name of the region to sign for.
    :param reactor: the clock of all time limits.
    :param agent: what sends the requests.
    :param timeout: seconds for one attempt at a call; by default :data:`CALL_TIMEOUT`.
    :param patience: seconds in which a call is attempted again; by default :data:`PATIENCE`.
    :param admit: called before each attempt with the action, the caller and the number of instances; the attempt is made
        when the Deferred that it returns has fired. It may be cancelled.
    :param answered: called with what came of each attempt.
    """

    def __init__(
        self,
        region: str,
        reactor: Any,
        agent: IAgent,
        *,
        timeout: float | None = None,
        patience: float | None = None,
        admit: Callable[[str, str, int], defer.Deferred[None]] = _at_once,
        answered: Callable[[Attempt], Any] = lambda attempt: None,
    ) -> None:
        self.reactor = reactor
        self.timeout = CALL_TIMEOUT if timeout is None else timeout
        self.patience = PATIENCE if patience is None else patience
        self.admit = admit
        self.answered = answered
        self.sender = Sender(region, reactor, agent, self.timeout)

    def __call__(self, action: str, creds: Any, endpoint: Any, other_params: Mapping[str, str] | None = None) -> Query:
        return Query(self, action, creds, endpoint, other_params)

    def jitter(self, longest: float) -> float:
        """A pause of up to *longest* seconds, so that those who failed together do not come back together."""
        return random.uniform(0, longest)
