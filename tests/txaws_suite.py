"""Runs txAWS's own tests, out of the installed package and under the loader: ``python -m tests.txaws_suite``.

Prints one JSON object: for each test, by its id, either ``"pass"`` or the last line of what came instead. It is a
program because tests that return a Deferred want to run the reactor themselves.
"""

from __future__ import annotations

import faulthandler
import importlib.abc
import importlib.machinery
import json
import os
import re
import signal
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.trial import reporter, runner

from buildbot_ec2ud.ec2 import _txaws

#: txAWS's tests of what the project uses, and how many there are at least.
MODULES = {
    "txaws.ec2.tests.test_client": 100,
    "txaws.ec2.tests.test_model": 3,
    "txaws.ec2.tests.test_exception": 13,
    "txaws.tests.test_credentials": 11,
    "txaws.tests.test_exception": 17,
    "txaws.tests.test_service": 29,
}
PASS = "pass"
#: Seconds after which the program ends, whatever it is doing.
LIMIT = 50

# As in ``datetime(2008, 05, 07)``; nothing else in these modules looks like that.
_OLD_OCTAL = re.compile(rb"(?<=, )0(?=[0-7]+[,)])")


class OctalLoader(_txaws.Loader):
    """Loads a module whose octal numbers lack the ``o``."""

    def get_code(self, fullname: str) -> types.CodeType:
        # The inherited method would leave the changed code in the installed package's cache.
        return self.source_to_code(_OLD_OCTAL.sub(b"0o", self.get_data(self.path)), self.path)


class SuiteFinder(importlib.abc.MetaPathFinder):
    """Finds the modules of tests. What they test is left to the project's own finder."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "txaws.s3":
            # The tests of the service put up with a missing S3 client, but not with one that does not parse.
            raise ModuleNotFoundError("txaws.s3.client does not parse on Python 3", name=fullname)
        if fullname not in MODULES:
            return None
        spec = _txaws.Finder().find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, _txaws.Loader):
            spec.loader = OctalLoader(spec.loader.name, spec.loader.path)
        return spec


class Outcomes(reporter.TestResult):
    """Keeps the ids of the tests that passed, which trial merely counts."""

    def __init__(self, *args: Any) -> None:
        super().__init__()
        self.passed: list[str] = []

    def addSuccess(self, test: Any) -> None:
        super().addSuccess(test)
        self.passed.append(test.id())

    def by_id(self) -> dict[str, str]:
        outcomes = dict.fromkeys(self.passed, PASS)
        for test, reason in self.skips:
            outcomes[test.id()] = f"skipped: {reason}"
        for test, failure in self.errors + self.failures:
            text = f"{failure.type.__name__}: {failure.getErrorMessage()}"
            outcomes[test.id()] = text.strip().splitlines()[-1]
        return outcomes


def complaints(outcomes: Mapping[str, str], left_out: Mapping[str, str], modules: Mapping[str, int]) -> list[str]:
    """Compare what came of the tests with what was to be expected.

    :param outcomes: what this program printed.
    :param left_out: why each test that cannot pass is left out, by its id.
    :param modules: how many tests there are at least, by module.
    """
    found = []
    for test, outcome in sorted(outcomes.items()):
        if test in left_out and outcome == PASS:
            found.append(f"{test} passes: take it off the list")
        elif test not in left_out and outcome != PASS:
            found.append(f"{test} does not pass and is not on the list: {outcome}")
    for test in sorted(set(left_out) - set(outcomes)):
        found.append(f"{test} is on the list and was not run: is there such a test?")
    for module, expected in modules.items():
        ran = sum(test.startswith(f"{module}.") for test in outcomes)
        if ran < expected:
            found.append(f"{module}: {ran} tests ran, and there are at least {expected}")
    return found


def _too_long(*args: Any) -> None:
    faulthandler.dump_traceback()
    os._exit(1)  # an exception would end the current test only


def main() -> None:
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LIMIT)
    sys.meta_path.insert(0, SuiteFinder())
    with tempfile.TemporaryDirectory() as directory:
        tests = runner.TestLoader().loadByNames(list(MODULES))
        result = runner.TrialRunner(Outcomes, workingDirectory=os.path.join(directory, "trial")).run(tests)
    json.dump(result.by_id(), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
