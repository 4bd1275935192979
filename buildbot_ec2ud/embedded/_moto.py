"""moto, and the names inside it that the embedded EC2 needs to look at instances and to change them.

Every use of a name that moto does not document is in this file, in ``_metadata.py``, ``_calls.py`` or ``_hooks.py``; a test
holds each against the installed moto.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# moto reads its settings when it is imported. Without 1,300 images, it answers faster and is 130 MB smaller.
os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")

from moto.backends import get_backend  # noqa: E402
from moto.core.responses import ActionResult  # noqa: E402
from moto.core.utils import utcnow  # noqa: E402
from moto.ec2.exceptions import EC2ClientError, InvalidInstanceIdError  # noqa: E402
from moto.ec2.models import EC2Backend  # noqa: E402
from moto.ec2.models.instances import Instance, InstanceState, Reservation, StateReason  # noqa: E402
from moto.ec2.responses._base_response import EC2BaseResponse  # noqa: E402
from moto.ec2.responses.general import General  # noqa: E402
from moto.ec2.responses.instances import InstanceResponse  # noqa: E402
from moto.server import DomainDispatcherApplication, create_backend_app  # noqa: E402

from buildbot_ec2ud.embedded.pools import Pool  # noqa: E402

#: What the others who know moto need of it: only here it is imported, after its settings.
__all__ = [
    "ActionResult",
    "EC2BaseResponse",
    "EC2Backend",
    "General",
    "Instance",
    "InstanceResponse",
    "InstanceState",
    "InvalidInstanceIdError",
    "Reservation",
    "utcnow",
]

#: EC2's codes of the states of an instance.
STATE_CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}


class EC2Error(EC2ClientError):
    """An error that the caller gets.

    :param code: EC2's error code.
    :param message: its message.
    :param status: the HTTP status.
    """

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(code, message)
        self.status = status


def application() -> Any:
    """moto as a WSGI application."""
    return DomainDispatcherApplication(create_backend_app)


# Instances


@dataclass(frozen=True)
class Reason:
    """Why an instance has come into its state.

    :ivar code: of EC2's state reason.
    :ivar message: its message, which begins with a code, if not always with the same.
    :ivar transition: the reason of the transition; by default, the same as the message.
    """

    code: str
    message: str
    transition: str | None = None


def set_state(instance: Instance, state: str, reason: Reason | None = None) -> None:
    """Put *instance* into a state of EC2's.

    :param reason: None leaves what is there.
    """
    instance._state = InstanceState(state, STATE_CODES[state])
    if reason is not None:
        instance.state_reason = StateReason(reason.message, reason.code)
        instance._reason = reason.message if reason.transition is None else reason.transition


def state_of(instance: Instance) -> str:
    return instance._state.name


def user_data(instance: Instance) -> bytes:
    """The user-data as it was before base64."""
    return base64.b64decode(str(instance.user_data or ""))


def shutdown_behavior(instance: Instance) -> str:
    """What a shutdown from inside does: ``stop`` or ``terminate``."""
    return instance.instance_initiated_shutdown_behavior


def pool_of(instance: Instance) -> Pool:
    """The pool that an instance is from."""
    return Pool(instance.instance_type, instance.availability_zone or "", instance.lifecycle or "on-demand")


@dataclass(frozen=True)
class Alive:
    """An instance that is not terminated, and where it is."""

    account: str
    region: str
    pool: Pool


def alive() -> Iterator[Alive]:
    """Every instance that is not terminated."""
    for instance in instances():
        if state_of(instance) != "terminated":
            yield Alive(instance.owner_id, instance.ec2_backend.region_name, pool_of(instance))


def instances() -> Iterator[Instance]:
    """Every instance of every account and region, the ended ones too."""
    for account in list(get_backend("ec2").values()):
        for backend in list(account.values()):
            for reservation in list(backend.reservations.values()):
                yield from list(reservation.instances)


def find(instance_id: str) -> Instance | None:
    """The instance with that id, if there is one."""
    return next((instance for instance in instances() if instance.id == instance_id), None)


def forget(instance: Instance) -> None:
    """Let EC2 know nothing of *instance* any more."""
    reservations = instance.ec2_backend.reservations
    for reservation in list(reservations.values()):
        if instance in reservation.instances:
            # Not in place: a look-up that is just being answered goes on with the list as it was.
            reservation.instances = [other for other in reservation.instances if other is not instance]
            if not reservation.instances:
                del reservations[reservation.id]


def reset() -> None:
    """Forget every account's EC2."""
    for account in list(get_backend("ec2").values()):
        for backend in list(account.values()):
            backend.reset()
