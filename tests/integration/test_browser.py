"""The web UI in a real browser: somebody forces a build, and reads on its page what became of the instance."""

from __future__ import annotations

import json
import os
import re
import socket
import unittest
from pathlib import Path

from twisted.internet import defer

from buildbot_ec2ud import template
from buildbot_ec2ud.embedded import EmbeddedMaster
from tests.integration.browser import CHROMIUM, Browser
from tests.support import LOOPBACK, FarmTestCase

#: Clicks where a text is written.
CLICK = """
(() => {{
    const texts = document.createTreeWalker(document, NodeFilter.SHOW_TEXT);
    while (texts.nextNode())
        if (texts.currentNode.data.trim() == {text!r})
            return texts.currentNode.parentElement.click(), true;
}})()
"""
#: The color behind the result.
COLOR = """
[...document.querySelectorAll('.results_SUCCESS')].filter(each => each.innerText.trim() == 'SUCCESS')
    .map(each => getComputedStyle(each).backgroundColor)[0]
"""
SHOWS = "document.body.innerText.includes({text!r})"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@unittest.skipIf(CHROMIUM is None, "there is no chromium on this machine: apt-get install chromium")
class Page(FarmTestCase):
    """A master of the packaged template."""

    timeout = 300

    @defer.inlineCallbacks
    def start_template(self):
        self.start_ec2()
        basedir = Path(self.mktemp()).absolute()
        basedir.mkdir()
        # Buildbot takes orders only from pages that have its own URL.
        port = free_port()
        basedir.joinpath("settings.toml").write_text(
            f'www_port = "tcp:{port}:interface=127.0.0.1"\nwww_url = "http://127.0.0.1:{port}/"\npb_port = "{LOOPBACK}"\n'
        )
        arguments = {**self.ec2.worker_arguments(), "build_wait_timeout": 0, "count": 1, "build": ["echo 'built it'"]}
        basedir.joinpath("platforms.toml").write_text(
            "[platforms.browsed]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in arguments.items())
        )
        self.master = EmbeddedMaster(None, str(basedir), str(template.directory() / "master.cfg"))
        self.addCleanup(self.master.stop)
        yield self.master.start()

    @defer.inlineCallbacks
    def start_browser(self):
        self.browser = Browser(os.path.abspath(self.mktemp()))
        self.addCleanup(self.browser.stop)
        yield self.browser.start()

    def click(self, text: str):
        return self.browser.wait_for(CLICK.format(text=text))

    def shows(self, text: str, seconds: float = 60):
        return self.browser.wait_for(SHOWS.format(text=text), seconds)

    @defer.inlineCallbacks
    def test_forced_build(self):
        """From the builder's page, by its button, to a build that is green, and to its log ec2."""
        yield self.start_template()
        yield self.start_browser()
        builders = yield self.master.master.data.get(("builders",))
        (builderid,) = (each["builderid"] for each in builders if each["name"] == "browsed")
        yield self.browser.go(f"{self.master.www_url}#/builders/{builderid}")
        yield self.click("force")
        yield self.click("Start build")
        try:
            yield self.shows("build successful", 60)
            color = yield self.browser.wait_for(COLOR)
            red, green, blue = map(int, re.findall(r"\d+", color)[:3])
            self.assertGreater(green, 1.2 * max(red, blue), color)
            yield self.click("worker_preparation")
            yield self.shows("ec2")
            yield self.shows("worker attached")
        finally:
            # A picture of what somebody sees, for people.
            if target := os.environ.get("SCREENSHOT"):
                Path(target).write_bytes((yield self.browser.screenshot()))
