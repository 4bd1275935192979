"""The dead-man's switch: an instance ends itself, whatever has become of its script, its worker and its master."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from typing import Any

from twisted.internet import defer
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.userdata import posix
from tests.unit.files import write
from tests.unit.sandbox import PASSWORD, POWER_OFF, SHELLS, Sandbox
from tests.unit.watching import HANGS, SLEEP, WatchTestCase

WATCHES = {
    "max_lifetime": (3600, "switch lifetime 3600"),
    "orphan_timeout": (900, "switch orphan 900 9989"),
    "spot": (True, "spot 9989"),
}


def command_line(pid: int) -> list[str]:
    with open(f"/proc/{pid}/cmdline", encoding="utf-8") as file:
        return file.read().split("\0")[:-1]


class OffTests(SynchronousTestCase):
    """How a machine is switched off."""

    def off(self, sandbox: Sandbox) -> None:
        sandbox.run("#!/bin/sh\nexit 1\n")

    def test_ways(self) -> None:
        """Each system has its own way, and some have but one."""
        for power_off, there, shutdown, poweroff, halt in (
            ('[ "$1" = -P ]', ("shutdown", "poweroff", "halt"), ["-P now"], [], []),
            ('[ "$1" = -p ]', ("shutdown", "poweroff", "halt"), ["-P now", "-p now"], [], []),
            ('[ "$1" = -h ]', ("shutdown", "poweroff", "halt"), ["-P now", "-p now", "-h now"], [], []),
            ("false", ("shutdown", "poweroff", "halt"), ["-P now", "-p now", "-h now"], [""], []),
            ("", ("poweroff", "halt"), [], [""], []),
            ("", ("halt",), [], [], ["-p"]),
        ):
            sandbox = Sandbox(self)
            for name in ("shutdown", "poweroff"):
                os.unlink(os.path.join(sandbox.bin, name))
            for name in there:
                sandbox.record(name, f"{power_off if name == 'shutdown' else ''}\n[ $? = 0 ] || exit\n{POWER_OFF}")
            self.off(sandbox)
            called = [sandbox.calls(name) for name in ("shutdown", "poweroff", "halt")]
            self.assertEqual(called, [shutdown, poweroff, halt])

    def test_again(self) -> None:
        """When nothing happens, it is tried again, and harder."""
        sandbox = Sandbox(self)
        sandbox.record("shutdown")
        sandbox.record("poweroff", f'[ "$(grep -c . {sandbox.path("poweroff.calls")})" -lt 3 ] || {POWER_OFF}')
        self.off(sandbox)
        self.assertEqual(sandbox.calls("shutdown"), ["-P now"] * 3)
        self.assertEqual(sandbox.calls("poweroff"), ["-f"] * 3)
        self.assertEqual(sandbox.calls("sleep"), ["1", "120", "10", "120", "10", "120"])

    def test_no_room(self) -> None:
        """A machine on which nothing can be written goes all the same."""
        for shell in SHELLS:
            sandbox = Sandbox(self)
            sandbox.record("shutdown", '[ "$1" = -p ]')
            write(sandbox.root, "var", "")
            lines = sandbox.run("#!/bin/sh\nexit 0\n", shell)
            self.assertIn("ec2ud: the bootstrap script failed with status 1; powering off", lines)
            self.assertEqual(sandbox.calls("shutdown"), ["-P now", "-p now"])
            self.assertEqual(sandbox.calls("poweroff"), [])

    def test_secrets(self) -> None:
        """What powers off has no password in its environment."""
        sandbox = Sandbox(self)
        sandbox.link("env")
        sandbox.record("shutdown", f"env >'{sandbox.path('environment')}'\n{POWER_OFF}")
        sandbox.run("#!/bin/sh\nexit 1\n", TOKEN="t0ken-of-mine")
        self.assertIn("EC2UD_ROOT=", sandbox.read("environment"))
        for secret in (PASSWORD, "t0ken-of-mine", "BB_NAME"):
            self.assertNotIn(secret, sandbox.read("environment"))


class StartTests(WatchTestCase):
    """Which processes user-data leaves running, and what they have of it."""

    @defer.inlineCallbacks
    def test_all(self) -> Any:
        """Every combination, in every shell. They outlive the script, nobody waits for them, and they know no secret."""
        for shell, count in itertools.product(SHELLS, range(len(WATCHES) + 1)):
            for names in itertools.combinations(WATCHES, count):
                sandbox = self.machine(shell)
                sandbox.record("sleep", f"exec {SLEEP} 60")
                process = self.start(
                    sandbox,
                    "#!/bin/sh\n",
                    shell,
                    url="http://127.0.0.1:1",
                    **{name: WATCHES[name][0] for name in names},
                )
                yield self.until(lambda process=process: process.poll() is not None)
                yield self.until_called(sandbox, "sleep", count)
                # What records it becomes it only then.
                yield self.until(
                    lambda sandbox=sandbox, count=count: (
                        count == sum(command_line(pid)[:1] == [SLEEP] for pid in sandbox.processes())
                    )
                )
                started = {}
                for pid in sandbox.processes():
                    line = " ".join(command_line(pid))
                    if not line.startswith(SLEEP):
                        started[line.partition(sandbox.path("var/lib/buildbot-ec2ud/"))[2]] = pid
                self.assertEqual(sorted(started), sorted(WATCHES[name][1] for name in names))
                for pid in started.values():
                    self.assertEqual(os.getsid(pid), pid)
                    self.assertEqual({os.readlink(f"/proc/{pid}/fd/{number}") for number in (0, 1, 2)}, {"/dev/null"})
                    with open(f"/proc/{pid}/environ", encoding="utf-8") as file:
                        self.assertNotIn(PASSWORD, file.read())
                self.assertEqual(sandbox.calls("shutdown") + sandbox.console, [])
                sandbox.end()

    def test_end_of_the_output(self) -> None:
        """Whoever reads what the script prints gets to its end, and not only when the machine ends."""
        sandbox = self.machine()
        sandbox.record("sleep", f"exec {SLEEP} 60")
        data = posix.UserData("m:1", "w", PASSWORD, {}, posix.InlineScript("#!/bin/sh\necho done\n"), 60, 60, True)
        self.assertEqual(sandbox.execute(SHELLS["sh"], data.render())[-1], "done")
        self.assertGreaterEqual(len(sandbox.processes()), 3)


class RestartTests(WatchTestCase):
    """A machine that is restarted does not run its user-data again."""

    @defer.inlineCallbacks
    def test_cloud_init(self) -> Any:
        """What watches it is started again by cloud-init, and the time begins anew."""
        for shell in SHELLS:
            sandbox = self.machine(shell)
            sandbox.record("sleep", f"exec {SLEEP} 60")
            directory = sandbox.path("var/lib/cloud/scripts/per-boot")
            os.makedirs(directory)
            self.start(sandbox, HANGS, shell, max_lifetime=3600, orphan_timeout=100, spot=True)
            yield self.until_called(sandbox, "sleep", 2)
            (name,) = os.listdir(directory)
            self.assertNotIn(PASSWORD, sandbox.read(directory, name))
            sandbox.end()
            os.unlink(sandbox.path("sleep.calls"))
            sandbox.record("sleep", f"exec {SLEEP} 0.02")
            self.spawn([os.path.join(directory, name)], sandbox, sandbox.environment())
            yield self.until_called(sandbox, "shutdown", 2)
            self.assertEqual(
                sorted(sandbox.console),
                [
                    "ec2ud: max_lifetime: 3600 s are over; powering off",
                    "ec2ud: orphan_timeout: no connection to the master for 110 s; powering off",
                ],
            )

    @defer.inlineCallbacks
    def test_image_of_it(self) -> Any:
        """An instance of an image that was made of it is not ended by what the former one has left there."""
        for shell in SHELLS:
            sandbox = self.machine(shell)
            sandbox.link("readlink")
            sandbox.record("sleep", f"exec {SLEEP} 60")
            script = sandbox.path("var/lib/cloud/scripts/per-boot/buildbot-ec2ud")
            os.makedirs(os.path.dirname(script))
            instance = sandbox.path("var/lib/cloud/instance")
            for number, lifetime in enumerate((3600, 7200)):
                os.symlink(f"/var/lib/cloud/instances/i-{number}", instance)
                if number:
                    self.assertEqual(
                        (self.spawn([script], sandbox, sandbox.environment()).wait(), sandbox.processes()), (0, [])
                    )
                self.start(sandbox, HANGS, shell, max_lifetime=lifetime)
                yield self.until_called(sandbox, "sleep")
                sandbox.end()
                os.unlink(sandbox.path("sleep.calls"))
                self.spawn([script], sandbox, sandbox.environment())
                yield self.until_called(sandbox, "sleep")
                self.assertEqual(sandbox.calls("sleep"), [str(lifetime)])
                sandbox.end()
                os.unlink(sandbox.path("sleep.calls"))
                os.unlink(instance)


class LifetimeTests(WatchTestCase):
    """``max_lifetime``."""

    @defer.inlineCallbacks
    def test_hanging_bootstrap(self) -> Any:
        """When the time is over, the machine goes, whatever it does; and it says so everywhere."""
        for shell in SHELLS:
            sandbox = self.machine(shell)
            self.start(sandbox, HANGS, shell, max_lifetime=3600)
            yield self.until_called(sandbox, "shutdown")
            line = "ec2ud: max_lifetime: 3600 s are over; powering off"
            self.assertEqual((sandbox.calls("sleep")[0], sandbox.calls("shutdown")), ("3600", ["-P now"]))
            self.assertEqual(sandbox.console, [line])
            self.assertIn(line, sandbox.log.splitlines())
            self.assertIn(f"-t buildbot-ec2ud -- {line}", sandbox.calls("logger"))

    def waiting(self, shell: str) -> Sandbox:
        """A machine whose time does not pass before the file ``go`` is there."""
        sandbox = self.machine(shell)
        go = sandbox.path("go")
        sandbox.record("sleep", f"until [ -e '{go}' ]; do {SLEEP} 0.02; done")
        return sandbox

    @defer.inlineCallbacks
    def survives(self, number: int, shell: str, *without: str) -> Any:
        sandbox = self.waiting(shell)
        for name in without:
            os.unlink(os.path.join(sandbox.bin, name))
        process = self.start(sandbox, HANGS, shell, max_lifetime=3600)
        yield self.until(lambda: "phase=bootstrap" in sandbox.read("output"))
        yield self.until_called(sandbox, "sleep")
        self.kill(process, number)
        yield self.until(lambda: process.poll() is not None)
        self.assertEqual(sandbox.calls("shutdown"), [])
        write(sandbox.root, "go", "")
        yield self.until_called(sandbox, "shutdown")

    @defer.inlineCallbacks
    def test_killed_script(self) -> Any:
        """The script and all that it waits for may be killed."""
        for shell in SHELLS:
            yield self.survives(signal.SIGKILL, shell)

    @defer.inlineCallbacks
    def test_no_setsid(self) -> Any:
        """Where no session can be made, it still does not go with the terminal."""
        # Whoever started these tests may have had it ignored.
        self.addCleanup(signal.signal, signal.SIGHUP, signal.signal(signal.SIGHUP, signal.SIG_DFL))
        for shell in SHELLS:
            yield self.survives(signal.SIGHUP, shell, "setsid")

    @defer.inlineCallbacks
    def test_no_console(self) -> Any:
        """An instance of the embedded EC2 has no console but the script's output."""
        sandbox = self.machine()
        shutil.rmtree(sandbox.path("dev"))
        self.start(sandbox, HANGS, max_lifetime=3600)
        yield self.until_called(sandbox, "shutdown")
        self.assertIn("ec2ud: max_lifetime: 3600 s are over; powering off", sandbox.read("output").splitlines())

    @defer.inlineCallbacks
    def test_memory(self) -> Any:
        """When memory runs out, something else is to be ended."""
        sandbox = self.machine()
        os.makedirs(sandbox.path("proc/self"))
        self.start(sandbox, HANGS, max_lifetime=3600)
        yield self.until_called(sandbox, "shutdown")
        self.assertEqual(sandbox.read("proc/self/oom_score_adj"), "-1000\n")
