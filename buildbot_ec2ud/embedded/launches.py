"""``RunInstances`` with two things that EC2 sees to and moto does not: client tokens, and the limit of user-data."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from buildbot_ec2ud.embedded import _moto

#: Bytes of user-data, before base64. Source: EC2 user guide, "Run commands when you launch an EC2 instance".
USER_DATA_LIMIT = 16384


class Launches:
    """The launches so far. Called in the threads of the requests, for each ``RunInstances``.

    A token is known where and as EC2 knows it: in one account and region, and if the call says in which zone or subnet,
    in that zone. Source: EC2 developer guide, "Ensuring idempotency in Amazon EC2 API requests".
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, ...], tuple[Mapping[str, str], _moto.Reservation]] = {}

    def __call__(self, call: _moto.Launch, launch: Callable[[], _moto.Reservation]) -> _moto.Reservation:
        """Do *call*, by *launch*, unless it has been done or is wrong.

        :raises EC2Error: the error with which EC2 refuses it.
        """
        if len(call.user_data) > USER_DATA_LIMIT:
            raise _moto.EC2Error("InvalidUserData.Malformed", f"User data is limited to {USER_DATA_LIMIT} bytes")
        if not call.token:
            return launch()
        with self._lock:  # of two calls at the same time, one waits for what becomes of the other
            scope = (call.account, call.region, call.zone, call.token)
            if scope not in self._known:
                self._known[scope] = call.parameters, launch()
                return self._known[scope][1]
            parameters, reservation = self._known[scope]
        if parameters != call.parameters:
            raise _moto.EC2Error(
                "IdempotentParameterMismatch",
                "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).",
            )
        if all(_moto.state_of(instance) == "terminated" for instance in reservation.instances):
            raise _moto.EC2Error(
                "IdempotentInstanceTerminated",
                "The client token you have provided is associated with a terminated instance. Please use a different "
                "client token.",
            )
        return reservation
