"""The AWS credential chain for real: sources that fail, refuse, talk nonsense, or say nothing at all."""

from __future__ import annotations

from typing import Any

from twisted.internet import defer
from twisted.python import log

from buildbot_ec2ud.ec2.credentials import HUNG_AFTER, REFRESH_INTERVAL
from buildbot_ec2ud.ec2.errors import ErrorClass, NoCredentials
from tests.unit.credential_sources import DENIED, SECRET, CredentialsTestCase, SourcesTestCase
from tests.unit.files import write


class TroubleTests(CredentialsTestCase):
    """What is wrong on this machine."""

    @defer.inlineCallbacks
    def fails(self, text: str, **environ: str) -> Any:
        before = dict(self.environ)
        self.environ.update(environ)
        failure = yield self.assertFailure(self.credentials().resolve(), NoCredentials)
        self.assertIn("cannot get AWS credentials", str(failure))
        self.assertIn(text, str(failure))
        self.assertNotIn(SECRET, str(failure))
        self.assertEqual(len(str(failure).splitlines()), 1)
        self.environ.clear()
        self.environ.update(before)

    @defer.inlineCallbacks
    def test_none(self) -> Any:
        """When there are none, it is said where they may come from."""
        failure = yield self.assertFailure(self.credentials().resolve(), NoCredentials)
        for word in ("secret_identifier", "AWS_ACCESS_KEY_ID", "~/.aws", "IAM role"):
            self.assertIn(word, str(failure))
        self.assertIs(failure.error_class, ErrorClass.CREDENTIALS)

    @defer.inlineCallbacks
    def test_settings(self) -> Any:
        """A profile that is missing, half a pair of keys, and a file that is none, are told as such."""
        yield self.fails("missing", AWS_PROFILE="missing")
        yield self.fails("AWS_SECRET_ACCESS_KEY", AWS_ACCESS_KEY_ID="AKID")
        yield self.fails("broken", AWS_CONFIG_FILE=write(self.home, "broken", f"nonsense {SECRET}\n"))

    @defer.inlineCallbacks
    def test_process(self) -> Any:
        """So is whatever is wrong with a program that should print keys; what it has printed is not told."""
        for command, text in (
            ("/does/not/exist", "/does/not/exist"),
            ("sh -c 'ls /no/w /no/x; exit 3'", "/no/x"),
            ("echo", "JSONDecodeError"),
            (f"echo {SECRET}", "JSONDecodeError"),
            ("echo {}", "version"),
            ("""echo '{"Version": 1, "AccessKeyId": "AKID"}'""", "SecretAccessKey"),
        ):
            config = write(self.home, "config", f"[default]\ncredential_process = {command}\n")
            yield self.fails(text, AWS_CONFIG_FILE=config)


class BadServerTests(SourcesTestCase):
    """A server that gives something else than credentials."""

    @defer.inlineCallbacks
    def fails(self, *texts: str) -> Any:
        creds = self.credentials()
        failure = yield self.assertFailure(creds.resolve(), NoCredentials)
        for text in ("AWS credentials", *texts):
            self.assertIn(text, str(failure))
        self.assertEqual(len(str(failure).splitlines()), 1)
        for text in (str(failure), repr(failure), repr(creds), "".join(self.logged)):
            self.assertNotIn(SECRET, text)
        self.assertNotIn("Traceback", "".join(self.logged))
        # Once it is well again, the next call finds them.
        self.sources.answer = None
        found = yield creds.resolve()
        self.assertIn(SECRET, found.secret_key)

    @defer.inlineCallbacks
    def test_assume_role(self) -> Any:
        """STS refuses, is out of order, or its answer is cut off."""
        self.assume_role()
        for answer, *texts in (
            (DENIED, "AccessDenied", "AssumeRole", "builder is not yours"),
            ((500, b""), "500", "AssumeRole"),
            ((200, b"<html>\nPlease log in"), "Unable to parse"),
            (lambda body: body[:-40], "Unable to parse"),
        ):
            self.sources.answer = answer
            yield self.fails(*texts)

    @defer.inlineCallbacks
    def test_web_identity(self) -> Any:
        """The same with a token from a file; and the file may be missing."""
        self.web_identity()
        self.sources.answer = DENIED
        yield self.fails("AccessDenied", "AssumeRoleWithWebIdentity", "builder is not yours")
        self.environ["AWS_WEB_IDENTITY_TOKEN_FILE"] += ".gone"
        failure = yield self.assertFailure(self.credentials().resolve(), NoCredentials)
        self.assertIn("token.gone", str(failure))

    @defer.inlineCallbacks
    def test_sso(self) -> Any:
        """When the token is no longer accepted, it is said what to do."""
        self.sso()
        for answer, *texts in (
            ((401, b'{"__type": "UnauthorizedException", "message": "Session token not found"}'), "aws sso login"),
            ((500, b""), "500", "GetRoleCredentials"),
            ((200, b"<html>\nPlease log in"), "KeyError", "roleCredentials"),
            ((200, b"{}"), "KeyError", "roleCredentials"),
        ):
            self.sources.answer = answer
            yield self.fails(*texts)

    @defer.inlineCallbacks
    def test_sso_expired(self) -> Any:
        """When the token has expired, it is said what to do, and SSO is not asked."""
        self.sso(token_lifetime=-60)
        failure = yield self.assertFailure(self.credentials().resolve(), NoCredentials)
        self.assertIn("aws sso login", str(failure))
        self.assertEqual(self.sources.asked, [])

    @defer.inlineCallbacks
    def test_container(self) -> Any:
        """The metadata service of a container is out of order, or talks nonsense."""
        self.container()
        for answer, *texts in (
            ((500, b"out of\norder"), "500", "out of order"),
            ((200, b"<html>\n"), "Unable to parse JSON"),
            (lambda body: body[:-40], "Unable to parse JSON"),
            ((200, b"{}"), "KeyError", "AccessKeyId"),
            ((200, b"[]"), "TypeError"),
            (lambda body: body.replace(b'"Expiration": "2', b'"Expiration": "soon'), "soon"),
        ):
            self.sources.answer = answer
            yield self.fails(*texts)

    @defer.inlineCallbacks
    def test_instance_role(self) -> Any:
        """An instance without a role, or whose metadata service is out of order, has no credentials."""
        self.instance_role()
        for answer in (
            (404, b""),
            (500, b""),
            (200, b"<html>\n"),
            (200, b'{"Code": "AssumeRoleUnauthorizedAccess", "Message": "EC2 cannot assume the role"}'),
            lambda body: body.replace(b'"Token"', b'"token"'),
        ):
            self.sources.answer = answer
            yield self.fails("no AWS credentials found")

    @defer.inlineCallbacks
    def test_expired_ones(self) -> Any:
        """A source that gives out what has ended already has none; so has one whose program fails."""
        self.process()
        self.sources.lifetime = -60
        failure = yield self.assertFailure(self.credentials().resolve(), NoCredentials)
        self.assertIn("still expired", str(failure))
        self.sources.lifetime = 3600
        self.sources.answer = (500, b"")
        yield self.fails("HTTP Error 500")


class RefreshTests(SourcesTestCase):
    """The source fails when those at hand are to be refreshed."""

    def setUp(self) -> None:
        super().setUp()
        self.messages: list[str] = []
        log.addObserver(self.observe)
        self.addCleanup(log.removeObserver, self.observe)

    def observe(self, event: dict[str, Any]) -> None:
        text = log.textFromEventDict(event) or ""
        if "AWS credentials" in text:
            self.messages.append(text)

    @defer.inlineCallbacks
    def have_credentials(self) -> Any:
        """Credentials that are to be refreshed, and a source that will give a reason to think about that."""
        self.sources.lifetime = 12 * 60
        self.creds = self.credentials()
        self.at_hand = yield self.creds.resolve()
        self.sources.asked.clear()
        self.clock.advance(REFRESH_INTERVAL)

    def call(self) -> None:
        """What a call does: the credentials at hand are there at once."""
        self.assertEqual(self.successResultOf(self.creds.resolve()), self.at_hand)

    @defer.inlineCallbacks
    def test_failure(self) -> Any:
        """A refresh that fails is logged once, and tried again after a while, not at each call."""
        self.assume_role()
        yield self.have_credentials()
        self.sources.answer = DENIED
        for attempts in (1, 2, 3):
            for _ in range(2):
                self.call()
                yield self.no_thread_left()
            self.assertEqual(len(self.sources.asked), attempts)
            self.clock.advance(REFRESH_INTERVAL - 1)
            self.call()
            self.assertEqual(self.new_threads(), set())
            self.clock.advance(1)
        [message] = self.messages
        self.assertIn("builder is not yours", message)
        self.sources.answer = (500, b"")
        self.call()
        yield self.no_thread_left()
        self.assertEqual(len(self.messages), 2)
        self.assertIn("500", self.messages[1])
        for text in (*self.messages, *self.logged):
            self.assertNotIn(SECRET, text)
            self.assertNotIn("Traceback", text)

    @defer.inlineCallbacks
    def test_failure_after_success(self) -> Any:
        """A trouble that has come back is logged again."""
        self.assume_role()
        yield self.have_credentials()
        for answer in (DENIED, None, DENIED):
            self.sources.answer = answer
            self.creds.resolve()
            yield self.no_thread_left()
            self.clock.advance(REFRESH_INTERVAL)
        self.assertEqual(len(self.messages), 2)

    @defer.inlineCallbacks
    def test_no_later_ones_yet(self) -> Any:
        """A source that gives out what it has given already is not asked at each call."""
        self.assume_role()
        yield self.have_credentials()
        self.creds.resolve()
        yield self.no_thread_left()
        for _ in range(3):
            self.creds.resolve()
            self.assertEqual(self.new_threads(), set())
        self.assertEqual(len(self.sources.asked), 1)
        self.assertEqual(self.messages, [])

    @defer.inlineCallbacks
    def test_silence(self) -> Any:
        """A source that never answers keeps no call waiting, and holds one thread, however many calls there are."""
        self.assume_role()
        yield self.have_credentials()
        self.sources.hanging = []
        for _ in range(3):
            self.call()
            self.clock.advance((HUNG_AFTER - 1) / 3)
        yield self.until(lambda: self.sources.hanging)
        self.assertEqual(len(self.new_threads()), 1)
        self.sources.release()
        yield self.no_thread_left()
        [message] = self.messages
        self.assertIn(self.url, message)
        self.call()

    @defer.inlineCallbacks
    def test_silence_and_others(self) -> Any:
        """When a look-up hangs, another one is begun in the end; when the first one fails late, nobody cares."""
        self.container()
        yield self.have_credentials()
        self.sources.hanging = []
        self.call()
        yield self.until(lambda: self.sources.hanging)
        held, self.sources.hanging = self.sources.hanging, None
        self.sources.lifetime = 6 * 3600
        self.clock.advance(HUNG_AFTER)
        self.call()
        yield self.until(lambda: len(self.new_threads()) == 1)
        yield self.until(lambda: self.successResultOf(self.creds.resolve()) != self.at_hand)
        found = self.successResultOf(self.creds.resolve())
        self.sources.answer = (500, b"")
        held[0].loseConnection()
        yield self.no_thread_left()
        self.assertEqual(self.successResultOf(self.creds.resolve()), found)
        [message] = self.messages
        self.assertIn(f"after {HUNG_AFTER} s", message)

    @defer.inlineCallbacks
    def test_nothing_at_hand(self) -> Any:
        """Without any at hand calls wait, for as long as they like; when the source answers, the others have theirs."""
        self.instance_role()
        self.environ["AWS_METADATA_SERVICE_TIMEOUT"] = "20"
        self.sources.hanging = []
        creds = self.credentials()
        impatient, patient = creds.resolve(), creds.resolve()
        yield self.until(lambda: self.sources.hanging)
        impatient.cancel()
        self.failureResultOf(impatient, defer.CancelledError)
        self.assertNoResult(patient)
        held, self.sources.hanging = self.sources.hanging, None
        held[0].write(b"builder")
        held[0].finish()
        self.assertIn(SECRET, (yield patient).secret_key)
