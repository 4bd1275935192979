"""What the metadata service says of an instance, as its bootstrap script gets it; and who gets the password, and who not."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from typing import Any

from twisted.internet import defer
from twisted.trial.unittest import SkipTest

from buildbot_ec2ud.userdata import posix
from buildbot_ec2ud.userdata.scripts import RemoteScript
from tests.unit.files import write
from tests.unit.sandbox import PASSWORD, SHELLS, Sandbox
from tests.unit.servers import Answers, serve
from tests.unit.watching import FACTS, WatchTestCase

VALUES = {
    "BB_INSTANCE_ID": "i-0123456789abcdef0",
    "BB_AMI_ID": "ami-0123456789abcdef0",
    "BB_REGION": "eu-central-1",
    "BB_AVAILABILITY_ZONE": "eu-central-1b",
    "BB_LOCAL_IPV4": "10.0.3.7",
    "BB_HOSTNAME": "ip-10-0-3-7.eu-central-1.compute.internal",
}
DOCUMENTS = {path: VALUES[name] for path, name in FACTS.items()}
SCRIPT = "#!/bin/sh\n" + "".join(f'echo "{name}=<${{{name}-none}}>"\n' for name in VALUES)
EXPECTED = [f"{name}=<{value}>" for name, value in VALUES.items()]
NOTHING = [f"{name}=<>" for name in VALUES]


class FactsTestCase(WatchTestCase):
    """A machine that asks a metadata service."""

    @defer.inlineCallbacks
    def facts(self, sandbox: Sandbox, url: str, shell: str = "sh", script: str = SCRIPT, **environment: Any) -> Any:
        """The lines that the bootstrap script prints."""
        sandbox.url = url
        lines = yield sandbox.start(script, shell, **environment)
        self.assertEqual(sandbox.calls("shutdown"), [])
        return [line for line in lines if not line.startswith("ec2ud: phase=")]

    def machine(self, shell: str = "sh", *tools: str) -> Sandbox:
        sandbox = super().machine(shell)
        # A service that is slow to answer is waited for no longer than some seconds: here, they do not pass.
        os.unlink(os.path.join(sandbox.bin, "date"))
        write(sandbox.bin, "date", "#!/bin/sh\necho 1000\n", 0o755)
        for tool in tools:
            if tool == "python3":
                write(sandbox.bin, tool, f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n', 0o755)
            elif not sandbox.link(tool):
                raise SkipTest(f"{tool} is not installed")
        return sandbox


class FactsTests(FactsTestCase):
    """With whatever a system can ask."""

    @defer.inlineCallbacks
    def test_shells(self) -> Any:
        """In every shell."""
        for shell in SHELLS:
            service, url = self.metadata(documents=DOCUMENTS)
            self.assertEqual((yield self.facts(self.machine(shell, "curl"), url, shell)), EXPECTED)
            self.assertEqual((sorted(service.facts), service.granted), (sorted(DOCUMENTS), 1))

    def test_reserved(self) -> None:
        """Nobody else can set them."""
        self.assertEqual(sorted(posix.FACTS), sorted(VALUES))

    @defer.inlineCallbacks
    def test_wget(self) -> Any:
        """With GNU's wget."""
        _, url = self.metadata(documents=DOCUMENTS)
        self.assertEqual((yield self.facts(self.machine("sh", "wget"), url)), EXPECTED)

    @defer.inlineCallbacks
    def test_python(self) -> Any:
        """With Python."""
        _, url = self.metadata(documents=DOCUMENTS)
        self.assertEqual((yield self.facts(self.machine("sh", "python3"), url)), EXPECTED)

    @defer.inlineCallbacks
    def test_without_tokens(self) -> Any:
        """A service that has no tokens is asked without."""
        _, url = self.metadata(tokens="none", documents=DOCUMENTS)
        self.assertEqual((yield self.facts(self.machine("sh", "curl"), url)), EXPECTED)

    @defer.inlineCallbacks
    def test_some(self) -> Any:
        """What one service does not know is empty; the rest is there. Not all are Amazon's."""
        documents = {name: value for name, value in DOCUMENTS.items() if name != "placement/region"}
        _, url = self.metadata(tokens="none", documents=documents)
        lines = yield self.facts(self.machine("sh", "curl"), url)
        self.assertEqual(lines, ["BB_REGION=<>" if "REGION" in line else line for line in EXPECTED])

    @defer.inlineCallbacks
    def test_something_else(self) -> Any:
        """What cannot be an answer is none, and is not run."""
        for shell in SHELLS:
            for text in ("<html>Welcome to our network</html>", "x;: >mark", "$(: >mark)", "`: >mark`", "a\nb", "a b"):
                sandbox = self.machine(shell, "curl")
                _, url = self.metadata(documents=dict.fromkeys(DOCUMENTS, text))
                self.assertEqual((yield self.facts(sandbox, url, shell)), NOTHING)
                self.assertFalse(sandbox.exists("mark") or sandbox.exists("var/lib/buildbot-ec2ud/mark"))
                if shell != "sh":
                    break

    @defer.inlineCallbacks
    def test_nobody(self) -> Any:
        """Where nobody answers, or nobody can ask, they are empty."""
        self.assertEqual((yield self.facts(self.machine("sh", "curl"), "http://127.0.0.1:1")), NOTHING)
        self.assertEqual((yield self.facts(self.machine(), "http://127.0.0.1:1")), NOTHING)

    @defer.inlineCallbacks
    def test_patience(self) -> Any:
        """A service that does not answer is given up after a few seconds in all, whatever there is to ask with."""
        sandbox = self.machine()
        # A clock that only the questions move, each by the two seconds that it may take.
        for tool in ("curl", "wget", "python3"):
            sandbox.record(tool, f"echo 2 >>'{sandbox.path('seconds')}'\nexit 28")
        os.unlink(os.path.join(sandbox.bin, "date"))
        count = f"n=1000; while read -r s; do n=$((n + s)); done <'{sandbox.path('seconds')}'; echo $n"
        write(sandbox.root, "seconds", "")
        write(sandbox.bin, "date", f"#!/bin/sh\n{count}\n", 0o755)
        lines = yield self.facts(sandbox, "http://127.0.0.1:1")
        self.assertEqual(lines, NOTHING)
        self.assertEqual(len(sandbox.read("seconds").split()), 2)
        limits = [text for tool, text in (("curl", "-m 2"), ("wget", "-T 2")) for _ in sandbox.calls(tool)]
        calls = sandbox.calls("curl") + sandbox.calls("wget")
        self.assertEqual([limit in call for limit, call in zip(limits, calls, strict=True)], [True] * 2)

    @defer.inlineCallbacks
    def test_proxy(self) -> Any:
        """The metadata service is not asked by way of a proxy that is meant for the script."""
        _, url = self.metadata(documents=DOCUMENTS)
        nobody = {"http_proxy": "http://127.0.0.1:1", "ALL_PROXY": "http://127.0.0.1:1"}
        lines = yield self.facts(
            self.machine("sh", "curl"), url, script=SCRIPT + 'echo "$http_proxy $tool"\n', **nobody, tool="hammer"
        )
        self.assertEqual(lines, [*EXPECTED, "http://127.0.0.1:1 hammer"])


class SecretTests(FactsTestCase):
    """Who gets the password."""

    @defer.inlineCallbacks
    def test_only_the_script(self) -> Any:
        """Nothing that is run before the script has it, as argument or in its environment; and neither what watches."""
        text = f'#!/bin/sh\n[ "$BB_PASSWORD" = {PASSWORD} ] && echo known\n'
        for shell in SHELLS:
            sandbox = self.machine(shell)
            sandbox.link("env", "sha256sum")
            everything = sandbox.path("everything")
            for tool in ("curl", "date", "chmod", "sha256sum", "mkdir", "cat", "sleep"):
                path = shutil.which(tool)
                if path is None:
                    raise SkipTest(f"{tool} is not installed")
                if os.path.lexists(os.path.join(sandbox.bin, tool)):
                    os.unlink(os.path.join(sandbox.bin, tool))
                run = f'{{ echo "{tool}: $*"; env; }} >>\'{everything}\'\nexec {path} "$@"'
                write(sandbox.bin, tool, f"#!/bin/sh\n{run}\n", 0o755)
            _, sandbox.url = self.metadata(documents=DOCUMENTS)
            url = serve(self, Answers((200, text.encode())).site()) + "a.sh"
            script = RemoteScript(url, hashlib.sha256(text.encode()).hexdigest())
            lines = yield sandbox.start(script, shell, max_lifetime=60)
            self.assertEqual(lines[-1], "known")
            seen = sandbox.read("everything")
            for tool in ("curl", "date", "chmod", "sha256sum"):
                self.assertIn(f"\n{tool}: ", "\n" + seen)
            self.assertIn("BB_NAME=", seen)
            self.assertNotIn(PASSWORD, seen)
