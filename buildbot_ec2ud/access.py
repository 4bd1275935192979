"""How a worker reaches AWS, checked without asking anybody: its credentials, and the endpoint of EC2."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from buildbot_ec2ud.ec2 import aws_id, endpoints, proxy, tls
from buildbot_ec2ud.launch import is_dynamic

if TYPE_CHECKING:
    from buildbot_ec2ud.settings import Settings


def access_key(settings: Settings) -> tuple[str, str] | None:
    """The access key of an aws_id file; None where there is none to be read.

    :raises FileError: it cannot be used.
    """
    path = settings.aws_id_file_path
    if path is None and settings.identifier is None and settings.session is None:
        path = aws_id.default_path()
    return None if path is None else aws_id.read(path)


def check_credentials(settings: Settings) -> Iterator[str]:
    """Give a line for each thing that is wrong with the credentials."""
    if (settings.identifier is None) != (settings.secret_identifier is None):
        yield "identifier: goes with secret_identifier; give both or neither"
    for argument in ("identifier", "secret_identifier"):
        value = getattr(settings, argument)
        if value is not None and not is_dynamic(value) and not (isinstance(value, str) and value):
            yield f"{argument}: not a text, or an empty one"
    session = settings.session
    if session is not None:
        if not callable(getattr(session, "get_credentials", None)) or not hasattr(session, "region_name"):
            yield f"session: not a boto3.Session: {session!r}"
        for argument in ("identifier", "aws_id_file_path"):
            if getattr(settings, argument) is not None:
                yield f"session: has credentials of its own; {argument} contradicts it"
    if settings.aws_id_file_path is not None and settings.identifier is not None:
        yield "aws_id_file_path: contradicts identifier"
    try:
        access_key(settings)
    except aws_id.FileError as error:
        yield f"aws_id_file_path: {error}"


def check_endpoint(settings: Settings) -> Iterator[str]:
    """Give a line for each thing that is wrong with where the calls to EC2 are to go, and with the way there."""
    try:
        aws = endpoints.aws_settings()
    except endpoints.RegionError as error:
        yield f"region: {error}" if settings.region is None else str(error)
        aws = endpoints.AWSSettings()
    region = aws.region if settings.region is None else settings.region
    url = aws.endpoint_url if settings.endpoint_url is None else settings.endpoint_url
    if url is not None:
        if trouble := endpoints.check_url(url):
            yield f"endpoint_url: {trouble}"
            url = None
    elif trouble := endpoints.check_region(region):
        yield f"region: {trouble}"
    else:
        try:
            url = endpoints.endpoint_url(region, aws)
        except endpoints.RegionError as error:
            yield f"region: {error}"
    if url is not None and (trouble := proxy.check(url)):
        yield trouble
    if aws.ca_bundle is not None and (trouble := tls.check_bundle(aws.ca_bundle)):
        yield f"{'AWS_CA_BUNDLE' if os.environ.get('AWS_CA_BUNDLE') else 'ca_bundle'}: {trouble}"
