"""What moto's EC2 tells and asks, while it is hooked: moto ends and starts instances in the same moment and runs nothing;
here it learns to wait.
"""

from __future__ import annotations

import base64
import contextvars
import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

from buildbot_ec2ud.embedded._calls import Demand, Launch, demand_of, launch_of
from buildbot_ec2ud.embedded._moto import (
    ActionResult,
    EC2Backend,
    EC2BaseResponse,
    EC2Error,
    General,
    Instance,
    InstanceResponse,
    InstanceState,
    InvalidInstanceIdError,
    Reservation,
    set_state,
    utcnow,
)


class Hooks:
    """While installed, tells of everything that happens to an instance, whichever call did it.

    The functions run in the thread of the request.

    :param launched: an instance has been made, and is pending.
    :param ending: an instance is on its way to ``stopped`` or ``terminated``, the second argument.
    :param started: a stopped instance is started again, and is pending.
    :param console: gives the console of an instance.
    :param launching: called with each ``RunInstances`` and what does it; gives the reservation, or raises EC2Error.
    :param placing: called whenever instances are wanted, with nothing else launching meanwhile; gives their zone (empty for
        moto's choice) and their number, or raises EC2Error.
    :param visible: whether the instance with that id is found where instances are looked up.
    """

    def __init__(
        self,
        launched: Callable[[Instance], Any],
        ending: Callable[[Instance, str], Any],
        started: Callable[[Instance], Any],
        console: Callable[[str], bytes],
        launching: Callable[[Launch, Callable[[], Reservation]], Reservation],
        placing: Callable[[Demand], tuple[str, int]],
        visible: Callable[[str], bool],
    ) -> None:
        run_instances, terminate, stop = EC2Backend.run_instances, Instance.terminate, Instance.stop
        start, answer_launch = Instance.start, InstanceResponse.run_instances
        # What the API looks instances up by. Not get_instance(): moto itself uses it for instances that it just makes.
        find_all, find_some = EC2Backend.describe_instances, EC2Backend.get_reservations_by_instance_ids
        find_to_change, serialized = EC2Backend.get_multi_instances_by_id, EC2BaseResponse.serialized
        # Of two launches at the same time, the second finds what the first has left.
        one_at_a_time = threading.Lock()
        # moto's backends are not told all of the call that they work for.
        call_of: contextvars.ContextVar[Launch | None] = contextvars.ContextVar("call", default=None)

        def run_and_tell(
            backend: EC2Backend, image_id: str, count: int, user_data: Any, security_group_names: Any, **options: Any
        ) -> Any:
            with one_at_a_time:
                demand = demand_of(backend, count, options, call_of.get())
                zone, count = placing(demand)
                if zone and not demand.named:
                    options["placement"] = zone
                reservation = run_instances(backend, image_id, count, user_data, security_group_names, **options)
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
            call = launch_of(response)

            def launch() -> Any:
                known = call_of.set(call)
                try:
                    return answer_launch(response).result
                finally:
                    call_of.reset(known)

            return ActionResult(launching(call, launch))

        def answer_with_status(response: EC2BaseResponse, result: ActionResult) -> Any:
            status, headers, body = serialized(response, result)  # moto knows 400 only
            return (result.result.status if isinstance(result.result, EC2Error) else status), headers, body

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
            mock.patch.object(EC2BaseResponse, "serialized", answer_with_status),
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
