"""The packaged bootstrap scripts, on machines that are a directory each.

A script finds recorders where it would change its machine: package managers, accounts, services. ``buildbot-worker`` makes
real workers, and does not start them.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from buildbot_ec2ud.userdata import scripts
from tests.unit.files import write
from tests.unit.sandbox import MASTER, PASSWORD, WORKER, Sandbox

#: A command that notes its arguments and its environment.
RECORDER = "#!/bin/sh\n{{ echo \"$0 $*\"; env; }} >>'{calls}'\nprintf '%s\\n' \"${{0##*/}} $*\" >>'{names}'\n{then}\n"


class BootstrapTestCase(SynchronousTestCase):
    """A machine on which a bootstrap script runs."""

    def setUp(self) -> None:
        command = shutil.which("buildbot-worker", path=os.path.dirname(sys.executable)) or shutil.which(
            "buildbot-worker"
        )
        if command is None:
            raise SkipTest("buildbot-worker is not installed")
        self.sandbox = Sandbox(self)
        self.sandbox.link("env", "mv")
        # What powers off is noted, and its machine stays.
        write(self.sandbox.root, "switch", f"printf '%s\\n' \"$*\" >>'{self.sandbox.path('switch.calls')}'\n")
        # Only `create-worker` is done; `start` is noted.
        self.buildbot_worker = f'[ "$1" != create-worker ] || exec {command} "$@"'

    def record(self, name: str, then: str = "", directory: str | None = None) -> None:
        calls, names = self.sandbox.path("everything"), self.sandbox.path("names")
        text = RECORDER.format(calls=calls, names=names, then=then)
        write(directory or self.sandbox.bin, name, text, 0o755)

    def bootstrap(self, text: str, **environment: str) -> list[str]:
        """Run a bootstrap script; gives the lines that it prints."""
        variables: Mapping[str, str] = {
            **self.sandbox.environment(BB_MASTER=MASTER, BB_NAME=WORKER, BB_PASSWORD=PASSWORD),
            "EC2UD_START": str(int(time.time()) - 100),
            "EC2UD_SWITCH": self.sandbox.path("switch"),
            **environment,
        }
        done = subprocess.run(
            ["/bin/sh", write(self.sandbox.root, "bootstrap", text)],
            env=variables,
            cwd=self.sandbox.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
            check=False,
        )
        self.status = done.returncode
        return done.stdout.splitlines()

    def phases(self, lines: list[str]) -> list[str]:
        """The phases in *lines*, each with the seconds since the start of the user-data: a hundred, and some."""
        found = [re.fullmatch(r"ec2ud: phase=([a-z-]+) t=1\d\d", line) for line in lines]
        self.assertTrue(all(found), lines)
        return [match[1] for match in found]

    @property
    def called(self) -> list[str]:
        """The recorders that were called, with their arguments."""
        return self.sandbox.read("names").splitlines()

    def check_worker(self, directory: str) -> None:
        """There is a worker that gets its password once, and then no more."""
        tac = self.sandbox.read(directory, "buildbot.tac")
        for text in (tac, self.sandbox.read(directory, "buildbot.tac.orig"), self.sandbox.read("everything")):
            self.assertNotIn(PASSWORD, text)
        mode = stat.S_IMODE(os.stat(self.sandbox.path(directory, ".password")).st_mode)
        self.assertEqual(mode, 0o600)
        self.assertEqual(self.sandbox.read(directory, ".password"), PASSWORD)
        for _ in range(2):
            names: dict[str, Any] = {"__file__": self.sandbox.path(directory, "buildbot.tac")}
            try:
                exec(compile(tac, "buildbot.tac", "exec"), names)
            except FileNotFoundError:
                break
            names["logfile"].close()
            self.assertEqual(names["passwd"], PASSWORD)
            self.assertEqual(f"{names['buildmaster_host']}:{names['port']}", MASTER)
            self.assertEqual(names["workername"], WORKER)
        else:
            self.fail("the password is still there")


class EmbeddedTests(BootstrapTestCase):
    """``embedded.sh``, on an instance of the embedded EC2."""

    def test_worker(self) -> None:
        """The worker is made in the current directory and is the instance from then on, which ends with it."""
        for then in ("", "exit 1", "kill -9 $$"):
            self.setUp()
            self.record("buildbot-worker", f"{self.buildbot_worker}\n{then}")
            with open(scripts.packaged("embedded.sh"), encoding="utf-8") as file:
                lines = self.bootstrap(file.read())
            worker = self.sandbox.path("worker")
            self.assertEqual(lines[-1], "ec2ud: the worker has ended; powering off")
            self.assertEqual((self.status, self.phases(lines[:1])), (0, ["start-worker"]))
            self.assertEqual(
                self.called,
                [
                    "buildbot-worker create-worker --relocatable --maxretries=5 --allow-shutdown=signal "
                    f"{worker} {MASTER} {WORKER} from-file",
                    f"buildbot-worker start --nodaemon {worker}",
                ],
            )
            self.assertEqual(self.sandbox.calls("switch"), ["off"])
            self.check_worker("worker")


class GenericTests(BootstrapTestCase):
    """``generic.sh``, on systems of all families."""

    def setUp(self) -> None:
        super().setUp()
        self.home = self.sandbox.path("home")
        os.mkdir(self.home)
        for name in ("id", "useradd", "adduser", "chown", "su", "systemd-run"):
            self.record(name, "exit 1" if name == "id" else "")
        with open(scripts.packaged("generic.sh"), encoding="utf-8") as file:
            text = file.read()
        # Else this test would touch the machine that it runs on.
        paths = set(re.findall(r"(?<![\w$}\"])/\w[\w/.-]*", text))
        self.assertEqual(paths, {"/bin/sh", "/dev/null", "/run/systemd/system", "/var/lib/buildbot-worker"})
        for path, other in (
            ("/var/lib/buildbot-worker", self.home),
            ("/run/systemd/system", self.sandbox.path("systemd")),
        ):
            self.assertEqual(text.count(path), 1)
            text = text.replace(path, other)
        # So that the test can wait for the worker, which is started in the background.
        self.text = text + "wait\n"

    def install(self, manager: str) -> None:
        """A vanilla system: what is installed comes from *manager* and pip."""
        venv = os.path.join(self.home, "venv", "bin")
        os.makedirs(venv)
        self.record("pip", directory=venv)
        self.record("buildbot-worker", self.buildbot_worker, venv)
        self.record(manager)
        self.record("python3")

    def run_generic(self, **environment: str) -> list[str]:
        lines = self.bootstrap(self.text, **environment)
        self.assertEqual(self.status, 0, lines)
        self.check_worker("home/worker")
        return lines

    def test_package_managers(self) -> None:
        """Python and git come from the system's own package manager, buildbot-worker from PyPI."""
        for manager, first, install in (
            ("apt-get", "apt-get -qq update", "ca-certificates git python3 python3-venv"),
            ("dnf", "dnf -q -y install git python3", None),
            ("yum", "yum -q -y install git python3", None),
            ("zypper", "zypper -q -n install git python3", None),
            ("apk", "apk add -q git python3", None),
        ):
            self.setUp()
            self.install(manager)
            lines = self.run_generic()
            self.assertEqual(self.phases(lines), ["install-python", "install-worker", "start-worker"])
            called = self.called
            self.assertEqual(called.pop(0), first)
            if install:
                self.assertTrue(called.pop(0).endswith(f" install {install}"))
            self.assertEqual(called[:2], [f"python3 -m venv {self.home}/venv", "pip -q install buildbot-worker"])
            self.assertTrue(called[2].startswith("id "))
            self.assertTrue(called[3].startswith("useradd --system "))

    def test_variables(self) -> None:
        """Packages, a version of the worker, and commands for root."""
        self.install("dnf")
        mark = self.sandbox.path("set up")
        lines = self.run_generic(
            BB_PACKAGES="gcc make",
            BB_WORKER_VERSION="4.3.0",
            BB_SETUP=f"printf '%s' \"$BB_NAME\" >'{mark}'; false || :",
        )
        self.assertEqual(self.phases(lines), ["install-python", "install-worker", "packages", "setup", "start-worker"])
        self.assertIn("pip -q install buildbot-worker==4.3.0", self.called)
        self.assertIn("dnf -q -y install gcc make", self.called)
        self.assertEqual(self.sandbox.read("set up"), WORKER)

    def test_image_with_a_worker(self) -> None:
        """Where buildbot-worker is there already, nothing is installed."""
        self.record("buildbot-worker", self.buildbot_worker)
        self.assertEqual(self.phases(self.run_generic()), ["start-worker"])
        self.assertEqual(self.called[0].partition(" ")[0], "id")

    def test_user(self) -> None:
        """The worker's user is made by whichever command there is, once; and owns the worker's directory."""
        for there, known, expected in (
            (("id", "useradd", "adduser"), False, ["id", "useradd"]),
            (("id", "adduser"), False, ["id", "adduser"]),
            (("id", "useradd", "adduser"), True, ["id"]),
        ):
            self.setUp()
            self.record("buildbot-worker", self.buildbot_worker)
            for name in ("useradd", "adduser"):
                if name not in there:
                    os.unlink(os.path.join(self.sandbox.bin, name))
            self.record("id", "" if known else "exit 1")
            self.run_generic()
            names = [call.partition(" ")[0] for call in self.called]
            self.assertEqual(names[: len(expected) + 1], [*expected, "buildbot-worker"])
            self.assertIn(f"chown -R buildbot {self.home}/worker", self.called)

    def test_start(self) -> None:
        """The worker runs as that user, under systemd or without, and the machine goes when it has ended, however."""
        for then in ("", "exit 1", "kill -9 $$"):
            self.setUp()
            self.record("buildbot-worker", self.buildbot_worker)
            self.record("su", then)
            self.run_generic()
            start = f"{self.sandbox.bin}/buildbot-worker start --nodaemon {self.home}/worker"
            self.assertEqual(self.called[-1], f"su -s /bin/sh buildbot -c cd {self.home}/worker && exec {start}")
            self.assertEqual(self.sandbox.calls("switch"), ["off the worker has ended"])

    def test_start_under_systemd(self) -> None:
        """There, systemd does both."""
        self.record("buildbot-worker", self.buildbot_worker)
        os.mkdir(self.sandbox.path("systemd"))
        self.run_generic()
        start = f"{self.sandbox.bin}/buildbot-worker start --nodaemon {self.home}/worker"
        options, _, command = self.called[-1].partition(" -- ")
        self.assertTrue(options.startswith("systemd-run --unit=buildbot-worker --uid=buildbot "))
        self.assertIn(" --property=SuccessAction=poweroff --property=FailureAction=poweroff ", options)
        self.assertEqual(command, f"/bin/sh -c {start}; echo 'ec2ud: the worker has ended; powering off'")
        self.assertEqual(self.sandbox.calls("switch"), [])

    def test_graceful_shutdown(self) -> None:
        """The worker takes SIGHUP for the wish to end after its build, not for the order to end at once."""
        self.record("buildbot-worker", self.buildbot_worker)
        self.run_generic()
        self.assertIn("allow_shutdown = 'signal'\n", self.sandbox.read("home/worker/buildbot.tac"))

    def test_other_user_data(self) -> None:
        """The script does with the variables of 2011 alone."""
        self.record("buildbot-worker", self.buildbot_worker)
        self.record("poweroff")
        text = f"unset EC2UD_START EC2UD_SWITCH\n{self.text}"
        (line,) = self.bootstrap(text)
        self.assertEqual((self.status, line.partition(" t=")[0]), (0, "ec2ud: phase=start-worker"))
        self.assertEqual(self.called[-1], "poweroff ")

    def test_failures(self) -> None:
        """Whatever fails ends the script, so that its machine goes."""
        for failing in ("dnf", "python3", "pip", "buildbot-worker", "chown"):
            self.setUp()
            self.install("dnf")
            venv = os.path.join(self.home, "venv", "bin") if failing in ("pip", "buildbot-worker") else None
            self.record(failing, "exit 9", venv)
            self.bootstrap(self.text)
            self.assertNotEqual(self.status, 0, failing)
            self.assertFalse([call for call in self.called if call.startswith(("su ", "systemd-run "))], failing)
        self.setUp()
        self.install("dnf")
        self.bootstrap(self.text, BB_SETUP="false\ntrue")
        self.assertNotEqual(self.status, 0)

    def test_unknown_system(self) -> None:
        """A system without a package manager that the script knows."""
        lines = self.bootstrap(self.text)
        self.assertNotEqual(self.status, 0)
        self.assertEqual(lines[-1], "no package manager known to this script")
