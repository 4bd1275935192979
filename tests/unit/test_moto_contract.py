"""The names inside moto that the embedded EC2 uses, and what it takes them to mean.

When one of these fails after an update of moto, the place to change is ``buildbot_ec2ud/embedded/_moto.py``.
"""

from __future__ import annotations

import base64
import inspect
import io
from typing import Any
from wsgiref.util import setup_testing_defaults

import moto
from moto.core.responses import ActionResult
from moto.core.utils import utcnow
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.embedded import _moto

WHERE = f"moto {moto.__version__} is not as buildbot_ec2ud/embedded/_moto.py expects: "


class Contract(SynchronousTestCase):
    longMessage = True

    def setUp(self):
        _moto.reset()
        self.addCleanup(_moto.reset)
        self.backend = _moto.get_backend("ec2")["123456789012"]["us-east-1"]

    def launch(self, user_data: str = "", **more: Any) -> Any:
        more = {"instance_type": "t3.micro", "is_instance_type_default": False, "region_name": "us-east-1", **more}
        reservation = self.backend.run_instances("ami-embedded", 1, user_data, [], **more)
        (instance,) = reservation.instances
        return instance

    def answer(self, form: bytes) -> tuple[str, bytes]:
        """What moto's server answers: status and body."""
        statuses: list[str] = []
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        environ |= {
            "REQUEST_METHOD": "POST",
            "CONTENT_LENGTH": str(len(form)),
            "CONTENT_TYPE": "application/x-www-form-urlencoded",
            "HTTP_AUTHORIZATION": "AWS4-HMAC-SHA256 Credential=AKID/20260101/us-east-1/ec2/aws4_request, Signature=x",
            "wsgi.input": io.BytesIO(form),
        }
        body = b"".join(_moto.application()(environ, lambda status, headers: statuses.append(status)))
        (status,) = statuses
        return status, body

    def test_run_instances(self):
        """What starts instances is a method of the backend, and gives a reservation with the instances."""
        parameters = list(inspect.signature(_moto.EC2Backend.run_instances).parameters)
        self.assertEqual(parameters[:3], ["self", "image_id", "count"], WHERE + "EC2Backend.run_instances")
        self.assertIsInstance(self.launch(), _moto.Instance, WHERE + "Reservation.instances")

    def test_backends(self):
        """Backends are found by account and by region; each has its reservations by id."""
        instance = self.launch()
        accounts = _moto.get_backend("ec2")
        self.assertIs(accounts["123456789012"]["us-east-1"], self.backend, WHERE + "get_backend('ec2')")
        self.assertIn(self.backend, [b for account in accounts.values() for b in account.values()], WHERE + "values()")
        (reservation,) = self.backend.reservations.values()
        self.assertEqual(reservation.instances, [instance], WHERE + "EC2Backend.reservations")
        self.assertEqual(list(_moto.instances()), [instance], WHERE + "instances()")

    def test_reset(self):
        self.launch()
        _moto.reset()
        self.assertEqual(list(_moto.instances()), [], WHERE + "EC2Backend.reset")

    def test_state(self):
        """An instance's state is an object of its own, with EC2's name and number."""
        instance = self.launch()
        self.assertIsInstance(instance._state, _moto.InstanceState, WHERE + "Instance._state")
        self.assertEqual((instance._state.name, instance._state.code), ("running", 16), WHERE + "InstanceState")
        stopping = _moto.InstanceState("stopping", 64)
        self.assertEqual((stopping.name, stopping.code), ("stopping", 64), WHERE + "InstanceState(name, code)")

    def test_set_state(self):
        """What is put into an instance's private state is what callers are told."""
        instance = self.launch()
        for name, code in _moto.STATE_CODES.items():
            _moto.set_state(instance, name)
            self.assertEqual((instance.state, instance.state_code), (name, code), WHERE + "Instance.state")
            (found,) = self.backend.describe_instances()[0].instances
            self.assertEqual(found.state, name, WHERE + "EC2Backend.describe_instances")

    def test_state_reason(self):
        reason = _moto.StateReason("a message", "a code")
        self.assertEqual((reason.message, reason.code), ("a message", "a code"), WHERE + "StateReason(message, code)")
        instance = self.launch()
        self.assertTrue(hasattr(instance, "_reason"), WHERE + "Instance._reason")
        instance.terminate()
        self.assertIsInstance(instance.state_reason, _moto.StateReason, WHERE + "Instance.state_reason")
        self.assertIn("User initiated", instance._reason, WHERE + "Instance._reason")

    def test_changes(self):
        """Each change of state is a method of the instance without arguments, which every API call goes through."""
        for name, change, state in (
            ("stop", self.backend.stop_instances, "stopped"),
            ("start", self.backend.start_instances, "running"),
            ("terminate", self.backend.terminate_instances, "terminated"),
        ):
            instance = self.launch()
            method = getattr(_moto.Instance, name)
            self.assertEqual(list(inspect.signature(method).parameters), ["self"], WHERE + f"Instance.{name}")
            called = []

            def told(changed: Any, method: Any = method, called: list[Any] = called) -> Any:
                called.append(changed)
                return method(changed)

            patch = self.patch(_moto.Instance, name, told)
            change([instance.id])
            patch.restore()
            self.assertEqual(called, [instance], WHERE + f"{change.__name__} does not call Instance.{name}")
            self.assertEqual(instance._state.name, state, WHERE + f"Instance.{name}")

    def test_previous_state(self):
        """What Instance.terminate gives is reported as the previous state."""
        instance = self.launch()
        before = _moto.InstanceState("shutting-down", 32)
        self.patch(_moto.Instance, "terminate", lambda _: before)
        ((_, previous),) = self.backend.terminate_instances([instance.id])
        self.assertIs(previous, before, WHERE + "EC2Backend.terminate_instances")

    def test_user_data(self):
        """User-data is kept as it was sent, in base64."""
        sent = base64.b64encode(b"\x1f\x8b\xff\0").decode()
        self.assertEqual(_moto.user_data(self.launch(sent)), b"\x1f\x8b\xff\0", WHERE + "Instance.user_data")
        for nothing in ("", None):
            self.assertEqual(_moto.user_data(self.launch(nothing)), b"", WHERE + "Instance.user_data")

    def test_shutdown_behavior(self):
        for sent, kept in (("terminate", "terminate"), ("stop", "stop"), (None, "stop")):
            instance = self.launch(instance_initiated_shutdown_behavior=sent)
            self.assertEqual(_moto.shutdown_behavior(instance), kept, WHERE + "instance_initiated_shutdown_behavior")

    def test_console(self):
        """GetConsoleOutput is a method of the responses, finds its parameters and its backend, and gives a result."""
        General = _moto.General
        self.assertEqual(list(inspect.signature(General.get_console_output).parameters), ["self"], WHERE + "General")
        for name in ("_get_param", "ec2_backend"):
            self.assertTrue(hasattr(General, name), WHERE + f"General.{name}")
        instance = self.launch()
        self.assertIs(self.backend.get_instance(instance.id), instance, WHERE + "EC2Backend.get_instance")
        self.assertEqual(ActionResult({"Output": ""}).result, {"Output": ""}, WHERE + "ActionResult")
        self.assertIsNotNone(utcnow(), WHERE + "utcnow")

    def test_application(self):
        """moto's server is a WSGI application that finds EC2 by what is asked."""
        instance = self.launch()
        status, body = self.answer(b"Action=DescribeInstances&Version=2016-11-15")
        self.assertEqual(status, "200 OK", WHERE + "DomainDispatcherApplication")
        self.assertIn(instance.id.encode(), body, WHERE + "DomainDispatcherApplication")

    def test_errors(self):
        """An error that is raised has a code and a message; status 400 is what callers get."""
        error = _moto.EC2Error("A.Code", "a message")
        self.assertEqual((error.code, error.message), ("A.Code", "a message"), WHERE + "EC2ClientError")
        with self.assertRaises(_moto.EC2Error, msg=WHERE + "get_multi_instances_by_id") as caught:
            self.backend.get_multi_instances_by_id(["i-0", "i-1"])
        for ids in (["i-0"], ["i-0", "i-1"]):
            error = _moto.InvalidInstanceIdError(ids)
            self.assertEqual(error.code, caught.exception.code, WHERE + "InvalidInstanceIdError")
            self.assertIn(", ".join(ids), error.message, WHERE + "InvalidInstanceIdError")
        self.assertEqual(caught.exception.message, error.message, WHERE + "InvalidInstanceIdError")

        def refuse(*_: Any) -> Any:
            raise _moto.EC2Error("A.Code", "a <message>")

        self.patch(_moto.InstanceResponse, "run_instances", refuse)
        status, answer = self.answer(b"Action=RunInstances&MinCount=1&MaxCount=1&ImageId=ami-embedded")
        self.assertEqual(status.split()[0], "400", WHERE + "EC2ClientError")
        self.assertIn(b"<Error><Code>A.Code</Code><Message>a &lt;message&gt;</Message></Error>", answer)

    def test_lookups(self):
        """The API looks instances up by three methods of the backend, which give copies."""
        instance = self.launch()
        EC2Backend = _moto.EC2Backend
        one = b"&InstanceId.1=" + instance.id.encode()
        for name, form in (
            ("describe_instances", b"Action=DescribeInstances"),
            ("get_reservations_by_instance_ids", b"Action=DescribeInstances" + one),
            ("get_multi_instances_by_id", b"Action=TerminateInstances" + one),
            ("get_multi_instances_by_id", b"Action=DescribeInstanceStatus" + one),
        ):
            called = []
            method = getattr(EC2Backend, name)

            def told(*args: Any, method: Any = method, called: list[Any] = called, **kwargs: Any) -> Any:
                called.append(args[1:] or kwargs)
                return method(*args, **kwargs)

            patch = self.patch(EC2Backend, name, told)
            self.assertEqual(self.answer(form)[0], "200 OK")
            patch.restore()
            self.assertEqual(len(called), 1, WHERE + f"EC2Backend.{name}")
            if name != "describe_instances":
                self.assertEqual(called[0][0], [instance.id], WHERE + f"EC2Backend.{name}")
        found = self.backend.describe_instances()
        self.assertIsInstance(found[0], _moto.Reservation, WHERE + "Reservation")
        found[0].instances = []
        self.assertEqual(list(_moto.instances()), [instance], WHERE + "EC2Backend.describe_instances gives no copies")

    def test_launch(self):
        """What a RunInstances asks for is read from the response before it is made; what it gives is a reservation."""
        seen: list[_moto.Launch] = []
        given: list[Any] = []
        run_instances = _moto.InstanceResponse.run_instances

        def told(response: Any) -> Any:
            seen.append(_moto._launch(response))
            answer = run_instances(response)
            given.append(answer.result)
            return answer

        self.patch(_moto.InstanceResponse, "run_instances", told)
        form = b"Action=RunInstances&Version=2016-11-15&MinCount=1&MaxCount=1&ImageId=ami-embedded"
        subnet = self.backend.describe_subnets()[0]
        for more in (
            b"",
            b"&ClientToken=t&UserData=" + base64.b64encode(b"raw"),
            b"&Placement.AvailabilityZone=us-east-1b",
            b"&SubnetId=" + subnet.id.encode(),
        ):
            self.assertEqual(self.answer(form + more)[0], "200 OK")
        self.assertEqual([type(reservation) for reservation in given], [_moto.Reservation] * 4, WHERE + "run_instances")
        parameters = dict(pair.split("=") for pair in form.decode().split("&"))
        plain = _moto.Launch("123456789012", "us-east-1", "", "", b"", parameters)
        self.assertEqual(seen[0], plain, WHERE + "querystring, current_account, region, _get_param")
        self.assertEqual((seen[1].token, seen[1].user_data), ("t", b"raw"), WHERE + "_get_param")
        self.assertEqual(seen[1].parameters, {**parameters, "UserData": "cmF3"}, WHERE + "querystring")
        zones = [launch.zone for launch in seen]
        self.assertEqual(zones, ["", "", "us-east-1b", subnet.availability_zone], WHERE + "EC2Backend.get_subnet")
        self.assertTrue(subnet.availability_zone)
        self.assertNotIn("cmF3", repr(seen[1]))
        self.assertNotIn("raw", repr(seen[1]))

    def test_no_images(self):
        """The images that moto would load, which takes memory and time, are left out."""
        self.assertLess(len(self.backend.amis), 100, WHERE + "MOTO_EC2_LOAD_DEFAULT_AMIS")


class Hooks(SynchronousTestCase):
    def hooks(self, **more: Any) -> _moto.Hooks:
        nothing = {name: lambda *_: None for name in ("launched", "ending", "started", "console")}
        launching = {"launching": lambda call, launch: launch(), "visible": lambda instance_id: True}
        return _moto.Hooks(**{**nothing, **launching, **more})

    def test_remove(self):
        """Hooks that are removed leave moto as it was."""
        owners = (_moto.EC2Backend, _moto.Instance, _moto.General, _moto.InstanceResponse)
        before = [dict(vars(owner)) for owner in owners]
        hooks = self.hooks()
        hooks.install()
        changed = {
            name
            for was, owner in zip(before, owners, strict=True)
            for name in was
            if was[name] is not vars(owner)[name]
        }
        hooks.remove()
        self.assertIn("get_console_output", changed)
        lookups = {"describe_instances", "get_reservations_by_instance_ids", "get_multi_instances_by_id"}
        changes = {"run_instances", "terminate", "stop", "start", "get_console_output"}
        self.assertLessEqual(changed, changes | lookups)
        self.assertEqual([dict(vars(owner)) for owner in owners], before)

    def test_visible(self):
        """What is not visible is missing, and nothing else; the rest of its reservation is not."""
        _moto.reset()
        self.addCleanup(_moto.reset)
        backend = _moto.get_backend("ec2")["123456789012"]["us-east-1"]
        hidden: set[str] = set()
        hooks = self.hooks(visible=lambda instance_id: instance_id not in hidden)
        hooks.install()
        self.addCleanup(hooks.remove)
        more = {"instance_type": "t3.micro", "is_instance_type_default": False, "region_name": "us-east-1"}
        pair, alone = [backend.run_instances("ami-embedded", count, "", [], **more).instances for count in (2, 1)]
        hidden |= {pair[0].id, alone[0].id}
        (found,) = backend.describe_instances()
        self.assertEqual(found.instances, [pair[1]])
        (found,) = backend.get_reservations_by_instance_ids([pair[1].id])
        self.assertEqual(found.instances, [pair[1]])
        self.assertEqual(backend.get_multi_instances_by_id([pair[1].id]), [pair[1]])
        for look_up in (backend.get_reservations_by_instance_ids, backend.terminate_instances):
            with self.assertRaises(_moto.InvalidInstanceIdError) as caught:
                look_up([pair[0].id, pair[1].id])
            self.assertIn(pair[0].id, caught.exception.message)
            self.assertNotIn(pair[1].id, caught.exception.message)
        self.assertEqual([_moto.state_of(instance) for instance in pair], ["pending", "pending"])
        hidden.clear()
        self.assertEqual([reservation.instances for reservation in backend.describe_instances()], [pair, alone])
        self.assertEqual(list(_moto.instances()), [*pair, *alone])
