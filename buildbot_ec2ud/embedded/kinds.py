"""The kinds of faults that can hit a call to the embedded EC2, or a launch."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class Then(enum.Enum):
    """What happens to the connection after what is sent of an answer."""

    KEEP = "kept open for the next call, as usual"
    CLOSE = "closed"
    RESET = "reset"
    HANG = "left open, in silence"


@dataclass(frozen=True)
class Answer:
    """What is answered instead of what EC2 would say.

    :ivar status: the HTTP status.
    :ivar content_type: the type of the body.
    :ivar body: its text, in which ``{action}`` and ``{request}`` stand for the action and for an id of the request.
    :ivar ahead: seconds that the ``Date`` header is ahead of this machine's clock.
    """

    status: int
    content_type: str
    body: str
    ahead: float = 0.0


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    :ivar name: what it is called.
    :ivar text: what happens, in a few words.
    :ivar done: whether EC2 does the call.
    :ivar answer: what is answered; None for what EC2 says.
    :ivar sent: the part of the answer's body that is sent; None: not even its headers are.
    :ivar then: what happens to the connection.
    """

    name: str
    text: str
    done: bool
    answer: Answer | None = None
    sent: float | None = 1.0
    then: Then = Then.KEEP


def _error(status: int, code: str, message: str, ahead: float = 0.0) -> Answer:
    """An error in the form of EC2's. Source: EC2 API reference, "Error codes"."""
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>"
        "<RequestID>{request}</RequestID></Response>"
    )
    return Answer(status, "text/xml;charset=UTF-8", body, ahead)


#: The account in which moto does every call, unless it comes from an assumed role.
_ACCOUNT = "123456789012"
_THROTTLED = _error(
    503,
    "RequestLimitExceeded",
    f"Request limit exceeded. Account {_ACCOUNT} has been throttled on ec2:{{action}} because it exceeded its request "
    "rate limit.",
)
_FAULT = _error(500, "InternalError", "An internal error has occurred")
#: The form is what people have shown of theirs; the blob is decoded by those only who may.
_UNAUTHORIZED = _error(
    403,
    "UnauthorizedOperation",
    f"You are not authorized to perform this operation. User: arn:aws:iam::{_ACCOUNT}:user/buildbot is not authorized to "
    "perform: ec2:{action} because no identity-based policy allows the ec2:{action} action. "
    f"Encoded authorization failure message: {'c29tZXRoaW5nIGVuY29kZWQ' * 20}",
)
_UNAVAILABLE = _error(503, "Unavailable", "The service is unavailable. Please try again shortly.")
#: 20 minutes: EC2 takes 15. Source: EC2 API reference, "Error codes", ``RequestExpired``.
_EXPIRED = _error(400, "RequestExpired", "Request has expired.", ahead=20 * 60)
#: Well-formed on purpose: botocore, for one, takes such a page for an answer in which there is nothing.
_PAGE = Answer(
    200,
    "text/html; charset=utf-8",
    "<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body><h1>Sign in to use this network</h1></body></html>\n",
)

#: Every kind of fault that can hit a call, by its name.
KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("throttled", "503 RequestLimitExceeded; the call is not done", False, _THROTTLED),
        Kind("server-fault", "500 InternalError, though the call is done", True, _FAULT),
        Kind("unavailable", "503 Unavailable; the call is not done", False, _UNAVAILABLE),
        Kind("unauthorized", "403 UnauthorizedOperation; the call is not done", False, _UNAUTHORIZED),
        Kind("lost-reply", "the call is done, the connection closed unanswered", True, None, None, Then.CLOSE),
        Kind("reset", "the connection is reset before the call is done", False, None, None, Then.RESET),
        Kind("hang-headers", "the call is done, but no byte of an answer comes", True, None, None, Then.HANG),
        Kind("hang-body", "the call is done, but only half of an answer comes", True, None, 0.5, Then.HANG),
        Kind("truncated", "the call is done, the connection closed in mid-answer", True, None, 0.5, Then.CLOSE),
        Kind("html", "200 and a proxy's web page; the call is not done", False, _PAGE),
        Kind("wrong-date", "400 RequestExpired: EC2's clock is 20 minutes ahead", False, _EXPIRED),
    )
}

#: How a launch can end while it is pending: the codes of EC2's state reasons, and the words after them. Sources: botocore's
#: model of EC2, ``StateReason``; EC2 user guide, "Instance terminates immediately".
LAUNCH_FAILURES: Mapping[str, str] = {
    "Server.InternalError": "Internal error on launch",
    "Server.InsufficientInstanceCapacity": "Insufficient capacity to satisfy instance request",
    "Client.InternalError": "Client error on launch",
    "Client.InvalidSnapshot.NotFound": "The specified snapshot was not found",
    "Client.VolumeLimitExceeded": "Volume limit exceeded",
}
