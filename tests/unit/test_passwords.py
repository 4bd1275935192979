"""The password of a start."""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.passwords import new_password


class PasswordTests(SynchronousTestCase):
    """What is told to an instance."""

    def test_different(self) -> None:
        """No two starts have the same, nor one that resembles another."""
        passwords = {new_password() for _ in range(1000)}
        self.assertEqual(len(passwords), 1000)
        self.assertEqual(len({password[:8] for password in passwords}), 1000)
        self.assertEqual(len({password[-8:] for password in passwords}), 1000)

    def test_characters(self) -> None:
        """Only characters that mean nothing to a shell, to sed or to a tac file; and enough of them."""
        seen = set()
        for _ in range(200):
            password = new_password()
            self.assertTrue(re.fullmatch(r"[A-Za-z0-9_-]{32}", password), password)
            seen.update(password)
        self.assertEqual(len(seen), 64)
