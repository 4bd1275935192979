"""What ``generic.sh`` makes of real systems, by what they say of themselves."""

from __future__ import annotations

import os
import shutil
import subprocess

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from buildbot_ec2ud.userdata import scripts
from tests.unit.bootstrap import FAMILIES, BootstrapTestCase, packaged
from tests.unit.files import directory, write
from tests.unit.sandbox import SHELLS

RECORDED = os.path.join(os.path.dirname(__file__), "os_release")
MANAGERS = ("apt-get", "dnf", "yum", "zypper", "apk")
#: The package manager of each recorded system; None where the script has to see which one there is.
SYSTEMS = {
    "apt-get": (
        "debian_10", "debian_11", "debian_12", "debian_13", "kali_2025_4", "linuxmint_22", "pop_os_22_04", "raspbian_10",
        "ubuntu_1804", "ubuntu_2004", "ubuntu_2204", "ubuntu_2404", "ubuntu_2510",
    ),
    "dnf": (
        "alma_10", "alma_8", "alma_9", "amazon_2", "amazon_2018", "amazon_2023", "centos_7", "centos_stream_9", "fedora_37",
        "fedora_40", "fedora_42", "fedora_43", "oracle_8", "oracle_9", "redhat_10", "redhat_8", "redhat_9", "rocky_8",
        "rocky_9",
    ),
    "zypper": (
        "opensuseleap_15", "opensuseleap_16", "opensusetumbleweed", "sled_15", "sles_12", "sles_15", "suse-microos",
    ),
    "apk": ("alpine_3_15", "alpine_3_22"),
    None: ("arch", "archarm", "azurelinux_3", "gentoo_218", "mageia_9", "openeuler"),
}  # fmt: skip


class DetectionTests(BootstrapTestCase):
    """The family of a system."""

    def setUp(self) -> None:
        super().setUp()
        self.prepared()
        for name in ("dpkg", "rpm"):
            self.record(name, "exit 1")

    def manager_on(self, system: str | None, there: tuple[str, ...], shell: str = "sh") -> str | None:
        """What installs packages on a system that has these package managers."""
        for name in MANAGERS:
            path = os.path.join(self.sandbox.bin, name)
            if name in there:
                self.record(name, 'case "$*" in info*) exit 1 ;; esac')
            elif os.path.exists(path):
                os.unlink(path)
        if system is not None:
            shutil.copy(os.path.join(RECORDED, system), self.sandbox.path("etc/os-release"))
        if self.sandbox.exists("names"):
            os.unlink(self.sandbox.path("names"))
        lines = self.bootstrap(packaged("generic"), shell, BB_PACKAGES="wanted")
        called = {call.partition(" ")[0] for call in self.called if call.endswith("wanted")} & set(MANAGERS)
        self.assertLessEqual(len(called), 1)
        self.assertEqual(self.status == 0, bool(called), lines)
        return called.pop() if called else None

    def test_all_of_them(self) -> None:
        """Every recorded file is looked at."""
        listed = sorted(name for names in SYSTEMS.values() for name in names)
        self.assertEqual(listed, sorted(set(os.listdir(RECORDED)) - {"README.md"}))

    def test_by_os_release(self) -> None:
        """What a system says counts, whatever other package managers are installed there; in every shell."""
        shells = list(SHELLS)
        for manager, systems in SYSTEMS.items():
            for number, system in enumerate(systems):
                if manager is not None:
                    found = self.manager_on(system, MANAGERS, shells[number % len(shells)])
                    self.assertEqual((system, found), (system, manager))

    def test_by_manager(self) -> None:
        """For a system that it does not know, the package manager that there is."""
        for system in (*SYSTEMS[None], None):
            self.setUp()
            self.assertIsNone(self.manager_on(system, ()))
        for manager in MANAGERS:
            self.assertEqual(self.manager_on("gentoo_218", (manager,)), manager)
        self.assertEqual(self.manager_on("openeuler", ("dnf", "yum")), "dnf")

    def test_yum(self) -> None:
        """Where there is no dnf yet."""
        self.assertEqual(self.manager_on("amazon_2", ("yum", "apt-get")), "yum")


class TextTests(SynchronousTestCase):
    """The scripts, unpacked and put together."""

    def check(self, *command: str) -> None:
        for name in (*FAMILIES, "generic", "embedded"):
            path = write(directory(self), f"{name}.sh", packaged(name))
            done = subprocess.run([*command, path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            self.assertEqual((name, done.stdout.decode(), done.returncode), (name, "", 0))

    def test_shellcheck(self) -> None:
        """shellcheck has nothing to say, nor on anything that is not POSIX."""
        if shutil.which("shellcheck") is None:
            raise SkipTest("shellcheck is not installed")
        self.check("shellcheck", "--shell=sh")

    def test_syntax(self) -> None:
        """Every sh at hand can read them."""
        for shell in SHELLS.values():
            self.check(*shell, "-n")

    def test_size(self) -> None:
        """There is room for them, and for variables."""
        for name in (*FAMILIES, "generic", "embedded"):
            script = scripts.load(packaged(name) if name == "embedded" else name, None, [])
            self.assertLess(len(script.text.encode()), 5500 if name == "generic" else 6900)
