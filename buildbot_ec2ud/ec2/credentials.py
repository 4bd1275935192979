"""The AWS credential chain, without blocking the reactor."""

from __future__ import annotations

from typing import Any

from botocore.credentials import Credentials, ReadOnlyCredentials
from botocore.session import Session
from twisted.internet import defer
from twisted.python.failure import Failure
from txaws.credentials import AWSCredentials as _TxAWSCredentials

from buildbot_ec2ud.ec2.errors import NoCredentials
from buildbot_ec2ud.ec2.threads import in_thread


class AWSCredentials(_TxAWSCredentials):
    """Credentials that are found when a call needs them, by botocore's resolver in a thread of its own.

    Files, the instance's role, SSO and STS all block; the reactor's thread pool is shared with Buildbot, so it is not
    used. All calls that wait share one look-up.

    :param access_key: an AWS access key id; None to search the environment, shared files and the instance's role.
    :param secret_key: the secret that belongs to *access_key*.
    :param reactor: whose thread the results are delivered in.
    """

    def __init__(self, access_key: str | None = None, secret_key: str | None = None, *, reactor: Any) -> None:
        self.access_key = access_key
        self.secret_key = secret_key
        self._reactor = reactor
        self._source: Credentials | None = Credentials(access_key, secret_key) if access_key else None
        self._waiting: list[defer.Deferred[ReadOnlyCredentials]] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.access_key or 'from the AWS credential chain'}>"

    def resolve(self) -> defer.Deferred[ReadOnlyCredentials]:
        """Give credentials that are valid now.

        :return: fires with botocore's frozen credentials: ``access_key``, ``secret_key`` and ``token``.
        :raises NoCredentials: there are none, or their source failed.
        """
        source = self._source
        if source is not None and not _needs_refresh(source):
            return defer.succeed(source.get_frozen_credentials())
        waiter: defer.Deferred[ReadOnlyCredentials] = defer.Deferred()
        if self._waiting is None:
            self._waiting = []
            in_thread(self._reactor, self._find).addBoth(self._found)
        self._waiting.append(waiter)
        return waiter

    def _find(self) -> ReadOnlyCredentials:
        """Runs in a thread."""
        try:
            if self._source is None:
                self._source = Session().get_credentials()
            if self._source is None:
                raise NoCredentials(
                    "no AWS credentials found: set identifier and secret_identifier, AWS_ACCESS_KEY_ID and "
                    "AWS_SECRET_ACCESS_KEY, a profile in ~/.aws, or give the master's machine an IAM role"
                )
            return self._source.get_frozen_credentials()
        except NoCredentials:
            raise
        except Exception as error:  # botocore's own, STS's, and whatever a `credential_process` or a file can do wrong
            raise NoCredentials(f"cannot get AWS credentials: {' '.join(str(error).split())}") from error

    def _found(self, result: ReadOnlyCredentials | Failure) -> None:
        waiting, self._waiting = self._waiting or [], None
        for waiter in waiting:
            if not waiter.called:  # else it was cancelled
                waiter.callback(result)


def _needs_refresh(source: Credentials) -> bool:
    refresh_needed = getattr(source, "refresh_needed", None)
    return refresh_needed is not None and refresh_needed()
