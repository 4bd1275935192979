"""The names inside moto that the embedded EC2 uses, and what it takes them to mean.

When one of these fails after an update of moto, the places to change are ``_moto.py``, ``_metadata.py``, ``_calls.py`` and
``_hooks.py`` in ``buildbot_ec2ud/embedded``.
"""

from __future__ import annotations

import base64
import inspect
import io
import json
from typing import Any
from wsgiref.util import setup_testing_defaults

import moto
from moto.core.responses import ActionResult
from moto.core.utils import utcnow
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.embedded import _calls, _hooks, _metadata, _moto
from buildbot_ec2ud.embedded.pools import Pool

WHERE = f"moto {moto.__version__} is not as buildbot_ec2ud/embedded/_moto.py and its neighbours expect: "
#: What RunInstances gives to EC2Backend.run_instances by name.
OPTIONS = {"instance_type": "t3.micro", "is_instance_type_default": False, "region_name": "us-east-1"}


class Contract(SynchronousTestCase):
    longMessage = True

    def setUp(self):
        _moto.reset()
        self.addCleanup(_moto.reset)
        self.backend = _moto.get_backend("ec2")["123456789012"]["us-east-1"]

    def launch(self, user_data: str = "", **more: Any) -> Any:
        reservation = self.backend.run_instances("ami-embedded", 1, user_data, [], **{**OPTIONS, **more})
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
        expected = ["self", "image_id", "count", "user_data", "security_group_names", "kwargs"]
        self.assertEqual(parameters, expected, WHERE + "EC2Backend.run_instances")
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
        """An error that is raised has a code and a message; what serializes it can be given another status than 400."""
        error = _moto.EC2Error("A.Code", "a message", 500)
        self.assertEqual((error.code, error.message), ("A.Code", "a message"), WHERE + "EC2ClientError")
        with self.assertRaises(_moto.InvalidInstanceIdError, msg=WHERE + "get_multi_instances_by_id") as caught:
            self.backend.get_multi_instances_by_id(["i-0", "i-1"])
        for ids in (["i-0"], ["i-0", "i-1"]):
            error = _moto.InvalidInstanceIdError(ids)
            self.assertEqual(error.code, caught.exception.code, WHERE + "InvalidInstanceIdError")
            self.assertIn(", ".join(ids), error.message, WHERE + "InvalidInstanceIdError")
        self.assertEqual(caught.exception.message, error.message, WHERE + "InvalidInstanceIdError")

        def refuse(*_: Any) -> Any:
            raise _moto.EC2Error("A.Code", "a <message>", 500)

        self.patch(_moto.InstanceResponse, "run_instances", refuse)
        form = b"Action=RunInstances&MinCount=1&MaxCount=1&ImageId=ami-embedded"
        self.assertEqual(self.answer(form)[0].split()[0], "400", WHERE + "EC2ClientError")
        seen = []
        serialized = _moto.EC2BaseResponse.serialized

        def told(response: Any, result: Any) -> Any:
            seen.append(result.result)
            return (599, *serialized(response, result)[1:])

        self.patch(_moto.EC2BaseResponse, "serialized", told)
        status, answer = self.answer(form)
        self.assertEqual(status.split()[0], "599", WHERE + "EC2BaseResponse.serialized")
        self.assertIsInstance(seen[0], _moto.EC2Error, WHERE + "EC2BaseResponse.serialized")
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
        seen: list[_calls.Launch] = []
        given: list[Any] = []
        run_instances = _moto.InstanceResponse.run_instances

        def told(response: Any) -> Any:
            seen.append(_calls.launch_of(response))
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
        plain = _calls.Launch("123456789012", "us-east-1", "", "", b"", parameters)
        self.assertEqual(seen[0], plain, WHERE + "querystring, current_account, region, _get_param")
        self.assertEqual((seen[1].token, seen[1].user_data), ("t", b"raw"), WHERE + "_get_param")
        self.assertEqual(seen[1].parameters, {**parameters, "UserData": "cmF3"}, WHERE + "querystring")
        zones = [launch.zone for launch in seen]
        self.assertEqual(zones, ["", "", "us-east-1b", subnet.availability_zone], WHERE + "EC2Backend.get_subnet")
        self.assertTrue(subnet.availability_zone)
        self.assertEqual((seen[0].least, seen[0].most), (1, 1), WHERE + "querystring")
        self.assertNotIn("cmF3", repr(seen[1]))
        self.assertNotIn("raw", repr(seen[1]))

    def test_pool(self):
        """An instance knows its type, zone and market, its account and region."""
        for more, pool in (
            ({}, Pool("t3.micro", "us-east-1a", "on-demand")),
            ({"placement": "us-east-1b"}, Pool("t3.micro", "us-east-1b", "on-demand")),
            ({"instance_market_options": "spot"}, Pool("t3.micro", "us-east-1a", "spot")),
            ({"lifecycle": "spot"}, Pool("t3.micro", "us-east-1a", "spot")),
        ):
            self.assertEqual(_moto.pool_of(self.launch(**more)), pool, WHERE + "Instance.lifecycle, availability_zone")
        instance = self.launch()
        there = _moto.Alive("123456789012", "us-east-1", _moto.pool_of(instance))
        self.assertEqual(list(_moto.alive())[-1], there, WHERE + "Instance.owner_id, ec2_backend")
        self.assertEqual(len(list(_moto.alive())), 5)
        _moto.set_state(instance, "terminated")
        self.assertEqual(len(list(_moto.alive())), 4)

    def test_demand(self):
        """What a launch wants is told to the backend by names; other calls than RunInstances use the same."""
        wanted: list[dict[str, Any]] = []
        run_instances = _moto.EC2Backend.run_instances

        def told(backend: Any, *args: Any, **options: Any) -> Any:
            wanted.append(dict(options))
            return run_instances(backend, *args, **options)

        self.patch(_moto.EC2Backend, "run_instances", told)
        subnets = {subnet.availability_zone: subnet.id for subnet in self.backend.describe_subnets()}
        second = subnets["us-east-1b"].encode()
        run = b"Action=RunInstances&Version=2016-11-15&MinCount=1&MaxCount=3&ImageId=ami-embedded"
        ask = b"Action=RequestSpotInstances&Version=2016-11-15&LaunchSpecification.ImageId=ami-embedded"
        spot = b"&InstanceMarketOptions.MarketType=spot&InstanceMarketOptions.SpotOptions.MaxPrice=0.01"
        template = b"Action=CreateLaunchTemplate&LaunchTemplateName=t&LaunchTemplateData.InstanceType=a1.large"
        for form, kind, market, zones in (
            (run + b"&InstanceType=t3.micro", "t3.micro", "on-demand", list(subnets)),
            (run + b"&SubnetId=" + second, "m1.small", "on-demand", ["us-east-1b"]),
            (run + b"&Placement.AvailabilityZone=us-east-1c" + spot, "m1.small", "spot", ["us-east-1c"]),
            (
                run + b"&NetworkInterface.1.DeviceIndex=0&NetworkInterface.1.SubnetId=" + second,
                "m1.small",
                "on-demand",
                ["us-east-1b"],
            ),
            (ask + b"&LaunchSpecification.InstanceType=t3.micro", "t3.micro", "spot", list(subnets)),
            (template, "", "", []),
            (run + b"&LaunchTemplate.LaunchTemplateName=t", "a1.large", "on-demand", list(subnets)),
            (
                run + b"&LaunchTemplate.LaunchTemplateName=t&InstanceType=t3.micro",
                "t3.micro",
                "on-demand",
                list(subnets),
            ),
        ):
            wanted.clear()
            status, answer = self.answer(form)
            self.assertEqual(status, "200 OK", answer)
            for options in wanted:
                demand = _calls.demand_of(self.backend, 1, options, None)
                self.assertEqual(
                    (demand.instance_type, demand.market, sorted(demand.subnets), demand.named),
                    (kind, market, sorted(zones), len(zones) == 1),
                    WHERE + f"{form.decode()}: {options}",
                )
                self.assertEqual(demand.zones, tuple(sorted(subnets)), WHERE + "get_default_subnets")
                self.assertEqual({zone: subnets[zone] for zone in zones}, demand.subnets, WHERE + "get_subnet")
                self.assertEqual((demand.account, demand.region), ("123456789012", "us-east-1"), WHERE + "account_id")
            self.assertEqual(len(wanted), 1 if kind else 0, form)

    def test_demand_of_a_call(self):
        """What the backend is not told is taken from the call."""
        parameters = {"MinCount": "2", "MaxCount": "5", "InstanceMarketOptions.SpotOptions.MaxPrice": "0.01"}
        call = _calls.Launch("123456789012", "us-east-1", "", "", b"", parameters)
        spot = {**OPTIONS, "instance_market_options": "spot"}
        demand = _calls.demand_of(self.backend, 2, spot, call)
        self.assertEqual((demand.least, demand.most, demand.max_price), (2, 5, 0.01))
        self.assertIsNone(_calls.demand_of(self.backend, 2, OPTIONS, call).max_price)
        demand = _calls.demand_of(self.backend, 2, spot, None)
        self.assertEqual((demand.least, demand.most, demand.max_price), (2, 2, None))
        parameters["InstanceMarketOptions.SpotOptions.MaxPrice"] = "cheap"
        self.assertIsNone(_calls.demand_of(self.backend, 2, spot, call).max_price)

    def test_placement(self):
        """A zone that is given by name is where the instance is."""
        instance = self.launch(placement="us-east-1c")
        self.assertEqual(instance.availability_zone, "us-east-1c", WHERE + "placement")
        subnet = self.backend.get_default_subnets()["us-east-1c"]
        self.assertEqual(instance.nics[0].subnet.id, subnet.id, WHERE + "get_default_subnets")

    def test_forget(self):
        """Who is no longer in its reservation is nowhere, and its reservation with the last."""
        instances = self.backend.run_instances("ami-embedded", 2, "", [], **OPTIONS).instances
        other = self.launch()
        _moto.forget(instances[0])
        self.assertIsNone(_moto.find(instances[0].id), WHERE + "reservations")
        self.assertIs(_moto.find(instances[1].id), instances[1])
        self.assertRaises(_moto.InvalidInstanceIdError, self.backend.get_multi_instances_by_id, [instances[0].id])
        _moto.forget(instances[1])
        found = [reservation.instances for reservation in self.backend.describe_instances()]
        self.assertEqual(found, [[other]], WHERE + "reservations")

    def test_metadata(self):
        """An instance has what its metadata says."""
        group = self.backend.create_security_group("a group", "for a test")
        tags = {"instance": {"Name": "a name"}}
        options = {"HttpTokens": "required", "HttpEndpoint": "disabled", "InstanceMetadataTags": "enabled"}
        instance = self.launch(metadata_options=options, security_group_ids=[group.id], tags=tags, lifecycle="spot")
        self.assertEqual(
            _metadata.metadata_options(instance),
            _metadata.MetadataOptions(False, True, True),
            WHERE + "metadata_options",
        )
        default = _metadata.metadata_options(self.launch())
        self.assertEqual(default, _metadata.MetadataOptions(True, False, False), WHERE + "metadata_options")
        self.assertNotIn("meta-data/tags/instance/Name", _metadata.metadata(self.launch(tags=tags)))
        tree = _metadata.metadata(instance)
        identity = json.loads(tree.pop("dynamic/instance-identity/document"))
        address, mac = tree["meta-data/local-ipv4"], tree["meta-data/mac"]
        self.assertRegex(address, r"^[0-9]+(\.[0-9]+){3}$", WHERE + "Instance.private_ip")
        self.assertRegex(mac, "^[0-9a-f]{2}(:[0-9a-f]{2}){5}$", WHERE + "Instance.nics")
        name = f"ip-{address.replace('.', '-')}.ec2.internal"
        self.assertEqual(
            {path.removeprefix("meta-data/"): value for path, value in tree.items()},
            {
                "ami-id": "ami-embedded",
                "ami-launch-index": "0",
                "hostname": name,
                "instance-id": instance.id,
                "instance-life-cycle": "spot",
                "instance-type": "t3.micro",
                "local-hostname": name,
                "local-ipv4": address,
                "mac": mac,
                "placement/availability-zone": "us-east-1a",
                "placement/region": "us-east-1",
                "security-groups": "a group",
                "tags/instance/Name": "a name",
            },
            WHERE + "what an instance has",
        )
        self.assertRegex(identity.pop("pendingTime"), "^[0-9-]{10}T[0-9:]{8}Z$", WHERE + "Instance.launch_time")
        self.assertEqual(
            identity,
            {
                "accountId": "123456789012",
                "architecture": "x86_64",
                "availabilityZone": "us-east-1a",
                "imageId": "ami-embedded",
                "instanceId": instance.id,
                "instanceType": "t3.micro",
                "privateIp": address,
                "region": "us-east-1",
                "version": "2017-09-30",
            },
            WHERE + "what an instance has",
        )

    def test_no_images(self):
        """The images that moto would load, which takes memory and time, are left out."""
        self.assertLess(len(self.backend.amis), 100, WHERE + "MOTO_EC2_LOAD_DEFAULT_AMIS")


class Hooks(SynchronousTestCase):
    def hooks(self, **more: Any) -> _hooks.Hooks:
        nothing = {name: lambda *_: None for name in ("launched", "ending", "started", "console")}
        answering = {
            "launching": lambda call, launch: launch(),
            "placing": lambda demand: ("", demand.most),
            "visible": lambda instance_id: True,
        }
        return _hooks.Hooks(**{**nothing, **answering, **more})

    def test_remove(self):
        """Hooks that are removed leave moto as it was."""
        owners = (_moto.EC2Backend, _moto.Instance, _moto.General, _moto.InstanceResponse, _moto.EC2BaseResponse)
        before = [dict(vars(owner)) for owner in owners]
        hooks = self.hooks()
        hooks.install()
        changed = {
            name
            for was, owner in zip(before, owners, strict=True)
            for name in was
            if was[name] is not vars(owner)[name]
        }
        self.assertIn("serialized", vars(_moto.EC2BaseResponse))
        hooks.remove()
        self.assertIn("get_console_output", changed)
        lookups = {"describe_instances", "get_reservations_by_instance_ids", "get_multi_instances_by_id"}
        changes = {"run_instances", "terminate", "stop", "start", "get_console_output", "serialized"}
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
        pair, alone = [backend.run_instances("ami-embedded", count, "", [], **OPTIONS).instances for count in (2, 1)]
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
