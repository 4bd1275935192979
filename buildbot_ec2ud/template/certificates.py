"""The master's own certificate for TLS: a self-signed one and its key, made in the master's directory."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: Names of the files.
KEY, CERTIFICATE = "tls.key", "tls.pem"
#: How long a new certificate is good for. Instances trust this one and no other, so a short life would protect nobody.
LIFETIME = datetime.timedelta(days=3650)
#: How long before its end it is time to have another one.
NOTICE = datetime.timedelta(days=30)
#: Clocks of instances may be late.
_EARLY = datetime.timedelta(days=1)


class CertificateError(ValueError):
    """The certificate or its key cannot be made or used. The text is one line, and names the file."""


@dataclass(frozen=True)
class Identity:
    """A key and its certificate.

    :ivar key: path of the file with the key.
    :ivar certificate: path of the file with the certificate.
    :ivar expires: when the certificate ends.
    """

    key: str
    certificate: str
    expires: datetime.datetime

    def notice(self, now: datetime.datetime | None = None) -> str | None:
        """What is to be said of the certificate's end, in the last days before it; None until then."""
        if self.expires - (now or _now()) > NOTICE:
            return None
        return f"{self.certificate}: ends on {self.expires:%Y-%m-%d}: {_anew(self.key, self.certificate)}"


def provide(directory: str, hosts: Iterable[str], now: datetime.datetime | None = None) -> Identity:
    """Give the certificate of *directory*; without one there, it is made, with a new key that only its owner can read.

    :param directory: the master's.
    :param hosts: names and IP addresses by which instances know the master.
    :param now: the time, unless it is now.
    :raises CertificateError: they cannot be made; or those that are there are not for each other, not for all of *hosts*,
        at their end, signed by another certificate, or the key can be read by others.
    """
    now = now or _now()
    names = sorted({_plain(host) for host in hosts})
    key, certificate = os.path.join(directory, KEY), os.path.join(directory, CERTIFICATE)
    try:
        if not os.path.exists(key) and not os.path.exists(certificate):
            _make(key, certificate, names, now)
        return _check(key, certificate, names, now)
    except OSError as error:
        raise CertificateError(f"{error.filename or directory}: {error.strerror}") from error


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _plain(host: str) -> str:
    """A host as certificates have it: no brackets, no capital letters, no dot at the end."""
    return host.strip("[]").rstrip(".").lower()


def _general_name(host: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise CertificateError(f"{CERTIFICATE}: cannot be for {host!r}: {error}") from error


def _make(key: str, certificate: str, names: list[str], now: datetime.datetime) -> None:
    alternatives = [_general_name(name) for name in names]
    private = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    # Each has its own subject: among several with the same, OpenSSL does not look for the one that fits.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"buildbot master {serial:x}")])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(serial)
        .not_valid_before(now - _EARLY)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(private, hashes.SHA256())
    )
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(key, pem, 0o600)
    _write(certificate, made.public_bytes(serialization.Encoding.PEM), 0o644)


def _write(path: str, content: bytes, mode: int) -> None:
    # Never over one that somebody has made meanwhile.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


def _check(key: str, certificate: str, names: list[str], now: datetime.datetime) -> Identity:
    with open(key, "rb") as file:
        if os.name == "posix" and os.fstat(file.fileno()).st_mode & 0o077:
            raise CertificateError(f"{key}: can be read by others than its owner; chmod 600")
        private = file.read()
    with open(certificate, "rb") as file:
        content = file.read()
    try:
        public = serialization.load_pem_private_key(private, None).public_key()
    except (ValueError, TypeError):  # what is wrong with it is told to nobody: it is a secret
        raise CertificateError(f"{key}: is no private key in PEM form without a passphrase") from None
    try:
        found = x509.load_pem_x509_certificate(content)
    except ValueError as error:
        raise CertificateError(f"{certificate}: is no certificate in PEM form: {error}") from error
    if found.public_key() != public:
        raise CertificateError(f"{certificate}: is not for {key}: {_anew(key, certificate)}")
    if found.issuer != found.subject:
        raise CertificateError(
            f"{certificate}: is signed by another certificate: without tls, set pb_port to ssl:..., and bb_tls to that one"
        )
    if missing := [name for name in names if name not in _names_of(found)]:
        raise CertificateError(f"{certificate}: is not for {', '.join(missing)}: {_anew(key, certificate)}")
    if found.not_valid_after_utc <= now:
        end = f"has ended on {found.not_valid_after_utc:%Y-%m-%d}"
        raise CertificateError(f"{certificate}: {end}: {_anew(key, certificate)}")
    return Identity(key, certificate, found.not_valid_after_utc)


def _names_of(certificate: x509.Certificate) -> set[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return set()
    dns = extension.value.get_values_for_type(x509.DNSName)
    addresses = extension.value.get_values_for_type(x509.IPAddress)
    return {_plain(str(name)) for name in [*dns, *addresses]}


def _anew(key: str, certificate: str) -> str:
    return f"remove {key} and {certificate}, and restart the master, to have new ones"
