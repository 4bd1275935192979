"""Where the EC2 of a region answers, by botocore's rules, and what AWS's own settings say about that."""

from __future__ import annotations

import difflib
import functools
import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from botocore.endpoint_provider import EndpointProvider
from botocore.exceptions import BotoCoreError, EndpointProviderError, InvalidConfigError
from botocore.loaders import create_loader
from botocore.session import Session

from buildbot_ec2ud.ec2.shapes import SERVICE

DEFAULT_REGION = "us-east-1"

#: The files of AWS's own settings: the variable that names each, and its usual place.
_FILES = (("AWS_CONFIG_FILE", "~/.aws/config"), ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"))


class RegionError(ValueError):
    """There is no telling which region is meant, or where its EC2 answers. The text is one line."""


@dataclass(frozen=True)
class AWSSettings:
    """What the environment and the profile of AWS's own settings say.

    :ivar region: a region; ``us-east-1`` when they say nothing, as in ``EC2LatentWorker``.
    :ivar use_dualstack_endpoint: whether endpoints are to have IPv6 addresses, too.
    :ivar use_fips_endpoint: whether endpoints are to be those that comply with FIPS 140.
    :ivar ca_bundle: path of a file with the only certificates to trust; None for those of this machine.
    :ivar endpoint_url: URL of EC2 in all regions; None for AWS's own.
    """

    region: str = DEFAULT_REGION
    use_dualstack_endpoint: bool = False
    use_fips_endpoint: bool = False
    ca_bundle: str | None = None
    endpoint_url: str | None = None


def aws_settings() -> AWSSettings:
    """AWS's own settings. They are read again only when the environment or a file has changed.

    :raises RegionError: they cannot be read.
    """
    settings = _read(_state())
    if isinstance(settings, str):
        raise RegionError(f"AWS's own settings cannot be read: {settings}")
    return settings


def _state() -> tuple[Any, ...]:
    """What the settings depend on. Secrets are left out: they do not matter here, and would be kept."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if name == "HOME" or (name.startswith("AWS_") and "KEY" not in name and "TOKEN" not in name)
    }
    files = []
    for variable, usual in _FILES:
        path = os.path.expanduser(os.path.expandvars(variables.get(variable, usual)))
        try:
            status = os.stat(path)
        except OSError:
            files.append((path,))
        else:
            files.append((path, status.st_mtime_ns, status.st_size, status.st_ino))
    return (*sorted(variables.items()), *files)


@functools.lru_cache(maxsize=1)
def _read(state: tuple[Any, ...]) -> AWSSettings | str:
    """Read the settings, or tell why they cannot be read; both is kept: a Session takes its time."""
    try:
        session = Session()
        get = session.get_config_variable
        return AWSSettings(
            region=get("region") or DEFAULT_REGION,
            use_dualstack_endpoint=bool(get("use_dualstack_endpoint")),
            use_fips_endpoint=bool(get("use_fips_endpoint")),
            ca_bundle=get("ca_bundle") or None,
            endpoint_url=None if get("ignore_configured_endpoint_urls") else _configured_endpoint_url(session),
        )
    except BotoCoreError as error:  # a profile that is not there, a file that cannot be parsed
        return " ".join(str(error).split())


def _configured_endpoint_url(session: Session) -> str | None:
    """Source: AWS SDKs and Tools reference guide, "Service-specific endpoints". botocore's own reader is private."""
    profile = session.get_scoped_config()
    section: Any = {}
    if (name := profile.get("services")) is not None:
        section = session.full_config.get("services", {}).get(name)
        if section is None:
            raise InvalidConfigError(error_msg=f"the profile refers to a section [services {name}], which is not there")
    of_service = section.get(SERVICE, {})
    if not isinstance(of_service, dict):
        raise InvalidConfigError(error_msg=f"[services {name}]: settings of {SERVICE} are to stand below it, indented")
    return (
        os.environ.get(f"AWS_ENDPOINT_URL_{SERVICE.upper()}")
        or os.environ.get("AWS_ENDPOINT_URL")
        or of_service.get("endpoint_url")
        or profile.get("endpoint_url")
        or None
    )


@functools.cache
def _partitions() -> list[dict[str, Any]]:
    return create_loader().load_data("partitions")["partitions"]


@functools.cache
def _rules() -> EndpointProvider:
    loader = create_loader()
    return EndpointProvider(loader.load_service_model(SERVICE, "endpoint-rule-set-1"), {"partitions": _partitions()})


def default_region() -> str:
    """The region of AWS's own settings (environment, profile), else ``us-east-1``, as in ``EC2LatentWorker``.

    :raises RegionError: AWS's settings are broken.
    """
    return aws_settings().region


def check_region(region: str) -> str | None:
    """Tell what is wrong with the name *region*; None when nothing is.

    A region that botocore has not heard of yet is let through when it has the form of its partition's names, and either
    is made of the words of others, such as ``us-east-9``, or resembles none.
    """
    if not isinstance(region, str):
        return f"not a text: {region!r}"
    known = [name for partition in _partitions() for name in partition["regions"] if not name.endswith("-global")]
    if region in known:
        return None
    near = difflib.get_close_matches(region, known, n=3)
    words = {word for name in known for word in name.split("-")[:-1]}
    if any(re.match(partition["regionRegex"], region) for partition in _partitions()) and (
        not near or words.issuperset(region.split("-")[:-1])
    ):
        return None
    return f"unknown region {region!r}" + (f"; did you mean {', '.join(near)}?" if near else "")


def check_url(url: Any) -> str | None:
    """Tell what is wrong with *url* as that of an endpoint; None when nothing is."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and url.isascii():
            # Not told any further: it is a secret.
            return None if parts.username is None else "has a user name in it, which EC2 has no use for"
    except (ValueError, TypeError, AttributeError):  # a port that is none, for one; no text at all
        pass
    return f"not an http or https URL: {url!r}"


def endpoint_url(region: str, settings: AWSSettings | None = None) -> str:
    """The URL of EC2 in *region*, such as ``https://ec2.us-east-1.amazonaws.com``.

    Another endpoint of AWS's own settings wins; as in boto3, dual-stack and FIPS do not matter to it.

    :param region: a name that :func:`check_region` has nothing against.
    :param settings: AWS's own settings, if they have been read already.
    :raises RegionError: there is no such endpoint, or AWS's own settings cannot be read.
    """
    settings = settings or aws_settings()
    if settings.endpoint_url is not None:
        return settings.endpoint_url
    try:
        endpoint = _rules().resolve_endpoint(
            Region=region, UseDualStack=settings.use_dualstack_endpoint, UseFIPS=settings.use_fips_endpoint
        )
    except EndpointProviderError as error:
        raise RegionError(f"no endpoint for {region!r}: {' '.join(str(error).split())}") from error
    return endpoint.url
