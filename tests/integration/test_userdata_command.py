"""``buildbot-ec2ud userdata``: what it shows is what a start makes, but for the secret; and what it finds wrong."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import sys
from typing import Any
from unittest import mock

from twisted.internet import defer, reactor
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SkipTest, TestCase

from buildbot_ec2ud import preview
from buildbot_ec2ud.bootstrapping import make_user_data
from buildbot_ec2ud.commands import lint, userdata
from buildbot_ec2ud.commands.lint import Script
from buildbot_ec2ud.commands.userdata import FINE, WRONG
from buildbot_ec2ud.configured import Configured
from buildbot_ec2ud.preview import MASK
from tests.unit.files import directory, write
from tests.unit.master_directory import make_master
from tests.unit.secure import environment

PASSWORD = "hunter2-hunter2-hunter2-hunter22"
GOOD = "#!/bin/sh\necho hello\n"
#: What each shell takes, and no person means.
CARELESS = '#!/bin/sh\ncd /nowhere\nrm -r "$BB_X"/*\n'
BROKEN = "#!/bin/sh\nif true; then\necho\n"
#: More than EC2 takes, and not to be packed well.
LARGE = GOOD + "".join(f": {number * 7919 % 65536:04x}{number * 104729 % 65536:04x}\n" for number in range(1800))
SERVED = ("c['www'] = {'port': 8010, 'plugins': {'ec2_scripts': {}}}", "c['buildbotURL'] = 'http://farm.example.org/'")


def need_shellcheck() -> None:
    """Skip a test where ShellCheck is not installed."""
    if shutil.which("shellcheck") is None:
        raise SkipTest("shellcheck is not installed")


class CommandTestCase(TestCase):
    timeout = 240

    def setUp(self) -> None:
        environment(self, HOME=directory(self))
        self.directory = directory(self)

    @defer.inlineCallbacks
    def show(self, *lines: str, name: str = "w", raw: bool = False, as_json: bool = True, **arguments: Any) -> Any:
        """Show the user-data of a worker with these arguments: the exit status, and what was printed to where.

        :param lines: further lines of the configuration.
        """
        make_master(self.directory, {"w": arguments}, *lines)
        out, err = io.StringIO(), io.StringIO()
        self.patch(sys, "stdout", out)
        self.patch(sys, "stderr", err)
        status = yield userdata.show(reactor, self.directory, name, as_json and not raw, raw)
        self.assertNotIn(PASSWORD, out.getvalue() + err.getvalue())
        return status, out.getvalue(), err.getvalue()

    @defer.inlineCallbacks
    def shown(self, *lines: str, status: int = FINE, **arguments: Any) -> Any:
        """The object that is printed."""
        found, out, err = yield self.show(*lines, **arguments)
        self.assertEqual((found, err), (status, ""), out)
        return json.loads(out)

    def real(self, password: str = PASSWORD, **more: Any) -> bytes:
        """What a start of the same worker would make."""
        (worker,) = Configured(self.directory).workers
        settings = worker.settings
        arguments = {"spot": False, **more}
        environment = {"X": "y"} if settings.bootstrap_env else {}
        return make_user_data(settings, "w", "127.0.0.1:9989", password, environment, (self.directory,), **arguments)


class Ways(CommandTestCase):
    @defer.inlineCallbacks
    def test_inline(self) -> Any:
        """To the byte what a start makes with a password of the length that it has, the password masked."""
        found = yield self.shown(bootstrap_script=GOOD, bootstrap_env={"X": "y"})
        real = self.real()
        self.assertEqual((found["way"], found["size"], found["limit"]), ("inline", len(real), 16384))
        self.assertEqual(found["text"], real.decode().replace(PASSWORD, MASK))
        self.assertIn(MASK, found["text"])
        self.assertEqual((found["problems"], found["windows"]), ([], False))

    @defer.inlineCallbacks
    def test_spot(self) -> Any:
        """An instance that may be a spot instance looks out for its interruption."""
        found = yield self.shown(bootstrap_script=GOOD, market="spot-then-on-demand")
        self.assertEqual(found["text"], self.real(spot=True).decode().replace(PASSWORD, MASK))

    @defer.inlineCallbacks
    def test_gzip(self) -> Any:
        """The size is that of what is packed, and the text what comes out of it."""
        found = yield self.shown(bootstrap_script=LARGE, gzip_user_data=True)
        real = self.real()
        self.assertEqual(real[:2], b"\x1f\x8b")
        self.assertEqual(found["way"], "gzip")
        self.assertApproximates(found["size"], len(real), 40)  # a password that is random packs differently
        self.assertEqual(found["text"], gzip.decompress(real).decode().replace(PASSWORD, MASK))

    @defer.inlineCallbacks
    def test_served(self) -> Any:
        """As the plugin would serve it: the right URL, and the right checksum."""
        found = yield self.shown(*SERVED, bootstrap_script=LARGE, bb_www=True)
        self.assertEqual(found["way"], "served")
        served = []
        real = self.real(
            serve=lambda content: served.append(content) or "http://farm.example.org/plugins/ec2_scripts/N"
        )
        (digest,) = re.findall(r"\b[0-9a-f]{64}\b", real.decode())
        self.assertRegex(found["text"], rf"http://farm\.example\.org/plugins/ec2_scripts/[\w-]{{43}} {digest}")
        self.assertEqual(served, [LARGE.encode()])

    @defer.inlineCallbacks
    def test_not_served(self) -> Any:
        """What a start would stumble over, ``checkconfig`` not."""
        found = yield self.shown(status=WRONG, bootstrap_script=LARGE, bb_www="http://farm.example.org/")
        self.assertIn("no 'ec2_scripts'", found["problems"][0])
        self.assertEqual(found["text"], "")

    @defer.inlineCallbacks
    def test_url(self) -> Any:
        found = yield self.shown(bootstrap_script="https://example.org/x.sh")
        self.assertEqual(found["way"], "url")
        self.assertIn("the bootstrap script is at a URL: look at it there", found["notes"])

    @defer.inlineCallbacks
    def test_windows(self) -> Any:
        found = yield self.shown(bootstrap_script="windows")
        self.assertEqual((found["way"], found["windows"], found["size"]), ("inline", True, len(self.real())))
        self.assertEqual(found["text"], self.real().decode().replace(PASSWORD, MASK))
        self.assertIn("for Windows", found["notes"][0])

    @defer.inlineCallbacks
    def test_as_it_is(self) -> Any:
        """A person's own user-data, in which the password may be."""
        given = f"#!/bin/sh\necho {PASSWORD}\n"
        arguments = {"password": PASSWORD, "bb_master": None}
        found = yield self.shown(user_data=given, **arguments)
        self.assertEqual((found["way"], found["size"]), ("as it is", len(given)))
        self.assertEqual(found["text"], given.replace(PASSWORD, "*" * len(PASSWORD)))
        packed = f"=__import__('gzip').compress({given.encode()!r})"
        found = yield self.shown(user_data=packed, **arguments)
        self.assertEqual(found["text"], given.replace(PASSWORD, "*" * len(PASSWORD)))

    @defer.inlineCallbacks
    def test_none(self) -> Any:
        found = yield self.shown(password=PASSWORD, bb_master=None)
        self.assertEqual((found["way"], found["size"], found["text"]), ("none", 0, ""))


class Unknown(CommandTestCase):
    """What only a start has."""

    @defer.inlineCallbacks
    def test_renderables(self) -> Any:
        """Their place is left open, and that is said; a secret among them is not asked for."""
        variables = "={'A': util.Secret('token'), 'B': 'b'}"
        found = yield self.shown(bootstrap_env=variables, password="=util.Secret('pw')")
        self.assertEqual([note.partition(":")[0] for note in found["notes"]], ["bootstrap_env", "password"])
        self.assertIn(f"export A='{preview.UNKNOWN}'\nexport B=b\n", found["text"])

    @defer.inlineCallbacks
    def test_everything(self) -> Any:
        found = yield self.shown(bootstrap_env="=util.Property('variables')")
        self.assertEqual(len(found["notes"]), 1)
        found = yield self.shown(user_data="=util.Property('text')", password=PASSWORD, bb_master=None)
        self.assertEqual((found["way"], found["size"], len(found["notes"])), ("as it is", None, 1))

    @defer.inlineCallbacks
    def test_password_elsewhere(self) -> Any:
        """One that stands in the configuration is masked wherever it goes."""
        found = yield self.shown(password=PASSWORD, bootstrap_env={"TOKEN": f"x-{PASSWORD}"})
        self.assertIn(f"TOKEN='x-{MASK}'", found["text"])

    @defer.inlineCallbacks
    def test_address(self) -> Any:
        """Without ``bb_master``, this machine's name and the port of the configuration, where that has a number."""
        self.patch(preview.socket, "getfqdn", lambda: "farm.example.org")
        for port, expected, notes in (
            (9989, "farm.example.org:9989", 0),
            ("tcp:9990:interface=127.0.0.1", "farm.example.org:9990", 0),
            ("tcp:interface=127.0.0.1:port=9991", "farm.example.org:9991", 0),
            ("tcp:0:interface=127.0.0.1", "farm.example.org:65535", 1),
        ):
            found = yield self.shown(f"c['protocols'] = {{'pb': {{'port': {port!r}}}}}", bb_master=None)
            self.assertIn(f"export BB_MASTER={expected}\n", found["text"])
            self.assertEqual(len(found["notes"]), notes)
        found = yield self.shown(
            "c['protocols'] = {'msgpack_experimental_v7': {'port': 1}}", bb_master=None, status=WRONG
        )
        self.assertIn("no pb port", found["problems"][0])

    @defer.inlineCallbacks
    def test_no_name(self) -> Any:
        """A resolver that hangs is not waited for for ever."""
        self.patch(preview, "NAME_TIMEOUT", 0.05)
        self.patch(preview, "in_thread", lambda *_: defer.Deferred())
        found = yield self.shown(bb_master=None, status=WRONG)
        self.assertIn("bb_master: this machine's name was not found within 0.05 s", found["problems"][0])


class Mistakes(CommandTestCase):
    @defer.inlineCallbacks
    def test_shellcheck(self) -> Any:
        """Each is told with the line that the person has written."""
        need_shellcheck()
        write(self.directory, "boot.sh", CARELESS)
        found = yield self.shown(bootstrap_script="boot.sh", status=WRONG)
        self.assertEqual(found["checked_by"], ["sh -n", "shellcheck"])
        self.assertEqual(len(found["problems"]), 2, found["problems"])
        self.assertRegex(found["problems"][0], r"/boot\.sh: line 2: .* \(SC2164, warning\)$")
        self.assertTrue(found["text"])

    @defer.inlineCallbacks
    def test_without_shellcheck(self) -> Any:
        """It is said that it is missing; the shell itself finds what it would stumble over."""
        which = lint.shutil.which
        self.patch(lint.shutil, "which", lambda name: None if name == "shellcheck" else which(name))
        found = yield self.shown(bootstrap_script=CARELESS)
        self.assertIn("shellcheck is not installed: it finds more than the shell itself", found["notes"])
        found = yield self.shown(bootstrap_script=BROKEN, status=WRONG)
        self.assertEqual(found["checked_by"], ["sh -n"])
        self.assertTrue(found["problems"][0].startswith("bootstrap_script: "), found["problems"])

    @defer.inlineCallbacks
    def test_as_it_is(self) -> Any:
        """A person's own user-data is looked at, too, if it is a script."""
        need_shellcheck()
        arguments = {"password": PASSWORD, "bb_master": None}
        found = yield self.shown(user_data=CARELESS, status=WRONG, **arguments)
        self.assertTrue(found["problems"][0].startswith("user_data: line 2: "), found["problems"])
        found = yield self.shown(user_data="#cloud-config\n{}\n", **arguments)
        self.assertIn("user_data is no script", found["notes"])

    @defer.inlineCallbacks
    def test_other_interpreters(self) -> Any:
        """What no shell reads is left alone, and that is said."""
        found = yield self.shown(bootstrap_script="#!/usr/bin/env python3\nif x\n")
        self.assertIn("bootstrap_script: no shell of this machine reads it", found["notes"])
        self.assertEqual(Script("x", "#!/usr/bin/env bash\n").shell, "bash")
        self.assertEqual(Script("x", "#! /bin/sh -e\n").shell, "sh")

    @defer.inlineCallbacks
    def test_hangs(self) -> Any:
        """A program that does not end is killed."""
        self.patch(lint, "TIMEOUT", 3)
        status, out, err = yield lint._run(reactor, "/bin/sh", ["-c", "echo begun; exec sleep 60"], "")
        self.assertEqual((status, out), (-1, "begun\n"))
        self.assertIn("has not ended within 3 s", err)

    @defer.inlineCallbacks
    def test_unusable(self) -> Any:
        """A configuration that does not load, and a worker that there is not."""
        status, out, err = yield self.show(bootstrap_script=LARGE)
        self.assertEqual((status, out), (WRONG, ""))
        self.assertIn("EC2 takes 16,384", err)
        status, out, err = yield self.show(name="v")
        self.assertEqual((status, out, err), (WRONG, "", "there is no EC2UserDataLatentWorker 'v'\n"))


class Forms(CommandTestCase):
    @defer.inlineCallbacks
    def test_text(self) -> Any:
        need_shellcheck()
        status, out, err = yield self.show(as_json=False, bootstrap_script=GOOD)
        self.assertEqual((status, err), (FINE, ""))
        head, _, text = out.partition("\n\n")
        way, size, verdict = head.splitlines()
        self.assertEqual(way, "worker w, inline: the user-data has the bootstrap script in it")
        self.assertRegex(size, "^size: [0-9],[0-9]{3} of the 16,384 bytes that EC2 takes$")
        self.assertEqual(verdict, "no problem found by this package, sh -n, shellcheck")
        self.assertTrue(text.startswith("#!/bin/sh\n"))

    @defer.inlineCallbacks
    def test_raw(self) -> Any:
        """Nothing but the user-data goes to stdout."""
        need_shellcheck()
        status, out, err = yield self.show(raw=True, bootstrap_script=CARELESS)
        self.assertEqual((status, err.count("\n")), (WRONG, 2))
        self.assertEqual(out, self.real().decode().replace(PASSWORD, MASK))

    @defer.inlineCallbacks
    def test_command(self) -> Any:
        """The command itself, from another directory: paths in a configuration begin in the master's."""
        need_shellcheck()
        make_master(self.directory, {"w": {"bootstrap_script": "boot.sh"}})
        write(self.directory, "boot.sh", CARELESS)
        out, err, status = yield getProcessOutputAndValue(
            *(sys.executable, ["-m", "buildbot_ec2ud.cli", "userdata", "w", "--directory", self.directory]),
            env=os.environ,
            path="/",
        )
        self.assertEqual((status, err), (1, b""))
        self.assertIn(b"problem: ", out)
        self.assertIn(b"size: ", out)

    def test_secrets_stay(self) -> None:
        """No user-data with a real password is kept in what is shown."""
        make_master(self.directory, {"w": {"bootstrap_script": GOOD}})
        configured = Configured(self.directory)
        with mock.patch.object(preview, "new_password", lambda: PASSWORD):
            found = preview.Previews(configured, None).of_worker(configured.workers[0])
        self.assertNotIn(PASSWORD, repr(found))
        self.assertIn(MASK, found.text)
