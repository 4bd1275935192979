"""What a worker can be made of, in master.cfg."""

from __future__ import annotations

import inspect
import os
import socket
import sys
from typing import Any

import boto3
from buildbot.config.errors import capture_config_errors
from buildbot.plugins import util
from buildbot.plugins import worker as worker_plugins
from buildbot.worker.ec2 import EC2LatentWorker
from twisted.internet import reactor, threads
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.addresses import has_port
from buildbot_ec2ud.worker import EC2UserDataLatentWorker, ec2_fleet
from tests.unit.files import directory, write

PLAIN: dict[str, Any] = {"instance_type": "t3.micro", "ami": "ami-1"}
SHA256 = "0123456789abcdef" * 4

#: The arguments of EC2LatentWorker, in its order.
DROP_IN = [
    "name",
    "password",
    "instance_type",
    "ami",
    "valid_ami_owners",
    "valid_ami_location_regex",
    "elastic_ip",
    "identifier",
    "secret_identifier",
    "aws_id_file_path",
    "user_data",
    "region",
    "keypair_name",
    "security_name",
    "spot_instance",
    "max_spot_price",
    "volumes",
    "placement",
    "price_multiplier",
    "tags",
    "product_description",
    "subnet_id",
    "security_group_ids",
    "instance_profile_name",
    "block_device_map",
    "session",
]


class ConstructionTests(SynchronousTestCase):
    """What a worker takes."""

    def worker(self, *args: Any, **arguments: Any) -> EC2UserDataLatentWorker:
        return EC2UserDataLatentWorker(*(args or ("linux-1",)), **{**PLAIN, **arguments})

    def test_right(self) -> None:
        """Nothing is wrong with these."""
        for arguments in (
            {},
            {"password": "fixed"},
            {
                "password": util.Secret("password"),
                "identifier": util.Secret("a"),
                "secret_identifier": util.Secret("b"),
            },
            {"region": "eu-central-1"},
            {"region": "anything", "endpoint_url": "http://127.0.0.1:5000/"},
            {"bb_master": "master.example.org"},
            {"bb_master": "master.example.org:9989"},
            {"bb_master": "192.0.2.1:9989"},
            {"bb_master": "[2001:db8::1]:9989"},
            {"bb_master": "[2001:db8::1]"},
            {"instance_type": ["a", util.Property("type")], "ami": lambda worker, build: "ami-2"},
            {"bootstrap_env": {"BB_PACKAGES": "gcc make", "JOBS": 4}},
            {"bootstrap_env": util.Property("environment")},
            {"bootstrap_env": {"BB_PACKAGES": util.Interpolate("%(prop:packages)s"), "TOKEN": util.Secret("token")}},
            {"bootstrap_script": "https://example.org/a.sh"},
            {"bootstrap_script": "http://example.org/a.sh", "bootstrap_sha256": SHA256},
            {"build_wait_timeout": 0, "max_builds": 1, "properties": {"a": "b"}, "notify_on_missing": "me@example.org"},
            {"launch_options": {"EbsOptimized": True}},
            {"market": "spot-then-on-demand", "spot_instance": None},
            {"session": boto3.Session(region_name="eu-central-1")},
            {"elastic_ip": "203.0.113.7", "volumes": [("vol-0123456789abcdef0", "/dev/sdf")]},
            {"elastic_ip": "eipalloc-0123456789abcdef0", "volumes": ()},
            {"password": "fixed", "user_data": "#!/bin/sh\n"},
            {"password": "fixed", "user_data": b"\x1f\x8b"},
            {"password": util.Secret("password"), "user_data": util.Interpolate("%(prop:script)s")},
            {"region": "cn-north-1"},
            {"region": "us-gov-west-1"},
            {"capacity_memory": 0},
            {"ami": None, "instance_type": None, "launch_template": "lt-0123456789abcdef0"},
        ):
            self.assertEqual(self.worker(**arguments).name, "linux-1")

    def test_only_the_necessary(self) -> None:
        """A name, a type and an image are enough."""
        worker = EC2UserDataLatentWorker("linux-1", instance_type="t3.micro", ami="ami-1")
        self.assertIsNone(worker.password)

    def test_order(self) -> None:
        """The arguments of EC2LatentWorker, by position, in its order."""
        ours = [name for name in inspect.signature(EC2UserDataLatentWorker).parameters if name != "kwargs"]
        self.assertEqual(ours[:26], DROP_IN)
        theirs = [name for name in inspect.signature(EC2LatentWorker.__init__).parameters if name != "self"]
        self.assertEqual([name for name in theirs if name != "kwargs"], DROP_IN)

    def test_positional(self) -> None:
        """Each position is the argument of that name."""
        session = boto3.Session(region_name="eu-central-1")
        aws_id = write(directory(self), "aws_id", "AKID\nsecret\n")
        values = {
            "name": "linux-1",
            "password": "fixed",
            "instance_type": "t3.micro",
            "ami": "ami-1",
            "valid_ami_owners": [1],
            "valid_ami_location_regex": ".*",
            "elastic_ip": "203.0.113.7",
            "identifier": "AKID",
            "secret_identifier": "secret",
            "aws_id_file_path": aws_id,
            "user_data": "#!/bin/sh",
            "region": "eu-central-1",
            "keypair_name": "key",
            "security_name": "group",
            "spot_instance": True,
            "max_spot_price": 1.5,
            "volumes": [("vol-1", "/dev/sdf")],
            "placement": "b",
            "price_multiplier": 1.3,
            "tags": {"cost": "ci"},
            "product_description": "Windows",
            "subnet_id": "subnet-1",
            "security_group_ids": ["sg-1"],
            "instance_profile_name": "profile",
            "block_device_map": [{"DeviceName": "/dev/sdb"}],
            "session": session,
        }
        self.assertEqual(list(values), DROP_IN)
        for without in (
            {"valid_ami_owners", "valid_ami_location_regex", "aws_id_file_path", "security_name", "session"},
            {"ami", "identifier", "secret_identifier", "session", "subnet_id"},
            {"ami", "identifier", "secret_identifier", "aws_id_file_path", "subnet_id", "region"},
        ):
            given = {name: None if name in without else value for name, value in values.items()}
            worker = EC2UserDataLatentWorker(*given.values())
            self.assertEqual((worker.name, worker.password), ("linux-1", "fixed"))
            found = {**vars(worker.settings.launch), **vars(worker.settings)}
            for name in DROP_IN[2:]:
                self.assertEqual(found[name], given[name], name)

    def test_name_by_keyword(self) -> None:
        """As in every Buildbot worker."""
        worker = EC2UserDataLatentWorker(name="linux-1", **PLAIN)
        self.assertEqual((worker.name, worker.workername), ("linux-1", "linux-1"))

    def test_attributes(self) -> None:
        """What EC2LatentWorker lets one read right after construction."""
        given = {
            "keypair_name": "key",
            "security_name": "group",
            "spot_instance": True,
            "max_spot_price": 1.5,
            "price_multiplier": 1.3,
            "product_description": "Windows",
            "tags": {"cost": "ci"},
            "security_group_ids": ["sg-1"],
            "instance_profile_name": "profile",
            "block_device_map": [{"DeviceName": "/dev/sdb"}],
            "user_data": "#!/bin/sh",
            "volumes": [("vol-1", "/dev/sdf")],
            "session": boto3.Session(),
            "password": "fixed",
        }
        worker = self.worker(**given)
        missing = {
            name for name, value in {**PLAIN, **given}.items() if getattr(worker, name, "no such attribute") != value
        }
        self.assertEqual(missing, set())
        self.assertEqual((worker.subnet_id, worker.placement, worker.valid_ami_owners), (None, None, None))
        self.assertEqual(self.worker().tags, {})
        worker = self.worker(ami=None, valid_ami_owners=[1], valid_ami_location_regex=".*", placement="b")
        self.assertEqual((worker.valid_ami_owners, worker.valid_ami_location_regex), ([1], ".*"))
        self.assertIsNone(worker.ami)

    def test_bootstraps(self) -> None:
        """A worker with a password of its own, and nothing that is about a bootstrap, gets no user-data."""
        for arguments, expected in (
            ({}, True),
            ({"password": "fixed"}, False),
            ({"password": "fixed", "user_data": "x"}, False),
            ({"password": "fixed", "bb_master": "host"}, True),
            ({"password": "fixed", "bootstrap_script": "#!/bin/sh\n"}, True),
            ({"password": "fixed", "bootstrap_env": {}}, True),
            ({"password": util.Secret("a"), "bootstrap_env": util.Property("a")}, True),
        ):
            self.assertIs(self.worker(**arguments).settings.bootstraps, expected, arguments)

    def test_no_secret(self) -> None:
        """Buildbot logs the configuration of a worker that cannot be reconfigured: there is no secret in it."""
        worker = self.worker(
            password="s3cret-a",
            identifier="AKID",
            secret_identifier="s3cret-b",
            bootstrap_env={"TOKEN": "s3cret-c"},
            region="eu-central-1",
        )
        text = repr(self.worker(password="s3cret-a", user_data="s3cret-d").getConfigDict())
        text += repr(worker.getConfigDict()) + repr(worker) + repr(worker.settings)
        self.assertNotIn("s3cret", text)
        self.assertIn("eu-central-1", text)
        self.assertNotIn("(hidden)", repr(self.worker().getConfigDict()))

    def test_no_network(self) -> None:
        """Construction asks nobody: not AWS, not the resolver, not a thread."""

        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError("the network was asked")

        for owner, name in (
            (socket.socket, "connect"),
            (socket, "getaddrinfo"),
            (socket, "gethostbyname"),
            (socket, "getfqdn"),
            (reactor, "connectTCP"),
            (reactor, "resolve"),
            (threads, "deferToThreadPool"),
        ):
            self.patch(owner, name, refuse)
        self.worker(region="eu-central-1", bootstrap_script="https://example.org/a.sh")
        self.worker()

    def test_script_of_the_master(self) -> None:
        """A relative path begins in the master's directory, which Buildbot has in the module path while it loads."""
        basedir = directory(self)
        write(basedir, "a.sh", "#!/bin/sh\n")
        self.assertFalse(os.path.exists("a.sh"))
        self.patch(sys, "path", [*sys.path, basedir])
        self.worker(bootstrap_script="a.sh")

    def test_change_is_seen(self) -> None:
        """A reconfig sees any change, and none where there is none."""
        first = self.worker(tags={"a": "b"})
        self.assertEqual(first, self.worker(tags={"a": "b"}))
        self.assertNotEqual(first, self.worker(tags={"a": "c"}))
        self.assertNotEqual(first, self.worker(tags={"a": "b"}, password="fixed"))

    def test_has_port(self) -> None:
        """What is a port, and what an IPv6 address."""
        for address, expected in (
            ("host:9989", True),
            ("[::1]:9989", True),
            ("host", False),
            ("[::1]", False),
            ("host:", False),
            (":9989", False),
        ):
            self.assertIs(has_port(address), expected, address)


class FleetTests(SynchronousTestCase):
    """Many workers from one entry."""

    def test_fleet(self) -> None:
        """They are numbered from 1, and alike."""
        workers = ec2_fleet("linux", 3, **PLAIN, tags={"cost": "ci"})
        self.assertEqual([worker.name for worker in workers], ["linux-1", "linux-2", "linux-3"])
        self.assertEqual([worker.tags for worker in workers], [{"cost": "ci"}] * 3)

    def test_mistakes(self) -> None:
        """Each of them tells its mistakes."""
        with capture_config_errors() as captured:
            ec2_fleet("linux", 2, **{**PLAIN, "ami": None})
        self.assertEqual(
            [error.partition(": ami")[0] for error in captured.errors], ["worker linux-1", "worker linux-2"]
        )


class PluginTests(SynchronousTestCase):
    """What a master.cfg imports from Buildbot."""

    def test_plugins(self) -> None:
        """The class and the helper are Buildbot's plugins."""
        self.assertIs(worker_plugins.EC2UserDataLatentWorker, EC2UserDataLatentWorker)
        self.assertIs(util.ec2_fleet, ec2_fleet)
