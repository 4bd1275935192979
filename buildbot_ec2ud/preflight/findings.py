"""What a check has found: one line for each thing that was looked at, and what to do about it."""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from buildbot_ec2ud.ec2.errors import NOT_ALLOWED, EC2CallError, EC2Error, ErrorClass

#: Where what the master may do is written down.
POLICY = "contrib/iam-policy.json"

#: Names of workers in one line.
_NAMES = 3


class State(enum.Enum):
    """What has come of a question."""

    OK = "ok"
    PROBLEM = "problem"
    UNASKED = "not asked"  # nobody knows
    LATER = "later"  # known only when a build starts


@dataclass(frozen=True)
class Finding:
    """One line.

    :ivar place: region and endpoint.
    :ivar subject: what was looked at.
    :ivar text: what was found.
    :ivar fix: what to do; empty where there is nothing to be done, or the text says it.
    :ivar workers: names of the workers that it matters to; empty for all of the place.
    """

    state: State
    place: str
    subject: str
    text: str
    fix: str = ""
    workers: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """By the names of the JSON."""
        return {
            "state": self.state.value,
            "place": self.place,
            "subject": self.subject,
            "text": self.text,
            "fix": self.fix,
            "workers": list(self.workers),
        }

    def __str__(self) -> str:
        names = ", ".join(self.workers[:_NAMES])
        if len(self.workers) > _NAMES:
            names += f" and {len(self.workers) - _NAMES} more"
        parts = f"{self.subject}: {self.text}" + (f"; {self.fix}" if self.fix else "")
        return f"{self.state.value:<9} {parts}" + (f"  [{names}]" if names else "")


#: What to do about an error, by what EC2's code begins with; the first that fits counts.
_FIXES = {
    "InvalidAMIID": "give ami an image that is in this region",
    "InvalidSubnet": "give subnet_id a subnet of this region",
    "InvalidGroup": "give security_group_ids groups of the subnet's VPC",
    "InvalidSecurityGroup": "give security_group_ids groups of the subnet's VPC",
    "InvalidKeyPair": "make the key pair in this region, or leave keypair_name out",
    "InvalidLaunchTemplate": "give launch_template one of this region, and a version that it has",
    "InvalidIamInstanceProfile": "give instance_profile_name an instance profile of this account",
    "NoSuchEntity": "give instance_profile_name an instance profile of this account",
    "InvalidInstanceType": "give instance_type one that EC2 has",
    "InvalidBlockDeviceMapping": "change block_device_map as EC2 says",
    "InvalidSnapshot": "change block_device_map as EC2 says",
    "InvalidUserData": "make the user-data smaller, or have it served (bb_www)",
    "OptInRequired": "accept the image's terms in AWS Marketplace, or give another ami",
    "PendingVerification": "wait until AWS has verified the account",
    "Blocked": "ask AWS's support",
    "Unsupported": "give another instance_type, or another subnet_id",
    "VPCIdNotSpecified": "give subnet_id, as the account has no default VPC here",
    "DefaultVpcDoesNotExist": "give subnet_id, as the account has no default VPC here",
    "MissingInput": "give subnet_id, as the account has no default VPC here",
}
_FIX_OF_CLASS = {
    ErrorClass.CREDENTIALS: "give credentials that EC2 takes (identifier and secret_identifier, or what AWS's tools find)",
    ErrorClass.CLOCK: "let NTP keep the clock",
    ErrorClass.UNREACHABLE: "see to the network, the proxy, and endpoint_url or region",
    ErrorClass.SERVER_FAULT: "see what answers there (a proxy?), or try again later",
    ErrorClass.THROTTLED: "try again later",
    ErrorClass.QUOTA: "have AWS raise the quota (Service Quotas), or use less of it",
    ErrorClass.NO_CAPACITY: "give more instance types, subnets or markets",
}

_ACTION = re.compile(r"perform: ([a-z0-9-]+:[A-Za-z]+)")
_PROFILE = re.compile("instance ?profile", re.IGNORECASE)
#: A later attempt may have another answer to these; they say nothing of the configuration.
_UNANSWERED = (ErrorClass.UNREACHABLE, ErrorClass.SERVER_FAULT, ErrorClass.THROTTLED)


def not_allowed(error: EC2CallError) -> bool:
    """Whether a policy of the account's is what EC2 refuses a call for."""
    return isinstance(error, EC2Error) and error.code in NOT_ALLOWED


def missing_permission(error: EC2Error, action: str) -> str:
    """The permission that is missing, such as ``ec2:RunInstances`` or ``iam:PassRole``.

    :param action: EC2's name of the call, for an error that does not say.
    """
    named = _ACTION.search(error.message)
    return named[1] if named else f"ec2:{action}"


def of_error(error: EC2CallError, action: str, only_checked: bool = False) -> tuple[State, str, str]:
    """What an error means: the state, a text and what to do.

    :param action: EC2's name of the call.
    :param only_checked: whether no start of a worker makes this call.
    """
    if not_allowed(error):
        permission = missing_permission(error, action)
        if only_checked:
            fix = f"allow {permission} (in {POLICY}), and this is checked, too"
            return State.UNASKED, f"{permission} is not allowed", fix
        return State.PROBLEM, f"{permission} is not allowed ({error})", f"allow it, as {POLICY} does"
    if error.error_class in _UNANSWERED:
        return State.UNASKED, str(error), _FIX_OF_CLASS[error.error_class]
    return State.PROBLEM, str(error), _fix(error)


def _fix(error: EC2CallError) -> str:
    code = getattr(error, "code", "")
    fix = next((fix for begin, fix in _FIXES.items() if code.startswith(begin)), None)
    if fix is None and _PROFILE.search(str(error)):
        fix = _FIXES["InvalidIamInstanceProfile"]
    return fix or _FIX_OF_CLASS.get(error.error_class, "change the argument that this is about")


def exit_status(findings: Collection[Finding]) -> int:
    """0 if all is fine, 1 if there are problems, else 3 if something could not be asked."""
    states = {finding.state for finding in findings}
    if State.PROBLEM in states:
        return 1
    return 3 if State.UNASKED in states else 0


def merge(findings: Sequence[Finding]) -> list[Finding]:
    """Those that say the same of several workers, as one; in the order of their first."""
    merged: dict[tuple[object, ...], list[str]] = {}
    for one in findings:
        workers = merged.setdefault((one.state, one.place, one.subject, one.text, one.fix), [])
        workers.extend(name for name in one.workers if name not in workers)
    return [Finding(*key, tuple(workers)) for key, workers in merged.items()]
