"""The two ways to a master of one's own, with Buildbot's own commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from twisted.internet import defer, reactor, task
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from buildbot_ec2ud.template_files import sources

BUILDBOT = "from buildbot.scripts.runner import run; run()"
#: The template's own addresses are for the outside; these are for a test.
SETTINGS = 'www_port = "tcp:0:interface=127.0.0.1"\npb_port = "tcp:0:interface=127.0.0.1"\n'


class Ways(TestCase):
    timeout = 600

    def setUp(self):
        self.basedir = Path(self.mktemp()).absolute()

    @defer.inlineCallbacks
    def run_command(self, *command: str, status: int = 0):
        out, err, code = yield getProcessOutputAndValue(
            sys.executable, [*command], env={**os.environ, "PYTHONWARNINGS": "ignore", "START_TIMEOUT": "100"}
        )
        text = (out + err).decode()
        self.assertEqual(code, status, text)
        return text

    def buildbot(self, *arguments: str, **kwargs):
        return self.run_command("-c", BUILDBOT, *arguments, **kwargs)

    @defer.inlineCallbacks
    def life(self, *, own_copy: bool):
        """checkconfig, start, reconfig, restart, stop, upgrade-master."""
        basedir = str(self.basedir)
        text = yield self.buildbot("checkconfig", basedir)
        self.assertIn("Config file is good!", text)
        settings = self.basedir / "settings.toml"
        if own_copy:
            kept = [line for line in settings.read_text().splitlines() if not line.startswith(("www_port", "pb_port"))]
            settings.write_text("\n".join(kept) + "\n" + SETTINGS)
        else:
            settings.write_text(SETTINGS)
        self.addCleanup(self.kill)
        for command in ("start", "reconfig", "restart", "stop"):
            patience = ["--progress_timeout=100"] if command == "reconfig" else []
            text = yield self.buildbot(command, *patience, basedir)
            self.assertNotIn("Traceback", text)
            if command in ("start", "restart"):
                # Buildbot's commands believe so earlier: as soon as a worker in the master's own process, here that of the
                # janitor, has attached; and a reconfig that finds the line does nothing.
                started = 1 if command == "start" else 2
                while (self.basedir / "twistd.log").read_text().count("BuildMaster is running") < started:
                    yield task.deferLater(reactor, 0.05)
        while self.basedir.joinpath("twistd.pid").exists():
            yield task.deferLater(reactor, 0.05)
        log = (self.basedir / "twistd.log").read_text()
        self.assertIn("BuildMaster is running", log)
        self.assertIn("configuration update complete", log)
        self.assertIn("BuildMaster is stopped", log)
        self.assertNotIn("Traceback", log)
        text = yield self.buildbot("upgrade-master", basedir)
        self.assertIn("upgrade complete", text)

    def kill(self):
        pidfile = self.basedir / "twistd.pid"
        if pidfile.exists():
            os.kill(int(pidfile.read_text()), 9)

    @defer.inlineCallbacks
    def test_packaged(self):
        """``buildbot create-master -r --config "$(buildbot-ec2ud template)" DIR``"""
        path = yield self.run_command("-m", "buildbot_ec2ud.cli", "template")
        yield self.buildbot("create-master", "-r", "--config", path.strip(), str(self.basedir))
        yield self.life(own_copy=False)

    @defer.inlineCallbacks
    def test_init(self):
        """``buildbot-ec2ud init DIR``"""
        text = yield self.run_command("-m", "buildbot_ec2ud.cli", "init", str(self.basedir))
        self.assertIn("buildbot start", text)
        for name, source in sources().items():
            self.assertEqual((self.basedir / name).read_bytes(), source.read_bytes())
        yield self.life(own_copy=True)
        yield self.run_command("-m", "buildbot_ec2ud.cli", "init", "--diff", str(self.basedir), status=3)

    @defer.inlineCallbacks
    def test_checkconfig_tells_all(self):
        """Everything that is wrong, in one go, each with its worker and argument."""
        yield self.run_command("-m", "buildbot_ec2ud.cli", "init", str(self.basedir))
        (self.basedir / "platforms.toml").write_text(
            '[platforms.no-image]\ninstance_type = "t3.micro"\n'
            '[platforms.no-type]\nami = "ami-1"\n'
            '[platforms.typo]\nami = "ami-1"\ninstance_typ = "t3.micro"\ninstance_type = "t3.micro"\n'
            '[platforms.script]\nami = "ami-1"\ninstance_type = "t3.micro"\nbootstrap_script = "nowhere.sh"\n'
            '[platforms.market]\nami = "ami-1"\ninstance_type = "t3.micro"\nmarket = "black"\n'
            '[platforms.large]\nami = "ami-1"\ninstance_type = "t3.micro"\n'
            f'bootstrap_env = {{ BB_LONG = "{"x" * 17000}" }}\n'
            '[platforms.options]\nami = "ami-1"\ninstance_type = "t3.micro"\nlaunch_options = { CpuOption = 1 }\n'
        )
        text = yield self.buildbot("checkconfig", str(self.basedir), status=1)
        for expected in (
            ":1: platform no-image: ami: name an image",
            ":3: platform no-type: instance_type: name an EC2 instance type",
            ":7: platform typo: instance_typ: unknown argument; did you mean instance_type?",
            ":12: platform script: bootstrap_script: there is no file 'nowhere.sh'",
            ":16: platform market: market: 'black' is none of 'on-demand', 'spot', 'spot-then-on-demand'",
            ":17: platform large: bootstrap_script: the user-data would have",
            ":24: platform options: launch_options: ",
        ):
            self.assertIn(expected, text)
        self.assertIn("CpuOption", text)

    @defer.inlineCallbacks
    def test_script_of_the_master(self):
        """A bootstrap script is found beside master.cfg, wherever the command is run."""
        yield self.run_command("-m", "buildbot_ec2ud.cli", "init", str(self.basedir))
        (self.basedir / "bootstrap" / "own.sh").write_text("#!/bin/sh\nexit 0\n")
        (self.basedir / "platforms.toml").write_text(
            '[platforms.p]\nami = "ami-1"\ninstance_type = "t3.micro"\nbootstrap_script = "bootstrap/own.sh"\n'
        )
        text = yield self.buildbot("checkconfig", str(self.basedir))
        self.assertIn("Config file is good!", text)
