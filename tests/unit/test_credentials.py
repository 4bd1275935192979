"""The AWS credential chain, without blocking the reactor, and without its thread pool."""

from __future__ import annotations

import os
import threading
from typing import Any

from botocore.credentials import Credentials, ReadOnlyCredentials
from botocore.exceptions import ClientError
from botocore.session import Session
from twisted.internet import defer, reactor
from twisted.trial.unittest import TestCase

from buildbot_ec2ud.ec2.credentials import AWSCredentials
from buildbot_ec2ud.ec2.errors import ErrorClass, NoCredentials
from tests.unit.files import directory, write

KEYS = ReadOnlyCredentials("AKIDEXAMPLE", "secret/key", "session-token")


class Source:
    """Credentials as botocore's own, that expire when they are told to.

    :ivar gate: a look-up waits until it is set.
    """

    def __init__(self) -> None:
        self.expired = False
        self.refreshed_in: list[threading.Thread] = []
        self.gate = threading.Event()
        self.gate.set()

    def refresh_needed(self) -> bool:
        return self.expired

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        if self.expired:
            self.gate.wait(10)
            self.refreshed_in.append(threading.current_thread())
            self.expired = False
        return ReadOnlyCredentials("AKID", "secret", f"token-{len(self.refreshed_in)}")


class CredentialsTestCase(TestCase):
    """Neither the environment nor the files of whoever runs the tests are seen."""

    timeout = 20

    def setUp(self) -> None:
        self.home = directory(self)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        self.patch(os, "environ", {**clean, "HOME": self.home, "AWS_EC2_METADATA_DISABLED": "true"})
        self.patch(reactor, "getThreadPool", lambda: self.fail("this pool is shared with Buildbot"))
        self.threads = set(threading.enumerate())

    def credentials(self, *keys: str) -> AWSCredentials:
        return AWSCredentials(*keys, reactor=reactor)

    def new_threads(self) -> set[threading.Thread]:
        return set(threading.enumerate()) - self.threads


class ChainTests(CredentialsTestCase):
    """Where credentials come from."""

    def test_explicit(self) -> None:
        """Keys that are given are there at once, without a thread."""
        os.environ.update(AWS_ACCESS_KEY_ID="other", AWS_SECRET_ACCESS_KEY="other")
        found = self.successResultOf(self.credentials("AKID", "secret").resolve())
        self.assertEqual((found.access_key, found.secret_key, found.token), ("AKID", "secret", None))
        self.assertEqual(self.new_threads(), set())

    @defer.inlineCallbacks
    def test_environment(self) -> Any:
        """Keys and session token of the environment."""
        os.environ.update(AWS_ACCESS_KEY_ID=KEYS[0], AWS_SECRET_ACCESS_KEY=KEYS[1], AWS_SESSION_TOKEN=KEYS[2])
        self.assertEqual((yield self.credentials().resolve()), KEYS)

    @defer.inlineCallbacks
    def test_shared_file(self) -> Any:
        """Keys of a profile in the shared file."""
        os.environ["AWS_SHARED_CREDENTIALS_FILE"] = write(
            self.home, "keys", "[farm]\naws_access_key_id = AKIDFILE\naws_secret_access_key = filed\n"
        )
        os.environ["AWS_PROFILE"] = "farm"
        found = yield self.credentials().resolve()
        self.assertEqual((found.access_key, found.secret_key, found.token), ("AKIDFILE", "filed", None))

    @defer.inlineCallbacks
    def test_none(self) -> Any:
        """When there are none, it is said where they may come from."""
        failure = yield self.assertFailure(self.credentials().resolve(), NoCredentials)
        for word in ("secret_identifier", "AWS_ACCESS_KEY_ID", "~/.aws", "IAM role"):
            self.assertIn(word, str(failure))
        self.assertIs(failure.error_class, ErrorClass.CREDENTIALS)

    @defer.inlineCallbacks
    def test_found_later(self) -> Any:
        """Credentials that come into being later are found by the next call."""
        credentials = self.credentials()
        yield self.assertFailure(credentials.resolve(), NoCredentials)
        os.environ.update(AWS_ACCESS_KEY_ID=KEYS[0], AWS_SECRET_ACCESS_KEY=KEYS[1], AWS_SESSION_TOKEN=KEYS[2])
        self.assertEqual((yield credentials.resolve()), KEYS)

    @defer.inlineCallbacks
    def test_troubles(self) -> Any:
        """Whatever goes wrong in a source is one line."""
        for trouble, text in (
            ({"AWS_PROFILE": "missing"}, "missing"),
            ({"AWS_ACCESS_KEY_ID": "AKID"}, "AWS_SECRET_ACCESS_KEY"),
            ({"AWS_CONFIG_FILE": write(self.home, "broken", "nonsense\n")}, "broken"),
            (
                {"AWS_CONFIG_FILE": write(self.home, "a", "[default]\ncredential_process = /does/not/exist\n")},
                "/does/not/exist",
            ),
            (
                {
                    "AWS_CONFIG_FILE": write(
                        self.home, "b", "[default]\ncredential_process = sh -c 'ls /no/w /no/x; exit 3'\n"
                    )
                },
                "/no/x",
            ),
        ):
            before = dict(os.environ)
            os.environ.update(trouble)
            failure = yield self.assertFailure(self.credentials().resolve(), NoCredentials)
            self.assertIn("cannot get AWS credentials", str(failure))
            self.assertIn(text, str(failure))
            self.assertEqual(len(str(failure).splitlines()), 1)
            self.patch(os, "environ", before)

    @defer.inlineCallbacks
    def test_refused_by_sts(self) -> Any:
        """A role that may not be assumed is no credentials."""

        def refuse(session: Session) -> Any:
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "not yours"}}, "AssumeRole")

        self.patch(Session, "get_credentials", refuse)
        failure = yield self.assertFailure(self.credentials().resolve(), NoCredentials)
        self.assertIn("not yours", str(failure))


class SharingTests(CredentialsTestCase):
    """Many calls, one look-up."""

    def setUp(self) -> None:
        super().setUp()
        self.source = Source()
        self.lookups: list[threading.Thread] = []
        self.patch(Session, "get_credentials", self.get_credentials)

    def get_credentials(self, *_: Any) -> Source:
        self.lookups.append(threading.current_thread())
        self.source.gate.wait(10)
        return self.source

    @defer.inlineCallbacks
    def test_one_lookup(self) -> Any:
        """Calls that wait at the same time share a look-up, which does not run in the reactor's thread."""
        self.source.gate.clear()
        credentials = self.credentials()
        waiting = [credentials.resolve() for _ in range(3)]
        for one in waiting:
            self.assertNoResult(one)
        self.source.gate.set()
        found = yield defer.gatherResults(waiting)
        self.assertEqual([one.access_key for one in found], ["AKID"] * 3)
        self.assertEqual(len(self.lookups), 1)
        self.assertIsNot(self.lookups[0], threading.current_thread())

    @defer.inlineCallbacks
    def test_found_once(self) -> Any:
        """What was found serves the calls that follow at once."""
        credentials = self.credentials()
        yield credentials.resolve()
        self.assertEqual(self.successResultOf(credentials.resolve()).access_key, "AKID")
        self.assertEqual(len(self.lookups), 1)

    @defer.inlineCallbacks
    def test_cancelled(self) -> Any:
        """Who waits no longer does not disturb the others."""
        self.source.gate.clear()
        credentials = self.credentials()
        first, second, third = (credentials.resolve() for _ in range(3))
        first.cancel()
        third.cancel()
        self.failureResultOf(first, defer.CancelledError)
        self.failureResultOf(third, defer.CancelledError)
        self.source.gate.set()
        self.assertEqual((yield second).access_key, "AKID")

    @defer.inlineCallbacks
    def test_everybody_learns_of_a_failure(self) -> Any:
        """A look-up that fails fails for all who wait; the next call looks again."""
        self.patch(Session, "get_credentials", lambda *_: self.lookups.append(threading.current_thread()))
        credentials = self.credentials()
        waiting = [credentials.resolve() for _ in range(2)]
        for one in waiting:
            yield self.assertFailure(one, NoCredentials)
        self.assertEqual(len(self.lookups), 1)
        yield self.assertFailure(credentials.resolve(), NoCredentials)
        self.assertEqual(len(self.lookups), 2)

    @defer.inlineCallbacks
    def test_refresh(self) -> Any:
        """Credentials that expire are refreshed when the next call needs them, and not in the reactor's thread."""
        credentials = self.credentials()
        self.assertEqual((yield credentials.resolve()).token, "token-0")
        self.source.expired = True
        waiting = [credentials.resolve(), credentials.resolve()]
        found = yield defer.gatherResults(waiting)
        self.assertEqual([one.token for one in found], ["token-1", "token-1"])
        [thread] = self.source.refreshed_in
        self.assertIsNot(thread, threading.current_thread())
        self.assertEqual(self.successResultOf(credentials.resolve()).token, "token-1")
        self.assertEqual(len(self.lookups), 1)

    @defer.inlineCallbacks
    def test_thread(self) -> Any:
        """A source that hangs does not keep the process from ending: its thread is a daemon, and nobody joins it."""
        self.source.gate.clear()
        waiting = self.credentials().resolve()
        [thread] = self.new_threads()
        self.assertTrue(thread.daemon)
        self.source.gate.set()
        yield waiting


class ReprTests(CredentialsTestCase):
    """What is told of credentials."""

    def test_repr(self) -> None:
        """The access key's id, or where credentials come from; never the secret."""
        self.assertIn("AKIDEXAMPLE", repr(self.credentials(*KEYS[:2])))
        self.assertNotIn(KEYS[1], repr(self.credentials(*KEYS[:2])))
        self.assertIn("chain", repr(self.credentials()))

    def test_fixed_keys_need_no_refresh(self) -> None:
        """botocore's fixed credentials do not know of refreshing."""
        self.assertFalse(hasattr(Credentials("a", "b"), "refresh_needed"))
        self.successResultOf(self.credentials("a", "b").resolve())
        self.assertEqual(self.new_threads(), set())
