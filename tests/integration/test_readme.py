"""README.md, word for word: its examples as they stand there, and the way of a newcomer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from buildbot.config.master import FileLoader
from twisted.internet import defer
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.support import LOOPBACK, passes_under_trial

SOURCE = Path(__file__).parents[2]
README = (SOURCE / "README.md").read_text(encoding="utf-8")


class Examples(TestCase):
    timeout = 300

    def example(self, containing: str) -> str:
        blocks = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
        (example,) = (block for block in blocks if containing in block)
        return example

    def test_master_cfg(self):
        """Buildbot loads the first master.cfg, and its worker is what the text says."""
        directory = Path(self.mktemp())
        directory.mkdir()
        directory.joinpath("master.cfg").write_text(self.example("BuildmasterConfig"))
        loaded = FileLoader(str(directory), "master.cfg").loadConfig()
        (worker,) = loaded.workers
        self.assertEqual((worker.name, worker.instance_type), ("linux-1", ["c7i.large", "c6i.large"]))

    @defer.inlineCallbacks
    def test_own_test(self):
        """The example of a test passes, under trial."""
        yield passes_under_trial(self, self.example("class MyFarm"), 1)


class Newcomer(TestCase):
    """Who has a checkout, Python and nothing else."""

    timeout = 600
    if not os.environ.get("EC2UD_NEWCOMER"):
        skip = "takes a minute, and a package index; set EC2UD_NEWCOMER=1 to run it"

    def shell(self, script: str, status: int = 0) -> defer.Deferred[str]:
        """Run lines of a shell as somebody types them, one after the other, in the checkout."""

        def run() -> str:
            # What is exported here is nothing that a virtualenv or the tests have set.
            environment = {"HOME": str(self.home), "PATH": self.path, "LANG": "C.UTF-8", "START_TIMEOUT": "100"}
            command = ["/bin/sh", "-eu", "-c", f"[ ! -e venv ] || . venv/bin/activate\n{script}"]
            done = subprocess.run(
                command, cwd=self.checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            self.assertEqual(done.returncode, status, done.stdout)
            return done.stdout

        return deferToThread(run)

    @defer.inlineCallbacks
    def test_way(self):
        """Install, make a master, check it, start it."""
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir()
        self.checkout = self.home / "buildbot-ec2ud"
        # What git would not give to a newcomer.
        ignored = shutil.ignore_patterns(
            ".git", ".venv", "build", "*.egg-info", "__pycache__", "_trial_temp*", ".*_cache"
        )
        shutil.copytree(SOURCE, self.checkout, ignore=ignored)
        self.path = os.pathsep.join([str(self.tools()), "/usr/bin", "/bin"])
        section = README.partition("## Use it\n")[2].partition("\n## ")[0]
        install, check = re.findall(r"^```sh\n(.*?)^```$", section, re.M | re.S)
        yield self.shell(install)
        settings = self.checkout / "farm" / "settings.toml"
        text = settings.read_text()
        for name in ("www_port", "pb_port"):
            text, count = re.subn(f"^{name} = .*$", f'{name} = "{LOOPBACK}"', text, flags=re.M)
            self.assertEqual(count, 1)
        settings.write_text(text)
        self.addCleanup(self.shell, "buildbot stop farm || :")
        for line in check.splitlines():
            # Here is no AWS: that is a problem, which is said.
            asks_aws = "ec2ud check" in line
            said = yield self.shell(line, status=1 if asks_aws else 0)
            self.assertIn(
                "credentials" if asks_aws else "Config file is good" if "checkconfig" in line else "start", said
            )
        yield self.shell("buildbot stop farm")
        log = (self.checkout / "farm" / "twistd.log").read_text()
        self.assertIn("BuildMaster is running", log)
        self.assertNotIn("Traceback", log)

    def tools(self) -> Path:
        """A directory with nothing but the Python that README names."""
        tools = self.home / "tools"
        tools.mkdir()
        python = f"python{sys.version_info.major}.{sys.version_info.minor}"
        (tools / "python3.11").symlink_to(Path(sys.base_prefix, "bin", python))
        return tools
