"""What can go wrong in a call to EC2, and what to do about it.

The one home of EC2's error codes. Source: EC2 API reference, "Error codes"; where the field disagrees with it, a comment
says so.
"""

from __future__ import annotations

import enum
import re

from lxml import etree
from txaws.ec2.exception import EC2Error as _TxAWSEC2Error

from buildbot_ec2ud.ec2 import xml


class ErrorClass(enum.Enum):
    """What an error asks the caller to do."""

    THROTTLED = "slow this action down for the whole account and region, then repeat"
    SERVER_FAULT = "repeat with the same ClientToken: whether the call took effect is unknown"
    NO_CAPACITY = "try another instance type, subnet or market; the same one only after minutes"
    QUOTA = "wait long; no other offer of this account helps"
    CONFIGURATION = "somebody has to change the configuration"
    NOT_VISIBLE_YET = "repeat for some minutes: EC2 is eventually consistent"
    IN_USE = "repeat for some minutes: something else has to let go of it first"
    GONE = "nothing is left to do: what was to be undone is no more"
    UNREACHABLE = "repeat: the call certainly had no effect"
    CREDENTIALS = "refresh the credentials once, then give up"
    CLOCK = "set this machine's clock"
    STALE_TOKEN = "take a new ClientToken"
    UNKNOWN = "do not repeat"


_CODES: dict[ErrorClass, str] = {
    ErrorClass.THROTTLED: """
        RequestLimitExceeded Throttling ThrottlingException EC2ThrottledException RequestThrottled
        RequestThrottledException SlowDown BandwidthLimitExceeded RequestResourceCountExceeded ConcurrentTagAccess
        """,
    ErrorClass.SERVER_FAULT: "Unavailable ServiceUnavailable InternalError InternalFailure ServerInternal",
    # InsufficientInstanceCapacity comes as an HTTP 500: it is not a fault of the server that a retry would mend.
    ErrorClass.NO_CAPACITY: """
        InsufficientInstanceCapacity InsufficientHostCapacity InsufficientCapacity InsufficientVolumeCapacity
        InsufficientReservedInstanceCapacity UnfulfillableCapacity Unsupported InsufficientFreeAddressesInSubnet
        SpotMaxPriceTooLow
        """,
    ErrorClass.QUOTA: """
        InstanceLimitExceeded VcpuLimitExceeded MaxSpotInstanceCountExceeded VolumeLimitExceeded
        AddressLimitExceeded InsufficientAddressCapacity ResourceCountExceeded
        """,
    # Also what EC2 says of an instance that is long gone: who asks knows how old it is.
    ErrorClass.NOT_VISIBLE_YET: "InvalidInstanceID.NotFound",
    ErrorClass.IN_USE: "VolumeInUse IncorrectState",
    ErrorClass.GONE: "InvalidAssociationID.NotFound InvalidAttachment.NotFound",
    ErrorClass.CREDENTIALS: """
        AuthFailure ExpiredToken ExpiredTokenException InvalidClientTokenId SignatureDoesNotMatch RequestExpired
        """,
    ErrorClass.CLOCK: "InvalidSecurity.RequestHasExpired",
    ErrorClass.STALE_TOKEN: "IdempotentInstanceTerminated IdempotentParameterMismatch",
    ErrorClass.CONFIGURATION: """
        UnauthorizedOperation OperationNotPermitted OptInRequired PendingVerification Blocked MissingParameter
        UnknownParameter UnsupportedOperation AccessDenied
        """,
}

_CLASS_OF: dict[str, ErrorClass] = {code: kind for kind, codes in _CODES.items() for code in codes.split()}

#: State reasons of an instance that EC2 has ended because it had no capacity for it, or wanted that back. Source: botocore's
#: model of EC2, ``StateReason``.
LACKED_CAPACITY = (
    "Server.InsufficientInstanceCapacity",
    "Server.SpotInstanceShutdown",
    "Server.SpotInstanceTermination",
)

#: What other state reasons ask for. ``Client.InternalError`` is what EC2 says where the master may not use the key of an
#: encrypted volume. Source: EC2 user guide, "Instance terminates immediately".
_CLASS_OF_END = {
    "Client.InternalError": ErrorClass.CONFIGURATION,
    "Client.InvalidSnapshot.NotFound": ErrorClass.CONFIGURATION,
    "Client.VolumeLimitExceeded": ErrorClass.QUOTA,
}

#: ``InvalidAMIID.NotFound``, ``InvalidParameterValue`` and the two hundred like them.
_CONFIGURATION_PREFIXES = ("Invalid",)

#: What EC2 answers to a dry run of a call that it would have done.
DRY_RUN_SUCCEEDED = "DryRunOperation"
#: What EC2 answers to a call that the account's policies do not allow.
NOT_ALLOWED = ("UnauthorizedOperation", "AccessDenied")

_ENCODED_AUTHORIZATION = re.compile(r"\s*Encoded authorization failure message:\s*(\S+)")


def classify(code: str, status: int = 400) -> ErrorClass:
    """Tell what an error *code* asks for.

    :param code: EC2's code, such as ``InsufficientInstanceCapacity``.
    :param status: the answer's HTTP status, which decides when the code is not a known one.
    """
    known = _CLASS_OF.get(code)
    if known is not None:
        return known
    if status >= 500:
        return ErrorClass.SERVER_FAULT
    if code.startswith(_CONFIGURATION_PREFIXES):
        return ErrorClass.CONFIGURATION
    return ErrorClass.UNKNOWN


def classify_end(code: str, message: str) -> ErrorClass:
    """Tell what the end of an instance asks for.

    :param code: of its state reason, such as ``Server.InternalError``.
    :param message: of the same; where the two disagree, it begins with the code that counts.
    """
    if code in LACKED_CAPACITY:
        return ErrorClass.NO_CAPACITY
    return _CLASS_OF_END.get(message.partition(":")[0]) or _CLASS_OF_END.get(code, ErrorClass.UNKNOWN)


class EC2CallError(Exception):
    """A call to EC2 failed. Its text is one line, fit for a build's page.

    :ivar error_class: what the failure asks for.
    :ivar after_unknown: whether an earlier attempt at the same call may have taken effect.
    :ivar history: what the text ends with: how often and how long the call was tried.
    """

    error_class = ErrorClass.UNKNOWN
    after_unknown = False
    history = ""

    @property
    def outcome_unknown(self) -> bool:
        """Whether the call may have taken effect all the same."""
        return self.after_unknown or self.error_class is ErrorClass.SERVER_FAULT

    def text(self) -> str:
        """What has failed, without how often it was tried."""
        return " ".join(map(str, self.args))

    def __str__(self) -> str:
        return self.text() + self.history


class NotConnected(EC2CallError):
    """The endpoint could not be reached: the call certainly had no effect."""

    error_class = ErrorClass.UNREACHABLE


class NoAnswer(EC2CallError):
    """The call was sent, and no usable answer came: it may have taken effect."""

    error_class = ErrorClass.SERVER_FAULT


class NoCredentials(EC2CallError):
    """No AWS credentials were found, or EC2 refuses those that were."""

    error_class = ErrorClass.CREDENTIALS


class BadParameters(EC2CallError):
    """The parameters of a call do not fit EC2's own model: it was not made."""

    error_class = ErrorClass.CONFIGURATION


class EC2Error(EC2CallError, _TxAWSEC2Error):
    """EC2 refused a call.

    :param xml_bytes: the body of the answer.
    :param status: its HTTP status.
    :raises ValueError: it is no error of EC2's.
    :ivar code: EC2's error code.
    :ivar message: its message, without the encoded authorization blob.
    :ivar authorization: that blob, which ``sts:DecodeAuthorizationMessage`` takes; empty where there is none.
    :ivar skew: seconds that this machine's clock is ahead of EC2's, if that is why; else 0.
    """

    skew = 0.0

    def __init__(
        self, xml_bytes: bytes, status: int, message: str | None = None, response: bytes | None = None
    ) -> None:
        _TxAWSEC2Error.__init__(self, xml_bytes, str(status).encode("ascii"), message, response)
        if not self.errors:
            raise ValueError("no error in this answer")
        first = self.errors[0]
        self.code: str = first.get("Code", "")
        message = first.get("Message", "")
        blob = _ENCODED_AUTHORIZATION.search(message)
        self.authorization: str = blob[1] if blob else ""
        self.message: str = " ".join(_ENCODED_AUTHORIZATION.sub("", message).split())
        self.error_class = classify(self.code, status)

    def parse(self, xml_bytes: bytes = b"") -> None:
        # Called by txAWS's constructor; its own is of an XML parser that expands entities, and looks for S3's form in a
        # 5xx, while EC2 has one form for all.
        root = xml.parse(self.original)
        self.request_id = root.findtext(".//{*}RequestID") or ""
        for node in root.iterfind(".//{*}Error"):
            error = {etree.QName(child).localname: child.text for child in node.iterfind("{*}*") if child.text}
            if error:
                self.errors.append(error)

    def blame_clock(self, skew: float) -> None:
        """EC2's clock and ours disagree so much that it explains the refusal.

        :param skew: seconds that this machine's clock is ahead.
        """
        self.skew = skew
        self.error_class = ErrorClass.CLOCK

    def text(self) -> str:
        said = ": ".join(filter(None, (self.code, self.message)))
        if not self.skew:
            return said
        minutes, order = abs(self.skew) / 60, "ahead of" if self.skew > 0 else "behind"
        return f"this machine's clock is {minutes:.0f} min {order} EC2's: set it ({said})"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"
