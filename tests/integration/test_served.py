"""A bootstrap script that is too large for user-data: the instance fetches it from the master's own web server."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from twisted.internet import defer, reactor
from twisted.web.client import Agent, readBody
from twisted.web.proxy import ReverseProxyResource
from twisted.web.resource import Resource
from twisted.web.server import Site

from buildbot_ec2ud.userdata import posix, scripts
from tests.support import FarmTestCase, configuration
from tests.unit.files import directory, write


class ServedTests(FarmTestCase):
    """With an embedded EC2, a master, and a web server before it that has the web UI at a path."""

    @defer.inlineCallbacks
    def start(self, plugins: dict[str, Any]) -> Any:
        self.path = os.path.join(directory(self), "large.sh")
        self.edit("first")
        root = Resource()
        port = reactor.listenTCP(0, Site(root), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        url = f"http://127.0.0.1:{port.getHost().port}/farm/"
        self.start_ec2()
        yield self.start_master(
            {
                **configuration(
                    [self.worker(bootstrap_script=self.path, bb_www=True)], 'echo "edition: $EDITION"; env'
                ),
                "www": {"port": "tcp:0:interface=127.0.0.1", "plugins": plugins},
                "buildbotURL": url,
            }
        )
        root.putChild(b"farm", ReverseProxyResource("127.0.0.1", self.master.master.www.getPortnum(), b""))

    def edit(self, edition: str) -> bytes:
        """What a person does who wants the script to be another one."""
        with open(scripts.packaged("embedded.sh"), encoding="utf-8") as file:
            first, _, rest = file.read().partition("\n")
        padding = "# This is a long script.\n" * 700
        write(os.path.dirname(self.path), "large.sh", f"{first}\nexport EDITION={edition}\n{padding}{rest}")
        return scripts.load(self.path, None, []).text.encode()

    def user_data(self, build: Any) -> str:
        return self.ec2.user_data(build.properties["instance"]).decode()

    @defer.inlineCallbacks
    def test_build(self) -> Any:
        """The build succeeds; who edits the script has the next instance run it, without a reconfig."""
        # The facts are waited for as long as they take on this machine.
        self.patch(posix, "_TEMPLATE", posix._TEMPLATE.replace("new_token 3\n", "new_token 60\n"))
        self.patch(posix, "_IMDS", posix._IMDS.replace("-m 2", "-m 60"))
        yield self.start({"ec2_scripts": {}})
        seen = set()
        for edition in ("first", "second"):
            script = self.edit(edition)
            build = yield self.master.force_build("b")
            self.assertEqual((build.outcome, build.attempts), ("success", ()))
            self.assertIn(f"edition: {edition}", build.text())
            self.assertNotIn("BB_PASSWORD", build.text())
            # What the embedded EC2's metadata service says of the instance, to those who have a token.
            for name, value in (
                ("BB_INSTANCE_ID", build.properties["instance"]),
                ("BB_REGION", "us-east-1"),
                ("BB_AVAILABILITY_ZONE", build.properties["ec2_availability_zone"]),
                ("BB_AMI_ID", build.properties["ec2_ami"]),
            ):
                self.assertIn(f"\n{name}={value}\n", build.text())
            self.assertRegex(build.text(), r"\nBB_LOCAL_IPV4=[0-9.]+\n")
            self.assertRegex(build.text(), r"\nBB_HOSTNAME=ip-[\w.-]+\n")
            data = self.user_data(build)
            self.assertIn(hashlib.sha256(script).hexdigest(), data)
            self.assertNotIn("a long script", data)
            (line,) = [line for line in data.splitlines() if line.startswith("ec2ud_fetch http")]
            url = line.split()[1]
            self.assertRegex(url, r"/farm/plugins/ec2_scripts/[\w-]{43}$")
            seen.add(url)
            # As long as another instance may fetch it, it is there; and it is the script, without a secret.
            for known in seen:
                response = yield Agent(reactor).request(b"GET", known.encode())
                body = yield readBody(response)
                self.assertEqual((response.code, body == script), (200, known == url))
                self.assertIn(b"a long script", body)
            yield self.until_gone()
        self.assertEqual(len(seen), 2)

    @defer.inlineCallbacks
    def test_not_configured(self) -> Any:
        """Without the plugin the build ends at once, and says what is missing."""
        yield self.start({})
        build = yield self.master.force_build("b")
        self.assertEqual(build.outcome, "exception")
        self.assertIn("'ec2_scripts': {}", build.text())
        self.assertEqual(self.ec2.alive(), [])
        self.flush()
