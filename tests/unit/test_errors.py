"""What each of EC2's errors asks the caller to do, and what is told of it."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.ec2.errors import (
    EC2CallError,
    EC2Error,
    ErrorClass,
    NoAnswer,
    NoCredentials,
    NotConnected,
    classify,
    classify_end,
)

BLOB = "9Zx-Yw_" * 40


def body(*errors: tuple[str, str]) -> bytes:
    items = "".join(f"<Error><Code>{code}</Code><Message>{message}</Message></Error>" for code, message in errors)
    return f"<Response><Errors>{items}</Errors><RequestID>r-1</RequestID></Response>".encode()


class ClassifyTests(SynchronousTestCase):
    """The table of codes."""

    def test_table(self) -> None:
        """Codes of every class, with the status that EC2 sends them with."""
        for code, status, expected in (
            ("RequestLimitExceeded", 503, ErrorClass.THROTTLED),
            ("Throttling", 400, ErrorClass.THROTTLED),
            ("EC2ThrottledException", 503, ErrorClass.THROTTLED),
            ("Unavailable", 503, ErrorClass.SERVER_FAULT),
            ("InternalError", 500, ErrorClass.SERVER_FAULT),
            ("ServiceUnavailable", 400, ErrorClass.SERVER_FAULT),
            ("InsufficientInstanceCapacity", 500, ErrorClass.NO_CAPACITY),
            ("InsufficientFreeAddressesInSubnet", 400, ErrorClass.NO_CAPACITY),
            ("UnfulfillableCapacity", 400, ErrorClass.NO_CAPACITY),
            ("SpotMaxPriceTooLow", 400, ErrorClass.NO_CAPACITY),
            ("Unsupported", 400, ErrorClass.NO_CAPACITY),
            ("VcpuLimitExceeded", 400, ErrorClass.QUOTA),
            ("InstanceLimitExceeded", 400, ErrorClass.QUOTA),
            ("MaxSpotInstanceCountExceeded", 400, ErrorClass.QUOTA),
            ("InvalidInstanceID.NotFound", 400, ErrorClass.NOT_VISIBLE_YET),
            ("VolumeInUse", 400, ErrorClass.IN_USE),
            ("IncorrectState", 400, ErrorClass.IN_USE),
            ("InvalidAssociationID.NotFound", 400, ErrorClass.GONE),
            ("AuthFailure", 401, ErrorClass.CREDENTIALS),
            ("ExpiredToken", 400, ErrorClass.CREDENTIALS),
            ("RequestExpired", 400, ErrorClass.CREDENTIALS),
            ("SignatureDoesNotMatch", 403, ErrorClass.CREDENTIALS),
            ("InvalidClientTokenId", 403, ErrorClass.CREDENTIALS),
            ("InvalidSecurity.RequestHasExpired", 400, ErrorClass.CLOCK),
            ("IdempotentInstanceTerminated", 400, ErrorClass.STALE_TOKEN),
            ("IdempotentParameterMismatch", 400, ErrorClass.STALE_TOKEN),
            ("UnauthorizedOperation", 403, ErrorClass.CONFIGURATION),
            ("MissingParameter", 400, ErrorClass.CONFIGURATION),
            ("OptInRequired", 401, ErrorClass.CONFIGURATION),
            ("SomethingNew", 400, ErrorClass.UNKNOWN),
            ("", 400, ErrorClass.UNKNOWN),
        ):
            self.assertIs(classify(code, status), expected, code)

    def test_prefix(self) -> None:
        """Whatever EC2 calls invalid, somebody has to correct; but what is in the table goes first."""
        for code in ("InvalidAMIID.NotFound", "InvalidParameterValue", "InvalidUserData.Malformed", "InvalidNew.Thing"):
            self.assertIs(classify(code), ErrorClass.CONFIGURATION, code)

    def test_status(self) -> None:
        """An unknown code with a server's status is the server's fault, whatever its name."""
        for code in ("SomethingNew", "InvalidNew.Thing", ""):
            self.assertIs(classify(code, 500), ErrorClass.SERVER_FAULT, code)
            self.assertIs(classify(code, 503), ErrorClass.SERVER_FAULT, code)

    def test_every_class_says_what_to_do(self) -> None:
        """No two classes ask for the same."""
        self.assertEqual(len({kind.value for kind in ErrorClass}), len(list(ErrorClass)))
        self.assertTrue(all(kind.value for kind in ErrorClass))


class EndTests(SynchronousTestCase):
    def test_table(self) -> None:
        """What the end of an instance asks for; of code and message, the one that says more."""
        for code, message, kind in (
            ("Server.InternalError", "Server.InternalError: Internal error on launch", ErrorClass.UNKNOWN),
            ("Server.InternalError", "Client.VolumeLimitExceeded: Volume limit exceeded", ErrorClass.QUOTA),
            ("Client.InternalError", "Client.InternalError: Client error on launch", ErrorClass.CONFIGURATION),
            ("Client.InvalidSnapshot.NotFound", "", ErrorClass.CONFIGURATION),
            ("Server.SpotInstanceTermination", "Server.SpotInstanceTermination: Spot", ErrorClass.NO_CAPACITY),
            ("Client.InstanceInitiatedShutdown", "Client.InstanceInitiatedShutdown: ...", ErrorClass.UNKNOWN),
            ("", "", ErrorClass.UNKNOWN),
        ):
            self.assertIs(classify_end(code, message), kind, (code, message))


class OutcomeTests(SynchronousTestCase):
    """Whether a call that failed may have taken effect."""

    def test_outcome(self) -> None:
        """Only where there was no usable answer, or the server had a fault."""
        self.assertTrue(NoAnswer("").outcome_unknown)
        self.assertFalse(NotConnected("").outcome_unknown)
        self.assertFalse(NoCredentials("").outcome_unknown)
        self.assertTrue(EC2Error(body(("InternalError", "")), 500).outcome_unknown)
        self.assertFalse(EC2Error(body(("InsufficientInstanceCapacity", "")), 500).outcome_unknown)
        self.assertFalse(EC2Error(body(("RequestLimitExceeded", "")), 503).outcome_unknown)
        self.assertFalse(EC2Error(body(("InvalidAMIID.NotFound", "")), 400).outcome_unknown)

    def test_one_base(self) -> None:
        """Whoever catches the base class catches them all."""
        for kind in (NoAnswer, NotConnected, NoCredentials, EC2Error):
            self.assertTrue(issubclass(kind, EC2CallError))


class EC2ErrorTests(SynchronousTestCase):
    """What is told of a refusal."""

    def test_authorization_blob(self) -> None:
        """The encoded authorization message is cut from what people see, and kept for the administrator."""
        text = f"You are not authorized to perform: ec2:RunInstances. Encoded authorization failure message: {BLOB}"
        error = EC2Error(body(("UnauthorizedOperation", text)), 403)
        self.assertEqual(error.message, "You are not authorized to perform: ec2:RunInstances.")
        self.assertEqual(str(error), "UnauthorizedOperation: You are not authorized to perform: ec2:RunInstances.")
        self.assertNotIn(BLOB, repr(error))
        self.assertIn(BLOB.encode(), error.original)

    def test_text_behind_the_blob(self) -> None:
        """Only the blob is cut."""
        text = f"No. Encoded authorization failure message: {BLOB} Ask your administrator."
        self.assertEqual(EC2Error(body(("X", text)), 403).message, "No. Ask your administrator.")

    def test_several(self) -> None:
        """Of several errors the first decides; all are kept."""
        error = EC2Error(body(("VcpuLimitExceeded", "Too many"), ("InternalError", "Oops")), 400)
        self.assertEqual(str(error), "VcpuLimitExceeded: Too many")
        self.assertIs(error.error_class, ErrorClass.QUOTA)
        self.assertEqual([e["Code"] for e in error.errors], ["VcpuLimitExceeded", "InternalError"])
        self.assertIn("VcpuLimitExceeded", repr(error))

    def test_one_line(self) -> None:
        """The text is one line, whatever EC2 sends."""
        error = EC2Error(body(("X", "  one\r\n  two\t\u2028three  ")), 400)
        self.assertEqual(str(error), "X: one two three")

    def test_incomplete(self) -> None:
        """A code or a message may be missing."""
        self.assertEqual(str(EC2Error(body(("X", "")), 400)), "X")
        error = EC2Error(body(("", "Because.")), 400)
        self.assertEqual((error.code, str(error)), ("", "Because."))
        self.assertIn("Because.", repr(error))

    def test_namespace(self) -> None:
        """An error in a namespace is one too."""
        error = EC2Error(
            body(("X", "Y")).replace(b"<Response>", b'<Response xmlns="http://ec2.amazonaws.com/doc/">'), 400
        )
        self.assertEqual(error.code, "X")

    def test_request_id(self) -> None:
        """The id that AWS's support asks for is kept, for every status."""
        for status in (400, 503):
            self.assertEqual(EC2Error(body(("X", "Y")), status).request_id, "r-1")

    def test_no_error_in_it(self) -> None:
        """What has no error in it is not EC2's error."""
        for answer in (
            b"",
            b"<Response/>",
            b"<Response><Errors/></Response>",
            b"<Response><Errors><Error/></Errors></Response>",
        ):
            with self.assertRaises(ValueError):
                EC2Error(answer, 400)
