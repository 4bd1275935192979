"""The AWS credential chain, without blocking the reactor."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from botocore.credentials import Credentials, ReadOnlyCredentials
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from botocore.session import Session
from twisted.internet import defer
from twisted.python import log
from twisted.python.failure import Failure
from txaws.credentials import AWSCredentials as _TxAWSCredentials

from buildbot_ec2ud.ec2.errors import NoCredentials
from buildbot_ec2ud.ec2.threads import THREAD_NAME, in_thread

#: Seconds before the end of temporary credentials from which on others are looked up in the background. botocore's own
#: (its "advisory refresh timeout"); AWS has the next ones of an instance's role 5 minutes before the end. Source: EC2
#: user guide, "Retrieve security credentials from instance metadata".
REFRESH_AHEAD = 15 * 60
#: Seconds from the end of a look-up to the next one in the background: after a failure, and where the source has no
#: later credentials yet.
REFRESH_INTERVAL = 60
#: Seconds before the end of temporary credentials from which on calls wait for others: EC2's clock may be ahead.
LAST_MOMENT = 30
#: Seconds after which a look-up counts as hung: a call may begin another one. Each one that hangs doubles this time, so
#: that a source which never answers holds 10 threads after a day, and one more after each doubling of that.
HUNG_AFTER = 120
#: Seconds that a reconfig waits for the access key of a ``boto3.Session``.
SESSION_TIMEOUT = 10


class AWSCredentials(_TxAWSCredentials):
    """Credentials that are found when a call needs them, by botocore's resolver in a thread of its own.

    Files, the instance's role, SSO and STS all block; the reactor's thread pool is shared with Buildbot, so it is not
    used. All calls that wait share one look-up. Each look-up is a new botocore session, which reads files and asks roles
    again: what one has found does not change any more, and one that hangs holds no lock which the next one needs.

    :param access_key: an AWS access key id; None to search the environment, shared files and the instance's role.
    :param secret_key: the secret that belongs to *access_key*.
    :param source: gives botocore's credentials, or None for none; called in a thread. By default, the AWS credential chain.
    :param reactor: whose thread the results are delivered in, and whose clock tells when to look up again.
    """

    def __init__(
        self,
        access_key: str | None = None,
        secret_key: str | None = None,
        *,
        source: Callable[[], Credentials | None] | None = None,
        reactor: Any,
    ) -> None:
        self.access_key = access_key
        self.secret_key = secret_key
        self._reactor = reactor
        self._source = source or _chain
        self._fixed = Credentials(access_key, secret_key).get_frozen_credentials() if access_key else None
        self._last: _LookUp | None = None  # the newest one of those that found something
        self._running: list[_LookUp] = []  # in the order of their beginning
        self._begun = 0
        self._waiting: list[defer.Deferred[_LookUp]] = []
        self._refused: ReadOnlyCredentials | None = None
        self._refresh_after = 0.0
        self._trouble: str | None = None

    def __repr__(self) -> str:
        origin = "from the AWS credential chain" if self._source is _chain else repr(self._source)
        return f"<{type(self).__name__} {self.access_key or origin}>"

    @property
    def origin(self) -> str:
        """The access key in use and where it was found, in botocore's words; empty while it has not been found."""
        if self._fixed is not None:
            return f"access key {self.access_key}, from the configuration"
        if self._last is None:
            return ""
        return f"access key {self._last.found.access_key}, from {self._last.source.method}"

    def resolve(self) -> defer.Deferred[ReadOnlyCredentials]:
        """Give credentials that are valid now.

        There is no time limit: a caller that waits should have one.

        :return: fires with botocore's frozen credentials: ``access_key``, ``secret_key`` and ``token``.
        :raises NoCredentials: there are none, or their source failed.
        """
        if self._fixed is not None:
            return defer.succeed(self._fixed)
        last = self._last
        if last is None or last.ends_within(LAST_MOMENT):
            return self._next().addCallback(lambda look_up: look_up.found)
        if last.ends_within(REFRESH_AHEAD) and self._reactor.seconds() >= self._refresh_after:
            self._look_up()
        return defer.succeed(last.found)

    @defer.inlineCallbacks
    def renew(self, refused: ReadOnlyCredentials) -> Generator[Any, Any, ReadOnlyCredentials]:
        """Give other credentials than those that EC2 has *refused*: expired, revoked, rotated.

        There is no time limit: a caller that waits should have one.

        :param refused: what :meth:`resolve` gave.
        :return: fires with the others; at once if somebody else's renewal has found them already.
        :raises NoCredentials: there are no others, or their source failed.
        """
        trouble = f"EC2 refuses the AWS credentials {refused.access_key}"
        if self._fixed is not None:
            raise NoCredentials(
                f"{trouble}; they are given as identifier and secret_identifier, so there are no others"
            )
        if self._last is not None and self._last.found != refused:
            return (yield self.resolve())
        self._refused = refused
        while True:
            try:
                look_up = yield self._next()
            except NoCredentials as error:
                raise NoCredentials(f"{trouble}; {error}") from None
            if look_up.found != refused:
                return look_up.found
            if look_up.refused == refused:
                raise NoCredentials(f"{trouble}, and a new look-up finds the same ones")
            # It had begun before the refusal; one that begins after it is under way.

    def _next(self) -> defer.Deferred[_LookUp]:
        """Wait for a look-up."""
        waiter: defer.Deferred[_LookUp] = defer.Deferred(self._waits_no_longer)
        self._waiting.append(waiter)
        self._look_up()
        return waiter

    def _waits_no_longer(self, waiter: defer.Deferred[_LookUp]) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)

    def _look_up(self) -> None:
        """Begin a look-up, unless one is under way that will do."""
        now = self._reactor.seconds()
        will_do = [one for one in self._running if one.newer_than(self._last) and one.refused == self._refused]
        if will_do:
            seconds = now - will_do[-1].begun
            if seconds < HUNG_AFTER * 2 ** (len(self._running) - 1):
                return
            log.msg(f"a look-up of AWS credentials has not ended after {seconds:.0f} s; beginning another one")
        self._begun += 1
        look_up = _LookUp(self._begun, now, self._refused)
        self._running.append(look_up)
        finding = in_thread(self._reactor, functools.partial(_find, self._source))
        finding.addErrback(_in_one_line).addBoth(self._ended, look_up)

    def _ended(self, result: tuple[Credentials, ReadOnlyCredentials] | Failure, look_up: _LookUp) -> None:
        self._running.remove(look_up)
        self._refresh_after = self._reactor.seconds() + REFRESH_INTERVAL
        if not look_up.newer_than(self._last):
            return  # it hung, and another one has found something since
        if isinstance(result, Failure) and any(one.newer_than(look_up) for one in self._running):
            return  # it hung, or what it would find had been refused; those who wait, wait for the other one
        waiting, self._waiting = self._waiting, []
        answer: Any = result
        if not isinstance(result, Failure):
            look_up.source, look_up.found = result
            answer = self._last = look_up
            self._trouble = None
        elif not waiting:
            self._report(result.getErrorMessage())
        for waiter in waiting:
            if not waiter.called:  # else an earlier one has cancelled it
                waiter.callback(answer)

    def _report(self, trouble: str) -> None:
        """Log a failure that nobody waited for, once and not at each look-up."""
        if trouble != self._trouble:
            log.msg(f"AWS credentials are not refreshed, will try again: {trouble}")
        self._trouble = trouble


@dataclass(eq=False)
class _LookUp:
    """One look-up of the whole chain.

    :ivar number: counts up in the order of their beginning.
    :ivar begun: the time, by the reactor's clock.
    :ivar refused: what EC2 was known to refuse at that time.
    """

    number: int
    begun: float
    refused: ReadOnlyCredentials | None = field(repr=False)
    source: Credentials | None = field(default=None, repr=False)
    found: ReadOnlyCredentials | None = field(default=None, repr=False)

    def newer_than(self, other: _LookUp | None) -> bool:
        return other is None or self.number > other.number

    def ends_within(self, seconds: float) -> bool:
        """Whether what was found is no longer valid *seconds* from now. Does not block."""
        refresh_needed = getattr(self.source, "refresh_needed", None)  # only temporary credentials have it
        return refresh_needed is not None and refresh_needed(refresh_in=seconds)


def _chain() -> Credentials | None:
    return Session().get_credentials()


def _find(source: Callable[[], Credentials | None]) -> tuple[Credentials, ReadOnlyCredentials]:
    """Look for credentials; runs in a thread."""
    found = source()
    if found is None:
        raise NoCredentials(
            "no AWS credentials found: set identifier and secret_identifier, AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, a profile in ~/.aws, or give the master's machine an IAM role"
        )
    return found, found.get_frozen_credentials()


class SessionCredentials:
    """Gives the credentials of a ``boto3.Session``: a source for :class:`AWSCredentials`.

    Its ``repr`` is the same for two sessions with the same credentials: each time that it is loaded, a configuration makes
    new sessions.

    :param session: a ``boto3.Session``.
    :param key: the id of its access key.
    """

    def __init__(self, session: Any, key: str) -> None:
        self._session = session
        self._key = key

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of profile {self._session.profile_name!r}, access key {self._key!r}>"

    def __call__(self) -> Credentials | None:
        return self._session.get_credentials()

    @classmethod
    @defer.inlineCallbacks
    def of(cls, session: Any, reactor: Any) -> Generator[Any, Any, SessionCredentials]:
        """Make one of a session, whose access key is looked up in a thread, for :data:`SESSION_TIMEOUT` at the most."""

        def key_of_session() -> str:
            found = session.get_credentials()
            return "" if found is None else found.access_key

        looking = in_thread(reactor, key_of_session).addTimeout(SESSION_TIMEOUT, reactor)
        try:
            key = yield looking
        except Exception as error:  # botocore's, or whatever a source of the session's raises: told when it is needed
            log.msg(f"cannot get the credentials of a boto3 session: {type(error).__name__}")
            key = ""
        return cls(session, key)


def _in_one_line(failure: Failure) -> None:
    """Put botocore's errors, STS's, and whatever a ``credential_process`` or a file can do wrong into one line."""
    error = failure.value
    if isinstance(error, NoCredentials):
        raise error
    text = str(error)
    if isinstance(error, ResponseParserError):
        text = text.partition("\n")[0]  # the answer follows, which may hold keys
    if not isinstance(error, (BotoCoreError, ClientError)):
        text = f"{type(error).__name__}: {text}"  # many a Python error says little without its name
    raise NoCredentials(f"cannot get AWS credentials: {' '.join(text.split())}") from None


class _OneLineIsEnough(logging.Filter):
    """Drops botocore's warnings that a look-up of ours has failed: a traceback each time, and the answer with it."""

    def filter(self, record: logging.LogRecord) -> bool:
        ours = str(record.threadName).startswith(THREAD_NAME)
        return not (ours and record.exc_info and record.levelno >= logging.WARNING)


for _name in ("botocore.credentials", "botocore.tokens"):
    logging.getLogger(_name).addFilter(_OneLineIsEnough())
