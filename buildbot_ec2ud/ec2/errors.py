"""What can go wrong in a call to EC2, and what to do about it.

The one home of EC2's error codes. Source: EC2 API reference, "Error codes"; where the field disagrees with it, a comment
says so.
"""

from __future__ import annotations

import enum
import re

from txaws.ec2.exception import EC2Error as _TxAWSEC2Error


class ErrorClass(enum.Enum):
    """What an error asks the caller to do."""

    THROTTLED = "slow this action down for the whole account and region, then repeat"
    SERVER_FAULT = "repeat with the same ClientToken: whether the call took effect is unknown"
    NO_CAPACITY = "try another instance type, subnet or market; the same one only after minutes"
    QUOTA = "wait long; no other offer of this account helps"
    CONFIGURATION = "somebody has to change the configuration"
    NOT_VISIBLE_YET = "repeat for some minutes: EC2 is eventually consistent"
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
    ErrorClass.NOT_VISIBLE_YET: "InvalidInstanceID.NotFound",
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

#: ``InvalidAMIID.NotFound``, ``InvalidParameterValue`` and the two hundred like them.
_CONFIGURATION_PREFIXES = ("Invalid",)

_ENCODED_AUTHORIZATION = re.compile(r"\s*Encoded authorization failure message:\s*\S+")


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


class EC2CallError(Exception):
    """A call to EC2 failed. Its text is one line, fit for a build's page.

    :ivar error_class: what the failure asks for.
    """

    error_class = ErrorClass.UNKNOWN

    @property
    def outcome_unknown(self) -> bool:
        """Whether the call may have taken effect all the same."""
        return self.error_class is ErrorClass.SERVER_FAULT


class NotConnected(EC2CallError):
    """The endpoint could not be reached: the call certainly had no effect."""

    error_class = ErrorClass.UNKNOWN


class NoAnswer(EC2CallError):
    """The call was sent, and no usable answer came: it may have taken effect."""

    error_class = ErrorClass.SERVER_FAULT


class NoCredentials(EC2CallError):
    """No AWS credentials were found."""

    error_class = ErrorClass.CREDENTIALS


class EC2Error(EC2CallError, _TxAWSEC2Error):
    """EC2 refused a call.

    :ivar code: EC2's error code.
    :ivar message: its message, without the encoded authorization blob (``original`` has the whole answer).
    """

    def __init__(
        self, xml_bytes: bytes, status: int, message: str | None = None, response: bytes | None = None
    ) -> None:
        _TxAWSEC2Error.__init__(self, xml_bytes, str(status).encode("ascii"), message, response)
        if not self.errors:
            raise ValueError("no error in this answer")
        first = self.errors[0]
        self.code: str = first.get("Code", "")
        self.message: str = " ".join(_ENCODED_AUTHORIZATION.sub("", first.get("Message", "")).split())
        self.error_class = classify(self.code, status)

    def _set_500_error(self, tree: object) -> None:
        # txAWS looks for S3's form in a 5xx; EC2 has one form for all.
        self._set_400_error(tree)

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.code, self.message)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"
