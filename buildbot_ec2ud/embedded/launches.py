"""``RunInstances`` with what EC2 sees to and moto does not: client tokens, numbers of instances, the limit of user-data."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from buildbot_ec2ud.embedded._calls import Launch
from buildbot_ec2ud.embedded._moto import EC2Error, Reservation, state_of

#: Bytes of user-data, before base64. Source: EC2 user guide, "Run commands when you launch an EC2 instance".
USER_DATA_LIMIT = 16384
#: Characters of a client token, all of them ASCII. Source: EC2 developer guide, "Ensuring idempotency in Amazon EC2 API
#: requests".
TOKEN_LIMIT = 64


class Launches:
    """The launches so far. Called in the threads of the requests, for each ``RunInstances``.

    A token is known where and as EC2 knows it: in one account and region, and if the call says in which zone or subnet,
    in that zone. Source: EC2 developer guide, "Ensuring idempotency in Amazon EC2 API requests".
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, ...], tuple[Mapping[str, str], Reservation]] = {}

    def __call__(self, call: Launch, launch: Callable[[], Reservation]) -> Reservation:
        """Do *call*, by *launch*, unless it has been done or is wrong.

        :raises EC2Error: the error with which EC2 refuses it.
        """
        _check(call)
        if not call.token:
            return launch()
        with self._lock:  # of two calls at the same time, one waits for what becomes of the other
            scope = (call.account, call.region, call.zone, call.token)
            if scope not in self._known:
                self._known[scope] = call.parameters, launch()
                return self._known[scope][1]
            parameters, reservation = self._known[scope]
        if parameters != call.parameters:
            raise EC2Error(
                "IdempotentParameterMismatch",
                "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).",
            )
        if all(state_of(instance) == "terminated" for instance in reservation.instances):
            raise EC2Error(
                "IdempotentInstanceTerminated",
                "The client token you have provided is associated with a terminated instance. Please use a different "
                "client token.",
            )
        return reservation


def _check(call: Launch) -> None:
    """Refuse a call that is wrong.

    :raises EC2Error: what is wrong with it.
    """
    if len(call.user_data) > USER_DATA_LIMIT:
        raise EC2Error("InvalidUserData.Malformed", f"User data is limited to {USER_DATA_LIMIT} bytes")
    if len(call.token) > TOKEN_LIMIT or not call.token.isascii():
        raise EC2Error(
            "InvalidParameterValue",
            f"Value ({call.token}) for parameter clientToken is invalid. It can have {TOKEN_LIMIT} ASCII characters.",
        )
    # The code and the words of the first: jenkinsci/ec2-plugin#252.
    if call.most < 1:
        raise EC2Error("InvalidParameterValue", "Maximum instance count must be greater than zero")
    if call.least < 1:
        raise EC2Error("InvalidParameterValue", "Minimum instance count must be greater than zero")
    if call.most < call.least:
        raise EC2Error("InvalidParameterValue", "Maximum instance count must not be smaller than the minimum")
