"""Wrong configurations, as ``buildbot checkconfig`` reads them: worker and argument are named, all errors at once."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from buildbot.config.errors import ConfigErrors
from buildbot.config.master import FileLoader
from twisted.internet import defer, protocol, reactor
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from tests.unit.files import directory
from tests.unit.secure import environment
from tests.unit.test_settings import MISTAKES, PLAIN

BUILDBOT = "from buildbot.scripts.runner import run; run()"

#: Configurations with several mistakes: the workers' arguments, and the beginnings of all lines that are told.
SEVERAL: tuple[tuple[dict[str, dict[str, Any]], list[str]], ...] = (
    (
        {"w": {"ami": None, "instance_type": None, "market": "x", "tags": "x", "volumes": "x", "elastic_ip": "x"}},
        [f"worker w: {name}" for name in ("ami", "elastic_ip", "instance_type", "market", "tags", "volumes")],
    ),
    (
        {
            "one": {"ami": None, "zzz": 1},
            "two": {},
            "three": {"launch_options": {"Monitorin": {}, "EbsOptimized": "yes"}, "http_tokens": "x"},
        },
        [
            *("worker one: ami", "worker one: zzz"),
            *("worker three: http_tokens", "worker three: launch_options", "worker three: launch_options"),
        ],
    ),
    (
        {"w": {"user_data": "x", "bb_master": "host:0", "max_spot_price": 0, "price_multiplier": 0}},
        [
            "worker w: bb_master: ",
            "worker w: max_spot_price: ",
            "worker w: price_multiplier: ",
            "worker w: user_data: is sent as it is, so it cannot have a password",
            "worker w: user_data: is sent as it is, without bb_master",
        ],
    ),
    (
        {
            "w": {
                "ami": None,
                "valid_ami_owners": ["x", "y"],
                "valid_ami_location_regex": "(",
                "bootstrap_env": {"A B": "c", "B": None},
                "bootstrap_script": "missing.sh",
            }
        },
        [
            *("worker w: bootstrap_env: ", "worker w: bootstrap_env: ", "worker w: bootstrap_script: "),
            *("worker w: valid_ami_location_regex: ", "worker w: valid_ami_owners: ", "worker w: valid_ami_owners: "),
        ],
    ),
)


def master_cfg(workers: dict[str, dict[str, Any]], *lines: str) -> str:
    """The text of a configuration with these workers.

    :param lines: further ones of it.
    """
    calls = (
        f"    worker.EC2UserDataLatentWorker({name!r}, **{ {**PLAIN, **arguments}!r}),"
        for name, arguments in workers.items()
    )
    return "\n".join(
        (
            "from boto3 import Session",
            "from buildbot.plugins import schedulers, steps, util, worker",
            "nan, inf = float('nan'), float('inf')",
            "c = BuildmasterConfig = {'buildbotNetUsageData': None, 'protocols': {'pb': {'port': 9989}}}",
            "c['workers'] = [",
            *calls,
            "]",
            "factory = util.BuildFactory([steps.ShellCommand(command=['true'])])",
            f"c['builders'] = [util.BuilderConfig(name='b', workernames={list(workers)!r}, factory=factory)]",
            "c['schedulers'] = [schedulers.ForceScheduler(name='force', builderNames=['b'])]",
            *lines,
            "",
        )
    )


class CheckConfigTestCase(TestCase):
    timeout = 60

    def setUp(self) -> None:
        environment(self, HOME=directory(self))
        self.basedir = Path(self.mktemp()).absolute()
        self.basedir.mkdir()

    def write(self, text: str) -> None:
        self.basedir.joinpath("master.cfg").write_text(text, encoding="utf-8")

    def errors(self, workers: dict[str, dict[str, Any]], *lines: str) -> list[str]:
        """All errors of a configuration."""
        self.write(master_cfg(workers, *lines))
        try:
            FileLoader(str(self.basedir), "master.cfg").loadConfig()
        except ConfigErrors as error:
            return error.errors
        return []


class Loading(CheckConfigTestCase):
    """What ``buildbot checkconfig`` does, in this process."""

    def test_enough(self):
        """The mistakes are many, and each is another one."""
        self.assertGreaterEqual(len({repr(arguments) for arguments, _, _ in MISTAKES}), 60)

    def test_each(self):
        """Each mistake is one error, with the worker, the argument, and what is wrong."""
        wrong = []
        for number, (arguments, argument, words) in enumerate(MISTAKES):
            name = f"linux-{number}"
            errors = self.errors({name: arguments})
            right = len(errors) == 1 and errors[0].startswith(f"worker {name}: {argument}") and words in errors[0]
            if not right:
                wrong.append((arguments, errors))
        self.assertEqual(wrong, [])

    def test_all_at_once(self):
        """One configuration with all the mistakes has all the errors, in the order of the workers."""
        alone = [self.errors({f"linux-{number}": mistake[0]}) for number, mistake in enumerate(MISTAKES)]
        together = self.errors({f"linux-{number}": mistake[0] for number, mistake in enumerate(MISTAKES)})
        self.assertEqual(together, [error for errors in alone for error in errors])

    def test_several(self):
        """Several mistakes of several workers; nothing is said of a worker that is right."""
        for workers, expected in SEVERAL:
            errors = sorted(self.errors(workers))
            self.assertEqual(len(errors), len(expected), errors)
            for error, beginning in zip(errors, expected, strict=True):
                self.assertTrue(error.startswith(beginning), (error, beginning))

    def test_beside_others(self):
        """Mistakes elsewhere in the configuration are told with them."""
        errors = self.errors({"w": {"ami": None}}, "c['title'] = 5", "c['zzz'] = 1")
        self.assertEqual(len(errors), 3, errors)
        text = "\n".join(errors)
        for words in ("worker w: ami: ", "title", "zzz"):
            self.assertIn(words, text)

    def test_fleet(self):
        """Each worker of ``ec2_fleet`` is named."""
        errors = self.errors({"w": {}}, "c['workers'] += util.ec2_fleet('linux', 3, instance_type='t3.micro')")
        self.assertEqual([error.partition(": ami: ")[0] for error in errors], [f"worker linux-{n}" for n in (1, 2, 3)])

    def test_right(self):
        """A configuration without mistakes has no errors."""
        self.assertEqual(self.errors({"w": {}, "x": {"market": "spot", "max_spot_price": 0.1}}), [])


class Connections(protocol.Factory):
    """Counts those who connect."""

    noisy = False
    protocol = protocol.Protocol

    def __init__(self) -> None:
        self.count = 0

    def buildProtocol(self, addr: Any) -> protocol.Protocol | None:
        self.count += 1
        return None


class Process(CheckConfigTestCase):
    """``buildbot checkconfig`` itself."""

    def check(self, workers: dict[str, dict[str, Any]]) -> defer.Deferred[Any]:
        """Its output, and its status."""
        self.write(master_cfg(workers))
        return getProcessOutputAndValue(
            sys.executable, ["-c", BUILDBOT, "checkconfig", "master.cfg"], env=os.environ, path=str(self.basedir)
        ).addCallback(lambda result: ((result[0] + result[1]).decode(), result[2]))

    @defer.inlineCallbacks
    def test_wrong(self):
        """It tells all errors, a line each, and fails."""
        workers, beginnings = SEVERAL[1]
        output, status = yield self.check(workers)
        self.assertNotEqual(status, 0)
        lines = sorted(re.findall("worker .*", output))
        self.assertEqual(len(lines), len(beginnings), output)
        for line, beginning in zip(lines, beginnings, strict=True):
            self.assertTrue(line.startswith(beginning), (line, beginning))
        self.assertNotIn("Traceback", output)

    @defer.inlineCallbacks
    def test_right(self):
        """It accepts a configuration, and has not asked AWS anything."""
        ec2 = Connections()
        port = reactor.listenTCP(0, ec2, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        asks = {
            "endpoint_url": f"http://127.0.0.1:{port.getHost().port}",
            "region": "us-east-1",
            "identifier": "a",
            "secret_identifier": "b",
        }
        output, status = yield self.check(
            {
                "id": {**asks, "keypair_name": "key", "security_name": "group", "elastic_ip": "203.0.113.7"},
                "owners": {**asks, "ami": None, "valid_ami_owners": [136693071363], "valid_ami_location_regex": ".*"},
                "rule": {**asks, "ami": {"owners": "self"}, "volumes": [("vol-1", "/dev/sdf")], "market": "spot"},
                "price": {**asks, "market": "spot", "price_multiplier": 1.2},
            }
        )
        self.assertEqual((status, output.strip()), (0, "Config file is good!"))
        self.assertEqual(ec2.count, 0)
