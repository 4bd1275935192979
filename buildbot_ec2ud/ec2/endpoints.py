"""Where the EC2 of a region answers, by botocore's rules."""

from __future__ import annotations

import difflib
import functools
import re
from typing import Any

from botocore.endpoint_provider import EndpointProvider
from botocore.exceptions import BotoCoreError
from botocore.loaders import create_loader
from botocore.session import Session

from buildbot_ec2ud.ec2.shapes import SERVICE

DEFAULT_REGION = "us-east-1"


class RegionError(ValueError):
    """There is no telling which region is meant."""


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
    try:
        return Session().get_config_variable("region") or DEFAULT_REGION
    except BotoCoreError as error:  # a profile that is not there, a file that cannot be parsed
        raise RegionError(f"AWS's own settings cannot be read: {error}") from error


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


def endpoint_url(region: str) -> str:
    """The URL of EC2 in *region*, such as ``https://ec2.us-east-1.amazonaws.com``."""
    return _rules().resolve_endpoint(Region=region, UseDualStack=False, UseFIPS=False).url
