"""The password of a start: nowhere on the master, on its instance only where EC2's agent has put it, and worth nothing."""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path
from typing import Any

from buildbot.plugins import worker
from twisted.application import strports
from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet import defer, protocol, reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.utils import getProcessOutputAndValue
from twisted.spread import pb

from buildbot_ec2ud.userdata import scripts
from buildbot_ec2ud.userdata.posix import UserData
from tests.integration import secrecy
from tests.integration.instances import InstanceTestCase
from tests.integration.secrecy import password_of
from tests.support import configuration

#: Port 0 of the msgpack protocol, which can have nothing but a number.
MSGPACK = "msgpack_experimental_v7"
FIXED = "fixed-p4ssw0rd_of-this-test-only"
HANGS = "#!/bin/sh\nexec sleep 100\n"


def changed(beginning: str) -> str:
    """The packaged bootstrap script of the embedded EC2, which begins with other commands."""
    shebang, newline, text = Path(scripts.packaged("embedded.sh")).read_text(encoding="utf-8").partition("\n")
    return shebang + newline + beginning + text


def traced(text: bytes) -> bytes:
    """A script that tells of its every command."""
    assert text.startswith(b"#!/bin/sh\n")
    return text.replace(b"#!/bin/sh\n", b"#!/bin/sh -x\n", 1)


class _FirstLine(protocol.Protocol):
    """Sends a request for a WebSocket; the first line of the answer."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._text = b""
        self.line: defer.Deferred[str] = defer.Deferred()

    def connectionMade(self) -> None:
        self.transport.write(self._request)

    def dataReceived(self, data: bytes) -> None:
        self._text += data
        if b"\r\n" in self._text and not self.line.called:
            self.line.callback(self._text.partition(b"\r\n")[0].decode())

    def connectionLost(self, reason: Any = protocol.connectionDone) -> None:
        if not self.line.called:
            self.line.callback("(closed)")


class SecretTestCase(InstanceTestCase):
    """A farm whose workers may log in by both protocols, and all that may know its secrets."""

    @defer.inlineCallbacks
    def start(self, command: str = "env", **arguments: Any) -> Any:
        """An EC2, and a master of one worker; its builds run *command*, and then wait for :meth:`let_go`."""
        self.start_ec2()
        self.runs, self.go = Path(self.mktemp()).absolute(), Path(self.mktemp()).absolute()
        wait = f"touch {self.runs}; while [ ! -e {self.go} ]; do sleep 0.1; done"
        yield self.start_both([self.worker(**arguments)], f"{command}; {wait}")

    @defer.inlineCallbacks
    def start_both(self, workers: list[Any], command: str) -> Any:
        """A master that listens for both protocols."""
        listen = strports.listen

        def on_loopback(description: str, factory: Any) -> Any:
            return listen(f"{description}:interface=127.0.0.1" if description == "tcp:0" else description, factory)

        self.patch(strports, "listen", on_loopback)
        plain = configuration(workers, command)
        yield self.start_master({**plain, "protocols": {**plain["protocols"], MSGPACK: {"port": 0}}})
        self.registration = self.master.master.workers.registrations["w"]
        self.buildbots = self.master.master.workers.workers["w"]
        self.events = secrecy.Events(self, self.master.master)

    def look(self) -> None:
        """From now on, look at all processes."""
        self.watch = secrecy.Watch(self, Path(self.mktemp()).absolute())

    def let_go(self) -> None:
        self.go.touch()

    @defer.inlineCallbacks
    def until_building(self) -> Any:
        """Wait until a build's command runs; the instance's id."""
        yield self.until(self.runs.exists, what="a step that runs")
        (instance_id,) = self.ec2.alive()
        return instance_id

    @defer.inlineCallbacks
    def password(self, instance_id: str) -> Any:
        """The password that an instance was told, as EC2 has it."""
        answer = yield self.call("describe_instance_attribute", InstanceId=instance_id, Attribute="userData")
        return password_of(base64.b64decode(answer["UserData"]["Value"]))

    @defer.inlineCallbacks
    def assert_not_on_master(self, password: str) -> Any:
        """Not in its directory, nor in anything it answers or has told."""
        haystack = secrecy.files(self.master.basedir)
        self.assertIn(b"EC2 launch", haystack[os.path.join(self.master.basedir, "twistd.log")])
        self.assertIn(os.path.join(self.master.basedir, "state.sqlite"), haystack)
        haystack |= yield secrecy.answers(self.master)
        self.assertIn(b"worker_preparation", haystack["data builds/1/steps"])
        haystack["events"] = self.events.text()
        self.assertEqual(secrecy.find(password, haystack), [])

    def assert_not_on_instance(self, instance_id: str, password: str) -> None:
        """Only in EC2's agent's own copy of the user-data; nor has it printed it, nor is it in any memory file system."""
        haystack = secrecy.files(self.directory / instance_id)
        own = str(self.directory / instance_id / "user-data")
        self.assertIn(password.encode(), haystack.pop(own))
        haystack["console"] = self.ec2.console(instance_id)
        self.assertIn(b"ec2ud: phase=", haystack["console"])
        haystack |= secrecy.files("/dev/shm", "/run")
        self.assertEqual(secrecy.find(password, haystack), [])

    def assert_not_in_processes(self, password: str) -> None:
        """Never on a command line. In the environment, only the bootstrap script has had it, and no command of it."""
        self.assertEqual(secrecy.find(password, self.watch.recorded()), [])
        seen = self.watch.seen
        for needle in secrecy.forms(password).values():
            for name, text in seen.items():
                if needle in text:
                    self.assertTrue(name.endswith("/bootstrap"), name)
                    self.assertNotIn(needle, text.partition(b"\0\0")[0])

    def commands(self, **texts: str) -> Path:
        """A directory with these shell scripts, by their names."""
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        for name, text in texts.items():
            (directory / name).write_text(f"#!/bin/sh\n{text}\n")
            (directory / name).chmod(0o755)
        return directory

    def msgpack_worker(self) -> Path:
        """A directory with a ``buildbot-worker`` that makes workers which speak msgpack."""
        real = Path(sys.executable).parent / "buildbot-worker"
        create = f'[ "$1" != create-worker ] || {{ shift; set -- create-worker --protocol={MSGPACK} "$@"; }}'
        return self.commands(**{"buildbot-worker": f'{create}\nexec {real} "$@"'})

    # Logging in

    @defer.inlineCallbacks
    def by_pb(self, password: str) -> Any:
        """Log in as a worker does that speaks PB."""
        factory = pb.PBClientFactory()
        connector = reactor.connectTCP("127.0.0.1", self.registration.getPBPort(), factory)
        try:
            yield factory.login(UsernamePassword(b"w", password.encode()), pb.Referenceable())
        finally:
            connector.disconnect()
            factory.disconnect()

    @defer.inlineCallbacks
    def by_msgpack(self, password: str) -> Any:
        """Log in as a worker does that speaks msgpack; the status that the master answers."""
        credentials = base64.b64encode(b"w:" + password.encode()).decode()
        request = (
            "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\nSec-WebSocket-Version: 13\r\n"
            f"Authorization: Basic {credentials}\r\n\r\n"
        )
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.registration.get_msgpack_port())
        asking = yield connectProtocol(endpoint, _FirstLine(request.encode()))
        line = yield asking.line
        asking.transport.abortConnection()
        return line.split()[1] if line.startswith("HTTP/") else line

    @defer.inlineCallbacks
    def assert_refused(self, password: str) -> Any:
        """By neither protocol does the password let anybody in."""
        failed = yield self.assertFailure(self.by_pb(password), pb.RemoteError)
        self.assertEqual(failed.remoteType, b"twisted.cred.error.UnauthorizedLogin")
        self.flushLoggedErrors(UnauthorizedLogin)
        self.assertEqual((yield self.by_msgpack(password)), "401")


class Scans(SecretTestCase):
    """While a build runs, and after it."""

    @defer.inlineCallbacks
    def test_build(self):
        """A build that goes well."""
        self.look()
        yield self.start()
        building = self.master.force_build("b")
        instance_id = yield self.until_building()
        password = yield self.password(instance_id)
        yield self.assert_refused(password)
        self.assert_not_on_instance(instance_id, password)
        found = {f"{pid} {command!r}": command + b"\0" + own for pid, command, own in secrecy.processes([os.getpid()])}
        self.assertTrue([name for name in found if str(self.runs) in name])
        self.assertEqual(secrecy.find(password, found), [])
        self.let_go()
        build = yield building
        self.assertEqual(build.outcome, "success")
        self.assertIn("EC2UD_ROOT=", build.text())  # its environment is there
        yield self.until_gone()
        yield self.assert_not_on_master(password)
        yield self.assert_refused(password)
        self.assertIn("/bootstrap", " ".join(self.watch.seen))
        self.assertTrue(self.watch.recorded())
        self.assert_not_in_processes(password)

    @defer.inlineCallbacks
    def test_build_by_msgpack(self):
        """A worker that speaks msgpack, whose master logs every message: its environment, and all of its handshake."""
        script = Path(self.mktemp()).absolute()
        script.write_text("#!/bin/sh\n")
        yield self.start(bootstrap_script=str(script))
        # The file is read anew at each start: by now, the port is known.
        address = f"127.0.0.1:{self.registration.get_msgpack_port()}"
        script.write_text(changed(f"BB_MASTER={address} PATH={self.msgpack_worker()}:$PATH\n"))
        building = self.master.force_build("b")
        instance_id = yield self.until_building()
        self.assertIn("msgpack", type(self.buildbots.conn).__module__)
        password = yield self.password(instance_id)
        yield self.assert_refused(password)
        self.assert_not_on_instance(instance_id, password)
        self.let_go()
        build = yield building
        self.assertEqual(build.outcome, "success")
        yield self.until_gone()
        log = Path(self.master.basedir, "twistd.log").read_bytes()
        self.assertIn(b"WORKER -> MASTER message", log)
        self.assertIn(b"environ", log)
        yield self.assert_not_on_master(password)
        yield self.assert_refused(password)

    @defer.inlineCallbacks
    def test_failed_start(self):
        """A start whose script fails: what its console tells is on the build's page."""
        self.look()
        directory = self.commands(**{"buildbot-worker": "exit 3"})
        yield self.start(bootstrap_script=changed(f"set -x\n: tracing\nPATH={directory}:$PATH\n"))
        build = yield self.master.force_build("b", first_attempt=True)
        self.assertEqual(build.outcome, "retry")
        instance_id = next(iter(self.ec2.states()))
        password = yield self.password(instance_id)
        self.assertIn("+ : tracing", build.text())
        yield self.assert_not_on_master(password)
        self.assert_not_on_instance(instance_id, password)
        self.assert_not_in_processes(password)
        yield self.assert_refused(password)
        self.assertIn("crashed before connecting", " ".join(self.flush()))

    @defer.inlineCallbacks
    def test_script_that_tells(self):
        """A script of somebody's who prints all it knows, and fails: the console has it then, the master's page has not."""
        yield self.start(bootstrap_script='#!/bin/sh\necho "this is $BB_PASSWORD"; exit 1\n')
        build = yield self.master.force_build("b", first_attempt=True)
        instance_id = next(iter(self.ec2.states()))
        password = yield self.password(instance_id)
        self.assertIn(password.encode(), self.ec2.console(instance_id))
        self.assertIn("this is (hidden)", build.text())
        yield self.assert_not_on_master(password)
        yield self.assert_refused(password)
        self.assertIn("crashed before connecting", " ".join(self.flush()))

    @defer.inlineCallbacks
    def test_cancelled_start(self):
        """A build that is cancelled while its instance boots; until then, the password is good, by either protocol."""
        yield self.start(bootstrap_script=HANGS)
        building = self.master.force_build("b")
        yield self.until_happened("user-data started")
        (instance_id,) = self.ec2.alive()
        password = yield self.password(instance_id)
        failed = yield self.assertFailure(self.by_pb(password), pb.RemoteError)
        self.assertNotEqual(failed.remoteType, b"twisted.cred.error.UnauthorizedLogin")
        self.flush()
        self.assertEqual((yield self.by_msgpack(password)), "101")
        (build,) = yield self.master.master.data.get(("builds",))
        yield self.master.master.data.control("stop", {"reason": "no need"}, ("builds", build["buildid"]))
        build = yield building
        self.assertEqual(build.outcome, "cancelled")
        yield self.until_gone()
        yield self.assert_refused(password)
        yield self.assert_not_on_master(password)

    @defer.inlineCallbacks
    def test_tracing(self):
        """With tracing on, in the user-data and in the bootstrap script, nothing that is printed has the password."""
        self.look()
        self.start_ec2()
        yield self.start_both([worker.Worker("w", FIXED, missing_timeout=0)], "echo the step runs")
        script = scripts.load(changed("set -x\n: tracing\n"), None, [])
        master = f"127.0.0.1:{self.registration.getPBPort()}"
        data = traced(UserData(master, "w", FIXED, {}, script, orphan_timeout=60).render())
        self.assertIn(FIXED.encode(), data)
        building = self.master.force_build("b")
        instance_id = yield self.launch(data)
        build = yield building
        self.assertEqual(build.outcome, "success")
        console = self.ec2.console(instance_id).decode()
        self.assertIn("+ : tracing", console)
        # Not that of the pipeline itself: both its sides trace to the console, and dash writes such a line in pieces.
        self.assertIn("+ ec2ud_phase start\n", console)
        self.assert_not_on_instance(instance_id, FIXED)
        self.assert_not_in_processes(FIXED)


class Logins(SecretTestCase):
    """What a password that has been used is worth."""

    @defer.inlineCallbacks
    def test_real_worker(self):
        """Another worker that knows the password of one that is building gets nowhere, by either protocol."""
        yield self.start("true")
        building = self.master.force_build("b")
        instance_id = yield self.until_building()
        password = yield self.password(instance_id)
        connection = self.buildbots.conn
        port = self.registration.getPBPort()
        yield self.until_refused("pb", port, password, "unauthorized login; check worker name and password")
        yield self.until_refused(MSGPACK, self.registration.get_msgpack_port(), password, "[401]: Unauthorized")
        self.assertIs(self.buildbots.conn, connection)
        self.let_go()
        build = yield building
        self.assertEqual(build.outcome, "success")
        self.flushLoggedErrors(UnauthorizedLogin)

    @defer.inlineCallbacks
    def until_refused(self, protocol_name: str, port: int, password: str, words: str) -> Any:
        """Run Buildbot's worker until its log says *words*."""
        directory = Path(self.mktemp()).absolute()
        command = str(Path(sys.executable).parent / "buildbot-worker")
        create = ["create-worker", "--maxretries=1", f"--protocol={protocol_name}", str(directory)]
        _, err, code = yield getProcessOutputAndValue(
            command, [*create, f"127.0.0.1:{port}", "w", password], os.environ
        )
        self.assertEqual(code, 0, err)
        ended: defer.Deferred[None] = defer.Deferred()
        running = protocol.ProcessProtocol()
        running.processEnded = lambda _: ended.callback(None)
        reactor.spawnProcess(running, command, [command, "start", "--nodaemon", str(directory)], os.environ)
        log = directory / "twistd.log"
        try:
            yield self.until(lambda: log.exists() and words in log.read_text(), what=f"{words} in {log}")
        finally:
            if not ended.called:
                running.transport.signalProcess("KILL")
            yield ended
