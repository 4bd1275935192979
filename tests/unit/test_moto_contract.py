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
        answers: list[str] = []
        body = b"Action=DescribeInstances&Version=2016-11-15"
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        environ |= {
            "REQUEST_METHOD": "POST",
            "CONTENT_LENGTH": str(len(body)),
            "CONTENT_TYPE": "application/x-www-form-urlencoded",
            "HTTP_AUTHORIZATION": "AWS4-HMAC-SHA256 Credential=AKID/20260101/us-east-1/ec2/aws4_request, Signature=x",
            "wsgi.input": io.BytesIO(body),
        }
        instance = self.launch()
        answer = b"".join(_moto.application()(environ, lambda status, headers: answers.append(status)))
        self.assertEqual(answers, ["200 OK"], WHERE + "DomainDispatcherApplication")
        self.assertIn(instance.id.encode(), answer, WHERE + "DomainDispatcherApplication")

    def test_no_images(self):
        """The images that moto would load, which takes memory and time, are left out."""
        self.assertLess(len(self.backend.amis), 100, WHERE + "MOTO_EC2_LOAD_DEFAULT_AMIS")


class Hooks(SynchronousTestCase):
    def test_remove(self):
        """Hooks that are removed leave moto as it was."""
        owners = (_moto.EC2Backend, _moto.Instance, _moto.General)
        before = [dict(vars(owner)) for owner in owners]
        hooks = _moto.Hooks(*[lambda *_: None] * 4)
        hooks.install()
        changed = {
            name
            for was, owner in zip(before, owners, strict=True)
            for name in was
            if was[name] is not vars(owner)[name]
        }
        hooks.remove()
        self.assertIn("get_console_output", changed)
        self.assertLessEqual(changed, {"run_instances", "terminate", "stop", "start", "get_console_output"})
        self.assertEqual([dict(vars(owner)) for owner in owners], before)
