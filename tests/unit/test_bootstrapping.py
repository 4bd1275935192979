"""What a start's user-data is made of, and where a script goes that is too large for it."""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from buildbot.config import ConfigErrors
from buildbot.plugins import util
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.bootstrapping import make_user_data, server
from buildbot_ec2ud.served import plugin
from buildbot_ec2ud.settings import Settings
from buildbot_ec2ud.userdata.posix import LIMIT, TooLarge, UserDataError
from buildbot_ec2ud.worker import EC2UserDataLatentWorker
from tests.unit.files import directory, write
from tests.unit.secure import environment

LARGE = "#!/bin/sh\n" + "# This is a long script.\n" * 700
PASSWORD = "p4ssw0rd-of-this-start"
ADDRESS = "master.example.org:9989"


def certificate(name: str = "master.example.org") -> tuple[str, str]:
    """A certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode(), private.decode()


class BootstrappingTestCase(SynchronousTestCase):
    """A master's directory."""

    def setUp(self) -> None:
        environment(self, HOME=directory(self))
        self.basedir = directory(self)
        self.patch(sys, "path", [*sys.path, self.basedir])  # as Buildbot does while it loads a configuration

    def make(self, serve: Any = None, env: Any = None, **arguments: Any) -> bytes:
        settings = Settings.parse(None, arguments)
        return make_user_data(settings, "linux-1", ADDRESS, PASSWORD, env or {}, (self.basedir,), serve=serve)

    def worker(self, **arguments: Any) -> EC2UserDataLatentWorker:
        return EC2UserDataLatentWorker("linux-1", **{"instance_type": "t3.micro", "ami": "ami-1", **arguments})


class WayTests(BootstrappingTestCase):
    """Inside of the user-data as long as it fits, then packed, then served."""

    def serve(self, script: bytes) -> str:
        self.served = script
        return "http://ci.example.org/plugins/ec2_scripts/token"

    def test_inline(self) -> None:
        """What fits is neither packed nor served."""
        write(self.basedir, "a.sh", "#!/bin/sh\necho small\n")
        plain = self.make(bootstrap_script="a.sh")
        self.assertIn(b"\necho small\n", plain)
        self.assertEqual(self.make(self.serve, bootstrap_script="a.sh", gzip_user_data=True, bb_www=True), plain)
        self.assertFalse(hasattr(self, "served"))

    def test_packed_first(self) -> None:
        """Packed, it needs nobody else."""
        write(self.basedir, "a.sh", LARGE)
        packed = self.make(self.serve, bootstrap_script="a.sh", gzip_user_data=True, bb_www=True)
        self.assertIn(LARGE.encode(), gzip.decompress(packed))
        self.assertFalse(hasattr(self, "served"))

    def test_served(self) -> None:
        """The instance gets the script by its URL and checksum; the password is only in the user-data."""
        write(self.basedir, "a.sh", LARGE)
        data = self.make(self.serve, bootstrap_script="a.sh", bb_www=True).decode()
        self.assertEqual(self.served, LARGE.encode())
        checksum = hashlib.sha256(LARGE.encode()).hexdigest()
        self.assertIn(f"\nec2ud_fetch http://ci.example.org/plugins/ec2_scripts/token {checksum} || return 1\n", data)
        self.assertIn(PASSWORD, data)
        self.assertNotIn("a long script", data)

    def test_served_to_windows(self) -> None:
        """Windows gets what it runs, in an encoding that PowerShell knows by its first bytes."""
        text = "Write-Host 'wörk'\n" + "# A comment.\n" * 2000
        for script in (text, f"<powershell>{text}</powershell>"):
            if script is text:
                write(self.basedir, "a.ps1", text)
                script = "a.ps1"
            data = self.make(self.serve, bootstrap_script=script, bb_www=True).decode()
            self.assertEqual(self.served, b"\xef\xbb\xbf" + text.encode())
            self.assertIn(hashlib.sha256(self.served).hexdigest(), data)
            self.assertTrue(data.startswith("<powershell>\n"))

    def test_nowhere(self) -> None:
        """Without either, it is told what could be done; and what is not the script's fault cannot be served away."""
        failure = self.assertRaises(TooLarge, self.make, bootstrap_script=LARGE)
        self.assertIn("gzip_user_data", str(failure))
        self.assertIn("bb_www", str(failure))
        many = {f"A{number}": "b" * 100 for number in range(200)}
        self.assertRaises(TooLarge, self.make, self.serve, many, bootstrap_script=LARGE, bb_www=True)
        url = "https://example.org/a.sh"
        self.assertRaises(TooLarge, self.make, self.serve, many, bootstrap_script=url, bb_www=True)

    def test_windows(self) -> None:
        """Windows has user-data of its own."""
        data = self.make(bootstrap_script="windows")
        self.assertTrue(data.startswith(b"<powershell>\n"))
        self.assertIn(b"master.example.org", data)
        self.assertIn(PASSWORD.encode(), data)


class CheckTests(BootstrappingTestCase):
    """What is said while a configuration is loaded."""

    def test_size(self) -> None:
        """With the longest of what is not known yet: a start does not find out that it does not fit."""
        room = LIMIT - len(self.make(bootstrap_script="#!/bin/sh\n"))
        for length in range(room - 600, room, 50):
            script = "#!/bin/sh\n" + "#" * length
            try:
                self.worker(bootstrap_script=script)
            except ConfigErrors as error:
                self.assertIn("EC2 takes 16,384", error.errors[0])
                break
            settings = Settings.parse(None, {"bootstrap_script": script})
            host = "m" * 63 + ".example" * 23 + ".org.de"
            self.assertLessEqual(
                len(make_user_data(settings, "linux-1", f"{host[:253]}:65535", "p" * 32, {}, ())), LIMIT
            )
        else:
            self.fail("no script is too large")

    def test_ways(self) -> None:
        """Each way out is one; of what is known at a build only, the script is not to blame."""
        write(self.basedir, "a.sh", LARGE)
        with self.assertRaises(ConfigErrors) as caught:
            self.worker(bootstrap_script="a.sh")
        [error] = caught.exception.errors
        self.assertTrue(error.startswith("worker linux-1: bootstrap_script: the user-data would have "), error)
        self.assertIn("gzip_user_data=True", error)
        self.assertIn("bb_www", error)
        self.assertIn("ec2_scripts", error)
        self.worker(bootstrap_script="a.sh", gzip_user_data=True)
        self.worker(bootstrap_script="a.sh", bb_www=True)
        self.worker(bootstrap_script="a.sh", bb_www="http://10.0.0.1:8010/")
        self.worker(bootstrap_script="a.sh", bb_www=True, bootstrap_env={"A": util.Property("a")})

    def test_families(self) -> None:
        """Each packaged script fits, with whatever else there is."""
        pem, _ = certificate()
        write(self.basedir, "master.pem", pem)
        for name in ("debian", "redhat", "suse", "alpine", "freebsd", "macos", "windows", "generic"):
            self.worker(bootstrap_script=name, bb_tls="master.pem", max_lifetime=86400, market="spot")


class TLSTests(BootstrappingTestCase):
    """The certificates that an instance trusts for its master."""

    def test_none(self) -> None:
        """Without any, nothing is said."""
        self.assertNotIn(b"BB_TLS_CERT", self.make(bootstrap_script="#!/bin/sh\n"))

    def test_system(self) -> None:
        """Those of the instance's system."""
        self.assertIn(b"\nexport BB_TLS_CERT=system\n", self.make(bootstrap_script="#!/bin/sh\n", bb_tls=True))

    def test_file(self) -> None:
        """Those of a file, which is read anew; only the certificates travel, of which there may be several."""
        first, second = certificate("one")[0], certificate("two")[0]
        for content, expected in (
            (f"Subject: one\n{first}", first),
            (f"# renewed\n{first}\nand\n{second}\n", first + second),
        ):
            path = write(self.basedir, "master.pem", content)
            for name in ("master.pem", path):
                data = self.make(bootstrap_script="#!/bin/sh\n", bb_tls=name).decode()
                self.assertIn(f"\nexport BB_TLS_CERT='{expected}'\n", data)
                self.worker(bb_tls=name)

    def test_mistakes(self) -> None:
        """A key has no business on an instance; nothing of it is told."""
        pem, key = certificate()
        for content, words in (
            (pem + key, "has a private key in it"),
            (key, "has a private key in it"),
            ("", "has no certificate in PEM form"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "a broken one"),
        ):
            write(self.basedir, "master.pem", content)
            failure = self.assertRaises(UserDataError, self.make, bb_tls="master.pem")
            self.assertTrue(
                str(failure).startswith("bb_tls: " + os.path.join(self.basedir, "master.pem")), str(failure)
            )
            self.assertIn(words, str(failure))
            self.assertNotIn(key.splitlines()[1], str(failure))
            with self.assertRaises(ConfigErrors) as caught:
                self.worker(bb_tls="master.pem")
            self.assertIn(words, caught.exception.errors[0])
        os.mkdir(os.path.join(self.basedir, "directory"))
        self.assertIn("bb_tls: cannot read", str(self.assertRaises(UserDataError, self.make, bb_tls="directory")))


class ServerTests(BootstrappingTestCase):
    """The web server that a script is fetched from."""

    def master(self, url: str = "https://ci.example.org/farm/", **www: Any) -> Any:
        www = {"port": 8010, "plugins": {"ec2_scripts": {}}, **www}
        master = Master(reactor=Clock(), config=SimpleNamespace(buildbotURL=url, www=www))
        plugin.setMaster(master)
        return master

    def serve(self, master: Any, address: str = ADDRESS, **arguments: Any) -> str:
        arguments = {"bb_www": True, **arguments}
        return server(Settings.parse(None, arguments), master, address)(b"#!/bin/sh\n")

    def test_not_asked_for(self) -> None:
        """Nobody serves what nobody wants to have served."""
        self.assertIsNone(server(Settings.parse(None, {}), self.master(), ADDRESS))

    def test_url(self) -> None:
        """Below Buildbot's own URL with its path, or another one."""
        for url in ("https://ci.example.org/farm/", "https://ci.example.org/farm"):
            self.assertRegex(
                self.serve(self.master(url)), r"^https://ci\.example\.org/farm/plugins/ec2_scripts/[\w-]{43}$"
            )
        self.assertRegex(
            self.serve(self.master("http://localhost:8010/"), bb_www="http://10.0.0.1:8010"),
            r"^http://10\.0\.0\.1:8010/plugins/ec2_scripts/[\w-]{43}$",
        )

    def test_loopback(self) -> None:
        """A URL that leads an instance to itself is refused, unless the master is there, too."""
        for host in ("localhost", "127.0.0.1", "127.1.2.3", "[::1]"):
            master = self.master(f"http://{host}:8010/")
            failure = self.assertRaises(UserDataError, self.serve, master)
            self.assertIn(f"bb_www: no instance can reach c['buildbotURL'], 'http://{host}:8010/'", str(failure))
            for address in ("127.0.0.1:9989", "localhost:9989", "[::1]:9989"):
                self.serve(master, address)
            self.serve(master, bb_www=f"http://{host}:8010/")

    def test_not_configured(self) -> None:
        """Without web server or plugin it is said what to do."""
        never_set = Master(reactor=Clock(), config=SimpleNamespace(buildbotURL="https://ci/", www={"port": 1}))
        for master in (self.master(port=None), self.master(plugins={}), never_set):
            self.assertIn("'ec2_scripts': {}", str(self.assertRaises(UserDataError, self.serve, master)))

    def test_until_the_boot_is_over(self) -> None:
        """It is served as long as a worker may take to attach."""
        master = self.master()
        name = self.serve(master, missing_timeout=900).rpartition("/")[2]
        served = plugin.resource._scripts
        self.assertEqual(served[name][0], 900)
        self.serve(master)
        self.assertEqual(served[name][0], 3600)


class Master(SimpleNamespace):
    """A master; unlike a plain namespace it can be the key of a dict."""

    __hash__ = object.__hash__
