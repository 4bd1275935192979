"""Users of the template's web UI: who logs in may start builds, others look; and that work stays on instances that run."""

from __future__ import annotations

import base64
import io
import json
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

from twisted.internet import defer, reactor
from twisted.web.client import Agent, CookieAgent, FileBodyProducer, readBody
from twisted.web.http_headers import Headers

from buildbot_ec2ud import template
from buildbot_ec2ud.embedded import EmbeddedMaster
from tests.support import LOOPBACK, FarmTestCase

SETTINGS = f"""
www_port = "{LOOPBACK}"
pb_port = "{LOOPBACK}"
users = ["anna"]
keep_logs = 0
"""


class Users(FarmTestCase):
    """A master of the template, with one user."""

    @defer.inlineCallbacks
    def setUp(self) -> Any:
        self.start_ec2()
        basedir = Path(self.mktemp()).absolute()
        basedir.joinpath("secrets").mkdir(parents=True)
        secret = basedir / "secrets" / "web-anna"
        secret.touch(0o600)
        secret.write_text("s3cret\n")
        basedir.joinpath("settings.toml").write_text(SETTINGS)
        arguments = {**self.ec2.worker_arguments(), "build_wait_timeout": 30, "count": 2, "build": ["true"]}
        lines = [f"{name} = {json.dumps(value)}" for name, value in arguments.items()]
        basedir.joinpath("platforms.toml").write_text("\n".join(["[platforms.p]", *lines]))
        self.master = EmbeddedMaster(None, str(basedir), str(template.directory() / "master.cfg"))
        self.addCleanup(self.master.stop)
        yield self.master.start()

    @defer.inlineCallbacks
    def ask(self, agent: Any, method: bytes, path: str, body: Any = None, **headers: str) -> Any:
        """Ask the web server; gives the status and the text of the answer."""
        # Buildbot takes orders only from its own pages.
        headers = {"Origin": self.master.master.config.buildbotURL.rstrip("/"), **headers}
        producer = None if body is None else FileBodyProducer(io.BytesIO(json.dumps(body).encode()))
        given = Headers({name: [value] for name, value in headers.items()})
        response = yield agent.request(method, (self.master.www_url + path).encode(), given, producer)
        text = yield readBody(response)
        return response.code, text.decode()

    def force(self, agent: Any) -> defer.Deferred[Any]:
        order = {"jsonrpc": "2.0", "method": "force", "id": 1, "params": {"builderNames": ["p"]}}
        headers = {"Content-Type": "application/json"}
        return self.ask(agent, b"POST", "api/v2/forceschedulers/force", order, **headers)

    @staticmethod
    def login(password: str) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(f"anna:{password}".encode()).decode()}

    @defer.inlineCallbacks
    def test_users(self):
        """Who has not logged in may look, and nothing else; a wrong password is refused; the right one will do."""
        stranger = Agent(reactor)
        code, text = yield self.ask(stranger, b"GET", "api/v2/builders")
        self.assertEqual((code, [each["name"] for each in json.loads(text)["builders"]]), (200, ["p"]))
        code, text = yield self.force(stranger)
        self.assertEqual(code, 403)
        self.assertIn("you need to have role", text)
        code, _ = yield self.ask(stranger, b"GET", "auth/login", **self.login("password"))
        self.assertEqual(code, 401)
        anna = CookieAgent(Agent(reactor), CookieJar())
        code, _ = yield self.ask(anna, b"GET", "auth/login", **self.login("s3cret"))
        self.assertIn(code, (200, 302))
        code, text = yield self.force(anna)
        self.assertEqual(code, 200, text)
        self.assertEqual(json.loads(text)["result"][0], 1, "the id of the buildset")

    @defer.inlineCallbacks
    def test_secret(self):
        """The password is on no page."""
        for path in ("", "api/v2/masters?", "api/v2/workers"):
            _, text = yield self.ask(Agent(reactor), b"GET", path)
            self.assertNotIn("s3cret", text)

    @defer.inlineCallbacks
    def test_running_first(self):
        """Builds one after the other use one instance, though there are two workers."""
        workers = []
        for _ in range(4):
            build = yield self.master.force_build("p")
            self.assertEqual(build.outcome, "success")
            workers.append(build.worker)
        self.assertEqual(len(set(workers)), 1)
        self.assertEqual(len(self.ec2.states()), 1)
