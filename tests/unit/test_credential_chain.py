"""The AWS credential chain for real: each source is found, refreshed before the end, asked again when refused."""

from __future__ import annotations

from typing import Any

from botocore.credentials import ReadOnlyCredentials
from twisted.internet import defer

from buildbot_ec2ud.ec2 import credentials as module
from buildbot_ec2ud.ec2.errors import NoCredentials
from tests.unit.credential_sources import SECRET, CredentialsTestCase, SourcesTestCase
from tests.unit.files import write

KEYS = ReadOnlyCredentials("AKIDEXAMPLE", f"{SECRET}/key", f"{SECRET}-token")


class FixedTests(CredentialsTestCase):
    """Keys that do not end."""

    def set(self, keys: ReadOnlyCredentials) -> None:
        self.environ.update(
            AWS_ACCESS_KEY_ID=keys.access_key, AWS_SECRET_ACCESS_KEY=keys.secret_key, AWS_SESSION_TOKEN=keys.token
        )

    def write(self, access_key: str) -> None:
        self.environ["AWS_SHARED_CREDENTIALS_FILE"] = write(
            self.home, "keys", f"[farm]\naws_access_key_id = {access_key}\naws_secret_access_key = {SECRET}\n"
        )
        self.environ["AWS_PROFILE"] = "farm"

    def test_explicit(self) -> None:
        """Keys that are given are there at once, without a thread."""
        self.set(KEYS)
        found = self.successResultOf(self.credentials("AKID", "secret").resolve())
        self.assertEqual((found.access_key, found.secret_key, found.token), ("AKID", "secret", None))
        self.assertEqual(self.new_threads(), set())

    def test_explicit_refused(self) -> None:
        """When EC2 refuses keys that are given, there is nothing to look up, and it is said why."""
        self.set(KEYS)
        credentials = self.credentials("AKID", SECRET)
        refused = self.successResultOf(credentials.resolve())
        failure = self.failureResultOf(credentials.renew(refused), NoCredentials).value
        for word in ("AKID", "refuses", "identifier", "secret_identifier"):
            self.assertIn(word, str(failure))
        self.assertNotIn(SECRET, str(failure))
        self.assertEqual(self.new_threads(), set())

    @defer.inlineCallbacks
    def test_environment(self) -> Any:
        """Keys and session token of the environment."""
        self.set(KEYS)
        self.assertEqual((yield self.credentials().resolve()), KEYS)

    @defer.inlineCallbacks
    def test_shared_file(self) -> Any:
        """Keys of a profile in the shared file."""
        self.write("AKIDFILE")
        found = yield self.credentials().resolve()
        self.assertEqual((found.access_key, found.secret_key, found.token), ("AKIDFILE", SECRET, None))

    @defer.inlineCallbacks
    def test_rotated(self) -> Any:
        """When EC2 refuses what the file held, the file is read again; not before."""
        self.write("AKIDOLD")
        credentials = self.credentials()
        old = yield credentials.resolve()
        failure = yield self.assertFailure(credentials.renew(old), NoCredentials)
        for word in ("AKIDOLD", "refuses", "the same"):
            self.assertIn(word, str(failure))
        self.assertNotIn(SECRET, str(failure))
        self.write("AKIDNEW")
        self.assertEqual(self.successResultOf(credentials.resolve()), old)
        new = yield credentials.renew(old)
        self.assertEqual(new.access_key, "AKIDNEW")
        self.assertEqual(self.successResultOf(credentials.resolve()), new)

    @defer.inlineCallbacks
    def test_found_later(self) -> Any:
        """Credentials that come into being later are found by the next call."""
        credentials = self.credentials()
        yield self.assertFailure(credentials.resolve(), NoCredentials)
        self.set(KEYS)
        self.assertEqual((yield credentials.resolve()), KEYS)


class Temporary:
    """What holds for each source of temporary credentials.

    :cvar ending: a lifetime, in seconds, with which a refresh is due in the background.
    """

    ending = 12 * 60.0

    def configure(self) -> None:
        raise NotImplementedError

    def setUp(self) -> None:
        super().setUp()  # type: ignore[misc]
        self.configure()
        self.creds = self.credentials()

    def check(self, found: ReadOnlyCredentials) -> int:
        """Whether key, secret and token belong together; gives the number of the issue."""
        number = int(found.access_key.removeprefix("AKID"))
        self.assertEqual(found[:3], (f"AKID{number}", f"{SECRET}{number}", f"{SECRET}-token{number}"))
        return number

    @defer.inlineCallbacks
    def test_found(self) -> Any:
        """The keys and the token are found, asked for once for all who wait, and kept for those who come later."""
        found = yield defer.gatherResults([self.creds.resolve() for _ in range(3)])
        self.assertEqual([self.check(one) for one in found], [1, 1, 1])
        self.assertEqual(self.check(self.successResultOf(self.creds.resolve())), 1)
        self.assertEqual(self.sources.issued, 1)

    @defer.inlineCallbacks
    def test_refreshed_before_the_end(self) -> Any:
        """Before the end others are fetched, once for all; calls are signed at once with those at hand meanwhile."""
        self.sources.lifetime = self.ending
        first = self.check((yield self.creds.resolve()))
        issued = self.sources.issued
        self.sources.lifetime = 6 * 3600
        self.clock.advance(module.REFRESH_INTERVAL)
        for _ in range(3):
            self.assertEqual(self.check(self.successResultOf(self.creds.resolve())), first)
        yield self.no_thread_left()
        self.assertEqual(self.check(self.successResultOf(self.creds.resolve())), issued + 1)
        self.assertEqual(self.sources.issued, issued + 1)
        self.assertEqual(self.new_threads(), set())

    @defer.inlineCallbacks
    def test_refused(self) -> Any:
        """When EC2 refuses those at hand, the source is asked again, once for all who were refused."""
        refused = yield self.creds.resolve()
        found = yield defer.gatherResults([self.creds.renew(refused) for _ in range(3)])
        self.assertEqual([self.check(one) for one in found], [2, 2, 2])
        self.assertEqual(self.check(self.successResultOf(self.creds.renew(refused))), 2)
        self.assertEqual(self.check(self.successResultOf(self.creds.resolve())), 2)
        self.assertEqual(self.sources.issued, 2)


class AtTheLastMoment(Temporary):
    """What holds for all but the instance's role, whose lifetime botocore stretches."""

    @defer.inlineCallbacks
    def test_at_the_last_moment(self) -> Any:
        """Calls wait for others when those at hand are about to end."""
        self.sources.lifetime = module.LAST_MOMENT - 10
        first = self.check((yield self.creds.resolve()))
        issued = self.sources.issued
        self.sources.lifetime = 6 * 3600
        waiting = [self.creds.resolve() for _ in range(3)]
        for one in waiting:
            self.assertNoResult(one)
        found = yield defer.gatherResults(waiting)
        self.assertEqual([self.check(one) for one in found], [issued + 1] * 3)
        self.assertNotEqual(first, issued + 1)


class AssumeRoleTests(AtTheLastMoment, SourcesTestCase):
    """A profile with a role, assumed with the keys of another profile."""

    configure = SourcesTestCase.assume_role


class WebIdentityTests(AtTheLastMoment, SourcesTestCase):
    """A role, assumed with the token in a file."""

    configure = SourcesTestCase.web_identity


class SSOTests(AtTheLastMoment, SourcesTestCase):
    """A role of the IAM Identity Center."""

    configure = SourcesTestCase.sso


class ContainerTests(AtTheLastMoment, SourcesTestCase):
    """The role of a container."""

    configure = SourcesTestCase.container


class ProcessTests(AtTheLastMoment, SourcesTestCase):
    """A program that prints keys."""

    configure = SourcesTestCase.process


class InstanceRoleTests(Temporary, SourcesTestCase):
    """The role of the master's instance."""

    ending = 3600.0

    def configure(self) -> None:
        self.instance_role()
        # botocore takes no end of an instance's role for nearer than 17 minutes; see InstanceMetadataFetcher.
        self.patch(module, "REFRESH_AHEAD", 2 * 3600)

    @defer.inlineCallbacks
    def test_token(self) -> Any:
        """The metadata service is asked with a token, as IMDSv2 wants it."""
        yield self.creds.resolve()
        role = "/latest/meta-data/iam/security-credentials/"
        self.assertEqual(self.sources.asked, ["PUT /latest/api/token", f"GET {role}", f"GET {role}builder"])
