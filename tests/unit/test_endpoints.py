"""Where the EC2 of a region answers."""

from __future__ import annotations

import os
import types
from typing import Any

import boto3
from botocore.awsrequest import AWSResponse
from botocore.endpoint_provider import EndpointProvider
from botocore.loaders import create_loader
from botocore.session import Session
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.ec2 import endpoints
from tests.unit.files import directory, write
from tests.unit.secure import environment


class EndpointTests(SynchronousTestCase):
    """URLs, by botocore's rules."""

    def test_urls(self) -> None:
        """Each partition has its own domain."""
        environment(self, HOME=directory(self))
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


class URLTests(SynchronousTestCase):
    """URLs that people give."""

    def test_good(self) -> None:
        """A host is enough; a port and a path may follow."""
        for url in ("https://ec2.lab", "http://127.0.0.1:5000/", "https://[2001:db8::1]:443/ec2/"):
            self.assertIsNone(endpoints.check_url(url), url)

    def test_bad(self) -> None:
        """Anything else is told, but for passwords."""
        for url in (
            *("", "ec2.lab", "ftp://ec2.lab", "https://", "https://:443", "https://ec2.lab:port", "https://ec2.lab:0"),
            *("https://ec2.lab:65536", "https://[::1", "https://grün.lab/", 5, None, b"https://ec2.lab"),
        ):
            self.assertEqual(endpoints.check_url(url), f"not an http or https URL: {url!r}")
        self.assertIn("user name", endpoints.check_url("https://me:s3cret@ec2.lab") or "")
        self.assertNotIn("s3cret", endpoints.check_url("https://me:s3cret@ec2.lab") or "")


class SettingsTestCase(SynchronousTestCase):
    """AWS's own settings, of which there are only those of the test."""

    def setUp(self) -> None:
        self.home = directory(self)
        environment(self, HOME=self.home)
        os.mkdir(os.path.join(self.home, ".aws"))

    def config(self, text: str) -> None:
        write(os.path.join(self.home, ".aws"), "config", text)


class DefaultTests(SettingsTestCase):
    """The region of AWS's own settings."""

    def test_none(self) -> None:
        """Without any, it is that of EC2LatentWorker."""
        self.assertEqual(endpoints.default_region(), "us-east-1")

    def test_environment(self) -> None:
        """The environment decides."""
        os.environ["AWS_DEFAULT_REGION"] = "sa-east-1"
        self.assertEqual(endpoints.default_region(), "sa-east-1")

    def test_file(self) -> None:
        """The shared file of settings decides, by profile."""
        self.config("[default]\nregion = eu-west-3\n[profile farm]\nregion = ca-central-1\n")
        self.assertEqual(endpoints.default_region(), "eu-west-3")
        os.environ["AWS_PROFILE"] = "farm"
        self.assertEqual(endpoints.default_region(), "ca-central-1")

    def test_broken(self) -> None:
        """Settings that cannot be read are told in one line, each time."""
        os.environ["AWS_PROFILE"] = "farm"
        for text, words in (
            ("[default]\nregion = eu-west-3\n", "(farm) could not be found"),
            ("nonsense\n", "config"),
            ("[profile farm]\nservices = lab\n", "[services lab]"),
            (
                "[profile farm]\nservices = lab\n[services lab]\nec2 = http://ec2.lab\n",
                "[services lab]: settings of ec2",
            ),
        ):
            self.config(text)
            for ask in (endpoints.aws_settings, endpoints.default_region, lambda: endpoints.endpoint_url("us-east-1")):
                error = self.assertRaises(endpoints.RegionError, ask)
                self.assertTrue(str(error).startswith("AWS's own settings cannot be read: "), error)
                self.assertIn(words, str(error))
                self.assertEqual(len(str(error).splitlines()), 1)


def boto3_url(region: str) -> str:
    """Where boto3 would send a request; without the slash at its end."""
    client = boto3.Session().client("ec2", region_name=region, aws_access_key_id="a", aws_secret_access_key="b")
    sent: list[str] = []

    def before_send(request: Any, **_: Any) -> AWSResponse:
        sent.append(request.url)
        return AWSResponse(request.url, 200, {}, types.SimpleNamespace(stream=lambda: [b"<DescribeRegionsResponse/>"]))

    client.meta.events.register("before-send", before_send)
    client.describe_regions()
    return sent[0].rstrip("/")


class ConfiguredEndpointTests(SettingsTestCase):
    """Endpoints by AWS's own settings; boto3, asked for the same, is the measure."""

    #: Settings for another endpoint, each of which loses against those before it, and what they lead to.
    URLS = (
        ({"AWS_ENDPOINT_URL_EC2": "https://1.lab"}, "", "https://1.lab"),
        ({"AWS_ENDPOINT_URL": "https://2.lab"}, "", "https://2.lab"),
        ({}, "services = lab\n[services lab]\nec2 =\n  endpoint_url = https://3.lab\n", "https://3.lab"),
        ({}, "endpoint_url = https://4.lab\n", "https://4.lab"),
        ({}, "services = lab\n[services lab]\ns3 =\n  endpoint_url = https://s3.lab\n", None),
        ({"AWS_ENDPOINT_URL_S3": "https://s3.lab"}, "", None),
        ({"AWS_ENDPOINT_URL_EC2": "", "AWS_ENDPOINT_URL": ""}, "", None),
    )

    def agree(self, region: str, expected: str) -> None:
        self.assertEqual(endpoints.endpoint_url(region), expected)
        self.assertEqual(boto3_url(region), expected)

    def test_dual_stack_and_fips(self) -> None:
        """They apply in all partitions."""
        dual, fips = {"AWS_USE_DUALSTACK_ENDPOINT": "true"}, {"AWS_USE_FIPS_ENDPOINT": "TRUE"}
        for region, settings, url in (
            ("eu-central-1", dual, "https://ec2.eu-central-1.api.aws"),
            ("us-east-1", fips, "https://ec2-fips.us-east-1.amazonaws.com"),
            ("us-east-1", {**dual, **fips}, "https://ec2-fips.us-east-1.api.aws"),
            ("us-east-1", {"AWS_USE_FIPS_ENDPOINT": "no"}, "https://ec2.us-east-1.amazonaws.com"),
            ("cn-north-1", dual, "https://ec2.cn-north-1.api.amazonwebservices.com.cn"),
            ("us-gov-west-1", fips, "https://ec2.us-gov-west-1.amazonaws.com"),
            ("us-gov-west-1", dual, "https://ec2.us-gov-west-1.api.aws"),
            ("us-iso-east-1", fips, "https://ec2-fips.us-iso-east-1.c2s.ic.gov"),
        ):
            environment(self, HOME=self.home, **settings)
            self.agree(region, url)

    def test_of_profile(self) -> None:
        """They may be settings of a profile."""
        self.config("[profile farm]\nuse_dualstack_endpoint = true\nuse_fips_endpoint = true\n")
        self.agree("us-east-1", "https://ec2.us-east-1.amazonaws.com")
        os.environ["AWS_PROFILE"] = "farm"
        self.agree("us-east-1", "https://ec2-fips.us-east-1.api.aws")

    def test_impossible(self) -> None:
        """Where a partition has no such endpoints, that is told, with the region."""
        partition = endpoints._partitions()[0]
        outputs = {**partition["outputs"], "supportsFIPS": False, "supportsDualStack": False}
        rules = create_loader().load_service_model("ec2", "endpoint-rule-set-1")
        without = EndpointProvider(rules, {"partitions": [{**partition, "outputs": outputs}]})
        self.patch(endpoints, "_rules", lambda: without)
        for variable, word in (("AWS_USE_FIPS_ENDPOINT", "FIPS"), ("AWS_USE_DUALSTACK_ENDPOINT", "DualStack")):
            environment(self, HOME=self.home, **{variable: "true"})
            error = self.assertRaises(endpoints.RegionError, endpoints.endpoint_url, "us-east-1")
            self.assertIn("'us-east-1'", str(error))
            self.assertIn(word, str(error))

    def test_urls(self) -> None:
        """Each way to name another endpoint."""
        for variables, text, url in self.URLS:
            environment(self, HOME=self.home, **variables)
            self.config("[default]\n" + text)
            self.assertEqual(endpoints.aws_settings().endpoint_url, url)
            self.agree("us-east-1", url or "https://ec2.us-east-1.amazonaws.com")

    def test_precedence(self) -> None:
        """The more special one wins, the environment before the file."""
        text = (
            "[default]\nendpoint_url = https://4.lab\nservices = lab\n"
            "[services lab]\nec2 =\n  endpoint_url = https://3.lab\n"
        )
        self.config(text)
        os.environ.update(AWS_ENDPOINT_URL_EC2="https://1.lab", AWS_ENDPOINT_URL="https://2.lab")
        self.agree("us-east-1", "https://1.lab")
        del os.environ["AWS_ENDPOINT_URL_EC2"]
        self.agree("us-east-1", "https://2.lab")
        del os.environ["AWS_ENDPOINT_URL"]
        self.agree("us-east-1", "https://3.lab")
        self.config(text.replace("ec2 =", "s3 ="))
        self.agree("us-east-1", "https://4.lab")

    def test_ignored(self) -> None:
        """They can be switched off, in the environment and in the file."""
        os.environ["AWS_ENDPOINT_URL"] = "https://2.lab"
        self.config("[default]\nendpoint_url = https://4.lab\nignore_configured_endpoint_urls = true\n")
        self.agree("us-east-1", "https://ec2.us-east-1.amazonaws.com")
        os.environ["AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"] = "false"
        self.agree("us-east-1", "https://2.lab")
        self.config("")
        os.environ["AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"] = "true"
        self.agree("us-east-1", "https://ec2.us-east-1.amazonaws.com")

    def test_with_dual_stack(self) -> None:
        """Dual-stack and FIPS do not matter to another endpoint."""
        os.environ.update(
            AWS_ENDPOINT_URL="https://2.lab", AWS_USE_FIPS_ENDPOINT="true", AWS_USE_DUALSTACK_ENDPOINT="true"
        )
        self.agree("us-east-1", "https://2.lab")


class CacheTests(SettingsTestCase):
    """The settings are read once, and again when something has changed."""

    def setUp(self) -> None:
        super().setUp()
        self.sessions = 0

        def session() -> Session:
            self.sessions += 1
            return Session()

        self.patch(endpoints, "Session", session)

    def region(self, sessions: int) -> str:
        """The region, for which *sessions* must have been made so far."""
        regions = {endpoints.aws_settings().region for _ in range(20)}
        self.assertEqual(self.sessions, sessions)
        return regions.pop()

    def test_environment(self) -> None:
        """A change of the environment is seen."""
        self.assertEqual(self.region(1), "us-east-1")
        os.environ["AWS_DEFAULT_REGION"] = "eu-west-1"
        self.assertEqual(self.region(2), "eu-west-1")
        self.config("[default]\nregion = eu-west-3\n")
        del os.environ["AWS_DEFAULT_REGION"]
        self.assertEqual(self.region(3), "eu-west-3")
        os.environ["HOME"] = directory(self)
        self.assertEqual(self.region(4), "us-east-1")
        os.environ["UNRELATED"] = "x"
        self.assertEqual(self.region(4), "us-east-1")

    def test_files(self) -> None:
        """A file that comes, changes or goes is seen, wherever it is."""
        self.assertEqual(self.region(1), "us-east-1")
        self.config("[default]\nregion = eu-west-3\n")
        self.assertEqual(self.region(2), "eu-west-3")
        self.config("[default]\nregion = ap-south-1\n")
        self.assertEqual(self.region(3), "ap-south-1")
        path = os.path.join(self.home, ".aws", "config")
        kept = os.stat(path)
        self.config("[default]\nregion = ap-south-2\n")
        os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns + 1))
        self.assertEqual(self.region(4), "ap-south-2")
        os.unlink(path)
        self.assertEqual(self.region(5), "us-east-1")
        credentials = write(os.path.join(self.home, ".aws"), "credentials", "[default]\nregion = eu-west-1\n")
        self.assertEqual(self.region(6), "eu-west-1")
        os.unlink(credentials)
        os.environ.update(ELSEWHERE=self.home, AWS_CONFIG_FILE="$ELSEWHERE/config")
        self.assertEqual(self.region(7), "us-east-1")
        write(self.home, "config", "[default]\nregion = sa-east-1\n")
        self.assertEqual(self.region(8), "sa-east-1")

    def test_errors(self) -> None:
        """What is wrong is not found anew for each worker, and is when it has been mended."""
        os.environ["AWS_PROFILE"] = "farm"
        for _ in range(20):
            self.assertRaises(endpoints.RegionError, endpoints.aws_settings)
        self.assertEqual(self.sessions, 1)
        self.config("[profile farm]\nregion = eu-west-3\n")
        self.assertEqual(self.region(2), "eu-west-3")

    def test_no_secret(self) -> None:
        """Secrets of the environment are not kept."""
        os.environ.update(AWS_SECRET_ACCESS_KEY="s3cret", AWS_SESSION_TOKEN="s3cret", AWS_ACCESS_KEY_ID="s3cret")
        self.assertNotIn("s3cret", repr(endpoints._state()))
