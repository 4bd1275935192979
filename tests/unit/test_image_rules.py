"""Which image is wanted: what a person writes, and what is said of mistakes."""

from __future__ import annotations

import re
from typing import Any

from botocore.loaders import create_loader
from botocore.model import ServiceModel
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.ec2 import shapes
from buildbot_ec2ud.ec2.images import FILTERS
from buildbot_ec2ud.fleet.image_rules import ImageRule, check, check_locations

DEBIAN = "136693071363"

#: Arguments of EC2LatentWorker, and the owners that EC2 is asked for.
OWNERS: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (123456789012, ("123456789012",)),
    (99720109477, ("099720109477",)),
    (1, ("000000000001",)),
    ("099720109477", ("099720109477",)),
    ("0997-2010-9477", ("099720109477",)),
    ("self", ("self",)),
    (["amazon", "aws-marketplace", "self"], ("amazon", "aws-marketplace", "self")),
    ((99720109477, DEBIAN), ("099720109477", DEBIAN)),
    ({99720109477, "099720109477"}, ("099720109477",)),
    (frozenset([1]), ("000000000001",)),
)

#: Arguments of EC2LatentWorker, and what is said of them.
WRONG_LOCATIONS: tuple[tuple[Any, Any, str], ...] = (
    (None, None, "valid_ami_owners: name at least one"),
    (None, ".*", "valid_ami_owners: goes with valid_ami_location_regex, or all public images"),
    ([], None, "valid_ami_owners: name at least one"),
    ("", None, "valid_ami_owners: neither the id of an account"),
    ("microsoft", None, "self, amazon, aws-backup-vault, aws-marketplace: 'microsoft'"),
    ("99720109477", None, "of 12 digits"),
    ("0997201094770", None, "of 12 digits"),
    ("099720109477\n", None, "of 12 digits"),
    ("09972010947٧", None, "of 12 digits"),
    ("09-9720109477", None, "of 12 digits"),
    (10**12, None, "of 12 digits"),
    (0, None, "of 12 digits"),
    (-99720109477, None, "of 12 digits"),
    (True, None, "of 12 digits"),
    (1.0, None, "of 12 digits"),
    (b"self", None, "of 12 digits"),
    ({"self": 1}, None, "of 12 digits"),
    (iter(["self"]), None, "of 12 digits"),
    (["self", None], None, "aws-marketplace: None"),
    ("self", 5, "valid_ami_location_regex: not a text: 5"),
    ("self", re.compile("a"), "valid_ami_location_regex: not a text"),
    ("self", "amazon/(.*", "valid_ami_location_regex: not a regular expression: 'amazon/(.*': missing ), unterminated"),
    ("self", "a{99999999999999999999}", "valid_ami_location_regex: not a regular expression"),
)

#: Images as a person describes them, and what is said of them.
WRONG: tuple[tuple[Any, str], ...] = (
    ("ami-1", "not a dict: 'ami-1'"),
    (["self"], "not a dict"),
    ({}, "owners: name at least one, or anybody's public image would do"),
    ({"name": "debian-12-*"}, "owners: name at least one"),
    ({"name": "debian-12-*", "is-public": False}, "owners: name at least one"),
    ({"owners": []}, "owners: name at least one"),
    ({"owners": "debian"}, "owners: neither"),
    ({"owners": None}, "owners: neither"),
    ({"owner": "self"}, "unknown filter 'owner'; did you mean owners?"),
    ({"owners": "self", "nane": "x"}, "unknown filter 'nane'; did you mean name?"),
    ({"owners": "self", "root_device_type": "ebs"}, "did you mean root-device-type?"),
    ({"owners": "self", "zzz": "x"}, "unknown filter 'zzz'"),
    ({"owners": "self", 5: "x"}, "unknown filter 5"),
    ({"owners": "self", "tag:": "x"}, "unknown filter 'tag:'"),
    ({"owners": "self", "tag:a\nb": "x"}, r"unknown filter 'tag:a\nb'"),
    ({"owners": "self", "name": []}, "name: has no value"),
    ({"owners": "self", "name": ""}, "name: is empty"),
    ({"owners": "self", "name": ["a", ""]}, "name: is empty"),
    ({"owners": "self", "name": None}, "name: neither a text nor a list of texts: None"),
    ({"owners": "self", "name": {"a": "b"}}, "name: neither a text"),
    ({"owners": "self", "name": [["a"]]}, "name: neither a text"),
    ({"owners": "self", "name": b"a"}, "name: neither a text"),
    ({"owners": "self", "block-device-mapping.volume-size": 8.0}, "volume-size: neither a text"),
    ({"owners": "self", "name": "a\nb"}, r"name: has a character that cannot be printed: 'a\nb'"),
    ({"owners": "self", "tag:Role": "\ud800"}, "tag:Role: has a character that cannot be printed"),
)


class LocationRules(SynchronousTestCase):
    """The rule of EC2LatentWorker's arguments."""

    def test_owners(self) -> None:
        """An account's id gets the zeros that a number cannot begin with."""
        for given, owners in OWNERS:
            self.assertEqual(list(check_locations(given, None)), [], given)
            self.assertEqual(ImageRule.of_locations(given), ImageRule(owners, ""))

    def test_regex(self) -> None:
        rule = ImageRule.of_locations("self", r"mine/([0-9]+)\.xml")
        self.assertEqual(rule, ImageRule(("self",), r"mine/([0-9]+)\.xml", ()))

    def test_mistakes(self) -> None:
        """Each is one line, which names the argument; and no rule is made of it."""
        for owners, regex, words in WRONG_LOCATIONS:
            lines = list(check_locations(owners, regex))
            self.assertEqual(len(lines), 1, (owners, regex, lines))
            self.assertTrue(lines[0].startswith("valid_ami_"), lines)
            self.assertIn(words, lines[0])
            self.assertNotIn("\n", lines[0])
            if not hasattr(owners, "__next__"):
                error = self.assertRaises(ValueError, ImageRule.of_locations, owners, regex)
                self.assertEqual(str(error), lines[0])

    def test_all_at_once(self) -> None:
        lines = list(check_locations(["self", "me", 0], "("))
        self.assertEqual(
            [line.partition(":")[0] for line in lines], ["valid_ami_owners"] * 2 + ["valid_ami_location_regex"]
        )


class DictRules(SynchronousTestCase):
    """The rule that is written as a dict."""

    def test_everything(self) -> None:
        wanted = {
            "owners": [DEBIAN, 99720109477],
            "name": "debian-12-*",
            "architecture": ["x86_64", "arm64"],
            "ena-support": True,
            "is-public": False,
            "block-device-mapping.volume-size": 8,
            "tag:Role": "",
        }
        self.assertEqual(list(check(wanted)), [])
        rule = ImageRule.of(wanted)
        self.assertEqual(rule.owners, ("099720109477", DEBIAN))
        self.assertIsNone(rule.location_regex)
        self.assertEqual(
            dict(rule.filters),
            {
                "name": ("debian-12-*",),
                "architecture": ("arm64", "x86_64"),
                "ena-support": ("true",),
                "is-public": ("false",),
                "block-device-mapping.volume-size": ("8",),
                "tag:Role": ("",),
            },
        )

    def test_only_owners(self) -> None:
        self.assertEqual(ImageRule.of({"owners": "self"}), ImageRule(("self",)))

    def test_without_owners(self) -> None:
        """Owners may be left out where another filter keeps strangers' images out."""
        for name in ("owner-id", "owner-alias", "image-id", "tag:Role", "tag-key", "image-allowed"):
            wanted = {"name": "debian-12-*", name: "x"}
            self.assertEqual(list(check(wanted)), [])
            self.assertEqual(ImageRule.of(wanted).owners, ())

    def test_mistakes(self) -> None:
        """Each is one line, and no rule is made of it."""
        for wanted, words in WRONG:
            lines = list(check(wanted))
            self.assertEqual(len(lines), 1, (wanted, lines))
            self.assertIn(words, lines[0])
            self.assertNotIn("\n", lines[0])
            self.assertEqual(str(self.assertRaises(ValueError, ImageRule.of, wanted)), lines[0])

    def test_all_at_once(self) -> None:
        wanted = {"owners": ["me", "self"], "name": "", "architektur": "x86_64"}
        error = self.assertRaises(ValueError, ImageRule.of, wanted)
        self.assertEqual(str(error), "; ".join(check(wanted)))
        self.assertEqual(len(list(check(wanted))), 3)


class EqualRules(SynchronousTestCase):
    """Who wants the same has the same rule, however it is written."""

    def test_equal(self) -> None:
        one = ImageRule.of({"owners": ["self", 1], "name": ["a", "b"], "architecture": "arm64"})
        other = ImageRule.of(
            {"architecture": ["arm64"], "name": {"b", "a"}, "owners": ("000000000001", "self", "self")}
        )
        self.assertEqual((one, hash(one)), (other, hash(other)))

    def test_different(self) -> None:
        rules = {
            ImageRule.of({"owners": "self"}),
            ImageRule.of_locations("self"),
            ImageRule.of_locations("self", "a"),
            ImageRule.of({"owners": "amazon"}),
            ImageRule.of({"owners": "self", "name": "a"}),
            ImageRule.of({"owners": "self", "description": "a"}),
        }
        self.assertEqual(len(rules), 6)

    def test_text(self) -> None:
        """A rule is told in one line."""
        for rule, text in (
            (ImageRule.of({"owners": [1, "self"], "name": ["b", "a"]}), "owners 000000000001, self; name 'a' or 'b'"),
            (ImageRule.of({"tag:Role": "ci"}), "tag:Role 'ci'"),
            (ImageRule.of_locations("self"), "owners self"),
            (ImageRule.of_locations("self", "a\n(b)"), r"owners self; location 'a\n(b)'"),
        ):
            self.assertEqual(str(rule), text)


class FilterNames(SynchronousTestCase):
    def test_as_documented(self) -> None:
        """Every filter that botocore's model tells people of is known."""
        model = ServiceModel(create_loader().load_service_model(shapes.SERVICE, "service-2"), shapes.SERVICE)
        text = model.operation_model("DescribeImages").input_shape.members["Filters"].documentation
        named = re.findall(r"<li> <p> ?<code>([a-z.-]+)</code> [-–]", text)
        self.assertGreater(len(named), 40)
        # The levels of severity are listed in the same form.
        levels = {"informational", "low", "medium", "high", "critical"}
        self.assertEqual(set(named) - levels - set(FILTERS), set())
