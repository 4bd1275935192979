"""One call to EC2, attempted again: when, how often, with what, and when not. Time is a Clock's."""

from __future__ import annotations

import email.utils
import itertools
import random
import time
from typing import Any
from urllib.parse import parse_qs, urlencode

from botocore.credentials import ReadOnlyCredentials
from twisted.internet import defer, error, protocol, task
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseDone, ResponseNeverReceived
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent
from zope.interface import implementer

from buildbot_ec2ud.ec2 import query, send
from buildbot_ec2ud.ec2.client import EC2Client
from buildbot_ec2ud.ec2.errors import (
    BadParameters,
    EC2CallError,
    EC2Error,
    ErrorClass,
    NoAnswer,
    NoCredentials,
    NotConnected,
)
from buildbot_ec2ud.ec2.query import FIRST_BACKOFF, LONGEST_BACKOFF, PATIENCE, Attempt, Call, QueryFactory
from buildbot_ec2ud.fleet.pacing import Pacer
from tests.unit import servers
from tests.unit.fleets import logged
from tests.unit.servers import KEYS, NONE, REGION, Given
from tests.unit.test_query import LAUNCH, STARTED

OTHER = ReadOnlyCredentials("AKIDOTHER", "other", "other token")
DONE = Failure(ResponseDone())
CLOSED = ResponseNeverReceived([Failure(error.ConnectionDone())])
HTML = (200, b"<html><body>Please log in</body></html>")


def refused(code: str, status: int = 400, message: str = "Because.", **headers: str) -> tuple[Any, ...]:
    return status, servers.error(code, message), headers


class Response:
    def __init__(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.code = code
        self.headers = Headers({name: [value] for name, value in (headers or {}).items()})
        self._body = body

    def deliverBody(self, receiver: protocol.Protocol) -> None:
        receiver.dataReceived(self._body)
        receiver.connectionLost(DONE)


@implementer(IAgent)
class Agent:
    """Answers one request after the other, the last answer again and again; None is no answer at all.

    :ivar times: when requests came.
    :ivar sent: their headers and parameters.
    """

    def __init__(self, clock: task.Clock, *answers: Any) -> None:
        self._clock = clock
        self._answers = list(answers)
        self.times: list[float] = []
        self.sent: list[tuple[Headers, dict[str, list[str]]]] = []

    def request(self, method: Any, uri: Any, headers: Any = None, bodyProducer: Any = None) -> Any:
        self.times.append(self._clock.seconds())
        self.sent.append((headers, parse_qs(bodyProducer.read().decode())))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if answer is None:
            return defer.Deferred()
        if isinstance(answer, defer.Deferred):
            return answer
        return defer.fail(answer) if isinstance(answer, Exception) else defer.succeed(Response(*answer))


class RetryTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(send, "FileBodyProducer", lambda file: file)  # which needs a real reactor
        self.clock = task.Clock()
        self.answered: list[Attempt] = []
        self.creds = Given()

    def client(self, *answers: Any, **more: Any) -> EC2Client:
        self.agent = Agent(self.clock, *answers)
        factory = QueryFactory(REGION, self.clock, self.agent, answered=self.answered.append, **more)
        factory.jitter = lambda longest: longest  # type: ignore[method-assign]
        return EC2Client(self.creds, "https://ec2.example.org/", factory)

    def describe(self, *answers: Any, **more: Any) -> defer.Deferred[Any]:
        return self.client(*answers, **more).describe_instances()

    def launch(self, *answers: Any, call: Call | None = None, **more: Any) -> defer.Deferred[Any]:
        return self.client(*answers, **more).run_instances(LAUNCH, call)

    def pump(self, seconds: float = 2 * PATIENCE) -> None:
        self.clock.pump([0.25] * int(seconds * 4))

    def fails(self, call: defer.Deferred[Any], kind: type[EC2CallError] = EC2CallError) -> Any:
        self.pump()
        return self.failureResultOf(call, kind).value


class Again(RetryTestCase):
    """Passing trouble."""

    def test_every_trouble(self) -> None:
        """Whatever passes, the call succeeds when it has passed."""
        for trouble in (
            refused("RequestLimitExceeded", 503),
            refused("Unavailable", 503),
            refused("InternalError", 500),
            (502, b"<html>Bad gateway</html>"),
            (500, b""),
            HTML,
            (200, b""),
            (200, NONE[:-10]),
            error.ConnectionRefusedError(),
            error.DNSLookupError(),
            CLOSED,
            ResponseNeverReceived([Failure(error.ConnectionLost())]),
        ):
            self.setUp()
            found = self.describe(trouble, (200, NONE))
            self.pump(FIRST_BACKOFF)
            self.assertEqual((self.successResultOf(found), len(self.agent.times)), ([], 2), trouble)

    def test_pauses(self) -> None:
        """Each pause is twice as long as the one before, up to a limit, for as long as there is patience."""
        failure = self.fails(self.describe(refused("Unavailable", 503)))
        times = self.agent.times
        pauses = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
        self.assertEqual(pauses, [min(FIRST_BACKOFF * 2**n, LONGEST_BACKOFF) for n in range(len(pauses))])
        self.assertEqual(pauses[-1], LONGEST_BACKOFF)
        self.assertLessEqual(times[-1], PATIENCE)
        self.assertGreater(times[-1] + LONGEST_BACKOFF, PATIENCE)
        self.assertEqual(str(failure), f"Unavailable: Because. (tried {len(times)} times in {times[-1]:.0f} s)")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_jitter(self) -> None:
        """A pause is anything up to its limit."""
        asked: list[tuple[float, float]] = []
        self.patch(random, "uniform", lambda *limits: asked.append(limits) or 0.125)
        self.assertEqual(QueryFactory(REGION, self.clock, Agent(self.clock)).jitter(4.0), 0.125)
        self.assertEqual(asked, [(0, 4.0)])

    def test_closed_connection(self) -> None:
        """A connection that was closed while it was idle costs no time; but only once in a call."""
        found = self.describe(CLOSED, (200, NONE))
        self.assertEqual((self.successResultOf(found), self.agent.times), ([], [0.0, 0.0]))
        found = self.describe(CLOSED, CLOSED, CLOSED, (200, NONE))
        self.assertEqual(len(self.agent.times), 2)
        self.pump()
        self.successResultOf(found)
        self.assertEqual(self.agent.times, [0.0, 0.0, FIRST_BACKOFF, 3 * FIRST_BACKOFF])

    def test_silence(self) -> None:
        """An attempt that is not answered ends by its time limit; so does the call."""
        failure = self.fails(self.describe(None, timeout=30.0), NoAnswer)
        self.assertIn("no answer from https://ec2.example.org/ within 30 s (tried ", str(failure))
        self.assertEqual(self.agent.times[:3], [0.0, 31.0, 63.0])
        self.assertLessEqual(self.agent.times[-1], PATIENCE)

    def test_cancel_in_a_pause(self) -> None:
        found = self.describe(refused("Unavailable", 503))
        found.cancel()
        self.failureResultOf(found, defer.CancelledError)
        self.pump()
        self.assertEqual((len(self.agent.times), self.clock.getDelayedCalls()), (1, []))

    def test_same_token_signed_anew(self) -> None:
        """A repeated launch is the same launch; its signature is a new one."""
        launched = self.launch(refused("InternalError", 500), refused("Unavailable", 503), (200, STARTED))
        self.pump()
        self.successResultOf(launched)
        headers, parameters = zip(*self.agent.sent, strict=True)
        self.assertEqual(parameters[0]["ClientToken"], [LAUNCH["ClientToken"]])
        self.assertEqual(parameters, (parameters[0],) * 3)
        self.assertEqual({h.hasHeader("Authorization") for h in headers}, {True})

    def test_patience_begins_with_the_first_attempt(self) -> None:
        """However long the call had to wait for its turn."""
        turns = iter([defer.succeed(None), *(defer.succeed(None) for _ in range(99))])
        first: defer.Deferred[None] = defer.Deferred()
        found = self.describe(
            refused("Unavailable", 503), (200, NONE), admit=lambda *_: first if not first.called else next(turns)
        )
        self.pump(3 * PATIENCE)
        self.assertEqual(self.agent.times, [])
        first.callback(None)
        self.pump(FIRST_BACKOFF)
        self.assertEqual(self.successResultOf(found), [])


class FortyLaunches(RetryTestCase):
    """40 launches in one moment, under the throttle that AWS documents, with all that stands between a fleet and EC2."""

    def test_all(self) -> None:
        """All are made, in 1.15 times what EC2's bucket needs for them, and hardly one is refused."""
        level, filled_at, refusals = 5.0, 0.0, 0

        def answer() -> Response:
            nonlocal level, filled_at, refusals
            now = self.clock.seconds()
            level, filled_at = min(5.0, level + 2.0 * (now - filled_at)), now
            if level < 1:
                refusals += 1
                return Response(*refused("RequestLimitExceeded", 503))
            level -= 1
            return Response(200, STARTED)

        latencies = itertools.cycle([0.3, 0.3, 0.3, 0.3, 0.05, 0.1, 0.2, 0.02])
        self.agent = Agent(self.clock)
        self.agent.request = lambda *_: task.deferLater(self.clock, next(latencies), answer)  # type: ignore[method-assign]
        pacer = Pacer(self.clock, {})
        factory = QueryFactory(REGION, self.clock, self.agent, admit=pacer.admit, answered=pacer.answered)
        client = EC2Client(self.creds, "https://ec2.example.org/", factory)
        done: list[float] = []
        for number in range(40):
            launched = client.run_instances({**LAUNCH, "ClientToken": str(number)}, Call(f"w{number}"))
            launched.addCallback(lambda _: done.append(self.clock.seconds()))
        self.clock.pump([0.01] * 5000)
        self.assertEqual(len(done), 40)
        self.assertLessEqual(done[-1], 1.15 * (40 - 5) / 2)
        self.assertLessEqual(refusals, 5)


class NotAgain(RetryTestCase):
    """What another attempt does not mend."""

    def test_at_once(self) -> None:
        for code, status, kind in (
            ("InsufficientInstanceCapacity", 500, ErrorClass.NO_CAPACITY),
            ("VcpuLimitExceeded", 400, ErrorClass.QUOTA),
            ("InvalidAMIID.NotFound", 400, ErrorClass.CONFIGURATION),
            ("UnauthorizedOperation", 403, ErrorClass.CONFIGURATION),
            ("InvalidInstanceID.NotFound", 400, ErrorClass.NOT_VISIBLE_YET),
            ("InvalidAssociationID.NotFound", 400, ErrorClass.GONE),
            ("IdempotentParameterMismatch", 400, ErrorClass.STALE_TOKEN),
            ("SomethingNew", 400, ErrorClass.UNKNOWN),
        ):
            self.setUp()
            call = self.launch(refused(code, status))
            failure = self.failureResultOf(call, EC2Error).value
            self.assertIs(failure.error_class, kind)
            self.assertEqual((len(self.agent.times), str(failure)), (1, f"{code}: Because."))

    def test_without_a_token(self) -> None:
        """A launch that cannot be told from another one is not repeated when it may have taken effect."""
        bare = {name: value for name, value in LAUNCH.items() if name != "ClientToken"}
        for trouble in (CLOSED, refused("InternalError", 500), HTML):
            failed = self.client(trouble).run_instances(bare)
            self.assertTrue(self.failureResultOf(failed, EC2CallError).value.outcome_unknown)
            self.assertEqual(len(self.agent.times), 1)
        launched = self.client(refused("RequestLimitExceeded", 503), (200, STARTED)).run_instances(bare)
        self.pump()
        self.successResultOf(launched)

    def test_terminate(self) -> None:
        """Ending what is ended changes nothing: that is repeated."""
        ended = self.client(refused("InternalError", 500), (200, b"<TerminateInstancesResponse/>"))
        call = ended.terminate_instances("i-1")
        self.pump()
        self.assertEqual(self.successResultOf(call), [])

    def test_bad_parameters(self) -> None:
        """What EC2's model does not know is not sent."""
        call = self.client((200, STARTED)).run_instances({"ImageIdd": "ami-1", "MinCount": 1})
        failure = self.failureResultOf(call, BadParameters).value
        self.assertIn("ImageIdd", str(failure))
        self.assertIn("MaxCount", str(failure))
        self.assertEqual((len(str(failure).splitlines()), self.agent.times), (1, []))
        self.assertIs(failure.error_class, ErrorClass.CONFIGURATION)
        self.assertFalse(failure.outcome_unknown)


class Exposed(RetryTestCase):
    """Whether a call may have taken effect."""

    def test_earlier_attempt(self) -> None:
        """After one that may have, no later one can tell that the call had none."""
        for last in (refused("RequestLimitExceeded", 503), error.ConnectionRefusedError(), refused("SomethingNew")):
            self.setUp()
            call = Call()
            failure = self.fails(self.launch(CLOSED, last, call=call))
            self.assertTrue(failure.outcome_unknown)
            self.assertTrue(call.exposed)

    def test_none(self) -> None:
        for trouble, kind in (
            (refused("RequestLimitExceeded", 503), EC2Error),
            (error.ConnectionRefusedError(), NotConnected),
        ):
            self.setUp()
            call = Call()
            self.assertFalse(self.fails(self.launch(trouble, call=call), kind).outcome_unknown)
            self.assertFalse(call.exposed)

    def test_as_it_goes(self) -> None:
        """From the moment it is sent; not while it waits for its turn, when it has no body yet; not after a refusal."""
        turn: defer.Deferred[None] = defer.Deferred()
        call = Call("w", 3)
        admitted: list[tuple[Any, ...]] = []
        encoded: list[Any] = []
        self.patch(query, "urlencode", lambda parameters: encoded.append(parameters) or urlencode(parameters))
        self.launch(None, call=call, admit=lambda *about: admitted.append(about) or turn)
        self.assertEqual(admitted, [("RunInstances", "w", 3)])
        self.assertEqual((call.exposed, len(encoded)), (False, 0))
        turn.callback(None)
        self.assertEqual((call.exposed, len(encoded)), (True, 1))
        self.launch(refused("RequestLimitExceeded", 503), call=call)
        self.assertFalse(call.exposed)

    def test_abandoned(self) -> None:
        """A call whose effect nobody wants any more is not attempted again."""
        call = Call()
        answer: defer.Deferred[Any] = defer.Deferred()
        failed = self.launch(answer, call=call)
        self.assertTrue(call.under_way)
        call.abandoned = True
        answer.callback(Response(*refused("Unavailable", 503)))
        self.assertEqual(len(self.agent.times), 1)
        self.failureResultOf(failed, EC2Error)
        self.assertFalse(call.under_way)

    def test_waiting_is_not_under_way(self) -> None:
        """What waits for its turn or for the end of a pause can be cancelled, and nothing goes out any more."""
        for answers, more in (
            ([refused("Unavailable", 503)], {}),
            ([CLOSED, CLOSED, CLOSED], {}),
            ([(200, STARTED)], {"admit": lambda *_: defer.Deferred()}),
        ):
            call = Call()
            failed = self.launch(*answers, call=call, **more)
            sent = len(self.agent.times)
            self.assertFalse(call.under_way)
            failed.cancel()
            self.failureResultOf(failed, defer.CancelledError)
            self.pump()
            self.assertEqual(len(self.agent.times), sent)

    def test_cancelled_while_it_waits_for_its_turn(self) -> None:
        cancelled: list[Any] = []
        failed = self.launch((200, STARTED), admit=lambda *_: defer.Deferred(cancelled.append))
        failed.cancel()
        self.failureResultOf(failed, defer.CancelledError)
        self.assertEqual((len(cancelled), self.agent.times, self.answered), (1, [], []))


class CredentialsRefused(RetryTestCase):
    """EC2 does not take the credentials."""

    def keys(self) -> list[str]:
        return [headers.getRawHeaders("Authorization")[0].split("/")[0].split("=")[1] for headers, _ in self.agent.sent]

    def test_renewed(self) -> None:
        """They are looked up anew, once, and the call is made with those at once."""
        for code, status in (("ExpiredToken", 400), ("RequestExpired", 400), ("AuthFailure", 401)):
            self.setUp()
            self.creds = Given(OTHER)
            found = self.describe(refused(code, status), (200, NONE))
            self.assertEqual(self.successResultOf(found), [])
            self.assertEqual(self.keys(), [KEYS[0], OTHER.access_key])
            self.assertEqual(self.creds.refused, [ReadOnlyCredentials(*KEYS)])

    def test_refused_again(self) -> None:
        """When those are refused as well, that is said; nobody is asked for more."""
        self.creds = Given(OTHER, OTHER)
        failure = self.failureResultOf(self.describe(refused("AuthFailure", 401)), EC2Error).value
        self.assertEqual(str(failure), "AuthFailure: Because. (tried 2 times in 0 s)")
        self.assertEqual(len(self.creds.refused), 1)

    def test_no_others(self) -> None:
        """When there are none, both are said: what EC2 says, and that."""
        call = Call()
        failure = self.failureResultOf(self.launch(refused("AuthFailure", 401), call=call), NoCredentials).value
        self.assertEqual(str(failure), "AuthFailure: Because.; there are no others")
        self.assertFalse(failure.outcome_unknown or call.exposed)

    def test_no_others_after_silence(self) -> None:
        """What an earlier attempt may have done is not forgotten over it."""
        failure = self.fails(self.launch(CLOSED, refused("AuthFailure", 401)), NoCredentials)
        self.assertTrue(failure.outcome_unknown)

    def test_renewal_takes_too_long(self) -> None:
        self.patch(self.creds, "renew", lambda refused: defer.Deferred())
        failure = self.fails(self.describe(refused("AuthFailure", 401)), NoCredentials)
        self.assertIn("AuthFailure: Because.; DescribeInstances: no AWS credentials within 30 s", str(failure))

    def test_none_in_time(self) -> None:
        """Credentials that do not come end the call, not the other way round."""
        self.patch(self.creds, "resolve", defer.Deferred)
        failure = self.fails(self.describe((200, NONE)), NoCredentials)
        self.assertIn("no AWS credentials within 30 s", str(failure))
        self.assertEqual((self.agent.times, self.answered), ([], []))

    def test_credentials_before_the_turn(self) -> None:
        """Calls that wait for the same credentials do not have their turns before those are there."""
        there: defer.Deferred[Any] = defer.Deferred()
        turns: list[Any] = []
        self.patch(self.creds, "resolve", lambda: there if not there.called else defer.succeed(self.creds.now))
        self.describe((200, NONE), admit=lambda *_: turns.append(1) or defer.succeed(None))
        self.assertEqual(turns, [])
        there.callback(self.creds.now)
        self.assertEqual((turns, len(self.agent.times)), ([1], 1))


class ClockTests(RetryTestCase):
    """EC2's clock and this machine's."""

    def date(self, ahead: float) -> str:
        return email.utils.formatdate(time.time() + ahead, usegmt=True)

    def test_named(self) -> None:
        """A refusal that the clocks explain names the clock, and which way it is wrong; other keys would not help."""
        self.creds = Given(OTHER)
        for code, ahead, order in (
            ("AuthFailure", 1200, "behind"),
            ("RequestExpired", 1200, "behind"),
            ("InvalidSecurity.RequestHasExpired", -1200, "ahead of"),
            ("SignatureDoesNotMatch", -1200, "ahead of"),
        ):
            call = self.describe(refused(code, 400, Date=self.date(ahead)))
            failure = self.failureResultOf(call, EC2Error).value
            self.assertIs(failure.error_class, ErrorClass.CLOCK)
            self.assertEqual(str(failure), f"this machine's clock is 20 min {order} EC2's: set it ({code}: Because.)")
        self.assertEqual(self.creds.refused, [])

    def test_not_to_blame(self) -> None:
        """A small difference, none, or nonsense explains nothing; nor does a large one explain another refusal."""
        for code, date in (
            ("AuthFailure", self.date(100)),
            ("AuthFailure", self.date(0)),
            ("AuthFailure", "yesterday"),
            ("AuthFailure", ""),
            ("AuthFailure", "Tue, 24 Nov 2026 00:00:00 +9999999"),
            ("InvalidAMIID.NotFound", self.date(1200)),
        ):
            call = self.describe(refused(code, 400, Date=date))
            self.assertNotIn("clock", str(self.failureResultOf(call, EC2CallError).value))


class Told(RetryTestCase):
    """What others learn of calls."""

    def test_attempts(self) -> None:
        """Each attempt is told: when it was sent, how long it had waited and took, and why it failed."""
        waits = [2.0, 0.0]

        def admit(*_: Any) -> defer.Deferred[None]:
            return task.deferLater(self.clock, waits.pop(0))

        found = self.describe(None, (200, NONE), admit=admit, timeout=3.0)
        self.pump()
        self.successResultOf(found)
        first, second = self.answered
        self.assertEqual(
            (first.action, first.sent_at, first.waited, first.seconds), ("DescribeInstances", 2.0, 2.0, 3.0)
        )
        self.assertIsInstance(first.error, NoAnswer)
        self.assertEqual((second.waited, second.seconds, second.error), (0.0, 0.0, None))

    def test_not_an_answer(self) -> None:
        """What cannot be parsed is told as a failure."""
        self.fails(self.describe(HTML))
        self.assertEqual({type(attempt.error) for attempt in self.answered}, {NoAnswer})

    def test_cancelled(self) -> None:
        """An attempt that was cancelled is told too; it did not succeed."""
        found = self.describe(None)
        found.cancel()
        self.failureResultOf(found, defer.CancelledError)
        (attempt,) = self.answered
        self.assertIsInstance(attempt.error, NoAnswer)
        self.assertTrue(attempt.cancelled)

    def test_mistake_of_the_code(self) -> None:
        """Whatever goes wrong here while EC2 answers, the call did not succeed."""
        client = self.client((200, NONE))
        client.parser.describe_instances_page = lambda _: 1 / 0
        self.failureResultOf(client.describe_instances(), ZeroDivisionError)
        (attempt,) = self.answered
        self.assertEqual((str(attempt.error), attempt.cancelled), ("ZeroDivisionError('division by zero')", False))

    def test_instances(self) -> None:
        """Whoever admits calls learns how many instances each is about."""
        admitted: list[tuple[Any, ...]] = []
        client = self.client(
            (200, b"<TerminateInstancesResponse/>"), admit=lambda *about: admitted.append(about) or defer.succeed(None)
        )
        client.terminate_instances("i-1", "i-2", "i-3")
        self.assertEqual(admitted, [("TerminateInstances", "", 3)])

    def test_authorization_message(self) -> None:
        """The encoded authorization message is in the log, for who may decode it, and nowhere else."""
        texts = logged(self)
        message = "You may not. Encoded authorization failure message: " + "9Zx" * 100
        failure = self.failureResultOf(self.describe(refused("UnauthorizedOperation", 403, message)), EC2Error).value
        self.assertEqual(str(failure), "UnauthorizedOperation: You may not.")
        self.assertEqual(texts, ["EC2 DescribeInstances: encoded authorization failure message: " + "9Zx" * 100])
