"""DescribeImages: what is asked, page by page, and what is read of the answer."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from twisted.internet import defer
from twisted.trial.unittest import SynchronousTestCase
from twisted.web import server

from buildbot_ec2ud.ec2.client import IMAGES_PAGE
from buildbot_ec2ud.ec2.errors import EC2Error, NoAnswer
from buildbot_ec2ud.ec2.images import Image
from buildbot_ec2ud.ec2.parser import Parser
from tests.unit.servers import Answers, QueryTestCase, error, serve

NAMESPACE = 'xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"'

DEBIAN = """
<item>
  <imageId>ami-0123456789abcdef0</imageId>
  <imageLocation>136693071363/debian-12-amd64-20310203-1 &amp; more</imageLocation>
  <imageState>available</imageState>
  <imageOwnerId>136693071363</imageOwnerId>
  <creationDate>2031-02-03T04:05:06.000Z</creationDate>
  <isPublic>true</isPublic>
  <architecture>x86_64</architecture>
  <imageType>machine</imageType>
  <name>debian-12-amd64-20310203-1</name>
  <description>Débian 12</description>
  <rootDeviceType>ebs</rootDeviceType>
  <rootDeviceName>/dev/xvda</rootDeviceName>
  <blockDeviceMapping>
    <item><deviceName>/dev/xvda</deviceName><ebs><snapshotId>snap-1</snapshotId></ebs></item>
  </blockDeviceMapping>
  <tagSet><item><key>name</key><value>another</value></item></tagSet>
  <stateReason><code>x</code><message>y</message></stateReason>
</item>
"""
BARE = "<item><imageId>ami-2</imageId><imageState>pending</imageState></item>"


def listed(*items: str, after: str = "") -> bytes:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<DescribeImagesResponse {NAMESPACE}>'
        f"<requestId>1</requestId><imagesSet>{''.join(items)}</imagesSet>{after}</DescribeImagesResponse>"
    ).encode()


class ParserTests(SynchronousTestCase):
    """What is read of an image."""

    def test_everything(self) -> None:
        found, token = Parser().describe_images_page(listed(DEBIAN, BARE, after="<nextToken>more==</nextToken>"))
        debian = Image(
            image_id="ami-0123456789abcdef0",
            state="available",
            location="136693071363/debian-12-amd64-20310203-1 & more",
            name="debian-12-amd64-20310203-1",
            creation_date="2031-02-03T04:05:06.000Z",
            root_device_name="/dev/xvda",
            architecture="x86_64",
        )
        self.assertEqual(found, [debian, Image("ami-2", "pending")])
        self.assertEqual(token, "more==")
        self.assertEqual([one.available for one in found], [True, False])
        self.assertIsNone(found[1].location)

    def test_last_page(self) -> None:
        for after in ("", "<nextToken/>"):
            self.assertEqual(Parser().describe_images_page(listed(after=after)), ([], None))

    def test_empty_location(self) -> None:
        """An empty location is none."""
        for empty in ("<imageLocation/>", "<imageLocation></imageLocation>"):
            [found], _ = Parser().describe_images_page(listed(BARE.replace("<imageState>", f"{empty}<imageState>")))
            self.assertIsNone(found.location)

    def test_no_id_or_state(self) -> None:
        for gone in ("<imageId>ami-2</imageId>", "<imageState>pending</imageState>"):
            self.assertIn(gone, BARE)
            self.assertRaises(NoAnswer, Parser().describe_images_page, listed(BARE.replace(gone, "")))

    def test_no_listing(self) -> None:
        """What is not a listing of images is an error, and never "no images"."""
        whole = listed(DEBIAN)
        for body in (
            b"",
            b"<html>proxy</html>",
            whole[: len(whole) // 2],
            whole.replace(b"imagesSet", b"imageSet"),
            whole.replace(b"DescribeImagesResponse", b"DescribeInstancesResponse"),
        ):
            self.assertRaises(NoAnswer, Parser().describe_images_page, body)


class Pages(Answers):
    """An EC2 with *count* images, which it lists in pages as it is asked for them.

    :ivar empty: the number of a page that is empty, although others follow.
    """

    def __init__(self, count: int, empty: int | None = None) -> None:
        super().__init__()
        self.count, self.empty = count, empty
        self.asked: list[dict[str, str]] = []

    def render(self, request: server.Request) -> bytes:
        asked = dict(parse_qsl(request.content.read().decode(), keep_blank_values=True))
        self.asked.append(asked)
        if len(self.asked) - 1 == self.empty:
            return listed(after=f"<nextToken>{asked.get('NextToken', '0')}</nextToken>")
        start = int(asked.get("NextToken", 0))
        end = min(start + int(asked["MaxResults"]), self.count)
        items = [BARE.replace("ami-2", f"ami-{number}") for number in range(start, end)]
        return listed(*items, after=f"<nextToken>{end}</nextToken>" if end < self.count else "")


class CallTests(QueryTestCase):
    """The call, over real connections."""

    @defer.inlineCallbacks
    def pages(self, count: int, empty: int | None = None) -> Any:
        """The requests for *count* images, all of which are got."""
        ec2 = Pages(count, empty)
        client = self.client(serve(self, ec2.site()))
        found = yield client.describe_images(owners=["self", "amazon"], filters={"name": ["a-*", "b"], "tag:x": [""]})
        self.assertEqual([one.image_id for one in found], [f"ami-{number}" for number in range(count)])
        return ec2.asked

    @defer.inlineCallbacks
    def test_pages(self):
        """All pages are got, each by the same question."""
        asked = yield self.pages(2 * IMAGES_PAGE + 1)
        common = {
            "Owner.1": "self",
            "Owner.2": "amazon",
            "Filter.1.Name": "name",
            "Filter.1.Value.1": "a-*",
            "Filter.1.Value.2": "b",
            "Filter.2.Name": "tag:x",
            "Filter.2.Value.1": "",
            "MaxResults": str(IMAGES_PAGE),
        }
        for number, parameters in enumerate(asked):
            self.assertEqual(parameters.pop("Action"), "DescribeImages")
            del parameters["Version"]
            token = {"NextToken": str(number * IMAGES_PAGE)} if number else {}
            self.assertEqual(parameters, {**common, **token})
        self.assertEqual(len(asked), 3)

    @defer.inlineCallbacks
    def test_one_page(self):
        for count in (0, 1, IMAGES_PAGE):
            self.assertEqual(len((yield self.pages(count))), 1)

    @defer.inlineCallbacks
    def test_empty_page(self):
        """A page without images is not the last one, if there is a token."""
        for empty in (0, 1):
            self.assertEqual(len((yield self.pages(IMAGES_PAGE + 1, empty=empty))), 3)

    @defer.inlineCallbacks
    def test_by_id(self):
        """With ids, EC2 takes no MaxResults; and who names an image wants it deprecated too."""
        answers, url = self.serve((200, listed(BARE)))
        found = yield self.client(url).describe_images("ami-1", "ami-2")
        self.assertEqual(found, [Image("ami-2", "pending")])
        ((_, body),) = answers.requests
        asked = dict(parse_qsl(body.decode()))
        del asked["Version"]
        self.assertEqual(
            asked,
            {"Action": "DescribeImages", "ImageId.1": "ami-1", "ImageId.2": "ami-2", "IncludeDeprecated": "true"},
        )

    @defer.inlineCallbacks
    def test_unknown_id(self):
        _, url = self.serve((400, error("InvalidAMIID.NotFound", "The image id '[ami-1]' does not exist")))
        failure = yield self.assertFailure(self.client(url).describe_images("ami-1"), EC2Error)
        self.assertEqual(str(failure), "InvalidAMIID.NotFound: The image id '[ami-1]' does not exist")

    @defer.inlineCallbacks
    def test_second_page_refused(self):
        """Half a listing is no listing."""
        _, url = self.serve((200, listed(BARE, after="<nextToken>t</nextToken>")), (400, error("InvalidNextToken")))
        failure = yield self.assertFailure(self.client(url).describe_images(owners=["self"]), EC2Error)
        self.assertEqual(failure.code, "InvalidNextToken")
