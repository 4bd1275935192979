"""The inside of an embedded EC2's instance: what its user-data finds there, and that nothing of it is left."""

from __future__ import annotations

import gzip
import os
import signal
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet import defer, reactor

from buildbot_ec2ud.embedded import machine
from tests.integration.instances import InstanceTestCase, processes

INSIDE = ("Client.InstanceInitiatedShutdown", "Client.InstanceInitiatedShutdown: Instance initiated shutdown")
#: Puts a ``sleep`` before the machine's own that lasts until the file ``go`` is there.
SLEEP = r"""#!/bin/sh
cat >"$EC2UD_ROOT/bin/sleep" <<'END'
#!/bin/sh
echo "$1" >"$EC2UD_ROOT/slept"
until [ -e "$EC2UD_ROOT/go" ]; do /bin/sleep 0.02; done
END
chmod +x "$EC2UD_ROOT/bin/sleep"
shutdown -h +1
until [ -s "$EC2UD_ROOT/slept" ]; do /bin/sleep 0.02; done
"""


class UserData(InstanceTestCase):
    @defer.inlineCallbacks
    def test_runs_scripts(self):
        """User-data that starts with ``#!`` is run, also when it is compressed; what it prints is the console."""
        self.start_ec2()
        for user_data in (b"#!/bin/sh\necho plain; echo trouble >&2\n", gzip.compress(b"#!/bin/sh\necho packed\n")):
            instance_id = yield self.launch(user_data)
            self.assertEqual(self.ec2.user_data(instance_id), user_data)
            yield self.until(lambda: self.kinds()[-1:] == ["user-data ended"], what="the end of the user-data")
            answer = yield self.call("get_console_output", InstanceId=instance_id)
            said = "packed\n" if user_data.startswith(b"\x1f") else "plain\ntrouble\n"
            self.assertEqual((answer["InstanceId"], answer["Output"]), (instance_id, said))

    @defer.inlineCallbacks
    def test_runs_nothing_else(self):
        """Other user-data is left alone, as is none."""
        self.start_ec2()
        for user_data in ("", "#cloud-config\npackages: [git]\n", "echo hello\n", gzip.compress(b"echo hello\n")):
            instance_id = yield self.launch(user_data)
            yield self.until_state(instance_id, "running")
            answer = yield self.call("get_console_output", InstanceId=instance_id)
            self.assertEqual(answer.get("Output", ""), "")
        self.assertEqual(self.kinds(), ["pending", "running"] * 4)
        self.assertFalse(self.directory.exists())

    @defer.inlineCallbacks
    def test_console_keeps_the_tail(self):
        """EC2 keeps the last 64 KiB."""
        self.start_ec2()
        instance_id = yield self.launch("#!/bin/sh\nseq 30000\necho the end\n")
        yield self.until_printed(instance_id, "the end\n")
        answer = yield self.call("get_console_output", InstanceId=instance_id)
        whole = "".join(f"{number}\n" for number in range(1, 30001)) + "the end\n"
        self.assertGreater(len(whole), 2 * 65536)
        self.assertEqual(answer["Output"], whole[-65536:])

    @defer.inlineCallbacks
    def test_end_of_the_user_data(self):
        """A script that merely ends leaves the instance running."""
        self.start_ec2()
        instance_id = yield self.launch("#!/bin/sh\nexit 3\n")
        yield self.until_happened("user-data ended", "with status 3")
        self.assertEqual(self.kinds(), ["pending", "running", "user-data started", "user-data ended"])
        self.assertEqual(self.ec2.states(), {instance_id: "running"})

    @defer.inlineCallbacks
    def test_only_once(self):
        """An instance that is stopped and started again does not run its user-data again."""
        self.start_ec2()
        instance_id = yield self.launch("#!/bin/sh\necho once\nexec sleep 60\n")
        yield self.until_printed(instance_id, "once")
        yield self.call("stop_instances", InstanceIds=[instance_id])
        yield self.until_state(instance_id, "stopped")
        self.assertEqual(processes(self.directory / instance_id), [])
        yield self.call("start_instances", InstanceIds=[instance_id])
        yield self.until_state(instance_id, "running")
        kinds = ["pending", "running", "user-data started", "stopping", "stopped", "pending", "running"]
        self.assertEqual(self.kinds(), kinds)
        self.assertEqual(self.ec2.console(instance_id), b"once\n")
        self.assertEqual(processes(self.directory / instance_id), [])


class Shutdown(InstanceTestCase):
    @defer.inlineCallbacks
    def test_terminates(self):
        """Each way to switch the instance off from inside ends it, and EC2 says so."""
        self.start_ec2()
        for command in ("shutdown -h now", "poweroff", "halt", "shutdown -h +0", "shutdown -P now 'so long'"):
            instance_id = yield self.launch(
                f"#!/bin/sh\n{command}\nexec sleep 60\n", InstanceInitiatedShutdownBehavior="terminate"
            )
            yield self.until_state(instance_id, "terminated")
            found = yield self.describe(instance_id)
            self.assertEqual((found["StateReason"]["Code"], found["StateReason"]["Message"]), INSIDE, command)
            self.assertEqual(processes(self.directory / instance_id), [])
        self.assertEqual(self.kinds(), ["pending", "running", "user-data started", "shutting-down", "terminated"] * 5)

    @defer.inlineCallbacks
    def test_stops(self):
        self.start_ec2()
        instance_id = yield self.launch(
            "#!/bin/sh\nshutdown -h now\nexec sleep 60\n", InstanceInitiatedShutdownBehavior="stop"
        )
        yield self.until_state(instance_id, "stopped")
        found = yield self.describe(instance_id)
        self.assertEqual((found["StateReason"]["Code"], found["StateReason"]["Message"]), INSIDE)
        self.assertEqual(self.kinds()[3:], ["stopping", "stopped"])
        self.assertEqual(processes(self.directory / instance_id), [])

    @defer.inlineCallbacks
    def test_in_a_minute(self):
        self.start_ec2()
        instance_id = yield self.launch(SLEEP + "echo waiting\n", InstanceInitiatedShutdownBehavior="terminate")
        yield self.until_printed(instance_id, "waiting")
        yield self.until_happened("user-data ended", "with status 0")
        root = self.directory / instance_id
        self.assertEqual(root.joinpath("slept").read_text(), "60\n")
        self.assertEqual(self.ec2.states(), {instance_id: "running"})
        root.joinpath("go").touch()
        yield self.until_state(instance_id, "terminated")

    @defer.inlineCallbacks
    def test_called_off(self):
        self.start_ec2()
        instance_id = yield self.launch(SLEEP + 'shutdown -c\ntouch "$EC2UD_ROOT/go"\n/bin/sleep 0.3\n')
        yield self.until_happened("user-data ended", "with status 0")
        self.assertEqual(self.ec2.states(), {instance_id: "running"})

    @defer.inlineCallbacks
    def test_no_reboot(self):
        """What it cannot do, it says."""
        self.start_ec2()
        instance_id = yield self.launch("#!/bin/sh\nshutdown -r now\n")
        yield self.until_happened("user-data ended", "with status 1")
        self.assertEqual(self.ec2.console(instance_id), b"this instance cannot reboot\n")
        self.assertEqual(self.ec2.states(), {instance_id: "running"})


class OnItsOwn(InstanceTestCase):
    @defer.inlineCallbacks
    def test_environment(self):
        """It knows nothing of its master's environment, and its directories are its own."""
        self.start_ec2()
        with mock.patch.dict(os.environ, {"MARKER_OF_THE_MASTER": "secret"}):
            instance_id = yield self.launch("#!/bin/sh\npwd; mktemp; tr '\\0' '\\n' </proc/$$/environ; echo the end\n")
            yield self.until_printed(instance_id, "the end\n")
        root = self.directory / instance_id
        where, temporary, *variables, _ = self.ec2.console(instance_id).decode().splitlines()
        environment = dict(variable.split("=", 1) for variable in variables)
        self.assertEqual(where, str(root))
        self.assertEqual(os.path.dirname(temporary), str(root / "tmp"))
        path = environment.pop("PATH").split(os.pathsep)
        self.assertEqual(path[0], str(root / "bin"))
        self.assertEqual(
            environment,
            {
                "HOME": str(root / "home"),
                "TMPDIR": str(root / "tmp"),
                "LANG": "C.UTF-8",
                "EC2UD_ROOT": str(root),
                "EC2UD_MACHINE": str(root),
                "EC2UD_METADATA_URL": f"{self.ec2.metadata_url}/{instance_id}",
                "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"{self.ec2.metadata_url}/{instance_id}",
            },
        )
        self.assertTrue(root.joinpath("home").is_dir())
        self.assertEqual([entry.name for entry in self.directory.iterdir()], [instance_id])
        self.assertEqual(root.stat().st_mode & 0o077, 0)

    @defer.inlineCallbacks
    def test_syslog(self):
        self.start_ec2()
        instance_id = yield self.launch(
            "#!/bin/sh\nlogger -t ec2ud -p user.info hello there\nlogger -- -x\nlogger plain\necho the end\n"
        )
        yield self.until_printed(instance_id, "the end")
        syslog = self.directory / instance_id / "var" / "log" / "syslog"
        self.assertEqual(syslog.read_text(), "hello there\n-x\nplain\n")

    @defer.inlineCallbacks
    def test_whole_tree_ends(self):
        """Processes that ignore SIGTERM, that left the session, or whose parents have ended: all are gone."""
        self.patch(machine, "GRACE", 0.2)
        self.start_ec2()
        instance_id = yield self.launch(
            "#!/bin/sh\n"
            "sleep 61 &\n"
            "(sleep 62 &)\n"
            "setsid sleep 63 &\n"
            "trap '' TERM\n"
            "(setsid sh -c 'cd /; echo $$ >\"$EC2UD_ROOT/left\"; exec sleep 64' >/dev/null 2>&1 &)\n"
            "env -i sh -c 'echo $$ >bare; echo bare; exec sleep 65' &\n"
            'until [ -s "$EC2UD_ROOT/left" ]; do sleep 0.02; done\n'
            "echo ready\nsleep 66\n"
        )
        root = self.directory / instance_id
        yield self.until_printed(instance_id, "ready")
        yield self.until_printed(instance_id, "bare")
        yield self.until(lambda: len(processes(root)) == 6)
        bare = int(root.joinpath("bare").read_text())
        self.assertTrue(lives(bare))
        self.assertNotIn(bare, processes(root))
        yield self.call("terminate_instances", InstanceIds=[instance_id])
        yield self.until_state(instance_id, "terminated")
        self.assertEqual((processes(root), lives(bare)), ([], False))

    def machine(self, finished: Any = None) -> machine.Machine:
        root = Path(self.mktemp()).absolute()
        return machine.Machine(reactor, "i-1", root, powered_off=self.fail, finished=finished or self.fail)

    def others(self, *processes: tuple[int, int]) -> None:
        """Let a machine see no processes but these, numbers with their groups, and note whom it signals."""
        proc = Path(self.mktemp())
        for name, group in (("self", 1), *processes):
            proc.joinpath(str(name)).mkdir(parents=True)
            proc.joinpath(str(name), "stat").write_text(f"1 (make) S 1 {group} {group} 0")
            proc.joinpath(str(name), "environ").write_bytes(b"")
        self.killed: list[tuple[int, int]] = []
        for owner, name, value in (
            (machine, "_PROC", proc),
            (machine, "GRACE", 0.05),
            (machine, "KILL_TIMEOUT", 0.05),
            (os, "kill", lambda *args: self.killed.append(args)),
        ):
            self.patch(owner, name, value)

    @defer.inlineCallbacks
    def test_ends_as_soon_as_it_starts(self):
        """A process that has only just been forked, and is like its master in all but the number, does not get away."""
        newborn = self.machine()
        newborn.run(b"#!/bin/sh\nexec sleep 60\n")
        self.addCleanup(newborn.end)
        number = newborn._pid
        self.others((number, os.getpgrp()), (number + 1, os.getpgrp()))
        yield newborn.end()
        self.assertEqual(self.killed, [(number, signal.SIGTERM), (number, signal.SIGKILL)])

    @defer.inlineCallbacks
    def test_ends_once(self):
        """When it has ended, its number is no longer its own: whoever gets it next is left alone."""
        ended = self.machine()
        ended.run(b"#!/bin/sh\nexec sleep 60\n")
        number = ended._pid
        yield ended.end()
        self.others((4321, number))
        yield ended.end()
        self.assertEqual(self.killed, [])

    @defer.inlineCallbacks
    def test_number_of_ended_user_data(self):
        """The number of a user-data process that has ended by itself may be another's, too."""
        finished: defer.Deferred[int] = defer.Deferred()
        idle = self.machine(finished.callback)
        idle.run(b"#!/bin/sh\n")
        self.assertEqual((yield finished), 0)
        self.others((idle._pid, 4321))
        yield idle.end()
        self.assertEqual(self.killed, [])


def lives(pid: int) -> bool:
    """Whether there is such a process, and not only what its parent has not collected yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
