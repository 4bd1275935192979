"""Machines that are a directory each, for the bootstrap scripts.

A script finds recorders where it would change its machine: package managers, accounts, services. Paths of the machine are
paths below that directory.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from buildbot_ec2ud.userdata import scripts
from buildbot_ec2ud.userdata.compose import compose, cut
from tests.unit.files import write
from tests.unit.sandbox import MASTER, PASSWORD, SHELLS, WORKER, Sandbox

#: A command that notes its arguments and its environment.
RECORDER = "#!/bin/sh\n{{ echo \"$0 $*\"; env; }} >>'{calls}'\nprintf '%s\\n' \"${{0##*/}} $*\" >>'{names}'\n{then}\n"
#: What stands for ``buildbot-worker create-worker`` where the worker is not looked at.
CREATE_WORKER = """
[ "$1" = create-worker ] || exit 0
while [ $# -gt 4 ]; do shift; done
mkdir -p "$1"
echo "passwd = '$4'" >"$1/buildbot.tac"
"""
#: Paths that scripts have of their machine, and those that may stay what they are.
PATHS = (
    "/var/lib/buildbot-worker",
    "/var/log/buildbot-ec2ud.log",
    "/run/systemd/system",
    "/proc/mounts",
    "/run",
    "/dev/shm",
    "/dev/console",
    "/etc/os-release",
    "/etc/apt/sources.list",
    "/usr/bin/python3",
    "/usr/local/sbin",
    "/usr/local/bin",
    "/opt/homebrew/bin",
)
HARMLESS = ("/dev/null", "/bin/sh", "/Users/buildbot")
APT = "apt-get -qq -y --no-install-recommends -o DPkg::Lock::Timeout=300"
ZYPPER = "zypper -q -n install --no-recommends"
#: Each family's package manager, and how it installs packages; %s is where they stand.
FAMILIES = {
    "debian": ("apt-get", f"{APT} install ca-certificates %s"),
    "redhat": ("dnf", "dnf -q -y install %s"),
    "suse": ("zypper", f"{ZYPPER} %s"),
    "alpine": ("apk", "apk add -q -U %s"),
    "freebsd": ("pkg", "pkg install -q %s"),
    "macos": ("brew", "brew install -q %s"),
}


def packaged(name: str) -> str:
    """The text of a packaged script as an instance gets it, unpacked."""
    with open(scripts.packaged(f"{name}.sh"), encoding="utf-8") as file:
        return cut(compose(file.read(), pack=False), head=True)


class BootstrapTestCase(SynchronousTestCase):
    """A machine on which bootstrap scripts run; a vanilla one with git, unless a test makes another of it."""

    def setUp(self) -> None:
        self.sandbox = Sandbox(self)
        self.sandbox.link("cp", "env", "head", "mktemp", "mv", "rm", "tee")
        for name in ("dev/shm", "etc/apt/sources.list.d", "proc", "run", "usr/bin", "var/lib", "var/log", "template"):
            os.makedirs(self.sandbox.path(name), exist_ok=True)
        write(self.sandbox.root, "proc/mounts", f"tmpfs {self.sandbox.path('run')} tmpfs rw,nosuid 0 0\n")
        self.home = self.sandbox.path("var/lib/buildbot-worker")
        # What powers off is noted, and its machine stays.
        write(self.sandbox.root, "switch", f"printf '%s\\n' \"$*\" >>'{self.sandbox.path('switch.calls')}'\n")
        for name in ("useradd", "adduser", "chown", "su", "systemd-run", "git"):
            self.record(name)
        self.record("id", "exit 1")
        self.record("uname", "echo Linux")
        # `python3 -m venv` copies one that is ready.
        self.python = self.sandbox.path("python works")
        venv = self.sandbox.path("template")
        self.record(
            "python3", f'case $1 in -c) [ -e "{self.python}" ] ;; *) mkdir -p "$3"; cp -R "{venv}" "$3/bin" ;; esac'
        )
        self.record("pip", directory=venv)
        self.record("buildbot-worker", CREATE_WORKER, venv)

    def record(self, name: str, then: str = "", directory: str | None = None) -> None:
        """Let scripts have a command that notes its arguments, and then does *then*."""
        calls, names = self.sandbox.path("everything"), self.sandbox.path("names")
        text = RECORDER.format(calls=calls, names=names, then=then)
        write(directory or self.sandbox.bin, name, text, 0o755)

    def manager(self, name: str) -> None:
        """Let scripts have a package manager; whatever it installs, there is a Python after it."""
        self.record(name, f'case "$*" in *python*) : >"{self.python}" ;; esac')

    def prepared(self, real: bool = False) -> None:
        """The image has buildbot-worker already, on the PATH.

        :param real: whether it makes real workers; else there is a tac, with a line for the password.
        """
        then = CREATE_WORKER
        if real:
            command = shutil.which("buildbot-worker", path=os.path.dirname(sys.executable))
            command = command or shutil.which("buildbot-worker")
            if command is None:
                raise SkipTest("buildbot-worker is not installed")
            then = f'[ "$1" != create-worker ] || exec {command} "$@"'
        self.record("buildbot-worker", then)

    def on_machine(self, text: str) -> str:
        """A script as it is on this machine: else it would touch the one that the test runs on."""
        root, apart = self.sandbox.root, "\0"
        for path in PATHS:
            text = re.sub(rf"(?<![\w\0]){path}(?![\w/])", lambda found: apart + found[0][1:], text)
        for path in HARMLESS:
            text = text.replace(path, path.replace("/", "\1"))
        self.assertEqual(
            re.findall(r"(?<![\w$}\"*.])/(?:bin|dev|etc|opt|proc|run|tmp|usr|var|Library|Users)\b.*", text), []
        )
        return text.replace(apart, root + "/").replace("\1", "/")

    def bootstrap(self, text: str, shell: str = "sh", options: tuple[str, ...] = (), **environment: str) -> list[str]:
        """Run a bootstrap script, and wait for what it leaves running; gives the lines that it prints."""
        self.sandbox.use(SHELLS[shell])
        variables: Mapping[str, str] = {
            **self.sandbox.environment(BB_MASTER=MASTER, BB_NAME=WORKER, BB_PASSWORD=PASSWORD),
            "EC2UD_START": str(int(time.time()) - 100),
            "EC2UD_SWITCH": self.sandbox.path("switch"),
            **environment,
        }
        done = subprocess.run(
            [*SHELLS[shell], *options, write(self.sandbox.root, "bootstrap", self.on_machine(text) + "wait\n")],
            env=variables,
            cwd=self.sandbox.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
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
        """The recorders that were called, with their arguments, but for those of no interest."""
        calls = self.sandbox.read("names").splitlines() if self.sandbox.exists("names") else []
        dull = ("python3 -c ", "uname ")
        return [call for call in calls if not call.startswith(dull)]

    def secrets(self) -> list[str]:
        """The files that have the password in them."""
        found = []
        for path in glob.glob(self.sandbox.path("**"), recursive=True, include_hidden=True):
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb") as file:
                    if PASSWORD.encode() in file.read():
                        found.append(os.path.relpath(path, self.sandbox.root))
        return found


class FamilyTestCase(BootstrapTestCase):
    def family(self, name: str) -> None:
        """A vanilla system of a family."""
        self.manager(FAMILIES[name][0])
        # None of them has any package.
        for query in ("dpkg", "rpm"):
            self.record(query, "exit 1")
        if name in ("alpine", "freebsd", "macos"):
            manager, python = FAMILIES[name][0], self.python
            then = f'case "$*" in info*|list*) exit 1 ;; *python*) : >"{python}" ;; esac'
            self.record(manager, then)
        if name == "freebsd":
            os.unlink(os.path.join(self.sandbox.bin, "setsid"))
            self.record("daemon", '"$@"')
            self.record("pw")
        if name == "macos":
            os.unlink(os.path.join(self.sandbox.bin, "setsid"))
            self.record("stat", "echo ec2-user")
            self.record("sudo", 'while [ "${1#-}" != "$1" ]; do [ "$1" != -u ] || shift; shift; done; "$@"')
            self.record("dscl")
            self.record("launchctl", "exit 1")
            self.record("useradd", "exit 1")

    @property
    def steps(self) -> list[str]:
        """What was called, but for queries of packages and what runs something else."""
        queries = ("dpkg ", "rpm ", "apk info ", "pkg info ", "brew list ", "sudo ", "stat ", "zypper -q -n repos")
        return [call for call in self.called if not call.startswith(queries)]
