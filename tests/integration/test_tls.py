"""Workers that connect by TLS: to their master, and to nobody who only says to be it."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.cred.error import UnhandledCredentials
from twisted.cred.portal import Portal
from twisted.internet import defer, reactor
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import ConnectionLost
from twisted.internet.utils import getProcessOutputAndValue
from twisted.python import log
from twisted.spread import pb

from buildbot_ec2ud import template
from buildbot_ec2ud.embedded import EmbeddedMaster
from buildbot_ec2ud.template.certificates import CERTIFICATE, KEY, Identity, provide
from buildbot_ec2ud.userdata import scripts
from buildbot_ec2ud.userdata.posix import UserData
from tests.integration import secrecy
from tests.integration.instances import InstanceTestCase

PASSWORD = "p4ssw0rd-of-this-test"
SETTINGS = """
tls = true
bb_master = "localhost"
pb_port = "tcp:0:interface=127.0.0.1"
www_port = "tcp:0:interface=127.0.0.1"
"""


class Impostor(pb.PBServerFactory):
    """Somebody who listens where a worker looks for its master, and speaks as one does.

    :ivar told: what it was told after the handshake, or without TLS at all.
    :ivar lost: why its connections have ended.
    """

    noisy = False

    def __init__(self) -> None:
        super().__init__(Portal(None))
        self.told: list[bytes] = []
        self.lost: list[Any] = []

    def buildProtocol(self, address: Any) -> Any:
        built = super().buildProtocol(address)
        received, lost = built.dataReceived, built.connectionLost

        def note(data: bytes) -> None:
            self.told.append(data)
            received(data)

        def end(reason: Any) -> None:
            self.lost.append(reason)
            lost(reason)

        built.dataReceived, built.connectionLost = note, end
        return built


class Template(InstanceTestCase):
    """A master of the packaged template."""

    @defer.inlineCallbacks
    def start_template(self, platform: str) -> Any:
        """Start an EC2, and a master with ``tls = true``, whose one platform is ``p``."""
        self.start_ec2()
        basedir = Path(self.mktemp()).absolute()
        basedir.mkdir()
        (basedir / "settings.toml").write_text(SETTINGS)
        arguments = {**self.ec2.worker_arguments(), "count": 1, "build_wait_timeout": 0}
        del arguments["bb_master"]
        lines = [
            f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value}"
            for name, value in arguments.items()
        ]
        (basedir / "platforms.toml").write_text("\n".join(["[platforms.p]", *lines, platform]))
        logfile = (basedir / "twistd.log").open("w", encoding="utf-8")
        observer = log.FileLogObserver(logfile)
        observer.start()
        self.addCleanup(logfile.close)
        self.addCleanup(observer.stop)
        config_file = str(template.directory() / "master.cfg")
        self.master = EmbeddedMaster(basedir=str(basedir), config_file=config_file)
        self.addCleanup(self.master.stop)
        yield self.master.start()

    @defer.inlineCallbacks
    def test_build(self):
        """A build by TLS; the instance is given the certificate and nobody the key."""
        runs, go = Path(self.mktemp()).absolute(), Path(self.mktemp()).absolute()
        yield self.start_template(f"build = ['touch {runs}; while [ ! -e {go} ]; do sleep 0.1; done']")
        building = self.master.force_build("p")
        yield self.until(runs.exists, what="a step that runs")
        worker = self.master.master.workers.workers["p-1"]
        self.assertIn("TLSv1.", worker.conn.mind.broker.transport.getHandle().get_protocol_version_name())
        (instance_id,) = self.ec2.alive()
        # The watches know their master by its port, also through TLS.
        pid = yield self.workers_of(instance_id, worker.registration.getPBPort())
        self.assertIn(b"buildbot-worker", Path(f"/proc/{int(pid)}/cmdline").read_bytes())
        answer = yield self.call("describe_instance_attribute", InstanceId=instance_id, Attribute="userData")
        user_data = base64.b64decode(answer["UserData"]["Value"])
        certificate = Path(self.master.basedir, CERTIFICATE).read_bytes()
        self.assertIn(certificate.strip(), user_data)
        go.touch()
        build = yield building
        self.assertEqual((build.outcome, build.attempts), ("success", ()))
        yield self.until_gone()
        key = Path(self.master.basedir, KEY).read_text().splitlines()[1]
        haystack = secrecy.files(self.master.basedir)
        self.assertIn(key.encode(), haystack.pop(os.path.join(self.master.basedir, KEY)))
        haystack |= yield secrecy.answers(self.master)
        haystack |= {"user-data": user_data, **secrecy.files(self.directory)}
        self.assertEqual(secrecy.find(key, haystack), [])

    @defer.inlineCallbacks
    def workers_of(self, instance_id: str, port: int) -> Any:
        """Ask an instance's switch which of its processes are connected to a port."""
        root = self.directory / instance_id
        environment = {**os.environ, "EC2UD_ROOT": str(root), "port": str(port)}
        switch = str(root / "var/lib/buildbot-ec2ud/switch")
        out, err, _ = yield getProcessOutputAndValue("/bin/sh", [switch, "workers"], environment)
        self.assertEqual(err, b"")
        return out


class Impostors(InstanceTestCase):
    """Others at the master's address get no password: not even the worker's name."""

    def identity(self, *hosts: str) -> Identity:
        directory = self.mktemp()
        os.mkdir(directory)
        return provide(directory, hosts)

    @defer.inlineCallbacks
    def listen(self, identity: Identity | None) -> Any:
        """Listen with TLS, or without."""
        self.impostor = Impostor()
        description = "tcp:0:interface=127.0.0.1"
        if identity is not None:
            description = f"ssl:0:interface=127.0.0.1:privateKey={identity.key}:certKey={identity.certificate}"
        port = yield serverFromString(reactor, description).listen(self.impostor)
        self.addCleanup(port.stopListening)
        self.port = port.getHost().port

    @defer.inlineCallbacks
    def connect(self, trusted: str) -> Any:
        """Let a worker that trusts only *trusted* connect; the instance's id."""
        self.start_ec2()
        script = scripts.load(scripts.packaged("embedded.sh"), None, [])
        data = UserData(
            f"127.0.0.1:{self.port}", "w-0123456789", PASSWORD, {}, script, tls_certificates=trusted
        ).render()
        return (yield self.launch(data))

    @defer.inlineCallbacks
    def refused(self, trusted: str) -> Any:
        """The worker breaks off the handshake; why, as far as it says."""
        instance_id = yield self.connect(trusted)
        yield self.until(lambda: self.impostor.lost, what="a connection that is broken off")
        yield self.end(instance_id)
        self.assertEqual(self.impostor.told, [])
        return self.impostor.lost[0].value

    @defer.inlineCallbacks
    def end(self, instance_id: str) -> Any:
        """End the instance and its connection: PB complains of each, and there must come no more."""
        yield self.call("terminate_instances", InstanceIds=[instance_id])
        yield self.until_gone()
        yield self.until(lambda: self.impostor.lost, what="the end of the connection")

    @defer.inlineCallbacks
    def test_control(self):
        """With the right certificate, the same worker does talk: it is able to, and the others below refuse to."""
        identity = self.identity("127.0.0.1")
        yield self.listen(identity)
        instance_id = yield self.connect(Path(identity.certificate).read_text())
        yield self.until(lambda: b"w-0123456789" in b"".join(self.impostor.told), what="a worker's name")
        yield self.end(instance_id)
        self.assertNotIn(PASSWORD.encode(), b"".join(self.impostor.told))
        self.flushLoggedErrors(UnhandledCredentials)

    @defer.inlineCallbacks
    def test_other_certificate(self):
        """One with a certificate of its own, for the same name."""
        yield self.listen(self.identity("127.0.0.1"))
        why = yield self.refused(Path(self.identity("127.0.0.1").certificate).read_text())
        self.assertIsInstance(why, SSL.Error)
        self.assertIn("unknown ca", str(why))

    @defer.inlineCallbacks
    def test_other_name(self):
        """One with a certificate that is trusted, for another name."""
        identity = self.identity("other.example.org", "127.0.0.2")
        yield self.listen(identity)
        why = yield self.refused(Path(identity.certificate).read_text())
        self.assertIsInstance(why, ConnectionLost)

    @defer.inlineCallbacks
    def test_not_of_the_system(self):
        """Where the system's certificates are trusted, one that none of them has signed."""
        yield self.listen(self.identity("127.0.0.1"))
        why = yield self.refused("system")
        self.assertIsInstance(why, SSL.Error)
        self.assertIn("unknown ca", str(why))

    @defer.inlineCallbacks
    def test_plain(self):
        """One without TLS is told no more than the beginning of a handshake."""
        yield self.listen(None)
        instance_id = yield self.connect(Path(self.identity("127.0.0.1").certificate).read_text())
        yield self.until(lambda: self.impostor.told, what="something")
        yield self.end(instance_id)
        told = b"".join(self.impostor.told)
        self.assertEqual(told[:2], b"\x16\x03")  # a handshake of TLS
        self.assertNotIn(b"w-0123456789", told)
        self.assertEqual(secrecy.find(PASSWORD, {"told": told}), [])
        self.flushLoggedErrors(NotImplementedError)  # what PB makes of it
