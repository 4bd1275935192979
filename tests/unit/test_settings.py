"""A worker's configuration: what is said of mistakes, without asking anybody."""

from __future__ import annotations

import os
import random
from typing import Any
from unittest import mock

import boto3
from botocore.exceptions import EndpointResolutionError
from buildbot.config import ConfigErrors
from buildbot.config.errors import capture_config_errors
from buildbot.plugins import util
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.ec2 import endpoints
from buildbot_ec2ud.worker import EC2UserDataLatentWorker
from tests.unit.files import directory, write
from tests.unit.secure import environment

PLAIN: dict[str, Any] = {"instance_type": "t3.micro", "ami": "ami-1"}
SHA256 = "0123456789abcdef" * 4
#: User-data that is sent as it is.
AS_IT_IS: dict[str, Any] = {"user_data": "x", "password": "fixed"}
#: A script that cannot be packed.
NOISE = "#!/bin/sh\n# " + random.Random(1).randbytes(16000).hex()
DISKS = [{"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": 8}}]

#: Arguments, the one that is to blame, and what is said of it.
MISTAKES: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"instance_type": None}, "instance_type", "name an EC2 instance type"),
    ({"instance_type": []}, "instance_type", "name an EC2 instance type"),
    ({"instance_type": 5}, "instance_type", "Invalid type"),
    ({"ami": None}, "ami", "name an image"),
    ({"ami": 5}, "ami", "Invalid type"),
    ({"instance_type": ["t3.micro", None]}, "instance_type", "name an EC2 instance type"),
    ({"instance_type": ""}, "instance_type", "name an EC2 instance type"),
    ({"ami": ["ami-1"]}, "ami", "Invalid type"),
    ({"ami": 3.5}, "ami", "3.5"),
    ({"ami": b"ami-1"}, "ami", "b'ami-1'"),
    ({"ami": {"name": "debian-12-*"}}, "ami", "owners: name at least one"),
    ({"ami": {"owners": "self", "nam": "debian-12-*"}}, "ami", "did you mean name?"),
    ({"ami": {"owners": ["debian"]}}, "ami", "'debian'"),
    ({"valid_ami_owners": [123456789012]}, "ami", "contradicts valid_ami_owners"),
    ({"valid_ami_location_regex": ".*"}, "ami", "valid_ami_location_regex"),
    ({"ami": None, "valid_ami_owners": ["debian"]}, "valid_ami_owners", "'debian'"),
    ({"ami": None, "valid_ami_owners": []}, "valid_ami_owners", "name at least one"),
    ({"ami": None, "valid_ami_location_regex": ".*"}, "valid_ami_owners", "goes with valid_ami_location_regex"),
    (
        {"ami": None, "valid_ami_owners": 123456789012, "valid_ami_location_regex": "("},
        "valid_ami_location_regex",
        "not a regular expression: '('",
    ),
    (
        {"ami": None, "valid_ami_owners": 123456789012, "valid_ami_location_regex": 5},
        "valid_ami_location_regex",
        "not a text: 5",
    ),
    ({"elastic_ip": "203.0.113"}, "elastic_ip", "neither an IPv4 address"),
    ({"elastic_ip": 5}, "elastic_ip", "neither an IPv4 address"),
    ({"volumes": "vol-1"}, "volumes", "not a list of pairs"),
    ({"volumes": [("vol-1",)]}, "volumes", "not a pair"),
    ({"volumes": [("snap-1", "/dev/sdf")]}, "volumes", "not the id of a volume"),
    ({"volumes": [("vol-1", "/mnt/data")]}, "volumes", "not a device name"),
    ({"identifier": "AKID"}, "identifier", "secret_identifier"),
    ({"aws_id_file_path": "/missing/aws_id"}, "aws_id_file_path", "No such file"),
    ({"aws_id_file_path": os.devnull}, "aws_id_file_path", "has not the id of an access key"),
    ({"aws_id_file_path": 5}, "aws_id_file_path", "cannot read 5"),
    ({"session": "default"}, "session", "not a boto3.Session"),
    ({"session": boto3.Session(), "identifier": "a", "secret_identifier": "b"}, "session", "identifier contradicts it"),
    ({"user_data": "x"}, "user_data", "give password"),
    ({"user_data": 5, "password": "fixed"}, "user_data", "not a text: int"),
    ({"user_data": "ä" * 8193, "password": "fixed"}, "user_data", "16,386 bytes"),
    ({**AS_IT_IS, "bb_master": "host"}, "user_data", "without bb_master"),
    ({**AS_IT_IS, "bootstrap_script": "#!/bin/sh\n"}, "user_data", "without bootstrap_script"),
    ({**AS_IT_IS, "bootstrap_env": {"A": "b"}}, "user_data", "without bootstrap_env"),
    ({"max_spot_price": 0}, "max_spot_price", "not a number from 0.0011 on: 0"),
    ({"max_spot_price": "1.6"}, "max_spot_price", "'1.6'"),
    ({"max_spot_price": float("nan")}, "max_spot_price", "nan"),
    ({"price_multiplier": -1}, "price_multiplier", "-1"),
    ({"price_multiplier": True}, "price_multiplier", "True"),
    ({"product_description": 5}, "product_description", "not a text: 5"),
    ({"spot_instance": "yes"}, "spot_instance", "neither True nor False: 'yes'"),
    ({"http_tokens": "none"}, "http_tokens", "'required', 'optional'"),
    ({"http_tokens": True}, "http_tokens", "'required', 'optional'"),
    ({"encrypted_volumes": "yes"}, "encrypted_volumes", "neither True nor False: 'yes'"),
    ({"encrypted_volumes": True, "ami": "resolve:ssm:/x"}, "encrypted_volumes", "not possible with an ami of resolve:"),
    (
        {"encrypted_volumes": True, "ami": None, "launch_template": "lt-1"},
        "encrypted_volumes",
        "the image of a launch template is not known",
    ),
    ({"launch_template": 5}, "launch_template", "Invalid type"),
    ({"launch_template": {"Name": "x"}}, "launch_template", 'Unknown parameter in LaunchTemplate: "Name"'),
    ({"max_launch_failures": -1}, "max_launch_failures", "-1"),
    ({"max_launch_failures": 2.5}, "max_launch_failures", "2.5"),
    ({"max_launch_failures": True}, "max_launch_failures", "True"),
    ({"owner": 5}, "owner", "not a text"),
    ({"owner": ""}, "owner", "not a text"),
    ({"owner": "x" * 257}, "owner", "256"),
    ({"capacity_memory": -1}, "capacity_memory", "not seconds: -1"),
    ({"capacity_memory": "180"}, "capacity_memory", "not seconds: '180'"),
    ({"capacity_memory": float("inf")}, "capacity_memory", "not seconds: inf"),
    ({"secret_identifier": "x"}, "identifier", "secret_identifier"),
    ({"region": "us-est-1"}, "region", "did you mean us-west-1, us-east-1"),
    ({"region": "Frankfurt"}, "region", "unknown region 'Frankfurt'"),
    ({"region": 5}, "region", "5"),
    ({"endpoint_url": "ec2.example.org"}, "endpoint_url", "not an http or https URL"),
    ({"endpoint_url": 5}, "endpoint_url", "not an http or https URL"),
    ({"endpoint_url": ""}, "endpoint_url", "not an http or https URL"),
    ({"endpoint_url": "https://ec2.example.org:port"}, "endpoint_url", "not an http or https URL"),
    ({"max_lifetime": 0}, "max_lifetime", "not a number of seconds"),
    ({"max_lifetime": "1h"}, "max_lifetime", "not a number of seconds"),
    ({"orphan_timeout": -1}, "orphan_timeout", "not a number of seconds"),
    ({"orphan_timeout": 60, "password": "fixed", "user_data": "x"}, "orphan_timeout", "not possible"),
    ({"identifier": 5, "secret_identifier": "x"}, "identifier", "not a text"),
    ({"build_wait_timeout": "x"}, "build_wait_timeout", "not a number"),
    ({"missing_timeout": "x"}, "missing_timeout", "not a number"),
    ({"api_limits": 5}, "api_limits", "not a dict"),
    ({"api_limits": {"RunInstance": (20, 5)}}, "api_limits", "did you mean RunInstances?"),
    ({"api_limits": {"RunInstances": 20}}, "api_limits", "not two numbers"),
    ({"bb_master": ""}, "bb_master", "neither host:port nor a host"),
    ({"bb_master": "host:0"}, "bb_master", "neither host:port nor a host"),
    ({"bb_master": "host:65536"}, "bb_master", "neither host:port nor a host"),
    ({"bb_master": "host:port"}, "bb_master", "neither host:port nor a host"),
    ({"bb_master": "host:²"}, "bb_master", "neither host:port nor a host"),
    ({"bb_master": ":9989"}, "bb_master", "neither host:port nor a host"),
    ({"bb_master": "host name:9989"}, "bb_master", "neither host:port nor a host"),
    ({"bb_master": 9989}, "bb_master", "neither host:port nor a host"),
    ({"market": "Spot"}, "market", "'spot-then-on-demand'"),
    ({"market": "on-demand", "spot_instance": True}, "spot_instance", "contradicts"),
    ({"security_name": "default", "subnet_id": "subnet-1"}, "security_name", "security_group_ids"),
    ({"security_group_ids": "sg-1"}, "security_group_ids", "list"),
    ({"subnet_id": [5]}, "subnet_id", "Invalid type"),
    ({"subnet_id": ["subnet-1", ""]}, "subnet_id", "''"),
    ({"keypair_name": 5}, "keypair_name", "Invalid type"),
    ({"security_name": ["default"]}, "security_name", "Invalid type"),
    ({"security_group_ids": ["sg-1", None]}, "security_group_ids", "SecurityGroupIds[1]"),
    ({"placement": 5}, "placement", "letter"),
    ({"region": "us-east-1", "placement": "us-east-1a"}, "placement", "letter"),
    ({"placement": "us-east-1a"}, "placement", "letter"),
    ({"placement": ""}, "placement", "letter"),
    ({"instance_profile_name": ["a"]}, "instance_profile_name", "Invalid type"),
    ({"tags": "cost=ci"}, "tags", "not a dict"),
    ({"tags": {"buildbot:worker": "me"}}, "tags", "are set for each launch"),
    ({"tags": {"a": 5}}, "tags", "not a text: 'a': 5"),
    ({"tags": {"aws:a": "b"}}, "tags", "AWS's own: 'aws:a'"),
    # EC2 user guide, "Tag your Amazon EC2 resources": at most 50 tags, keys of 128 characters, values of 256.
    ({"tags": {"k" * 129: "v"}}, "tags", "128"),
    ({"tags": {"k": "v" * 257}}, "tags", "256"),
    ({"tags": {f"k{number}": "v" for number in range(50)}}, "tags", "50"),
    ({"block_device_map": {"DeviceName": "/dev/sda1"}}, "block_device_map", "Invalid type"),
    ({"block_device_map": [{"Ebs": {"Size": 8}}]}, "block_device_map", "Unknown parameter"),
    ({"launch_options": "EbsOptimized"}, "launch_options", "not a dict"),
    ({"launch_options": {"EbsOptimised": True}}, "launch_options", "EbsOptimised"),
    ({"launch_options": {"UserData": "x"}}, "launch_options", "use bootstrap_script"),
    ({"launch_options": {"EbsOptimized": "yes"}}, "launch_options", "Invalid type for parameter EbsOptimized"),
    ({"launch_options": {"CpuOptions": {"CoreCount": "2"}}}, "launch_options", "CpuOptions.CoreCount"),
    ({"launch_options": {"CpuOptions": {"Cores": 2}}}, "launch_options", 'CpuOptions: "Cores"'),
    ({"launch_options": {"ImageId": "ami-2"}}, "launch_options", "ImageId contradicts ami"),
    ({"launch_options": {"DisableApiTermination": True}}, "launch_options", "nothing could end the instance"),
    ({"launch_options": {"InstanceMarketOptions": {}}}, "launch_options", "use market"),
    (
        {"launch_options": {"BlockDeviceMappings": DISKS}, "block_device_map": DISKS},
        "launch_options",
        "contradicts block_device_map",
    ),
    (
        {"launch_options": {"LaunchTemplate": {"LaunchTemplateId": "lt-1"}}, "launch_template": "lt-1"},
        "launch_options",
        "contradicts launch_template",
    ),
    (
        {"launch_options": {"MetadataOptions": {"HttpTokens": "optional"}}, "http_tokens": "optional"},
        "launch_options",
        "contradicts http_tokens",
    ),
    (
        {"launch_options": {"NetworkInterfaces": [{"DeviceIndex": 0}]}, "subnet_id": "subnet-1"},
        "launch_options",
        "subnet_id is to stand in those",
    ),
    ({"bootstrap_script": "missing.sh"}, "bootstrap_script", "there is no file 'missing.sh'"),
    ({"bootstrap_script": "http://example.org/a.sh"}, "bootstrap_script", "bootstrap_sha256"),
    ({"bootstrap_script": "#!/bin/sh\n" + "#" * 16384}, "bootstrap_script", "16,384"),
    ({"bootstrap_script": 5}, "bootstrap_script", "5"),
    ({"bootstrap_sha256": SHA256}, "bootstrap_sha256", "is for a script at a URL"),
    ({"bootstrap_sha256": 5, "bootstrap_script": "https://example.org/a.sh"}, "bootstrap_sha256", "not a SHA-256"),
    ({"bootstrap_env": ["A=b"]}, "bootstrap_env", "not a dict"),
    ({"bootstrap_env": {"A B": "c"}}, "bootstrap_env", "'A B'"),
    ({"bootstrap_env": {"BB_PASSWORD": "c"}}, "bootstrap_env", "BB_PASSWORD is not yours to set"),
    ({"bootstrap_env": {"A": None}}, "bootstrap_env", "A is not a text"),
    ({"bootstrap_env": {"A": "\ud800"}}, "bootstrap_env", "A is no text that UTF-8 can write"),
    ({"bootstrap_env": {"UID": "0"}}, "bootstrap_env", "UID is not yours to set"),
    ({"bootstrap_env": {"BB_REGION": "c"}}, "bootstrap_env", "BB_REGION is not yours to set"),
    ({"bootstrap_env": {"BB_TLS_CERT": "c"}}, "bootstrap_env", "BB_TLS_CERT is not yours to set"),
    ({"bootstrap_env": {"A": "b" * 16384}}, "bootstrap_script", "EC2 takes 16,384"),
    ({"bootstrap_script": "debain"}, "bootstrap_script", "did you mean debian?"),
    ({"bootstrap_script": "#!/bin/sh\n# ec2ud: include x.sh\n"}, "bootstrap_script", "line 2: there is no"),
    ({"bootstrap_script": "<powershell>" + "#" * 16384 + "</powershell>"}, "bootstrap_script", "16,384"),
    ({"bootstrap_script": "<powershell>x"}, "bootstrap_script", "</powershell>"),
    ({"bootstrap_insecure": "yes"}, "bootstrap_insecure", "neither True nor False: 'yes'"),
    ({"gzip_user_data": 1}, "gzip_user_data", "neither True nor False: 1"),
    ({"gzip_user_data": True, "bootstrap_script": "windows"}, "gzip_user_data", "Windows does not unpack it"),
    ({"gzip_user_data": True, "bootstrap_script": NOISE}, "bootstrap_script", "EC2 takes 16,384"),
    ({"bb_www": True, "bootstrap_env": {"A": "b" * 16384}}, "bootstrap_script", "EC2 takes 16,384"),
    ({"bb_www": 5}, "bb_www", "neither True nor an http or https URL: 5"),
    ({"bb_www": False}, "bb_www", "neither True nor"),
    ({"bb_www": ""}, "bb_www", "neither True nor"),
    ({"bb_www": "ci.example.org"}, "bb_www", "'ci.example.org'"),
    ({"bb_www": "ftp://ci.example.org/"}, "bb_www", "'ftp://ci.example.org/'"),
    ({"bb_www": "https://ci.example.org/?a=b"}, "bb_www", "?a=b"),
    ({"bb_www": "https://[ci/"}, "bb_www", "'https://[ci/'"),
    ({"bb_tls": 5}, "bb_tls", "neither True nor the path of a file: 5"),
    ({"bb_tls": False}, "bb_tls", "neither True nor the path"),
    ({"bb_tls": ""}, "bb_tls", "neither True nor the path"),
    ({"bb_tls": "missing.pem"}, "bb_tls", "missing.pem: No such file or directory"),
    ({"bb_tls": os.devnull}, "bb_tls", "has no certificate in PEM form"),
    ({"password": "a\nb", "bb_master": "host"}, "password", "is more than a line"),
    ({"password": "a\0b", "bb_master": "host"}, "password", "has a NUL in it"),
    ({**AS_IT_IS, "bootstrap_insecure": True}, "user_data", "without bootstrap_insecure"),
    ({**AS_IT_IS, "gzip_user_data": True}, "user_data", "without gzip_user_data"),
    ({**AS_IT_IS, "bb_www": True}, "user_data", "without bb_www"),
    ({**AS_IT_IS, "bb_tls": True}, "user_data", "without bb_tls"),
    ({"notify_on_missing": [5]}, "notify_on_missing", "5"),
    ({"instance_typ": "t3.micro"}, "instance_typ", "did you mean instance_type?"),
    ({"bootstrap_scripts": "a.sh"}, "bootstrap_scripts", "did you mean bootstrap_script?"),
    ({"build_wait_timout": 5}, "build_wait_timout", "did you mean build_wait_timeout?"),
    ({"zzz": 5}, "zzz", "unknown argument"),
)


class MistakeTests(SynchronousTestCase):
    """What is said of mistakes."""

    def setUp(self) -> None:
        environment(self, HOME=directory(self))

    def errors(self, name: str = "linux-1", **arguments: Any) -> list[str]:
        failure = self.assertRaises(ConfigErrors, EC2UserDataLatentWorker, name, **{**PLAIN, **arguments})
        return failure.errors

    def test_several_variables(self) -> None:
        """Each variable that cannot be given has a line of its own."""
        env = {"A": None, "fine": "x", "B": "\0"}
        raised = self.assertRaises(
            ConfigErrors, EC2UserDataLatentWorker, "w", instance_type="t3.micro", ami="ami-1", bootstrap_env=env
        )
        self.assertEqual(
            raised.errors,
            [
                "worker w: bootstrap_env: A is not a text: NoneType",
                "worker w: bootstrap_env: B has a NUL in it",
            ],
        )

    def test_mistakes(self) -> None:
        """Each is one error, which names the worker and the argument."""
        found = [(arguments, self.lines(arguments)) for arguments, _, _ in MISTAKES]
        expected = [
            len(lines) == 1 and lines[0].startswith(f"worker linux-1: {argument}") and words in lines[0]
            for (_, lines), (_, argument, words) in zip(found, MISTAKES, strict=True)
        ]
        self.assertEqual([one for one, right in zip(found, expected, strict=True) if not right], [])

    def lines(self, arguments: dict[str, Any]) -> list[str]:
        """What is said of these arguments; nothing, if nothing is wrong."""
        with capture_config_errors() as captured:
            EC2UserDataLatentWorker("linux-1", **{**PLAIN, **arguments})
        return captured.errors

    def test_in_a_build(self) -> None:
        """What is known only at a build is no mistake, wherever it stands; what stands beside it is checked."""
        later = util.Property("later")
        for name in (
            *("instance_type", "ami", "keypair_name", "security_name", "security_group_ids", "instance_profile_name"),
            *("subnet_id", "tags", "placement", "block_device_map", "market", "spot_instance", "max_spot_price"),
            *("price_multiplier", "product_description", "http_tokens", "encrypted_volumes", "launch_template"),
            *("launch_options", "bootstrap_env"),
        ):
            EC2UserDataLatentWorker("linux-1", **{**PLAIN, name: later})
        for name in ("valid_ami_owners", "valid_ami_location_regex"):
            arguments = {"ami": None, "valid_ami_owners": "self", "valid_ami_location_regex": ".*", name: later}
            EC2UserDataLatentWorker("linux-1", **{**PLAIN, **arguments})
        EC2UserDataLatentWorker("linux-1", **{**PLAIN, **AS_IT_IS, "user_data": later})
        for arguments, words in (
            ({"tags": {"cost": later, "aws:a": "b"}}, "tags: names that begin with aws:"),
            ({"subnet_id": [later, 5]}, "Invalid type for parameter SubnetId"),
            ({"launch_options": {"EbsOptimized": later, "Monitorin": {}}}, "Monitorin"),
            ({"block_device_map": [{"DeviceName": later}, {"DeviceName": 5}]}, "block_device_map: Invalid type"),
            ({"bootstrap_env": {"A": later, "B": None}}, "bootstrap_env: B is not a text"),
            ({"market": "on-demand", "spot_instance": True, "ami": later}, "spot_instance: contradicts"),
        ):
            [error] = self.errors(**arguments)
            self.assertIn(words, error)

    def test_what_depends_on_builds(self) -> None:
        """Only that is rendered for each build; and a renderable is found wherever it stands."""
        later = util.Property("later")
        for arguments, depends in (
            ({}, False),
            (
                {"tags": {"a": "b"}, "bootstrap_env": {"A": "b"}, "launch_options": {"Monitoring": {"Enabled": True}}},
                False,
            ),
            ({"tags": {"a": later}}, True),
            ({"subnet_id": ["subnet-1", later]}, True),
            ({"launch_options": {"Placement": {"Tenancy": later}}}, True),
            ({"bootstrap_env": {"A": later}}, True),
            ({"bootstrap_env": later}, True),
            ({**AS_IT_IS, "user_data": later}, True),
            ({"ami": lambda worker, build: "ami-1"}, True),
        ):
            worker = EC2UserDataLatentWorker("linux-1", **{**PLAIN, **arguments})
            rendered: list[Any] = []
            properties = mock.Mock(render=rendered.append)
            result = worker.render_shape(worker.settings, properties)
            self.assertEqual(rendered, [worker.settings.shape] if depends else [], arguments)
            if not depends:
                self.assertEqual(self.successResultOf(result), worker.settings.shape)

    def test_default_aws_id(self) -> None:
        """The file that is read where nothing else is given is checked as one that is named."""
        home = directory(self)
        environment(self, HOME=home)
        os.mkdir(os.path.join(home, ".ec2"))
        write(home, ".ec2/aws_id", "AKID\n")
        [error] = self.errors()
        self.assertIn("has not the id of an access key", error)
        self.assertTrue(error.startswith("worker linux-1: aws_id_file_path: "), error)
        EC2UserDataLatentWorker("linux-1", **PLAIN, identifier="a", secret_identifier="b")
        EC2UserDataLatentWorker("linux-1", **PLAIN, session=boto3.Session())
        write(home, ".ec2/aws_id", "AKID\nsecret\n")
        EC2UserDataLatentWorker("linux-1", **PLAIN)

    def test_wrong_type_of_properties(self) -> None:
        """What Buildbot's own class cannot take at all is told of the worker, too."""
        for name in ("properties", "defaultProperties"):
            [error] = self.errors(**{name: 5})
            self.assertTrue(error.startswith(f"worker linux-1: {name}"), error)

    def test_all_at_once(self) -> None:
        """All mistakes are told in one go, Buildbot's own among them."""
        errors = self.errors(
            ami=None,
            region="us-est-1",
            bb_master="host:0",
            market="x",
            bootstrap_env={"A B": "c"},
            bootstrap_script="missing.sh",
            notify_on_missing=[5],
            zzz=5,
        )
        self.assertEqual(
            sorted(error.removeprefix("worker linux-1: ").partition(":")[0].split()[0] for error in errors),
            ["ami", "bb_master", "bootstrap_env", "bootstrap_script", "market", "notify_on_missing", "region", "zzz"],
        )

    def test_two_workers(self) -> None:
        """While a configuration loads, the mistakes of all workers are collected."""
        with capture_config_errors() as captured:
            first = EC2UserDataLatentWorker("one", **{**PLAIN, "ami": None, "market": "x"})
            EC2UserDataLatentWorker("two", **{**PLAIN, "tags": "cost=ci"})
        self.assertEqual(first.name, "one")
        self.assertEqual(
            [error.partition(": ")[2].partition(":")[0] for error in captured.errors], ["ami", "market", "tags"]
        )
        self.assertEqual([error.split(":")[0] for error in captured.errors], ["worker one", "worker one", "worker two"])

    def test_no_secret(self) -> None:
        """No mistake tells a secret."""
        text = "\n".join(
            self.errors(
                password="s3cret-a",
                identifier="AKID",
                secret_identifier="s3cret-b",
                bootstrap_env={"A": ["s3cret-c"]},
                zzz=1,
            )
        )
        self.assertNotIn("s3cret", text)
        self.assertIn("bootstrap_env", text)
        text = "\n".join(self.errors(password="s3cret-a\n", bb_master="host"))
        self.assertNotIn("s3cret", text)
        self.assertIn("password", text)
        text = "\n".join(self.errors(password="s3cret-a", user_data=["s3cret-b"]))
        self.assertNotIn("s3cret", text)
        self.assertIn("user_data", text)
        text = "\n".join(self.errors(bootstrap_env=["TOKEN=s3cret-c"]))
        self.assertNotIn("s3cret", text)
        self.assertIn("bootstrap_env: not a dict: list", text)
        path = write(directory(self), "aws_id", "s3cret-a")
        text = "\n".join(self.errors(aws_id_file_path=path))
        self.assertNotIn("s3cret", text)
        self.assertIn("aws_id_file_path", text)


class EnvironmentTests(SynchronousTestCase):
    """What is said of mistakes in AWS's own settings and the environment."""

    def errors(self, variables: dict[str, str], **arguments: Any) -> list[str]:
        """The lines for one worker, without its name."""
        environment(self, HOME=directory(self), **variables)
        with capture_config_errors() as captured:
            EC2UserDataLatentWorker("linux-1", **{**PLAIN, **arguments})
        return [error.removeprefix("worker linux-1: ") for error in captured.errors]

    def test_mistakes(self) -> None:
        """Each is one line that names what is to blame."""
        empty = write(directory(self), "empty.pem", "")
        for variables, arguments, blamed, words in (
            ({"AWS_DEFAULT_REGION": "us-est-1"}, {}, "region", "did you mean"),
            ({"AWS_PROFILE": "farm"}, {}, "region", "(farm)"),
            ({"AWS_PROFILE": "farm"}, {"region": "us-east-1"}, "AWS's own settings cannot be read", "(farm)"),
            ({"AWS_ENDPOINT_URL_EC2": "ec2.lab"}, {}, "endpoint_url", "'ec2.lab'"),
            ({"AWS_ENDPOINT_URL": "ftp://ec2.lab"}, {"region": "us-east-1"}, "endpoint_url", "'ftp://ec2.lab'"),
            ({"HTTPS_PROXY": "socks5://proxy"}, {}, "HTTPS_PROXY", "SOCKS"),
            ({"https_proxy": "http://"}, {"endpoint_url": "https://ec2.lab"}, "https_proxy", "no host"),
            ({"HTTP_PROXY": "http://:1"}, {"endpoint_url": "http://ec2.lab"}, "HTTP_PROXY", "no host"),
            ({"HTTP_PROXY": "http://:1", "AWS_ENDPOINT_URL": "http://ec2.lab"}, {}, "HTTP_PROXY", "no host"),
            ({"AWS_CA_BUNDLE": "/missing/ca.pem"}, {}, "AWS_CA_BUNDLE", "'/missing/ca.pem'"),
            ({"AWS_CA_BUNDLE": empty}, {"endpoint_url": "https://ec2.lab"}, "AWS_CA_BUNDLE", "no certificate"),
        ):
            errors = self.errors(variables, **arguments)
            self.assertEqual(len(errors), 1, (variables, errors))
            self.assertEqual(errors[0].partition(":")[0], blamed)
            self.assertIn(words, errors[0])

    def test_profile(self) -> None:
        """A bundle of the profile is named as there."""
        path = write(directory(self), "config", "[default]\nca_bundle = /missing/ca.pem\n")
        self.assertEqual(
            self.errors({"AWS_CONFIG_FILE": path}),
            ["ca_bundle: cannot read '/missing/ca.pem': No such file or directory"],
        )

    def test_impossible(self) -> None:
        """An endpoint that does not exist is told as a matter of the region."""

        def resolve_endpoint(**_: Any) -> Any:
            raise EndpointResolutionError(msg="FIPS is enabled but this partition does not support FIPS")

        self.patch(endpoints._rules(), "resolve_endpoint", resolve_endpoint)
        [error] = self.errors({"AWS_USE_FIPS_ENDPOINT": "true"}, region="us-east-1")
        self.assertTrue(error.startswith("region: no endpoint for 'us-east-1': FIPS is enabled"), error)

    def test_arguments_win(self) -> None:
        """What an argument decides, the environment cannot spoil."""
        for variables, arguments in (
            ({"AWS_DEFAULT_REGION": "us-est-1"}, {"region": "us-east-1"}),
            ({"AWS_ENDPOINT_URL": "nonsense"}, {"endpoint_url": "https://ec2.lab"}),
            ({"HTTPS_PROXY": "socks5://proxy"}, {"endpoint_url": "https://127.0.0.1:5000"}),
            ({"HTTPS_PROXY": "socks5://proxy", "NO_PROXY": "ec2.lab"}, {"endpoint_url": "https://ec2.lab"}),
            ({"HTTPS_PROXY": "http://proxy:3128"}, {}),
            ({"AWS_ENDPOINT_URL": "https://ec2.lab"}, {"region": "lab-one"}),
        ):
            self.assertEqual(self.errors(variables, **arguments), [], variables)

    def test_all_at_once(self) -> None:
        """One mistake does not hide another."""
        errors = self.errors(
            {"AWS_CA_BUNDLE": "/missing/ca.pem", "HTTPS_PROXY": "socks5://proxy"}, endpoint_url="https://ec2.lab"
        )
        self.assertEqual([error.partition(":")[0] for error in errors], ["HTTPS_PROXY", "AWS_CA_BUNDLE"])
        errors = self.errors({"AWS_PROFILE": "farm"}, region="us-est-1", endpoint_url="nonsense")
        self.assertEqual(
            [error.partition(":")[0] for error in errors], ["AWS's own settings cannot be read", "endpoint_url"]
        )

    def test_many_workers(self) -> None:
        """Many workers read AWS's own settings once."""
        environment(self, HOME=directory(self))
        sessions = []
        session = endpoints.Session
        self.patch(endpoints, "Session", lambda: sessions.append(session()) or sessions[-1])
        for number in range(30):
            EC2UserDataLatentWorker(f"linux-{number}", **PLAIN)
        self.assertEqual(len(sessions), 1)
