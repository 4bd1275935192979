"""A stand-in for EC2 in a process of its own: it answers at once, so that not its speed is measured.

moto, which the embedded EC2 is made of, takes seconds to describe 1,000 instances; here the answers are made of one that
moto has given, with other ids.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from subprocess import PIPE, Popen
from urllib.parse import parse_qs

_TYPE = "c7i.large"


def moto_answers() -> tuple[bytes, bytes]:
    """What moto says to RunInstances, and to DescribeInstances for the one instance that it has then."""
    from wsgiref.util import setup_testing_defaults

    from buildbot_ec2ud.embedded import _moto

    application = _moto.application()

    def ask(body: str) -> bytes:
        import io

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
    return launched, ask(f"Action=DescribeInstances{common}")


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


@contextmanager
def server():
    """Run a stand-in in a child process; gives its URL."""
    with Popen([sys.executable, __file__], stdout=PIPE, stdin=PIPE, text=True, env=os.environ) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()  # its word to end


def main() -> None:
    from twisted.internet import reactor, stdio
    from twisted.internet.protocol import Protocol
    from twisted.web.resource import Resource
    from twisted.web.server import Site

    launched, described = moto_answers()
    pages = Pages(described)

    class EC2(Resource):
        isLeaf = True

        def render_POST(self, request):
            asked = parse_qs(request.content.read().decode())
            if asked["Action"] == ["RunInstances"]:
                return launched
            return pages.page([values[0] for name, values in asked.items() if ".Value." in name])

    class UntilClosed(Protocol):
        def connectionLost(self, reason):
            reactor.stop()

    stdio.StandardIO(UntilClosed())
    port = reactor.listenTCP(0, Site(EC2()), interface="127.0.0.1")
    print(f"http://127.0.0.1:{port.getHost().port}/", flush=True)
    reactor.run()


if __name__ == "__main__":
    main()
