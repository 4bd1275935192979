"""Credentials that a worker's arguments bring along: an aws_id file, a boto3 session."""

from __future__ import annotations

import os
from typing import Any

import boto3
from botocore.credentials import Credentials
from twisted.internet import defer, reactor, task
from twisted.trial.unittest import SynchronousTestCase, TestCase

from buildbot_ec2ud.ec2 import aws_id
from buildbot_ec2ud.ec2.credentials import SESSION_TIMEOUT, AWSCredentials, SessionCredentials
from buildbot_ec2ud.ec2.errors import NoCredentials
from tests.unit.files import directory, write

SECRET = "s3cret/of+the=account"


class FileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = directory(self)
        self.patch(os, "environ", {**os.environ, "HOME": self.home})

    def test_read(self) -> None:
        """Two lines; what follows does not matter."""
        for text in (f"AKID\n{SECRET}\n", f"AKID\n{SECRET}", f" AKID \r\n {SECRET} \r\nmore\n"):
            self.assertEqual(aws_id.read(write(self.home, "keys", text)), ("AKID", SECRET))

    def test_home(self) -> None:
        """A path may begin at the home directory."""
        write(self.home, "keys", f"AKID\n{SECRET}\n")
        self.assertEqual(aws_id.read("~/keys"), ("AKID", SECRET))

    def test_default(self) -> None:
        """The usual file is found where it exists."""
        self.assertIsNone(aws_id.default_path())
        os.mkdir(os.path.join(self.home, ".ec2"))
        path = write(os.path.join(self.home, ".ec2"), "aws_id", f"AKID\n{SECRET}\n")
        self.assertEqual(aws_id.default_path(), path)

    def test_mistakes(self) -> None:
        """Each is one line that names the file, and tells nothing of what is in it."""
        binary = os.path.join(self.home, "binary")
        with open(binary, "wb") as file:
            file.write(b"\xff\xfe\n")
        for path, words in (
            (os.path.join(self.home, "missing"), "No such file"),
            (self.home, "directory"),
            (binary, "UnicodeDecodeError"),
            (5, "TypeError"),
            *(
                (write(self.home, f"bad-{number}", text), "first line")
                for number, text in enumerate(("", "AKID\n", f"\n{SECRET}\n", f"{SECRET}\n \n"))
            ),
        ):
            error = self.assertRaises(aws_id.FileError, aws_id.read, path)
            self.assertIn(repr(path), str(error))
            self.assertIn(words, str(error))
            self.assertNotIn(SECRET, str(error))
            self.assertEqual(len(str(error).splitlines()), 1)


class FakeSession:
    """As much of a boto3 session as is asked for."""

    profile_name = "farm"

    def __init__(self, found: Any) -> None:
        self.found = found

    def get_credentials(self) -> Any:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


class SessionTests(TestCase):
    timeout = 20

    def session(self, key: str = "AKID") -> Any:
        return boto3.Session(aws_access_key_id=key, aws_secret_access_key=SECRET, aws_session_token="token")

    @defer.inlineCallbacks
    def test_used(self) -> Any:
        """A session's keys are what calls are signed with."""
        source = yield SessionCredentials.of(self.session(), reactor)
        found = yield AWSCredentials(source=source, reactor=reactor).resolve()
        self.assertEqual((found.access_key, found.secret_key, found.token), ("AKID", SECRET, "token"))

    @defer.inlineCallbacks
    def test_repr(self) -> Any:
        """The same for the same credentials, another one for others; no secret."""
        reprs = []
        for key in ("AKID", "AKID", "OTHER"):
            source = yield SessionCredentials.of(self.session(key), reactor)
            reprs.append(repr(source))
            self.assertIn(repr(source), repr(AWSCredentials(source=source, reactor=reactor)))
        self.assertEqual(reprs[0], reprs[1])
        self.assertNotEqual(reprs[0], reprs[2])
        self.assertNotIn(SECRET, "".join(reprs))

    @defer.inlineCallbacks
    def test_without_credentials(self) -> Any:
        """One that has none, or cannot get them, is told of when they are needed."""
        for found in (None, ValueError("broken")):
            source = yield SessionCredentials.of(FakeSession(found), reactor)
            yield self.assertFailure(AWSCredentials(source=source, reactor=reactor).resolve(), NoCredentials)

    def test_hangs(self) -> None:
        """A reconfig does not wait for one for ever."""
        clock = task.Clock()
        clock.callFromThread = lambda *_: None  # type: ignore[attr-defined]
        making = SessionCredentials.of(FakeSession(Credentials("AKID", SECRET)), clock)
        clock.advance(SESSION_TIMEOUT - 1)
        self.assertNoResult(making)
        clock.advance(1)
        self.assertIsInstance(self.successResultOf(making), SessionCredentials)
