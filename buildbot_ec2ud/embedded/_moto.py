"""moto, and the names inside it that the embedded EC2 needs.

moto ends and starts instances in the same moment and runs nothing; here it learns to wait. Every use of a name that
moto does not document is in this file, and a test holds each against the installed moto.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

# moto reads its settings when it is imported. Without 1,300 images, it answers faster and is 130 MB smaller.
os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")

from moto.backends import get_backend  # noqa: E402
from moto.core.responses import ActionResult  # noqa: E402
from moto.core.utils import utcnow  # noqa: E402
from moto.ec2.models import EC2Backend  # noqa: E402
from moto.ec2.models.instances import Instance, InstanceState, StateReason  # noqa: E402
from moto.ec2.responses.general import General  # noqa: E402
from moto.server import DomainDispatcherApplication, create_backend_app  # noqa: E402

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
    """

    def __init__(
        self,
        launched: Callable[[Instance], Any],
        ending: Callable[[Instance, str], Any],
        started: Callable[[Instance], Any],
        console: Callable[[str], bytes],
    ) -> None:
        run_instances, terminate, stop = EC2Backend.run_instances, Instance.terminate, Instance.stop
        start = Instance.start

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

        self._patches = [
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
