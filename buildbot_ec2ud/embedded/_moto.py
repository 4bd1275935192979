"""moto, and the names inside it that the embedded EC2 needs.

moto ends and starts instances in the same moment and runs nothing; here it learns to wait. Every use of a name that
moto does not document is in this file, and a test holds each against the installed moto.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

# moto reads its settings when it is imported. Without 1,300 images, it answers faster and is 130 MB smaller.
os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")

from moto.backends import get_backend  # noqa: E402
from moto.core.responses import ActionResult  # noqa: E402
from moto.core.utils import utcnow  # noqa: E402
from moto.ec2.exceptions import EC2ClientError, InvalidInstanceIdError  # noqa: E402
from moto.ec2.models import EC2Backend  # noqa: E402
from moto.ec2.models.instances import Instance, InstanceState, Reservation, StateReason  # noqa: E402
from moto.ec2.responses.general import General  # noqa: E402
from moto.ec2.responses.instances import InstanceResponse  # noqa: E402
from moto.server import DomainDispatcherApplication, create_backend_app  # noqa: E402

#: An error that the caller gets, with status 400: its code and its message.
EC2Error = EC2ClientError
#: EC2's codes of the states of an instance.
STATE_CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}


def application() -> Any:
    """moto as a WSGI application."""
    return DomainDispatcherApplication(create_backend_app)


def set_state(instance: Instance, state: str, reason: tuple[str, str] | None = None) -> None:
    """Put *instance* into a state of EC2's.

    :param reason: code and message of the state reason; None leaves what is there.
    """
    instance._state = InstanceState(state, STATE_CODES[state])
    if reason is not None:
        code, message = reason
        instance.state_reason = StateReason(f"{code}: {message}" if code else "", code)
        instance._reason = f"{code}: {message}" if code else ""


def state_of(instance: Instance) -> str:
    return instance._state.name


def user_data(instance: Instance) -> bytes:
    """The user-data as it was before base64."""
    return base64.b64decode(str(instance.user_data or ""))


@dataclass(frozen=True)
class Launch:
    """A call of ``RunInstances``.

    :ivar zone: the availability zone, if the call names one or a subnet; else empty.
    :ivar token: the client token, empty if there is none.
    :ivar user_data: as it was before base64.
    :ivar parameters: all but the token, as they were sent.
    """

    account: str
    region: str
    zone: str
    token: str
    user_data: bytes = field(repr=False)
    parameters: Mapping[str, str] = field(repr=False)


def _launch(response: InstanceResponse) -> Launch:
    """What a request asks for.

    :raises EC2Error: there is no such subnet.
    """
    zone, subnet = response._get_param("Placement.AvailabilityZone"), response._get_param("SubnetId")
    if not zone and subnet:
        zone = response.ec2_backend.get_subnet(subnet).availability_zone
    try:
        user_data = base64.b64decode(response._get_param("UserData") or "")
    except binascii.Error:
        user_data = b""  # moto will refuse it
    return Launch(
        response.current_account,
        response.region,
        zone or "",
        response._get_param("ClientToken") or "",
        user_data,
        {name: values[0] for name, values in response.querystring.items() if name != "ClientToken"},
    )


def shutdown_behavior(instance: Instance) -> str:
    """What a shutdown from inside does: ``stop`` or ``terminate``."""
    return instance.instance_initiated_shutdown_behavior


def instances() -> Iterator[Instance]:
    """Every instance of every account and region, the ended ones too."""
    for account in list(get_backend("ec2").values()):
        for backend in list(account.values()):
            for reservation in list(backend.reservations.values()):
                yield from reservation.instances


def reset() -> None:
    """Forget every account's EC2."""
    for account in list(get_backend("ec2").values()):
        for backend in list(account.values()):
            backend.reset()


class Hooks:
    """While installed, tells of everything that happens to an instance, whichever call did it.

    The functions run in the thread of the request.

    :param launched: an instance has been made, and is pending.
    :param ending: an instance is on its way to ``stopped`` or ``terminated``, the second argument.
    :param started: a stopped instance is started again, and is pending.
    :param console: gives the console of an instance.
    :param launching: called with each ``RunInstances`` and what does it; gives the reservation, or raises EC2Error.
    :param visible: whether the instance with that id is found where instances are looked up.
    """

    def __init__(
        self,
        launched: Callable[[Instance], Any],
        ending: Callable[[Instance, str], Any],
        started: Callable[[Instance], Any],
        console: Callable[[str], bytes],
        launching: Callable[[Launch, Callable[[], Reservation]], Reservation],
        visible: Callable[[str], bool],
    ) -> None:
        run_instances, terminate, stop = EC2Backend.run_instances, Instance.terminate, Instance.stop
        start, answer_launch = Instance.start, InstanceResponse.run_instances
        # What the API looks instances up by. Not get_instance(): moto itself uses it for instances that it just makes.
        find_all, find_some = EC2Backend.describe_instances, EC2Backend.get_reservations_by_instance_ids
        find_to_change = EC2Backend.get_multi_instances_by_id

        def run_and_tell(backend: EC2Backend, *args: Any, **kwargs: Any) -> Any:
            reservation = run_instances(backend, *args, **kwargs)
            for instance in reservation.instances:
                set_state(instance, "pending")
                launched(instance)
            return reservation

        def terminate_and_tell(instance: Instance) -> InstanceState:
            before = InstanceState(instance._state.name, instance._state.code)
            if before.name not in ("shutting-down", "terminated"):
                terminate(instance)
                set_state(instance, "shutting-down")
                ending(instance, "terminated")
            return before

        def stop_and_tell(instance: Instance) -> InstanceState:
            before = InstanceState(instance._state.name, instance._state.code)
            if before.name in ("pending", "running"):
                stop(instance)
                set_state(instance, "stopping")
                ending(instance, "stopped")
            return before

        def start_and_tell(instance: Instance) -> InstanceState:
            before = InstanceState(instance._state.name, instance._state.code)
            if before.name == "stopped":
                start(instance)
                set_state(instance, "pending")
                started(instance)
            return before

        def get_console_output(response: General) -> ActionResult:
            instance = response.ec2_backend.get_instance(response._get_param("InstanceId"))
            output = base64.b64encode(console(instance.id)).decode("ascii")
            return ActionResult({"InstanceId": instance.id, "Timestamp": utcnow(), "Output": output})

        def answer_known_launch(response: InstanceResponse) -> ActionResult:
            return ActionResult(launching(_launch(response), lambda: answer_launch(response).result))

        def find_visible(backend: EC2Backend, *args: Any, **kwargs: Any) -> list[Reservation]:
            found = find_all(backend, *args, **kwargs)  # copies, each with the list of the original
            for reservation in found:
                reservation.instances = [instance for instance in reservation.instances if visible(instance.id)]
            return [reservation for reservation in found if reservation.instances]

        def find_some_visible(backend: EC2Backend, instance_ids: list[str], *args: Any, **kwargs: Any) -> Any:
            refuse_hidden(instance_ids)
            return find_some(backend, instance_ids, *args, **kwargs)

        def find_visible_to_change(backend: EC2Backend, instance_ids: list[str], *args: Any, **kwargs: Any) -> Any:
            refuse_hidden(instance_ids)
            return find_to_change(backend, instance_ids, *args, **kwargs)

        def refuse_hidden(instance_ids: list[str]) -> None:
            hidden = [instance_id for instance_id in instance_ids if not visible(instance_id)]
            if hidden:
                raise InvalidInstanceIdError(hidden)

        self._patches = [
            mock.patch.object(InstanceResponse, "run_instances", answer_known_launch),
            mock.patch.object(EC2Backend, "describe_instances", find_visible),
            mock.patch.object(EC2Backend, "get_reservations_by_instance_ids", find_some_visible),
            mock.patch.object(EC2Backend, "get_multi_instances_by_id", find_visible_to_change),
            mock.patch.object(EC2Backend, "run_instances", run_and_tell),
            mock.patch.object(Instance, "terminate", terminate_and_tell),
            mock.patch.object(Instance, "stop", stop_and_tell),
            mock.patch.object(Instance, "start", start_and_tell),
            mock.patch.object(General, "get_console_output", get_console_output),
        ]

    def install(self) -> None:
        for patch in self._patches:
            patch.start()

    def remove(self) -> None:
        for patch in self._patches:
            patch.stop()
