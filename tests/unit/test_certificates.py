"""The master's own certificate: made, used again, and what is said when something is wrong with it."""

from __future__ import annotations

import datetime
import os
import ssl
import stat
import warnings
from pathlib import Path
from typing import Any

from buildbot.config import ConfigErrors
from buildbot.config.master import FileLoader
from buildbot.warnings import ConfigWarning
from cryptography import x509
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud import template
from buildbot_ec2ud.template import Listening, Platform, certificates, listening, load_settings
from buildbot_ec2ud.template.certificates import CERTIFICATE, KEY, CertificateError, Identity, provide
from tests.unit.files import directory

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)


class CertificateTestCase(SynchronousTestCase):
    """A master's directory."""

    def setUp(self) -> None:
        self.basedir = directory(self)
        self.key, self.certificate = (Path(self.basedir, name) for name in (KEY, CERTIFICATE))

    def provide(self, *hosts: str, now: datetime.datetime = NOW) -> Identity:
        return provide(self.basedir, hosts or ("bb.example.org",), now)

    def fails(self, *hosts: str, **more: Any) -> str:
        """Why there is no certificate: a line that names a file, and tells nothing of the key."""
        text = str(self.assertRaises(CertificateError, self.provide, *hosts, **more))
        self.assertEqual(len(text.splitlines()), 1)
        for line in self.key.read_text().splitlines() if self.key.exists() else ():
            self.assertNotIn(line.strip("-"), text)
        return text.replace(self.basedir + os.sep, "")


class Making(CertificateTestCase):
    """One that was not there before."""

    def test_files(self) -> None:
        """A key that only its owner can read, whatever the umask is, and a certificate for it."""
        self.addCleanup(os.umask, os.umask(0))
        identity = self.provide()
        self.assertEqual((identity.key, identity.certificate), (str(self.key), str(self.certificate)))
        self.assertEqual(stat.S_IMODE(self.key.stat().st_mode), 0o600)
        self.assertNotIn("PRIVATE", self.certificate.read_text())
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key)

    def test_content(self) -> None:
        """It is for all hosts, by name or address, each once; it is good already, for ten years, and for servers only."""
        hosts = ("BB.example.org.", "bb.example.org", "192.0.2.1", "[2001:db8::1]", "localhost")
        identity = self.provide(*hosts)
        made = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        self.assertEqual(names.get_values_for_type(x509.DNSName), ["bb.example.org", "localhost"])
        self.assertEqual([str(ip) for ip in names.get_values_for_type(x509.IPAddress)], ["192.0.2.1", "2001:db8::1"])
        self.assertEqual(made.not_valid_before_utc, NOW - DAY)
        self.assertEqual(made.not_valid_after_utc, NOW + certificates.LIFETIME)
        self.assertEqual(identity.expires, made.not_valid_after_utc)
        self.assertFalse(made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
        made.verify_directly_issued_by(made)

    def test_again(self) -> None:
        """What has been made is used, for fewer hosts too."""
        first = self.provide("a.example.org", "b.example.org")
        files = self.key.read_bytes(), self.certificate.read_bytes()
        self.assertEqual(self.provide("B.example.org"), first)
        self.assertEqual((self.key.read_bytes(), self.certificate.read_bytes()), files)

    def test_each_its_own(self) -> None:
        """No two masters have the same key or subject."""
        other = directory(self)
        self.provide()
        provide(other, ["bb.example.org"], NOW)
        self.assertNotEqual(self.key.read_bytes(), Path(other, KEY).read_bytes())
        one, two = (
            x509.load_pem_x509_certificate(Path(path, CERTIFICATE).read_bytes()) for path in (self.basedir, other)
        )
        self.assertNotEqual(one.subject, two.subject)

    def test_no_such_host(self) -> None:
        """A name that no certificate can have; nothing is left of the attempt."""
        self.assertIn("cannot be for 'bü.example.org'", self.fails("bü.example.org"))
        self.assertEqual(os.listdir(self.basedir), [])

    def test_no_directory(self) -> None:
        """The directory cannot be written to."""
        os.rmdir(self.basedir)
        self.assertEqual(self.fails(), f"{KEY}: No such file or directory")
        os.mkdir(self.basedir)


class Checking(CertificateTestCase):
    """One that is there, and cannot be used."""

    def test_end(self) -> None:
        """Nothing is said until 30 days before its end; at its end it is refused."""
        identity = self.provide()
        end = NOW + certificates.LIFETIME
        self.assertIsNone(identity.notice(end - 31 * DAY))
        self.assertIn(f"{CERTIFICATE}: ends on 2039-12-30: remove ", identity.notice(end - 29 * DAY))
        self.provide(now=end - DAY / 24)
        text = self.fails(now=end)
        self.assertIn(f"{CERTIFICATE}: has ended on 2039-12-30: remove {KEY} and {CERTIFICATE}, and restart", text)

    def test_wrong(self) -> None:
        """Each thing that can be wrong with the two files."""
        self.provide()
        key, certificate = self.key.read_bytes(), self.certificate.read_bytes()
        other = directory(self)
        provide(other, ["bb.example.org"], NOW)
        for change, words in (
            (lambda: self.key.unlink(), f"{KEY}: No such file or directory"),
            (lambda: self.certificate.unlink(), f"{CERTIFICATE}: No such file or directory"),
            (lambda: self.key.chmod(0o640), f"{KEY}: can be read by others than its owner; chmod 600"),
            (lambda: self.key.chmod(0o604), f"{KEY}: can be read by others than its owner; chmod 600"),
            (lambda: self.key.write_bytes(key[:-60]), f"{KEY}: is no private key in PEM form"),
            (lambda: self.key.write_bytes(b""), f"{KEY}: is no private key in PEM form"),
            (lambda: self.key.write_bytes(Path(other, KEY).read_bytes()), f"{CERTIFICATE}: is not for {KEY}: remove "),
            (lambda: self.certificate.write_bytes(certificate[:90]), f"{CERTIFICATE}: is no certificate in PEM form"),
            (lambda: self.certificate.write_bytes(key), f"{CERTIFICATE}: is no certificate in PEM form"),
        ):
            change()
            self.assertIn(words, self.fails())
            self.key.write_bytes(key)
            self.key.chmod(0o600)
            self.certificate.write_bytes(certificate)
        self.provide()

    def test_other_host(self) -> None:
        """The master has got another name since."""
        self.provide("a.example.org", "192.0.2.1")
        text = self.fails("b.example.org", "a.example.org", "192.0.2.2", "example.org")
        self.assertIn(f"{CERTIFICATE}: is not for 192.0.2.2, b.example.org, example.org: remove ", text)

    def test_signed_by_another(self) -> None:
        """One of a certificate authority: to trust it alone is not enough for OpenSSL."""
        self.provide()
        key = certificates.serialization.load_pem_private_key(self.key.read_bytes(), None)
        own = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        signed = (
            x509.CertificateBuilder()
            .subject_name(own.subject)
            .issuer_name(x509.Name([x509.NameAttribute(certificates.NameOID.COMMON_NAME, "authority")]))
            .public_key(key.public_key())
            .serial_number(5)
            .not_valid_before(own.not_valid_before_utc)
            .not_valid_after(own.not_valid_after_utc)
            .sign(key, certificates.hashes.SHA256())
        )
        self.certificate.write_bytes(signed.public_bytes(certificates.serialization.Encoding.PEM))
        self.assertIn(f"{CERTIFICATE}: is signed by another certificate: without tls, set pb_port", self.fails())


class Template(CertificateTestCase):
    """What ``tls = true`` in ``settings.toml`` makes of the template."""

    def write(self, text: str) -> None:
        Path(self.basedir, "settings.toml").write_text(text)

    def listening(self, text: str, *workers: dict[str, Any]) -> Listening:
        self.write(text)
        platforms = [Platform(f"p{number}", 1, (), worker) for number, worker in enumerate(workers or ({},))]
        return listening(self.basedir, load_settings(self.basedir), platforms)

    def errors(self, text: str, *workers: dict[str, Any]) -> list[str]:
        errors = self.assertRaises(ConfigErrors, self.listening, text, *workers).errors
        self.assertFalse(self.key.exists())
        return [error.removeprefix(os.path.join(self.basedir, "settings.toml") + ":1: ") for error in errors]

    def test_without(self) -> None:
        """Without it, nothing is made."""
        self.assertEqual(self.listening('pb_port = "tcp:1"\nbb_master = "a:1"\n'), Listening("tcp:1"))
        self.assertEqual(os.listdir(self.basedir), ["settings.toml"])

    def test_with(self) -> None:
        """The port is one of TLS, the same in all other respects; the certificate is for each host that is told."""
        settings = 'tls = true\npb_port = "tcp:9989:interface=127.0.0.1"\nbb_master = "a.example.org:1"\n'
        found = self.listening(
            settings,
            {},
            {"bb_master": "[2001:db8::1]:5"},
            {"bb_master": "proxy.example.org", "bb_tls": "proxy.pem"},
            {"bb_master": ["no", "address"]},
        )
        port = f"ssl:9989:interface=127.0.0.1:privateKey={self.key}:certKey={self.certificate}"
        self.assertEqual(found, Listening(port, str(self.certificate)))
        made = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        self.assertEqual(certificates._names_of(made), {"a.example.org", "2001:db8::1"})

    def test_number(self) -> None:
        """A port may be only its number."""
        self.assertTrue(self.listening('tls = true\npb_port = "7"\nbb_master = "a"\n').pb_port.startswith("ssl:7:priv"))

    def test_wrong(self) -> None:
        """All that is wrong at once; nothing is made then."""
        self.assertEqual(
            self.errors('tls = true\npb_port = "unix:a"\n'),
            [
                "tls needs bb_master: the certificate is for its host",
                "tls needs a pb_port that begins with tcp:, not 'unix:a'",
            ],
        )
        self.assertEqual(len(self.errors("tls = true\n", {"bb_master": "a"}, {})), 1)
        self.assertEqual(self.errors('tls = "yes"\n'), ["tls must be true or false, not 'yes'"])

    def test_unusable(self) -> None:
        """What is wrong with the certificate is said of the setting, and the key is not."""
        text = 'tls = true\nbb_master = "a:1"\n'
        self.listening(text)
        self.key.chmod(0o644)
        [error] = self.assertRaises(ConfigErrors, self.listening, text).errors
        self.assertIn(f"settings.toml:1: tls: {self.key}: can be read by others", error)

    def test_near_its_end(self) -> None:
        """It is said each time that the configuration is loaded, for which it is good still."""
        now = datetime.datetime.now(datetime.UTC)
        provide(self.basedir, ["a"], now - certificates.LIFETIME + 29 * DAY)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            self.listening('tls = true\nbb_master = "a:1"\n')
        [warning] = said
        self.assertIs(warning.category, ConfigWarning)
        self.assertIn(f"{self.certificate}: ends on ", str(warning.message))

    def test_master(self) -> None:
        """The packaged master.cfg: each worker trusts the certificate, those with one of their own that one."""
        self.write('tls = true\nbb_master = "localhost:1"\nkeep_logs = 0\n')
        trusted = Path(self.basedir, "own.pem")
        provide(self.basedir, ["localhost"])
        trusted.write_bytes(self.certificate.read_bytes())
        Path(self.basedir, "platforms.toml").write_text(
            '[defaults]\nami = "ami-1"\ninstance_type = "t"\n[platforms.one]\n[platforms.two]\nbb_tls = "own.pem"\n'
        )
        loaded = FileLoader(self.basedir, str(template.directory() / "master.cfg")).loadConfig()
        self.assertEqual(
            {worker.name: worker.settings.bb_tls for worker in loaded.workers},
            {"one-1": str(self.certificate), "two-1": "own.pem"},
        )
        self.assertTrue(loaded.protocols["pb"]["port"].startswith("ssl:9989:privateKey="))
