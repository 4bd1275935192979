"""Where a worker gets its instances, and who pays: region, endpoint and credentials."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from twisted.internet import defer

from buildbot_ec2ud.ec2 import endpoints
from buildbot_ec2ud.ec2.credentials import SessionCredentials
from buildbot_ec2ud.settings import Settings


@dataclass(frozen=True)
class Account:
    """What workers have in common that share their calls to EC2.

    :ivar region: name of the region.
    :ivar endpoint_url: where its EC2 answers.
    :ivar access_key: AWS access key id, or None for the AWS credential chain.
    :ivar secret_key: the secret of *access_key*.
    :ivar source: gives botocore's credentials instead; its ``repr`` tells it from others.
    """

    region: str
    endpoint_url: str
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    source: Any = None

    @classmethod
    @defer.inlineCallbacks
    def of(cls, settings: Settings, render: Callable[[Any], Any], reactor: Any) -> Generator[Any, Any, Account]:
        """Find that of a worker. No call to AWS is made for it.

        :param settings: the worker's.
        :param render: renders a value; there may be secrets in the settings.
        :param reactor: the clock.
        :raises buildbot_ec2ud.ec2.aws_id.FileError: the file with the access key cannot be used.
        :raises buildbot_ec2ud.ec2.endpoints.RegionError: there is no telling where EC2 answers.
        """
        key, secret = yield render((settings.identifier, settings.secret_identifier))
        source = None
        if settings.session is not None:
            source = yield SessionCredentials.of(settings.session, reactor)
        elif (pair := settings.aws_id()) is not None:
            key, secret = pair
        region = settings.region or getattr(settings.session, "region_name", None) or endpoints.default_region()
        return cls(region, settings.endpoint_url or endpoints.endpoint_url(region), key, secret, source)

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from others. There may be a secret in it."""
        return self.region, self.endpoint_url, self.access_key, self.secret_key, repr(self.source)

    def __str__(self) -> str:
        return f"{self.region} ({self.endpoint_url})"
