"""What an error means to a person, and what becomes of many findings."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.ec2.errors import BadParameters, EC2Error, NoAnswer, NoCredentials, NotConnected
from buildbot_ec2ud.preflight import findings
from buildbot_ec2ud.preflight.findings import Finding, State, exit_status, merge, of_error
from tests.unit.servers import error

#: The form that AWS's own message has.
PASS_ROLE = (
    "You are not authorized to perform this operation. User: arn:aws:iam::123456789012:user/bb is not authorized to "
    "perform: iam:PassRole on resource: arn:aws:iam::123456789012:role/builder because no identity-based policy allows "
    "the iam:PassRole action"
)


def refused(code: str, message: str = "Because.", status: int = 400) -> EC2Error:
    return EC2Error(error(code, message), status)


def finding(state: State = State.OK, text: str = "t", *workers: str) -> Finding:
    return Finding(state, "p", "s", text, "", workers)


class Errors(SynchronousTestCase):
    def test_permission(self) -> None:
        """The permission that AWS names, which need not be that of the call; and ours where it names none."""
        for message, permission in ((PASS_ROLE, "iam:PassRole"), ("You are not authorized.", "ec2:RunInstances")):
            state, text, fix = of_error(refused("UnauthorizedOperation", message, 403), "RunInstances")
            self.assertIs(state, State.PROBLEM)
            self.assertTrue(text.startswith(f"{permission} is not allowed"), text)
            self.assertIn(findings.POLICY, fix)

    def test_permission_of_the_check(self) -> None:
        """What only a check needs is no problem."""
        state, text, fix = of_error(refused("UnauthorizedOperation", "no", 403), "DescribeSubnets", only_checked=True)
        self.assertEqual((state, text), (State.UNASKED, "ec2:DescribeSubnets is not allowed"))
        self.assertIn("ec2:DescribeSubnets", fix)

    def test_fixes(self) -> None:
        """Each says what to do: the argument, or whom to ask."""
        for code, words in (
            ("InvalidAMIID.NotFound", "ami"),
            ("InvalidSubnetID.NotFound", "subnet_id"),
            ("InvalidGroup.NotFound", "security_group_ids"),
            ("InvalidKeyPair.NotFound", "keypair_name"),
            ("InvalidLaunchTemplateId.NotFound", "launch_template"),
            ("InvalidUserData.Malformed", "user-data"),
            ("OptInRequired", "Marketplace"),
            ("Unsupported", "instance_type"),
            ("VPCIdNotSpecified", "default VPC"),
            ("VcpuLimitExceeded", "quota"),
            ("AuthFailure", "credentials"),
            ("InvalidSecurity.RequestHasExpired", "NTP"),
            ("InvalidParameterCombination", "argument"),
        ):
            state, text, fix = of_error(refused(code), "RunInstances")
            self.assertIs(state, State.PROBLEM, code)
            self.assertIn(code, text)
            self.assertIn(words, fix, code)

    def test_profile(self) -> None:
        """EC2 has no code of its own for it."""
        wrong = refused("InvalidParameterValue", "Value (x) for parameter iamInstanceProfile.name is invalid.")
        self.assertIn("instance_profile_name", of_error(wrong, "RunInstances")[2])

    def test_unanswered(self) -> None:
        """Nobody knows, and a later attempt may have another answer."""
        for wrong in (NoAnswer("x"), NotConnected("x"), refused("RequestLimitExceeded", status=503)):
            state, text, fix = of_error(wrong, "RunInstances")
            self.assertIs(state, State.UNASKED)
            self.assertTrue(text and fix)

    def test_others(self) -> None:
        for wrong in (NoCredentials("x"), BadParameters("x")):
            state, text, fix = of_error(wrong, "RunInstances")
            self.assertEqual((state, text), (State.PROBLEM, "x"))
            self.assertTrue(fix)


class Many(SynchronousTestCase):
    def test_exit_status(self) -> None:
        """A problem weighs more than what could not be asked; what only a build knows does not count."""
        for states, status in (
            ((), 0),
            ((State.OK, State.LATER), 0),
            ((State.OK, State.UNASKED), 3),
            ((State.UNASKED, State.PROBLEM, State.OK), 1),
        ):
            self.assertEqual(exit_status([finding(state) for state in states]), status)

    def test_merge(self) -> None:
        """One line for all workers of which the same is said, where the first was."""
        several = [
            finding(State.OK, "x", "a"),
            finding(State.OK, "y", "a"),
            finding(State.OK, "x", "b"),
            finding(State.PROBLEM, "x", "c"),
            finding(State.OK, "x", "a"),
        ]
        self.assertEqual(
            merge(several),
            [finding(State.OK, "x", "a", "b"), finding(State.OK, "y", "a"), finding(State.PROBLEM, "x", "c")],
        )

    def test_line(self) -> None:
        """One line, however many the workers are."""
        line = str(Finding(State.PROBLEM, "p", "key pair k", "is not there", "make it", ("a", "b", "c", "d", "e")))
        self.assertEqual(line, "problem   key pair k: is not there; make it  [a, b, c and 2 more]")
        self.assertEqual(str(finding()), "ok        s: t")
