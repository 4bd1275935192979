"""How the packaged bootstrap scripts make a worker of a vanilla system, family by family."""

from __future__ import annotations

import fcntl
import os
import plistlib
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time

from tests.unit.bootstrap import FAMILIES, FamilyTestCase, packaged
from tests.unit.files import write
from tests.unit.sandbox import MASTER, PASSWORD, SHELLS, WORKER

ENDED = "off the worker has ended"


class FamilyTests(FamilyTestCase):
    """What is done on each family's systems."""

    def check(self, name: str, shell: str) -> None:
        self.setUp()
        self.family(name)
        install = FAMILIES[name][1]
        from_pip = {"BB_WORKER_VERSION": "4.3.0"} if name == "freebsd" else {}
        lines = self.bootstrap(packaged(name), shell, BB_PACKAGES="one two", **from_pip)
        self.assertEqual(self.status, 0, lines)
        if name in ("freebsd", "macos"):
            # It has returned at once; what it did then is in the log.
            self.assertEqual(lines, [])
            lines = self.sandbox.log.splitlines()
            self.assertEqual(self.sandbox.console, lines)
        phases = ["install-python", "packages", "install-worker", "start-worker"]
        self.assertEqual(self.phases(lines), phases)
        steps = self.steps
        if name == "debian":
            self.assertEqual(steps.pop(0), "apt-get -qq update")
        python = "python3-venv" if name == "debian" else "python3"
        self.assertEqual(steps[0], install % python)
        worker = f"buildbot-worker{'==4.3.0' if from_pip else ''}"
        # At the same time:
        self.assertEqual(
            sorted(steps[1:4]),
            sorted(
                [f"python3 -m venv {self.home}/venv", f"pip -q install --prefer-binary {worker}", install % "one two"]
            ),
        )
        self.assertEqual(steps[4], "id buildbot")
        self.assertEqual(self.secrets(), [self.password_file()])

    def password_file(self) -> str:
        (name,) = os.listdir(self.sandbox.path("run"))
        return f"run/{name}/password"

    def test_families(self) -> None:
        """Python and packages come from the system's own package manager, buildbot-worker from PyPI, in every shell."""
        for name in FAMILIES:
            for shell in SHELLS:
                self.check(name, shell)

    def test_generic(self) -> None:
        """The generic script does what that of the family does."""
        for name in FAMILIES:
            for script in (name, "generic"):
                self.setUp()
                self.family(name)
                self.record("uname", f"echo {({'freebsd': 'FreeBSD', 'macos': 'Darwin'}).get(name, 'Linux')}")
                text = packaged(script)
                lines = self.bootstrap(text, BB_WORKER_VERSION="4.3.0", BB_PACKAGES="one")
                self.assertEqual(self.status, 0, lines)
                calls = sorted(re.sub(r"[.]\w{6}$", "", call.replace(self.sandbox.root, "")) for call in self.called)
                if script == name:
                    expected = calls
            self.assertEqual(calls, expected)
            self.assertGreater(len(calls), 8)

    def test_start(self) -> None:
        """Each has its own way to run a worker as an unprivileged user; and the machine goes when that has ended."""
        worker = "worker"
        for name, user, su in (
            ("debian", "useradd --system --home-dir {} buildbot", "su -s /bin/sh buildbot -c"),
            ("freebsd", "pw useradd buildbot -d {} -s /bin/sh", "su -m buildbot -c"),
            ("macos", "dscl . -create /Users/buildbot NFSHomeDirectory {}", "sudo -u buildbot sh -c"),
        ):
            self.setUp()
            self.family(name)
            self.record("sudo")
            self.prepared()
            lines = self.bootstrap(packaged(name))
            self.assertEqual(self.status, 0, lines)
            worker = f"{self.home}/worker"
            self.assertIn(user.format(worker), self.called)
            start = f"{self.sandbox.bin}/buildbot-worker start --nodaemon {worker}"
            self.assertEqual(self.called[-1], f"{su} cd {worker}; exec {start}")
            self.assertEqual(self.sandbox.calls("switch"), [ENDED])

    def test_launchd(self) -> None:
        """On macOS, launchd runs the worker."""
        self.family("macos")
        self.prepared()
        self.record("launchctl")
        self.bootstrap(packaged("macos"))
        self.assertEqual(self.called[-1], f"launchctl bootstrap system {self.home}/worker.plist")
        plist = plistlib.loads(self.sandbox.read(self.home, "worker.plist").encode())
        self.assertEqual(plist.pop("Label"), "net.buildbot.worker")
        *shell, life = plist.pop("ProgramArguments")
        self.assertEqual((shell, plist), (["/bin/sh", "-c"], {"RunAtLoad": True}))
        self.assertIn(f"cd {self.home}/worker; exec {self.sandbox.bin}/buildbot-worker start", life)
        self.assertEqual(self.sandbox.calls("switch"), [])

    def test_end_of_boot(self) -> None:
        """It goes on when FreeBSD's boot has ended: that hangs up, and makes what was opened of the console useless."""
        for shell in SHELLS:
            self.setUp()
            self.family("freebsd")
            self.prepared()
            self.sandbox.use(SHELLS[shell])
            go, console = self.sandbox.path("go"), self.sandbox.path("dev/console")
            self.record("pkg", f"[ $1 = info ] && exit 1; until [ -e '{go}' ]; do {shutil.which('sleep')} 0.02; done")
            script = write(self.sandbox.root, "bootstrap", self.on_machine(packaged("freebsd")))
            at, terminal = pty.openpty()
            self.addCleanup(os.close, at)

            def lead(terminal: int = terminal) -> None:
                # Whoever started these tests may have had it ignored.
                signal.signal(signal.SIGHUP, signal.SIG_DFL)
                os.setsid()
                fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

            boot = subprocess.Popen(
                [*SHELLS[shell], script],
                env=self.sandbox.environment(
                    BB_MASTER=MASTER, BB_NAME=WORKER, BB_PASSWORD=PASSWORD, BB_PACKAGES="one",
                    EC2UD_SWITCH=self.sandbox.path("switch"),
                ),
                stdin=terminal, stdout=terminal, stderr=terminal, cwd=self.sandbox.root, preexec_fn=lead,
            )  # fmt: skip
            os.close(terminal)
            self.assertEqual(boot.wait(), 0)
            os.rename(console, f"{console} before")
            write(self.sandbox.root, "go", "")
            while self.sandbox.processes():
                time.sleep(0.02)
            self.assertIn("phase=start-worker", self.sandbox.log.splitlines()[-1])
            self.assertEqual(self.sandbox.console[-1], self.sandbox.log.splitlines()[-1])
            self.assertEqual(self.sandbox.calls("switch"), [ENDED])

    def test_background_failure(self) -> None:
        """Where the script returns at once, it powers off itself when it fails."""
        for name in ("freebsd", "macos"):
            for shell in SHELLS:
                self.setUp()
                self.family(name)
                self.record(FAMILIES[name][0], "exit 1")
                self.record("sudo", "exit 1")
                self.bootstrap(packaged(name), shell)
                self.assertEqual((self.status, self.secrets()), (0, []))
                self.assertEqual(self.sandbox.calls("switch"), ["off the bootstrap script failed"])


class PythonTests(FamilyTestCase):
    """Which Python it is that the worker runs with."""

    def test_there_is_one(self) -> None:
        """One that is there already is taken."""
        self.family("redhat")
        write(self.sandbox.root, "python works", "")
        self.bootstrap(packaged("redhat"))
        self.assertEqual(self.status, 0)
        self.assertEqual([step for step in self.steps if step.startswith("dnf")], [])

    def test_too_old(self) -> None:
        """Where the system's own is too old, a newer one is installed, and found."""
        self.family("redhat")
        found = self.sandbox.path("usr/bin/python3.11")
        then = f'case $1 in -c) ;; *) mkdir -p "$3"; cp -R \'{self.sandbox.path("template")}\' "$3/bin" ;; esac'
        self.record("python3.11", then, self.sandbox.path("template"))
        self.record(
            "dnf",
            f'case "$*" in *3.12) exit 1 ;; *3.11) cp "{self.sandbox.path("template")}/python3.11" "{found}" ;; esac',
        )
        lines = self.bootstrap(packaged("redhat"))
        self.assertEqual(self.status, 0, lines)
        tried = [step.rpartition(" ")[2] for step in self.steps if step.startswith("dnf")]
        self.assertEqual(tried, ["python3", *["python3.12"] * 3, "python3.11"])
        self.assertIn(f"python3.11 -m venv {self.home}/venv", self.called)

    def test_version(self) -> None:
        """Old is what buildbot-worker does not run with; also one without venv is of no use."""
        (line,) = (line for line in packaged("generic").splitlines() if "version_info" in line)
        code = line.split("'")[1]
        for version, missing, status in (
            ((3, 8, 0), [], 0), ((3, 11, 2), [], 0), ((4, 0), [], 0), ((3, 7, 9), [], 1), ((3, 6), [], 1),
            ((3, 11, 2), ["ensurepip"], 1), ((3, 11, 2), ["venv"], 1),
        ):  # fmt: skip
            before = f"import sys; sys.version_info = {version}; sys.modules.update(dict.fromkeys({missing}))\n"
            done = subprocess.run([sys.executable, "-S", "-c", before + code], stderr=subprocess.DEVNULL, check=False)
            self.assertEqual(done.returncode, status, (version, missing))

    def test_none(self) -> None:
        """Where there is none to be had, the script says so."""
        self.family("debian")
        self.record("apt-get")
        lines = self.bootstrap(packaged("debian"))
        self.assertNotEqual(self.status, 0)
        self.assertEqual(lines[-1], "ec2ud: no Python 3.8 or newer")
        self.assertEqual(self.secrets(), [])

    def test_amazon_linux_2(self) -> None:
        """There, a newer Python has to be enabled first; and there is no dnf."""
        self.family("redhat")
        os.unlink(os.path.join(self.sandbox.bin, "dnf"))
        self.manager("yum")
        self.record("amazon-linux-extras", "echo noise")
        lines = self.bootstrap(packaged("redhat"))
        self.phases(lines)
        self.assertEqual(self.steps[:2], ["amazon-linux-extras enable python3.8", "yum -q -y install python38"])
