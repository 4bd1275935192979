"""contrib/systemd and contrib/aws-cli.md say what is so."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from botocore.session import Session
from twisted.scripts.twistd import ServerOptions
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from buildbot_ec2ud.configured import _PID_FILE
from buildbot_ec2ud.fleet.region import STOP_TIMEOUT
from tests.unit.files import directory, write

CONTRIB = Path(__file__).parents[2] / "contrib"
UNIT = (CONTRIB / "systemd" / "buildbot-master.service").read_text(encoding="utf-8")


class UnitTests(SynchronousTestCase):
    """buildbot-master.service."""

    def setUp(self) -> None:
        parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read_string(UNIT)
        self.service = parser["Service"]

    def test_verify(self) -> None:
        """systemd has nothing to say about it."""
        analyze = shutil.which("systemd-analyze")
        if analyze is None:
            raise SkipTest("systemd-analyze is not installed")
        # The program need not be where it will be.
        path = write(directory(self), "buildbot-master.service", re.sub("ExecStart=[^ ]+", "ExecStart=/bin/sh", UNIT))
        done = subprocess.run([analyze, "verify", "--man=no", path], capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))

    def test_command(self) -> None:
        """twistd takes it; it does not go away, and leaves the file by which ``reap`` knows that a master runs."""
        program, *arguments = shlex.split(self.service["ExecStart"])
        self.assertEqual(Path(program).name, "twistd")
        options = ServerOptions()
        options.parseOptions(arguments)
        self.assertTrue(options["nodaemon"] and options["no_save"])
        self.assertEqual((Path(options["pidfile"]).name, options["python"]), (_PID_FILE, "buildbot.tac"))

    def test_stop(self) -> None:
        """It has the time to end its instances, beside Buildbot's own."""
        self.assertGreater(float(self.service["TimeoutStopSec"]), 2 * STOP_TIMEOUT)

    def test_directories(self) -> None:
        """Where everything else is read-only, it can write to its own."""
        self.assertEqual(self.service["ProtectSystem"], "strict")
        state = f"/var/lib/{self.service['StateDirectory']}"
        self.assertTrue(self.service["WorkingDirectory"].startswith(f"{state}/"))
        self.assertEqual(self.service["Environment"], f"HOME={state}")


class CommandsTests(SynchronousTestCase):
    """aws-cli.md."""

    def test_commands(self) -> None:
        """Each command of the AWS CLI there is a call of AWS's, with parameters that it has."""
        text = (CONTRIB / "aws-cli.md").read_text(encoding="utf-8").replace("\\\n", " ")
        session = Session()
        models = {name: session.get_service_model(name) for name in ("ec2", "iam", "ssm")}
        found = re.findall(r"\baws (ec2|iam|ssm) ([a-z-]+)((?: [^\n]*)?)", text)
        self.assertGreater(len(found), 12)
        for service, command, rest in found:
            operations = {_dashed(name): name for name in models[service].operation_names}
            self.assertIn(command, operations)
            members = models[service].operation_model(operations[command]).input_shape.members
            # Of the CLI itself, and its own short ways for parameters of an ingress, and for one of several ids.
            known = {_dashed(name) for name in members} | {
                "region",
                "query",
                "output",
                "protocol",
                "port",
                "source-group",
            }
            given = re.findall(r"(?<= )--([a-z-]+)", re.sub("'[^']*'", "", rest))
            self.assertEqual([option for option in given if option not in known], [], command)

    def test_policy(self) -> None:
        """The statements that it names are there."""
        text = (CONTRIB / "aws-cli.md").read_text(encoding="utf-8")
        policy = (CONTRIB / "iam-policy.json").read_text(encoding="utf-8")
        named = re.findall("statement `([A-Za-z]+)`", text)
        self.assertEqual(len(named), 3)
        for name in named:
            self.assertIn(f'"Sid": "{name}"', policy)


def _dashed(name: str) -> str:
    """A name of AWS's as its CLI writes it."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()
