"""txAWS's own tests, under the loader."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from twisted.internet import defer
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from tests.txaws_left_out import LEFT_OUT
from tests.txaws_suite import MODULES, PASS, complaints

ROOT = Path(__file__).parents[2]


class SuiteTests(TestCase):
    """All of them, as they were written for Python 2."""

    timeout = 240

    @defer.inlineCallbacks
    def test_all_pass_but_those_left_out(self):
        """Each of txAWS's tests passes or is on the list, and no test on the list passes or does not exist."""
        home = os.path.abspath(self.mktemp())
        os.mkdir(home)
        # Whoever runs the tests may have AWS credentials, and txAWS would find them.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        out, err, code = yield getProcessOutputAndValue(
            sys.executable, ["-m", "tests.txaws_suite"], {**environment, "HOME": home}, str(ROOT)
        )
        self.assertEqual(code, 0, err.decode())
        found = complaints(json.loads(out), LEFT_OUT, MODULES)
        self.assertEqual(found, [], "\n".join(["tests/txaws_left_out.py does not tell the truth:", *found]))

    def test_each_left_out_says_why(self):
        """Nothing is left out without a reason."""
        self.assertEqual([test for test, why in LEFT_OUT.items() if not why.strip()], [])


class ComplaintsTests(TestCase):
    """What makes the comparison with the list fail."""

    def test_as_listed(self):
        """A test not listed passes, a listed one fails or is skipped: nothing to complain of."""
        outcomes = {"m.C.good": PASS, "m.C.bad": "TypeError: no", "m.C.skipped": "skipped: no S3"}
        self.assertEqual(complaints(outcomes, {"m.C.bad": "why", "m.C.skipped": "why"}, {"m": 3}), [])

    def test_listed_passes(self):
        """A listed test that passes is named."""
        self.assertEqual(
            complaints({"m.C.good": PASS}, {"m.C.good": "why"}, {"m": 1}), ["m.C.good passes: take it off the list"]
        )

    def test_unlisted_fails(self):
        """A test that fails or is skipped, and is not listed, is named with what went wrong."""
        self.assertEqual(
            complaints({"m.C.bad": "TypeError: no", "m.C.skipped": "skipped: no S3"}, {}, {"m": 2}),
            [
                "m.C.bad does not pass and is not on the list: TypeError: no",
                "m.C.skipped does not pass and is not on the list: skipped: no S3",
            ],
        )

    def test_listed_does_not_exist(self):
        """A listed test that was not run is named."""
        self.assertEqual(
            complaints({"m.C.good": PASS}, {"m.C.goood": "why"}, {"m": 1}),
            ["m.C.goood is on the list and was not run: is there such a test?"],
        )

    def test_too_few(self):
        """A module with fewer tests than it should have is named, and tests of others do not make up for it."""
        outcomes = {"m.C.one": PASS, "more.C.one": PASS, "more.C.two": PASS}
        self.assertEqual(
            complaints(outcomes, {}, {"m": 2, "more": 2, "none": 1}),
            ["m: 1 tests ran, and there are at least 2", "none: 0 tests ran, and there are at least 1"],
        )
