"""contrib/iam-policy.json: every action that the code calls, and nothing else; and no more of each than is needed."""

from __future__ import annotations

import ast
import functools
import json
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

import buildbot_ec2ud
from buildbot_ec2ud.ec2 import shapes
from buildbot_ec2ud.ec2.client import EC2Client
from buildbot_ec2ud.ec2.surroundings import SurroundingsClient
from buildbot_ec2ud.fleet.offer import MASTER_TAG
from buildbot_ec2ud.launch import LaunchConfig
from buildbot_ec2ud.parameters import Names, run_instances

PACKAGE = Path(buildbot_ec2ud.__file__).parent
POLICY = json.loads(PACKAGE.parent.joinpath("contrib", "iam-policy.json").read_text(encoding="utf-8"))
STATEMENTS: dict[str, Any] = {statement["Sid"]: statement for statement in POLICY["Statement"]}

#: What AWS asks for besides the call itself, with the parameter that makes it do so.
ALONG = {"ec2:CreateTags": "TagSpecifications", "iam:PassRole": "IamInstanceProfile", "ssm:GetParameters": "ImageId"}
#: Calls that only look: AWS knows no resources for most of them.
LOOKS = ("ec2:Describe",)


def several(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def allowed(*sids: str) -> list[str]:
    """The actions of some statements; of all, unless some are named."""
    return [action for sid in sids or STATEMENTS for action in several(STATEMENTS[sid]["Action"])]


@functools.cache
def modules() -> tuple[tuple[Path, ast.Module], ...]:
    """The package, but for what answers calls."""
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] != "embedded"]
    return tuple((path, ast.parse(path.read_text(encoding="utf-8"))) for path in paths)


def called(*files: str) -> set[str]:
    """The actions that the code calls: what stands first in a call of the client's own way to EC2.

    :param files: names of files of ``ec2/``; every file of the package unless some are named.
    """
    found = set()
    for path, tree in modules():
        if files and path.name not in files:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                ways = ("_call", "_pages", "dry_run", "_may")
                if node.func.attr in ways and node.args and isinstance(node.args[0], ast.Constant):
                    found.add(f"ec2:{node.args[0].value}")
    return found


class PolicyTests(SynchronousTestCase):
    def test_actions(self) -> None:
        """As many as the code needs."""
        self.assertGreater(len(called()), 15)
        self.assertEqual(sorted(set(allowed())), sorted(called() | set(ALONG)))

    def test_known(self) -> None:
        """They are actions of EC2's, in full: no wildcard."""
        known = {f"ec2:{action}" for action in shapes.actions()}
        self.assertEqual([action for action in allowed() if action.startswith("ec2:") and action not in known], [])

    def test_no_other_way(self) -> None:
        """No query is made anywhere else; and nobody calls one of txAWS's own calls, which would be missing above."""
        makers, methods = [], set()
        for path, tree in modules():
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    if node.func.attr == "query_factory":
                        makers.append(path.name)
                    if isinstance(node.func.value, (ast.Attribute, ast.Name)):
                        owner = getattr(node.func.value, "attr", None) or getattr(node.func.value, "id", "")
                        if owner.endswith("client"):
                            methods.add(node.func.attr)
        self.assertEqual(makers, ["client.py"])
        self.assertIn("describe_instances", methods)
        own = {name for cls in (EC2Client, SurroundingsClient) for name in vars(cls)}
        theirs = {name for name in vars(EC2Client.__base__) if not name.startswith("_")} - own
        self.assertIn("create_volume", theirs)
        self.assertEqual(methods & theirs, set())

    def test_along(self) -> None:
        """What AWS asks for besides is asked for by parameters that a launch has."""
        launch = LaunchConfig(ami="resolve:ssm:/aws/x", instance_profile_name="builder")
        asked = run_instances(launch, Names("m", "w", "l"), b"", "t3.micro", None, "on-demand")
        self.assertEqual(set(ALONG.values()) - set(asked), set())
        kinds = {one["ResourceType"] for one in asked["TagSpecifications"]}
        for sid in ("LaunchWithTheTagOfAMaster", "TagOnlyWhatIsLaunched"):
            resources = {resource.rpartition(":")[2].removesuffix("/*") for resource in STATEMENTS[sid]["Resource"]}
            self.assertEqual(resources, kinds)

    def test_check(self) -> None:
        """What only ``buildbot-ec2ud check`` asks is in a statement of its own, to be left out."""
        self.assertEqual(set(allowed("CheckBeforeLaunching")), called("surroundings.py") - called("client.py"))

    def test_changes(self) -> None:
        """Whatever changes something is bound to resources; an instance, to the tag that a launch gives it."""
        for statement in STATEMENTS.values():
            changing = [action for action in several(statement["Action"]) if not action.startswith(LOOKS)]
            if not changing:
                continue
            resources = several(statement["Resource"])
            self.assertNotIn("*", resources, statement["Sid"])
            if any(resource.endswith(":instance/*") for resource in resources):
                keys = {key for condition in statement["Condition"].values() for key in condition}
                where = "aws:RequestTag" if "ec2:RunInstances" in changing else "ec2:ResourceTag"
                self.assertEqual(
                    keys, {"ec2:CreateAction"} if changing == ["ec2:CreateTags"] else {f"{where}/{MASTER_TAG}"}
                )

    def test_pass_role(self) -> None:
        """It is alone, for whoever edits it, and for EC2 only."""
        (statement,) = (one for one in STATEMENTS.values() if "iam:PassRole" in several(one["Action"]))
        self.assertEqual(several(statement["Action"]), ["iam:PassRole"])
        self.assertIn("iam:PassedToService", str(statement["Condition"]))
        self.assertNotIn("*", statement["Resource"])

    def test_size(self) -> None:
        """IAM takes 6,144 characters in a policy of one's own, without white space ("IAM and AWS STS quotas")."""
        self.assertLess(len(json.dumps(POLICY, separators=(",", ":"))), 6144)
