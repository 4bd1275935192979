"""A worker's configuration: what is said of mistakes, without asking anybody."""

from __future__ import annotations

from typing import Any

from buildbot.config import ConfigErrors
from buildbot.config.errors import capture_config_errors
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.settings import NOT_YET
from buildbot_ec2ud.worker import EC2UserDataLatentWorker

PLAIN: dict[str, Any] = {"instance_type": "t3.micro", "ami": "ami-1"}
SHA256 = "0123456789abcdef" * 4

#: Arguments, the one that is to blame, and what is said of it.
MISTAKES: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"instance_type": None}, "instance_type", "name an EC2 instance type"),
    ({"instance_type": []}, "instance_type", "name an EC2 instance type"),
    ({"instance_type": 5}, "instance_type", "Invalid type"),
    ({"ami": None}, "ami", "name an image"),
    ({"ami": 5}, "ami", "Invalid type"),
    ({"identifier": "AKID"}, "identifier", "secret_identifier"),
    ({"secret_identifier": "x"}, "identifier", "secret_identifier"),
    ({"region": "us-est-1"}, "region", "did you mean us-west-1, us-east-1"),
    ({"region": "Frankfurt"}, "region", "unknown region 'Frankfurt'"),
    ({"region": 5}, "region", "5"),
    ({"endpoint_url": "ec2.example.org"}, "endpoint_url", "not an http or https URL"),
    ({"endpoint_url": 5}, "endpoint_url", "not an http or https URL"),
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
    ({"keypair_name": 5}, "keypair_name", "Invalid type"),
    ({"placement": 5}, "placement", "letter"),
    ({"region": "us-east-1", "placement": "us-east-1a"}, "placement", "letter"),
    ({"instance_profile_name": ["a"]}, "instance_profile_name", "Invalid type"),
    ({"tags": "cost=ci"}, "tags", "not a dict"),
    ({"tags": {"buildbot:worker": "me"}}, "tags", "are set for each launch"),
    ({"block_device_map": {"DeviceName": "/dev/sda1"}}, "block_device_map", "Invalid type"),
    ({"block_device_map": [{"Ebs": {"Size": 8}}]}, "block_device_map", "Unknown parameter"),
    ({"launch_options": "EbsOptimized"}, "launch_options", "not a dict"),
    ({"launch_options": {"EbsOptimised": True}}, "launch_options", "EbsOptimised"),
    ({"launch_options": {"UserData": "x"}}, "launch_options", "use bootstrap_script"),
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
    ({"notify_on_missing": [5]}, "notify_on_missing", "5"),
    ({"instance_typ": "t3.micro"}, "instance_typ", "did you mean instance_type?"),
    ({"bootstrap_scripts": "a.sh"}, "bootstrap_scripts", "did you mean bootstrap_script?"),
    ({"build_wait_timout": 5}, "build_wait_timout", "did you mean build_wait_timeout?"),
    ({"zzz": 5}, "zzz", "unknown argument"),
)


class MistakeTests(SynchronousTestCase):
    """What is said of mistakes."""

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
        for arguments, argument, words in MISTAKES:
            errors = self.errors(**arguments)
            self.assertEqual(len(errors), 1, (arguments, errors))
            self.assertTrue(errors[0].startswith("worker linux-1: "), errors)
            self.assertIn(argument, errors[0])
            self.assertIn(words, errors[0])

    def test_not_yet(self) -> None:
        """An argument of the contract that does nothing yet is refused, not ignored."""
        for argument in NOT_YET:
            self.assertEqual(self.errors(**{argument: "x"}), [f"worker linux-1: {argument}: not supported yet"])

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
