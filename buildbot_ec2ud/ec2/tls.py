"""TLS that is verified, and whose handshake is awaited."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from OpenSSL import SSL, crypto
from service_identity import VerificationError
from twisted.internet import ssl
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.interfaces import IDelayedCall, IHandshakeListener, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.client import BrowserLikePolicyForHTTPS, HostnameCachingHTTPSPolicy
from zope.interface import implementer

from buildbot_ec2ud.ec2.opening import ConnectFailed, Opening, OpeningEndpoint

#: Seconds that the other side has to agree that a connection is closed.
CLOSE_TIMEOUT = 5

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class BundleError(ValueError):
    """A file of certificates cannot be used. The text is one line, and names the file."""


class TLSError(ConnectFailed):
    """A TLS connection could not be made."""


@functools.lru_cache(maxsize=4)
def _read(path: str, modified: int, size: int) -> Sequence[ssl.Certificate]:
    with open(path, "rb") as file:
        content = file.read()
    # One by one with OpenSSL, which takes the old roots that stricter readers refuse, such as some of botocore's bundle.
    blocks = _CERTIFICATE.findall(content)
    if not blocks:
        raise BundleError(f"there is no certificate in {path!r}")
    try:
        return [ssl.Certificate.loadPEM(block) for block in blocks]
    except crypto.Error:
        raise BundleError(f"there is a broken certificate in {path!r}") from None


def read_bundle(path: str) -> Sequence[ssl.Certificate]:
    """Read the certificates in a file; the same file is not read twice.

    :param path: of a file of certificates in the PEM format.
    :raises BundleError: it cannot be read, or has none.
    """
    try:
        status = os.stat(path)
        return _read(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise BundleError(f"cannot read {path!r}: {error.strerror}") from error


def check_bundle(path: str) -> str | None:
    """Tell what is wrong with the file of certificates at *path*; None when nothing is."""
    try:
        read_bundle(path)
    except BundleError as error:
        return str(error)
    return None


class Verified:
    """Makes TLS endpoints that accept a server only with a certificate for its name.

    :param reactor: the clock.
    :param ca_bundle: path of a file with the only certificates to trust; None for those of this machine.
    :raises BundleError: the file cannot be used.
    """

    def __init__(self, reactor: Any, ca_bundle: str | None = None) -> None:
        self._reactor = reactor
        self._trusted = "this machine's certificates" if ca_bundle is None else f"the certificates in {ca_bundle!r}"
        trust = None if ca_bundle is None else ssl.trustRootFromCertificates(read_bundle(ca_bundle))
        # Without the cache, all certificates would be loaded again for each request.
        self._policy = HostnameCachingHTTPSPolicy(BrowserLikePolicyForHTTPS(trust))

    def wrap(self, endpoint: IStreamClientEndpoint, host: str, port: int) -> IStreamClientEndpoint:
        """Put TLS on top of *endpoint*.

        Its connections are there when the handshake is done. Twisted's own are there before, and fail only when a request
        has been written; then nobody can tell a refused certificate from an answer that was lost.

        :param host: the name, or IP address, that the certificate must be for.
        :param port: the port on *host*.
        """
        creator = self._policy.creatorForNetloc(host.encode("ascii"), port)
        encrypted = wrapClientTLS(creator, endpoint, clock=self._reactor)
        return OpeningEndpoint(encrypted, lambda factory: _Handshake(factory, host, self._trusted, self._reactor))


@implementer(IHandshakeListener)
class _Handshake(Opening):
    def __init__(self, factory: IProtocolFactory, host: str, trusted: str, reactor: Any) -> None:
        super().__init__(factory)
        self._host = host
        self._trusted = trusted
        self._reactor = reactor
        self._closing: IDelayedCall | None = None

    def handshakeCompleted(self) -> None:
        if not self.transport.disconnecting and not self.done.called:
            self.hand_over()

    def transport_for_user(self) -> _Transport:
        return _Transport(self.transport, self._close_soon)

    def _close_soon(self) -> None:
        """The connection is to be closed: TLS waits for the other side's consent, which may never come."""
        if self._closing is None:
            self._closing = self._reactor.callLater(CLOSE_TIMEOUT, self.transport.abortConnection)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._closing is not None and self._closing.active():
            self._closing.cancel()
        super().connectionLost(reason)

    def lost(self, reason: Failure) -> TLSError:
        if reason.check(VerificationError):
            return TLSError(f"certificate verify failed: the certificate is not for {self._host!r}")
        if not reason.check(SSL.Error):
            return TLSError(f"{self._host} closed the connection during the TLS handshake")
        text = explain(reason.value)
        return TLSError(f"{text} (trusted: {self._trusted})" if "certificate" in text else text)


class _Transport:
    """A transport that tells when its user closes it.

    :param transport: the real one.
    :param closes: called then.
    """

    def __init__(self, transport: Any, closes: Callable[[], None]) -> None:
        self._transport = transport
        self._closes = closes

    def loseConnection(self) -> None:
        self._closes()
        self._transport.loseConnection()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def explain(error: SSL.Error) -> str:
    """What OpenSSL says, in one line: ``certificate verify failed``."""
    queue = error.args[0] if error.args and isinstance(error.args[0], (list, tuple)) else ()
    return "TLS: " + ("; ".join(dict.fromkeys(reason for _, _, reason in queue)) or "the connection was closed")
