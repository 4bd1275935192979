"""What moto says, from which a stand-in can make up what EC2 would say of others."""

from __future__ import annotations

import io
import re
from wsgiref.util import setup_testing_defaults

_TYPE = "c7i.large"


def moto_answers() -> tuple[bytes, bytes]:
    """What moto says to RunInstances, and to DescribeInstances for that one instance."""
    from buildbot_ec2ud.embedded import _moto

    application = _moto.application()

    def ask(body: str) -> bytes:
        environ: dict = {}
        setup_testing_defaults(environ)
        environ |= {
            "REQUEST_METHOD": "POST",
            "CONTENT_LENGTH": str(len(body)),
            "CONTENT_TYPE": "application/x-www-form-urlencoded",
            "HTTP_AUTHORIZATION": "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/ec2/aws4_request, Signature=x",
            "wsgi.input": io.BytesIO(body.encode()),
        }
        return b"".join(application(environ, lambda status, headers: None))

    tags = "".join(
        f"&TagSpecification.1.Tag.{number}.Key={key}&TagSpecification.1.Tag.{number}.Value={value}"
        for number, (key, value) in enumerate(
            {
                "Name": "w",
                "buildbot:master": "master.example.org",
                "buildbot:worker": "w",
                "buildbot:launch": "1",
            }.items(),
            start=1,
        )
    )
    common = "&Version=2016-11-15"
    launched = ask(
        f"Action=RunInstances&ImageId=ami-1&InstanceType={_TYPE}&MinCount=1&MaxCount=1"
        f"&TagSpecification.1.ResourceType=instance{tags}{common}"
    )
    launched_id = re.search(rb"<instanceId>([^<]*)", launched)[1].decode()
    return launched, ask(f"Action=DescribeInstances&InstanceId.1={launched_id}{common}")


class Pages:
    """Answers to DescribeInstances for any ids."""

    def __init__(self, answer: bytes) -> None:
        start, end = answer.index(b"<reservationSet>") + len(b"<reservationSet>"), answer.index(b"</reservationSet>")
        self._before, self._item, self._after = answer[:start], answer[start:end], answer[end:]
        at = self._item.index(b"<instanceId>") + len(b"<instanceId>")
        self._id = self._item[at : self._item.index(b"</instanceId>")]

    def page(self, ids: list[str]) -> bytes:
        items = (self._item.replace(self._id, instance_id.encode()) for instance_id in ids)
        return b"".join((self._before, *items, self._after))
