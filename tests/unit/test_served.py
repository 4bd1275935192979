"""The plugin that serves bootstrap scripts, on a web server of this machine."""

from __future__ import annotations

import gc
from typing import Any

from twisted.internet import defer, reactor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent, HTTPConnectionPool, readBody
from twisted.web.resource import Resource
from twisted.web.server import Site

from buildbot_ec2ud.served import Plugin, ServedScripts
from tests.unit.servers import serve

SCRIPT = "#!/bin/sh\necho 'wörk'\n".encode()


class ShelfTests(SynchronousTestCase):
    """What is served, and for how long."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.served = ServedScripts(self.clock)

    def count(self) -> int:
        self.served._forget()
        self.assertEqual(len(self.served._names), len(self.served._scripts))
        return len(self.served._scripts)

    def test_names(self) -> None:
        """One script has one name, another one another; nobody guesses it."""
        first = self.served.put(SCRIPT, 60)
        self.assertEqual(self.served.put(SCRIPT, 60), first)
        self.assertNotEqual(self.served.put(SCRIPT + b"#", 60), first)
        self.assertNotEqual(ServedScripts(self.clock).put(SCRIPT, 60), first)
        self.assertRegex(first, r"^[\w-]{43}$")

    def test_time(self) -> None:
        """Who still may fetch it prolongs it, and does not shorten it; after that it is forgotten, and gets a new name."""
        name = self.served.put(SCRIPT, 60)
        self.clock.advance(50)
        self.served.put(SCRIPT, 60)
        self.served.put(SCRIPT, 1)
        self.clock.advance(59)
        self.assertEqual(self.count(), 1)
        self.clock.advance(1)
        self.assertEqual(self.count(), 0)
        self.assertNotEqual(self.served.put(SCRIPT, 60), name)

    def test_edited(self) -> None:
        """The former text stays for who has been told of it."""
        for number in range(3):
            self.served.put(SCRIPT + b"#%d\n" % number, 60)
            self.clock.advance(25)
        self.assertEqual(self.count(), 2)


class PluginTests(SynchronousTestCase):
    """One plugin for all masters of a process."""

    class Master:
        reactor = Clock()

    def test_masters(self) -> None:
        """Each has its own scripts, also after a reconfig, which sets it again."""
        plugin, one, two = Plugin(), self.Master(), self.Master()
        plugin.setMaster(one)
        resource = plugin.resource
        plugin.setMaster(two)
        self.assertIsNot(plugin.resource, resource)
        plugin.setMaster(one)
        self.assertIs(plugin.resource, resource)

    def test_gone(self) -> None:
        """A master that is gone leaves nothing behind."""
        plugin = Plugin()
        plugin.setMaster(self.Master())
        gc.collect()
        self.assertEqual(len(plugin._scripts), 0)


class WebTests(TestCase):
    """What a client sees of it."""

    timeout = 30

    def setUp(self) -> None:
        self.clock = Clock()
        self.served = ServedScripts(self.clock)
        root, plugins = Resource(), Resource()
        root.putChild(b"plugins", plugins)
        plugins.putChild(b"ec2_scripts", self.served)
        self.base = serve(self, Site(root)) + "plugins/ec2_scripts"

    @defer.inlineCallbacks
    def ask(self, path: str, method: str = "GET") -> Any:
        """The status, the headers and the body."""
        agent = Agent(reactor, pool=HTTPConnectionPool(reactor, persistent=False))
        response = yield agent.request(method.encode(), (self.base + path).encode())
        body = yield readBody(response)
        headers = {name.decode().lower(): value for name, value in response.headers.getAllRawHeaders()}
        return response.code, headers, body

    @defer.inlineCallbacks
    def test_get(self) -> Any:
        """The script as it is, byte by byte, for nobody to keep."""
        name = self.served.put(SCRIPT, 60)
        code, headers, body = yield self.ask("/" + name)
        self.assertEqual((code, body), (200, SCRIPT))
        self.assertEqual(headers["cache-control"], [b"no-store"])
        self.assertEqual(headers["content-type"], [b"text/plain; charset=utf-8"])
        self.assertEqual({"etag", "last-modified", "expires", "set-cookie"} & set(headers), set())
        code, headers, body = yield self.ask("/" + name, "HEAD")
        self.assertEqual((code, body), (200, b""))

    @defer.inlineCallbacks
    def test_not_found(self) -> Any:
        """Everything else is not there: no list, nothing below, nothing like it, nothing whose time is over."""
        name = self.served.put(SCRIPT, 60)
        for path in (
            "",
            "/",
            "/x",
            f"/{name[:-1]}",
            f"/{name}x",
            f"/{name}/",
            f"/{name}/x",
            "/%ff%00",
            "/..",
            f"/x/{name}",
        ):
            code, headers, body = yield self.ask(path)
            self.assertEqual((path, code), (path, 404))
            self.assertNotIn(b"echo", body)
            self.assertNotIn(name.encode(), body)
        self.clock.advance(60)
        code, _, body = yield self.ask("/" + name)
        self.assertEqual(code, 404)
        self.assertNotIn(b"echo", body)

    @defer.inlineCallbacks
    def test_methods(self) -> Any:
        """It is there to be read."""
        name = self.served.put(SCRIPT, 60)
        for method in ("POST", "PUT", "DELETE"):
            code, _, _ = yield self.ask("/" + name, method)
            self.assertIn(code, (405, 501))
        self.assertEqual((yield self.ask("/" + name))[2], SCRIPT)

    @defer.inlineCallbacks
    def test_user_interface(self) -> Any:
        """The files that Buildbot's web UI loads of each plugin are there, and do nothing."""
        for name, kind in (("scripts.js", b"javascript"), ("styles.css", b"text/css")):
            code, headers, _ = yield self.ask("/" + name)
            self.assertEqual(code, 200)
            self.assertIn(kind, headers["content-type"][0])
