"""A real Debian from its first boot on: user-data makes a worker of it, which builds for a real master.

Needs root, debootstrap and a mirror of Debian, and takes minutes: it is run only where the environment says
``EC2UD_REAL_ROOT=1``; or ``EC2UD_REAL_ROOT=DIRECTORY``, which is a root that debootstrap has made before, and is copied.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from typing import Any

from buildbot.plugins import worker
from twisted.internet import defer, reactor
from twisted.internet.protocol import ProcessProtocol
from twisted.trial.unittest import SkipTest

from buildbot_ec2ud.userdata import scripts
from buildbot_ec2ud.userdata.posix import UserData
from tests.support import FarmTestCase, configuration
from tests.unit.files import directory, write
from tests.unit.secure import Certificate

PASSWORD = "p4ssw0rd-of-a-real-root"
SUITE = "bookworm"
#: What a boot would have done; then it runs what an image's agent runs.
BOOT = """
cd "$1"
mount --bind . .
mount -t proc proc proc
mount -t tmpfs tmpfs run
mkdir -p dev/shm
for name in null zero full random urandom tty; do
    [ -e dev/$name ] || : >dev/$name
    mount --bind /dev/$name dev/$name
done
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin EC2UD_METADATA_URL=http://127.0.0.1:1 chroot . /bin/sh -c '
/user-data
while :; do sleep 1; done'
"""
#: What the build looks at: who it is, and whatever it may see of other processes.
COMMAND = "id -un; hello; env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline /run/buildbot-worker.*/* 2>/dev/null; true"


class _Machine(ProcessProtocol):
    """What is printed on the console; and when the machine has ended."""

    def __init__(self) -> None:
        self.console = ""
        self.ended: defer.Deferred[None] = defer.Deferred()

    def outReceived(self, data: bytes) -> None:
        self.console += data.decode(errors="replace")

    errReceived = outReceived

    def processEnded(self, reason: Any) -> None:
        self.ended.callback(None)


class RealRootTests(FarmTestCase):
    timeout = 900

    def setUp(self) -> None:
        self.wanted = os.environ.get("EC2UD_REAL_ROOT", "")
        if not self.wanted:
            raise SkipTest("takes minutes: set EC2UD_REAL_ROOT=1")
        if os.geteuid() != 0:
            raise SkipTest("needs root")
        for command in ("unshare", *(["debootstrap"] if self.wanted == "1" else [])):
            if shutil.which(command) is None:
                raise SkipTest(f"needs {command}")
        self.sources = self.mirrors()

    def mirrors(self) -> str:
        """Where this machine gets Debian from, for a sources.list."""
        lines = []
        for path in ["/etc/apt/sources.list", *sorted(glob.glob("/etc/apt/sources.list.d/*"))]:
            if path.endswith((".list", ".sources")) and os.path.exists(path):
                with open(path, encoding="utf-8") as file:
                    lines += re.findall(
                        r"^(?:URIs: *|deb (?:\[.*\] )?)(\S+/debian/?)(?: |$)", file.read(), re.MULTILINE
                    )
        if not lines:
            raise SkipTest("this machine has no mirror of Debian")
        return f"deb {lines[0]} {SUITE} main\n"

    def make_root(self) -> str:
        """A machine that has never been started."""
        root = os.path.join(directory(self), "root")
        if self.wanted == "1":
            command = ["debootstrap", "--variant=minbase", SUITE, root, self.sources.split()[1]]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            if done.returncode:
                raise SkipTest(f"debootstrap has failed: {done.stdout.decode()[-300:]}")
        else:
            subprocess.run(["cp", "-a", self.wanted, root], check=True)
        # How this machine reaches the network: names, proxies, certificates.
        shutil.copy("/etc/resolv.conf", f"{root}/etc/resolv.conf")
        shutil.copy("/etc/hosts", f"{root}/etc/hosts")
        write(root, "etc/apt/sources.list", self.sources)
        acquire = subprocess.run(["apt-config", "dump", "Acquire"], stdout=subprocess.PIPE, check=True).stdout
        write(root, "etc/apt/apt.conf.d/99host", acquire)
        bundle = "/etc/ssl/certs/ca-certificates.crt"
        pip = "[global]\ncert = /etc/host.pem\n"
        shutil.copy(bundle, f"{root}/etc/host.pem")
        for name in ("index-url", "proxy"):
            found = subprocess.run(
                [sys.executable, "-m", "pip", "config", "get", f"global.{name}"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                check=False,
            )
            pip += f"{name} = {found.stdout.decode()}" if found.returncode == 0 else ""
        write(root, "etc/pip.conf", pip)
        return root

    @defer.inlineCallbacks
    def check(self, installs: list[str], **more: str) -> Any:
        """From user-data to a build, over TLS; the password is not to be found by the build, or on the disk.

        :param installs: the phases in which the worker is installed.
        """
        certificate = Certificate(self, "localhost")
        endpoint = f"ssl:0:interface=127.0.0.1:privateKey={certificate.both}:certKey={certificate.both}"
        workers = [worker.Worker("w", PASSWORD)]
        yield self.start_master(configuration(workers, COMMAND, protocols={"pb": {"port": endpoint}}))
        port = self.master.master.workers.registrations["w"].getPBPort()
        environment = {"BB_PACKAGES": "hello", "BB_SETUP": "id buildbot", **more}
        script = scripts.load(None, None, [])
        data = UserData(
            f"localhost:{port}",
            "w",
            PASSWORD,
            environment,
            script,
            3600,
            600,
            tls_certificates=certificate.pem.decode(),
        ).render()

        root = yield self.make_root()
        write(root, "user-data", data, 0o700)
        machine = _Machine()
        arguments = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", BOOT, "sh", root]
        process = reactor.spawnProcess(machine, "/usr/bin/unshare", arguments, env=dict(os.environ))

        @defer.inlineCallbacks
        def end() -> Any:
            if not machine.ended.called:
                process.signalProcess(signal.SIGKILL)
            yield machine.ended

        self.addCleanup(end)
        waiting = self.master.force_build("b")
        first = yield defer.DeferredList([waiting, machine.ended], fireOnOneCallback=True, fireOnOneErrback=True)
        self.assertEqual(first[1], 0, machine.console)
        build = first[0]
        self.assertEqual(build.outcome, "success", machine.console)
        self.assertIn("buildbot\nHello, world!\n", build.text().replace("\r", ""))
        phases = re.findall(r"^ec2ud: phase=([a-z-]+) t=\d+$", machine.console, re.MULTILINE)
        self.assertEqual(phases[phases.index("bootstrap") + 1 :], [*installs, "setup", "start-worker"])
        self.assertNotIn(PASSWORD, machine.console)
        self.assertNotIn(PASSWORD, build.text())
        # In what stands for the agent's copy of the user-data, the password is; nowhere else on this machine.
        command = f"grep -rlF -e {shlex.quote(PASSWORD)} --devices=skip {shlex.quote(root)} || :"
        found = subprocess.run(command, shell=True, stdout=subprocess.PIPE, check=True).stdout.decode().split()
        self.assertEqual(found, [f"{root}/user-data"])

    def test_pip(self) -> defer.Deferred[None]:
        """With the newest buildbot-worker."""
        return self.check(["install-python", "packages", "install-worker"])

    def test_package(self) -> defer.Deferred[None]:
        """With Debian's, which is older."""
        return self.check(["install-worker", "packages"], BB_WORKER_FROM="package")
