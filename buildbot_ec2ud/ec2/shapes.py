"""botocore's model of the EC2 API: checks and flattens the parameters of a call."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from botocore.loaders import create_loader
from botocore.model import OperationModel, ServiceModel
from botocore.serialize import create_serializer
from botocore.validate import ParamValidator

from buildbot_ec2ud.ec2.errors import BadParameters

SERVICE = "ec2"

#: What the serializer adds to the parameters of every call, and txAWS's Query adds by itself.
_COMMON = ("Action", "Version")


_UNKNOWN = re.compile(r'(?P<what>Unknown parameter in .+: "(?P<name>.*)"), must be one of: (?P<known>.*)')


@functools.cache
def _service() -> ServiceModel:
    """Load the model: about 0.1 s, once, when the first configuration is checked."""
    return ServiceModel(create_loader().load_service_model(SERVICE, "service-2"), SERVICE)


def _operation(action: str) -> OperationModel:
    return _service().operation_model(action)


def api_version() -> str:
    """The version of the EC2 API that the model describes, such as ``2016-11-15``."""
    return _service().api_version


def actions() -> Sequence[str]:
    """The names of all actions of EC2's."""
    return _service().operation_names


def check(action: str, parameters: Mapping[str, Any]) -> list[str]:
    """Hold *parameters* of *action* against the model.

    :return: a line for each thing that is wrong; empty when all is right.
    """
    report = ParamValidator().validate(parameters, _operation(action).input_shape)
    return [_short(line) for line in report.generate_report().splitlines()] if report.has_errors() else []


def _short(line: str) -> str:
    """Where botocore lists all names that are known, propose the nearest one."""
    unknown = _UNKNOWN.fullmatch(line)
    if unknown is None:
        return line
    near = difflib.get_close_matches(unknown["name"], unknown["known"].split(", "), n=1)
    return unknown["what"] + (f"; did you mean {near[0]}?" if near else "")


def flatten(action: str, parameters: Mapping[str, Any]) -> dict[str, str]:
    """Give the nested *parameters* of *action* in the form of EC2's query protocol.

    ``{"TagSpecifications": [{"ResourceType": "instance"}]}`` becomes ``{"TagSpecification.1.ResourceType": "instance"}``.

    :raises BadParameters: they are not what EC2's model asks for.
    """
    if wrong := check(action, parameters):
        raise BadParameters(f"{action}: {'; '.join(wrong)}")
    body = create_serializer(SERVICE, include_validation=False).serialize_to_request(
        dict(parameters), _operation(action)
    )["body"]
    return {name: str(value) for name, value in body.items() if name not in _COMMON}
