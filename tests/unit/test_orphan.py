"""``orphan_timeout``: an instance without a connection to its master ends itself."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from typing import Any

from twisted.internet import defer
from twisted.trial.unittest import SkipTest

from buildbot_ec2ud.userdata import posix
from tests.unit.files import write
from tests.unit.sandbox import SHELLS, Sandbox
from tests.unit.watching import HANGS, SLEEP, WatchTestCase

SWITCH = os.path.join(os.path.dirname(posix.__file__), "switch.sh")


class OrphanTests(WatchTestCase):
    """On an instance of the embedded EC2: its own connections count."""

    LINE = "ec2ud: orphan_timeout: no connection to the master for {} s; powering off"

    @defer.inlineCallbacks
    def test_never_connected(self) -> Any:
        """A machine whose worker never gets there goes when its time is over; it looks every 15 s at least."""
        for shell in SHELLS:
            for seconds, step, count in ((1, 1, 1), (10, 2, 5), (900, 15, 60)):
                if seconds > 10 and shell != "sh":
                    continue
                sandbox = self.machine(shell)
                sandbox.record("sleep")
                self.start(sandbox, HANGS, shell, self.listen().getsockname()[1], orphan_timeout=seconds)
                yield self.until_called(sandbox, "shutdown")
                self.assertEqual(sandbox.calls("sleep")[:count], [str(step)] * count)
                self.assertNotIn(str(step), sandbox.calls("sleep")[count:])
                self.assertEqual(sandbox.console, [self.LINE.format(step * count)])

    @defer.inlineCallbacks
    def connect(self, shell: str = "sh", host: str = "127.0.0.1", **watches: Any) -> Any:
        """A machine with a worker; gives its master's end of the connection, too."""
        sandbox, listening = self.machine(shell), self.listen(host)
        port = listening.getsockname()[1]
        # Time begins when the worker has connected.
        calls = sandbox.path("worker.calls")
        sandbox.record("sleep", f"until [ -e '{calls}' ]; do {SLEEP} 0.02; done; exec {SLEEP} 0.02")
        script = self.worker(sandbox, port, host=host)
        process = self.start(sandbox, script, shell, port, **{"orphan_timeout": 10, **watches})
        yield self.until_called(sandbox, "worker")
        connection = listening.accept()[0]
        self.addCleanup(connection.close)
        return sandbox, connection, process

    @defer.inlineCallbacks
    def test_connected(self) -> Any:
        """A machine with a connection stays, and goes when that is lost for good: closed by either side, or half."""
        for shell in SHELLS:
            for lose in (
                lambda connection: connection.close(),
                lambda connection: connection.shutdown(socket.SHUT_WR),
                None,
            ):
                sandbox, connection, process = yield self.connect(shell)
                yield self.until_called(sandbox, "sleep", 12)
                self.assertEqual(sandbox.calls("shutdown"), [])
                if lose:
                    lose(connection)
                else:
                    self.kill(process)
                yield self.until_called(sandbox, "shutdown")
                self.assertEqual(sandbox.console, [self.LINE.format(10)])

    @defer.inlineCallbacks
    def test_ipv6(self) -> Any:
        """So it is with the other internet protocol."""
        try:
            self.listen("::1")
        except OSError as error:
            raise SkipTest("no IPv6") from error
        sandbox, connection, _ = yield self.connect(host="::1")
        yield self.until_called(sandbox, "sleep", 12)
        self.assertEqual(sandbox.calls("shutdown"), [])
        connection.close()
        yield self.until_called(sandbox, "shutdown")

    @defer.inlineCallbacks
    def test_connection_of_another_instance(self) -> Any:
        """Instances that share a machine do not take each other's connections for their own."""
        one, _, _ = yield self.connect()
        port = int(re.search(r"orphan \d+ (\d+)", one.read("user-data"))[1])
        other = self.machine()
        mine = socket.create_connection(("127.0.0.1", port))  # nor those of no instance
        self.addCleanup(mine.close)
        self.start(other, HANGS, port=port, orphan_timeout=10)
        yield self.until_called(other, "shutdown")
        self.assertEqual(one.calls("shutdown"), [])

    @defer.inlineCallbacks
    def test_other_ports(self) -> Any:
        """Connections to others than the master, and others' to a port of that number here, do not count."""
        sandbox, listening = self.machine(), self.listen()
        port = listening.getsockname()[1]
        sandbox.record("sleep", f"until [ -e '{sandbox.path('worker.calls')}' ]; do {SLEEP} 0.02; done")
        script = self.worker(sandbox, port)
        # From its master's side: what is local there is not what is remote here.
        mine = self.start(sandbox, script, port=port ^ 1, orphan_timeout=10)
        yield self.until_called(sandbox, "shutdown")
        self.assertIsNone(mine.poll())

    @defer.inlineCallbacks
    def test_keepalive(self) -> Any:
        """The kernel is told to look soon whether a silent master is still there."""
        sandbox = self.machine()
        os.makedirs(sandbox.path("proc/sys/net/ipv4"))
        self.start(sandbox, HANGS, orphan_timeout=10)
        yield self.until_called(sandbox, "shutdown")
        self.assertEqual(sandbox.read("proc/sys/net/ipv4/tcp_keepalive_time"), "60\n")


class RealMachineTests(WatchTestCase):
    """On a machine of one's own: whatever is connected from there is the worker."""

    def switch(self, sandbox: Sandbox, *arguments: str, shell: str = "sh", proc: str = "/proc") -> Any:
        """Run the switch by itself, as on a machine whose root is *sandbox*."""
        with open(SWITCH, encoding="utf-8") as file:
            text = file.read()
        self.assertEqual(text.count("root=${EC2UD_ROOT:-}\n"), 1)
        text = text.replace("root=${EC2UD_ROOT:-}\n", f"root={sandbox.root}\n").replace(" /proc/", f" {proc}/")
        command = [*SHELLS[shell], write(sandbox.root, "switch", text), *arguments]
        return self.spawn(command, sandbox, {"PATH": sandbox.bin})

    @defer.inlineCallbacks
    def stays(self, sandbox: Sandbox, port: int, lose: Any, **options: Any) -> Any:
        self.switch(sandbox, "orphan", "10", str(port), **options)
        yield self.until_called(sandbox, "sleep", 12)
        self.assertEqual(sandbox.calls("shutdown"), [])
        lose()
        yield self.until_called(sandbox, "shutdown")

    @defer.inlineCallbacks
    def test_connection(self) -> Any:
        """Any process's connection counts."""
        for shell in SHELLS:
            listening = self.listen()
            connection = socket.create_connection(listening.getsockname())
            yield self.stays(self.machine(shell), listening.getsockname()[1], connection.close, shell=shell)

    @defer.inlineCallbacks
    def test_container(self) -> Any:
        """A worker in a container has a network of its own."""
        sandbox = self.machine()
        inside = (
            "import socket, signal; s = socket.create_server(('127.0.0.1', 0)); "
            "c = socket.create_connection(s.getsockname()); "
            f"open({sandbox.path('port')!r}, 'w').write(str(s.getsockname()[1]) + '\\n'); signal.pause()"
        )
        command = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
        if not (shutil.which("unshare") and shutil.which("ip")) or subprocess.run([*command, "true"]).returncode:
            raise SkipTest("no network can be made here")
        container = self.spawn([*command, "python3", "-c", inside], sandbox, dict(os.environ))
        yield self.until(lambda: sandbox.exists("port") and sandbox.read("port").endswith("\n"))
        port = int(sandbox.read("port"))
        with open("/proc/net/tcp", encoding="ascii") as file:
            self.assertNotIn(f":{port:04X} 01 ", file.read())
        yield self.stays(sandbox, port, lambda: self.kill(container))

    @defer.inlineCallbacks
    def test_netstat(self) -> Any:
        """Without Linux's /proc there is netstat."""
        for shell in SHELLS:
            sandbox = self.machine(shell)
            lines = (
                "Active Internet connections (including servers)",
                "Proto Recv-Q Send-Q Local Address          Foreign Address        (state)",
                "tcp4       0      0 10.0.0.5.22            *.*                    LISTEN",
                "tcp4       0      0 10.0.0.5.53211         203.0.113.9.9989       CLOSE_WAIT",
                "tcp4       0      0 10.0.0.5.53212         203.0.113.9.99890      ESTABLISHED",
                "tcp4       0      0 10.0.0.5.53213         203.0.113.9.19989      ESTABLISHED",
            )
            master = lines[3].replace("CLOSE_WAIT", "ESTABLISHED")
            write(sandbox.root, "connections", "\n".join((*lines, master, "")))
            sandbox.record("netstat", f"cat '{sandbox.path('connections')}'")

            def lose(sandbox: Sandbox = sandbox, lines: tuple[str, ...] = lines) -> None:
                write(sandbox.root, "connections.new", "\n".join((*lines, "")))
                os.rename(sandbox.path("connections.new"), sandbox.path("connections"))

            yield self.stays(sandbox, 9989, lose, shell=shell, proc=sandbox.path("proc"))
            self.assertEqual(set(sandbox.calls("netstat")), {"-an"})

    @defer.inlineCallbacks
    def test_blind(self) -> Any:
        """A machine that cannot see connections says so, and stays."""
        sandbox = self.machine()
        switch = self.switch(sandbox, "orphan", "10", "9989", proc=sandbox.path("proc"))
        yield self.until(lambda: switch.poll() is not None)
        self.assertEqual(sandbox.console, ["ec2ud: orphan_timeout: cannot see connections"])
        self.assertEqual(sandbox.calls("shutdown") + sandbox.calls("sleep"), [])
