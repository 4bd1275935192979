"""How a bootstrap script ends, on a system of any family: with a worker, or with a failure that ends the machine."""

from __future__ import annotations

import os

from tests.unit.bootstrap import FAMILIES, ZYPPER, FamilyTestCase, packaged
from tests.unit.files import write
from tests.unit.sandbox import SHELLS

ENDED = "off the worker has ended"


class EndTests(FamilyTestCase):
    """How it ends, well or not."""

    def test_user(self) -> None:
        """The worker's user is made by whichever command there is, once; and owns the worker's directory and the secret."""
        for there, known, expected in (
            (("useradd", "adduser"), False, ["id", "useradd"]),
            (("adduser",), False, ["id", "adduser"]),
            (("useradd", "adduser"), True, ["id"]),
        ):
            self.setUp()
            self.prepared()
            for name in {"useradd", "adduser"} - set(there):
                os.unlink(os.path.join(self.sandbox.bin, name))
            self.record("id", "" if known else "exit 1")
            self.bootstrap(packaged("generic"))
            names = [call.partition(" ")[0] for call in self.called]
            self.assertEqual(names[: len(expected) + 1], [*expected, "buildbot-worker"])
            (secret,) = os.listdir(self.sandbox.path("run"))
            self.assertIn(f"chown -R buildbot {self.home}/worker {self.sandbox.path('run', secret)}", self.called)

    def test_start(self) -> None:
        """Without systemd, the machine goes when the worker has ended, however."""
        for then in ("", "exit 1", "kill -9 $$"):
            for shell in SHELLS:
                self.setUp()
                self.prepared()
                self.record("su", then)
                self.bootstrap(packaged("generic"), shell)
                self.assertEqual((self.status, self.sandbox.calls("switch")), (0, [ENDED]))
                everything = self.sandbox.read("everything")
                own = everything[everything.rindex(f"{self.sandbox.bin}/su ") :]
                self.assertEqual(
                    sorted(
                        line
                        for line in own.splitlines()[1:]
                        if not line.startswith(("PWD=", "_=", "SHLVL=", "OLDPWD="))
                    ),
                    [f"HOME={self.home}/worker", next(line for line in own.splitlines() if line.startswith("PATH="))],
                )

    def test_systemd(self) -> None:
        """There, systemd does both."""
        self.prepared()
        os.mkdir(self.sandbox.path("run/systemd"))
        os.mkdir(self.sandbox.path("run/systemd/system"))
        self.bootstrap(packaged("generic"))
        start = f"{self.sandbox.bin}/buildbot-worker start --nodaemon {self.home}/worker"
        options, _, command = self.called[-1].partition(" -- ")
        self.assertTrue(options.startswith("systemd-run --unit=buildbot-worker --uid=buildbot "))
        self.assertIn(" --property=SuccessAction=poweroff --property=FailureAction=poweroff ", options)
        self.assertEqual(command, f"/bin/sh -c {start}; echo 'ec2ud: the worker has ended; powering off'")
        self.assertEqual(self.sandbox.calls("switch"), [])

    def test_older_systemd(self) -> None:
        """One that does not know all that it is told still starts the worker, or leaves it to do that plainly."""
        for then, units, plainly in (
            ('case "$*" in *OOMPolicy*) exit 1 ;; esac', 2, False),
            ("exit 1", 2, True),
        ):
            self.setUp()
            self.prepared()
            os.makedirs(self.sandbox.path("run/systemd/system"))
            self.record("systemd-run", then)
            self.bootstrap(packaged("generic"))
            self.assertEqual(self.status, 0)
            calls = [call for call in self.called if call.startswith("systemd-run ")]
            self.assertEqual(len(calls), units)
            self.assertIn("OOMPolicy=continue", calls[0])
            self.assertNotIn("OOMPolicy", calls[1])
            self.assertEqual(any(call.startswith("su ") for call in self.called), plainly)

    def test_other_user_data(self) -> None:
        """The script does with the variables of 2011 alone."""
        self.prepared()
        self.record("poweroff")
        text = packaged("generic").replace("set -eu\n", "set -eu\nunset EC2UD_START EC2UD_SWITCH\n", 1)
        (line,) = self.bootstrap(text)
        self.assertEqual((self.status, line.partition(" t=")[0]), (0, "ec2ud: phase=start-worker"))
        self.assertEqual(self.called[-1], "poweroff ")

    def test_failures(self) -> None:
        """Whatever fails ends the script, so that its machine goes; the last phase told is the one that failed."""
        for failing, phase in (
            ("dnf", "packages"),
            ("python3", "install-worker"),
            ("pip", "install-worker"),
            ("buildbot-worker", "start-worker"),
            ("chown", "start-worker"),
        ):
            for shell in SHELLS:
                self.setUp()
                self.family("redhat")
                write(self.sandbox.root, "python works", "")
                in_venv = failing in ("pip", "buildbot-worker")
                then = "case $1 in -c) ;; *) exit 9 ;; esac" if failing == "python3" else "exit 9"
                self.record(failing, then, self.sandbox.path("template") if in_venv else None)
                lines = self.bootstrap(packaged("redhat"), shell, BB_PACKAGES="one")
                self.assertNotEqual(self.status, 0, failing)
                self.assertEqual(self.phases(lines)[-1], phase)
                self.assertFalse([call for call in self.called if call.startswith(("su ", "systemd-run "))], failing)
                self.assertEqual(self.secrets(), [])

    def test_retries(self) -> None:
        """A network that fails now and then is no reason to give up."""
        self.family("debian")
        self.prepared()
        attempts = self.sandbox.path("attempts")
        self.record("apt-get", f'echo "$*" >>{attempts}; [ "$(grep -cxF -e "$*" {attempts})" -ge 3 ]')
        self.bootstrap(packaged("debian"), BB_PACKAGES="one")
        self.assertEqual(self.status, 0)
        self.assertEqual(self.steps.count(FAMILIES["debian"][1] % "one"), 3)
        # Before it, and before it is tried again.
        self.assertEqual(self.steps.count("apt-get -qq update"), 3 + 2)

    def test_update_without_network(self) -> None:
        """apt-get ends well when it could not fetch its lists, and then does not know the package: it is asked to again."""
        self.family("debian")
        self.prepared()
        updates = self.sandbox.path("updates")
        self.record(
            "apt-get",
            f'case "$*" in *update) echo x >>{updates} ;; *) [ "$(grep -c x {updates})" -ge 2 ] || exit 100 ;; esac',
        )
        self.bootstrap(packaged("debian"), BB_PACKAGES="one", BB_BUILD_DEP="two")
        self.assertEqual(self.status, 0)
        install = FAMILIES["debian"][1] % "one"
        self.assertEqual(self.steps[:4], ["apt-get -qq update", install] * 2)

    def test_zypper_wishes(self) -> None:
        """zypper has statuses of its own for a success."""
        for status, ends_well in ((102, True), (103, True), (106, True), (104, False), (4, False)):
            self.setUp()
            self.family("suse")
            self.prepared()
            self.record("zypper", f"exit {status}")
            self.bootstrap(packaged("suse"), BB_PACKAGES="one")
            self.assertEqual(self.status == 0, ends_well, status)

    def test_zypper_repositories(self) -> None:
        """An instance may get its repositories only after its first boot has begun; it waits for them, but not for ever."""
        for there_after, ends_well in ((3, True), (1000, False)):
            self.setUp()
            self.family("suse")
            self.prepared()
            asked = self.sandbox.path("asked")
            self.record(
                "zypper",
                f'case "$*" in *repos) echo x >>{asked} ;; esac; [ "$(grep -c x {asked})" -ge {there_after} ] || exit 6',
            )
            self.bootstrap(packaged("suse"), BB_PACKAGES="one")
            self.assertEqual(self.status == 0, ends_well)
            self.assertEqual(self.called.count("zypper -q -n repos"), 3 if ends_well else 60)
            self.assertEqual(self.called.count(f"{ZYPPER} one"), 1 if ends_well else 3)

    def test_unknown_system(self) -> None:
        """A system without a package manager that the script knows: an image that needs none is welcome there."""
        lines = self.bootstrap(packaged("generic"))
        self.assertNotEqual(self.status, 0)
        self.assertEqual(lines[-1], "ec2ud: no package manager known to this script")
        self.prepared()
        self.bootstrap(packaged("generic"))
        self.assertEqual(self.status, 0)
