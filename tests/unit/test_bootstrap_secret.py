"""How bootstrap scripts hand the password to the worker, and what the worker trusts."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from typing import Any
from unittest import mock

from buildbot_worker import bot
from twisted.internet import endpoints
from twisted.internet.endpoints import clientFromString
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SkipTest

from tests.unit.bootstrap import BootstrapTestCase, packaged
from tests.unit.sandbox import MASTER, PASSWORD, SHELLS, WORKER
from tests.unit.secure import Certificate

#: ``create-worker`` of buildbot-worker 3.7, in short.
OLD_WORKER = """
[ "$1" = create-worker ] || exit 0
case "$*" in *--connection-string*) exit 1 ;; esac
while [ $# -gt 4 ]; do shift; done
cat >"$1/buildbot.tac" <<E
import os
from buildbot_worker.bot import Worker
basedir = '$1'
buildmaster_host = '${2%:*}'
port = ${2##*:}
workername = '$3'
passwd = '$4'
s = Worker(buildmaster_host, port, workername, passwd, basedir, 600, umask=None)
E
"""


class SecretTests(BootstrapTestCase):
    """The password is in one file, for the worker, and nowhere else."""

    def files(self) -> list[str]:
        return [path for path in self.secrets() if path != "bootstrap"]

    def load(self) -> dict[str, Any]:
        """Load the tac, as twistd does."""
        path = os.path.join(self.home, "worker", "buildbot.tac")
        names: dict[str, Any] = {"__file__": path}
        exec(compile(self.sandbox.read(path), path, "exec"), names)
        names["logfile"].close()
        return names

    def check_handed_over(self, directory: str) -> None:
        (path,) = self.files()
        self.assertEqual(os.path.dirname(os.path.dirname(path)), directory)
        path = self.sandbox.path(path)
        for name, mode in ((path, 0o600), (os.path.dirname(path), 0o700)):
            self.assertEqual(stat.S_IMODE(os.stat(name).st_mode), mode)
        names = self.load()
        self.assertEqual((names["passwd"], names["workername"]), (PASSWORD, WORKER))
        self.assertEqual(f"{names['buildmaster_host']}:{names['port']}", MASTER)
        self.assertFalse(os.path.exists(os.path.dirname(path)))
        self.assertRaises(FileNotFoundError, self.load)

    def test_handed_over(self) -> None:
        """The worker gets it once; from memory, where there is such a file system."""
        for mounts, directory in (
            ("tmpfs {0}/run tmpfs rw 0 0\ntmpfs {0}/dev/shm tmpfs rw 0 0\n", "run"),
            ("/dev/vda {0}/run ext4 rw 0 0\nx {0}/dev/shm tmpfs rw 0 0\ntmpfs {0}/run/user tmpfs rw 0 0\n", "dev/shm"),
            ("tmpfs /mnt tmpfs rw 0 0\n", "var/lib/buildbot-worker"),
            (None, "var/lib/buildbot-worker"),
        ):
            self.setUp()
            self.prepared(real=True)
            os.unlink(self.sandbox.path("proc/mounts"))
            if mounts is not None:
                with open(self.sandbox.path("proc/mounts"), "w", encoding="utf-8") as file:
                    file.write(mounts.format(self.sandbox.root))
            lines = self.bootstrap(packaged("generic"))
            self.assertEqual(self.status, 0, lines)
            self.check_handed_over(directory)

    def test_tracing(self) -> None:
        """Also where each command is printed, it is not: nor in the environment or the arguments of any command."""
        for shell in SHELLS:
            self.setUp()
            self.prepared()
            self.record("curl", "exit 1")
            lines = self.bootstrap(packaged("generic"), shell, ("-x",), BB_SETUP="set -x; env", BB_TLS_CERT="system")
            self.assertEqual(self.status, 0, lines)
            self.assertGreater(len(lines), 50)
            self.assertEqual([line for line in lines if PASSWORD in line], [])
            (path,) = self.files()
            self.assertTrue(path.startswith("run/buildbot-worker."))
            self.assertEqual(self.sandbox.read(path), PASSWORD + "\n")

    def test_every_character(self) -> None:
        """A password comes out as it is."""
        for shell in SHELLS:
            for password in ("$(id) `id` \\n \\ \"'  $x %s", "E", " -n ", "\u00e9\u20ac"):
                self.setUp()
                self.prepared()
                self.bootstrap(packaged("debian"), shell, BB_PASSWORD=password)
                (name,) = os.listdir(self.sandbox.path("run"))
                self.assertEqual(self.sandbox.read("run", name, "password"), password + "\n")

    def test_here_documents(self) -> None:
        """A bash that writes a here-document into a file, as those before 5.1 do, writes it beside the password's."""
        if "bash" not in SHELLS:
            raise SkipTest("bash is not installed")
        self.prepared()
        path = self.sandbox.path("here")
        self.record("cat", f"{shutil.which('readlink')} /proc/self/fd/0 >>'{path}'; exec {shutil.which('cat')}")
        self.bootstrap(packaged("debian"), "bash", BASH_COMPAT="50")
        self.assertEqual(self.status, 0)
        (secret,) = os.listdir(self.sandbox.path("run"))
        (here,) = self.sandbox.read("here").splitlines()
        self.assertTrue(here.startswith(self.sandbox.path("run", secret)), here)
        self.assertEqual(os.listdir(self.sandbox.path("run", secret)), ["password"])

    def test_no_password(self) -> None:
        """Without one, the script ends at once."""
        text = packaged("generic").replace("set -eu\n", "set -eu\nunset BB_PASSWORD\n", 1)
        (line,) = self.bootstrap(text)
        self.assertIn("BB_PASSWORD", line)
        self.assertNotEqual(self.status, 0)

    def test_graceful_shutdown(self) -> None:
        """The worker takes SIGHUP for the wish to end after its build, not for the order to end at once."""
        self.prepared(real=True)
        self.bootstrap(packaged("generic"))
        self.assertIn("allow_shutdown = 'signal'\n", self.sandbox.read(self.home, "worker/buildbot.tac"))

    def test_prepared_tac(self) -> None:
        """A tac that is on the image does not stand in the way."""
        self.prepared(real=True)
        os.makedirs(f"{self.home}/worker")
        with open(f"{self.home}/worker/buildbot.tac", "w", encoding="utf-8") as file:
            file.write("another\n")
        self.bootstrap(packaged("generic"))
        self.check_handed_over("run")


class EmbeddedTests(BootstrapTestCase):
    """``embedded.sh``, on an instance of the embedded EC2."""

    def run_embedded(self, shell: str = "sh", then: str = "", options: tuple[str, ...] = ()) -> list[str]:
        self.prepared(real=True)
        made = self.sandbox.read(self.sandbox.bin, "buildbot-worker")
        # What the worker does: it runs its tac.
        load = "import sys; p = sys.argv[1]; n = {'__file__': p}; exec(open(p).read(), n); print(n['passwd'][::-1])"
        start = f'{sys.executable} -c "{load}" "$3/buildbot.tac"\n{then}\n'
        self.record("buildbot-worker", "\n".join(made.splitlines()[3:]) + "\n" + start)
        return self.bootstrap(packaged("embedded"), shell, options)

    def test_worker(self) -> None:
        """The worker is made in the current directory and is the instance from then on, which ends with it."""
        shells = list(SHELLS)
        for number, then in enumerate(("", "exit 1", "kill -9 $$")):
            self.setUp()
            lines = self.run_embedded(shells[number % len(shells)], then)
            worker = self.sandbox.path("worker")
            self.assertEqual((self.status, self.phases(lines[:1])), (0, ["start-worker"]))
            self.assertEqual(lines[1], PASSWORD[::-1])
            self.assertEqual(lines[-1], "ec2ud: the worker has ended; powering off")
            self.assertEqual(
                self.called,
                [
                    "buildbot-worker create-worker --quiet --relocatable --allow-shutdown=signal --maxretries=5 "
                    f"{worker} {MASTER} {WORKER} from-file",
                    f"buildbot-worker start --nodaemon {worker}",
                ],
            )
            self.assertEqual(self.sandbox.calls("switch"), ["off"])
            self.assertEqual(self.secrets(), [])

    def test_tracing(self) -> None:
        """The password is in no file, and not in what is printed."""
        for shell in SHELLS:
            self.setUp()
            lines = self.run_embedded(shell, options=("-x",))
            self.assertIn(PASSWORD[::-1], lines)
            self.assertEqual([line for line in lines if PASSWORD in line], [])
            self.assertEqual(self.secrets(), [])


class TlsTests(BootstrapTestCase):
    """``BB_TLS_CERT``."""

    def endpoint(self, pem: str, master: str = MASTER, shell: str = "sh") -> str:
        """What the worker connects to."""
        self.setUp()
        self.prepared(real=True)
        lines = self.bootstrap(packaged("generic"), shell, BB_TLS_CERT=pem, BB_MASTER=master)
        self.assertEqual(self.status, 0, lines)
        return self.connection(f"{self.home}/worker")

    def connection(self, directory: str) -> str:
        """What the tac in a directory makes its worker connect to."""
        told = mock.Mock()
        self.patch(bot, "Worker", told)
        names: dict[str, Any] = {"__file__": f"{directory}/buildbot.tac"}
        exec(self.sandbox.read(directory, "buildbot.tac"), names)
        if "logfile" in names:
            names["logfile"].close()
        ((positional, by_name),) = told.call_args_list
        self.assertEqual(positional[:4], (None, None, WORKER, PASSWORD))
        return by_name["connection_string"]

    def test_system(self) -> None:
        """The certificates that the system trusts."""
        self.assertEqual(self.endpoint("system"), "tls:master.example.org:9989")

    def test_addresses(self) -> None:
        """Twisted finds the host in it."""
        trusted: list[str] = []
        self.patch(endpoints, "optionsForClientTLS", lambda hostname, **_: trusted.append(hostname))
        for master, host, port in (
            ("master.example.org:9989", "master.example.org", 9989),
            ("[fd00::a:1]:99", "fd00::a:1", 99),
            ("192.0.2.1:1", "192.0.2.1", 1),
        ):
            description = self.endpoint("system", master)
            trusted.clear()
            reactor = MemoryReactorClock()
            waiting = clientFromString(reactor, description)._wrappedEndpoint.connect(Factory())
            reactor.advance(1)
            ((address, number, *_),) = reactor.tcpClients
            self.assertEqual((trusted, number), ([host], port))
            if master[0] == "[":
                self.assertEqual(address, host)
            waiting.cancel()
            self.failureResultOf(waiting)

    def test_old_worker(self) -> None:
        """A version of buildbot-worker that knows of no such thing in its tac, like Debian 12's."""
        self.record("buildbot-worker", OLD_WORKER)
        self.bootstrap(packaged("generic"), BB_TLS_CERT="system")
        self.assertEqual(self.connection(f"{self.home}/worker"), "tls:master.example.org:9989")

    def test_certificates(self) -> None:
        """Each certificate is trusted, and whatever stands around them is no harm."""
        pems = [Certificate(self, f"m{number}.example.org").pem.decode() for number in range(3)]
        text = "# of example.org\n\n" + "\nand\n".join(pems)
        for shell in SHELLS:
            endpoint = self.endpoint(text, shell=shell)
            self.assertEqual(endpoint, f"tls:master.example.org:9989:trustRoots={self.home}/tls")
            found = []
            for name in sorted(os.listdir(f"{self.home}/tls")):
                self.assertTrue(name.endswith(".pem"))
                found.append(self.sandbox.read(self.home, "tls", name).replace("and\n", "").strip())
            self.assertEqual(found, [pem.strip() for pem in pems])
            clientFromString(MemoryReactorClock(), endpoint)

    def test_odd_directory(self) -> None:
        """A directory's name may have in it what has a meaning for Twisted."""
        self.prepared(real=True)
        root = self.sandbox.path("a:b=c\\d")
        os.mkdir(root)
        text = packaged("embedded").replace("umask 077\n", "umask 077\ncd 'a:b=c\\d'\n", 1)
        text = text.replace("exec sh", "exit; exec sh", 1)
        self.bootstrap(text, BB_TLS_CERT=Certificate(self, "m").pem.decode())
        seen = []
        self.patch(endpoints, "_parseTrustRootPath", lambda path: seen.append(path) or None)
        clientFromString(MemoryReactorClock(), self.sandbox.read(root, "worker/endpoint").strip())
        self.assertEqual(seen, [f"{root}/tls"])

    def test_no_certificate(self) -> None:
        """A text without a certificate is a mistake: nothing could be trusted."""
        for shell in SHELLS:
            self.setUp()
            self.prepared()
            lines = self.bootstrap(packaged("generic"), shell, BB_TLS_CERT="systm")
            self.assertNotEqual(self.status, 0)
            self.assertEqual(lines[-1], "ec2ud: BB_TLS_CERT: no certificate")
            self.assertEqual(self.secrets(), [])
