"""Where the EC2 of a region answers."""

from __future__ import annotations

import os

from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.ec2 import endpoints
from tests.unit.files import directory, write


class EndpointTests(SynchronousTestCase):
    """URLs, by botocore's rules."""

    def test_urls(self) -> None:
        """Each partition has its own domain."""
        for region, url in (
            ("us-east-1", "https://ec2.us-east-1.amazonaws.com"),
            ("eu-central-1", "https://ec2.eu-central-1.amazonaws.com"),
            ("cn-north-1", "https://ec2.cn-north-1.amazonaws.com.cn"),
            ("us-gov-west-1", "https://ec2.us-gov-west-1.amazonaws.com"),
        ):
            self.assertEqual(endpoints.endpoint_url(region), url)


class CheckTests(SynchronousTestCase):
    """Names of regions, before anybody calls them."""

    def test_known(self) -> None:
        """Regions of all partitions."""
        for region in ("us-east-1", "ap-southeast-2", "cn-northwest-1", "us-gov-east-1", "me-central-1"):
            self.assertIsNone(endpoints.check_region(region), region)

    def test_near(self) -> None:
        """A slip of the pen gets a proposal."""
        for region, meant in (
            ("us-est-1", "us-east-1"),
            ("eu_central_1", "eu-central-1"),
            ("eu-central1", "eu-central-1"),
            ("eu-central-1a", "eu-central-1"),
            ("ap-southest-2", "ap-southeast-2"),
        ):
            trouble = endpoints.check_region(region) or ""
            self.assertIn(repr(region), trouble)
            self.assertIn("did you mean", trouble)
            self.assertIn(meant, trouble)

    def test_new(self) -> None:
        """A region that AWS has opened since is let through."""
        for region in ("ap-southeast-9", "mx-central-2", "us-gov-central-1", "us-moon-1"):
            self.assertIsNone(endpoints.check_region(region), region)

    def test_nonsense(self) -> None:
        """Nonsense gets none."""
        for region in ("", "Frankfurt", "moon", "*"):
            self.assertEqual(endpoints.check_region(region), f"unknown region {region!r}")
        self.assertEqual(endpoints.check_region(5), "not a text: 5")  # type: ignore[arg-type]

    def test_global(self) -> None:
        """EC2 does not answer in the pseudo-regions."""
        self.assertIsNotNone(endpoints.check_region("aws-global"))


class DefaultTests(SynchronousTestCase):
    """The region of AWS's own settings."""

    def setUp(self) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        self.home = directory(self)
        self.patch(os, "environ", {**clean, "AWS_CONFIG_FILE": os.path.join(self.home, "config")})

    def test_none(self) -> None:
        """Without any, it is that of EC2LatentWorker."""
        self.assertEqual(endpoints.default_region(), "us-east-1")

    def test_environment(self) -> None:
        """The environment decides."""
        os.environ["AWS_DEFAULT_REGION"] = "sa-east-1"
        self.assertEqual(endpoints.default_region(), "sa-east-1")

    def test_file(self) -> None:
        """The shared file of settings decides, by profile."""
        write(self.home, "config", "[default]\nregion = eu-west-3\n[profile farm]\nregion = ca-central-1\n")
        self.assertEqual(endpoints.default_region(), "eu-west-3")
        os.environ["AWS_PROFILE"] = "farm"
        self.assertEqual(endpoints.default_region(), "ca-central-1")
