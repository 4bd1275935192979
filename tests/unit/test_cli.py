"""The command ``buildbot-ec2ud``."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from buildbot.config.master import FileLoader
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud import __version__, commands, template
from buildbot_ec2ud.cli import main
from buildbot_ec2ud.commands import check, instances, userdata
from buildbot_ec2ud.commands.instances import Instances
from buildbot_ec2ud.embedded.faults import SETTINGS
from buildbot_ec2ud.embedded.kinds import KINDS
from tests.unit.files import directory

SHOW = inspect.signature(userdata.show)


class CommandTestCase(SynchronousTestCase):
    """Runs the command in this process."""

    def command(self, *arguments: str) -> tuple[int, str, str]:
        """Its exit status, and what it printed to where."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main(arguments)
            except SystemExit as end:
                status = end.code
        return status, out.getvalue(), err.getvalue()


class ArgumentTests(CommandTestCase):
    """What the command takes."""

    def test_help(self) -> None:
        """Help goes to stdout, and is no error."""
        commands = ("demo", "init", "template", "userdata", "check", "instances", "reap")
        for arguments in (["--help"], *([command, "--help"] for command in commands)):
            status, out, err = self.command(*arguments)
            self.assertEqual((status, err), (0, ""), arguments)
            self.assertIn("usage: buildbot-ec2ud", out)
        for command in commands:
            self.assertIn(command, self.command("--help")[1])

    def test_version(self) -> None:
        """The version of the distribution."""
        self.assertEqual(self.command("--version"), (0, f"buildbot-ec2ud {__version__}\n", ""))

    def test_bad_arguments(self) -> None:
        """Bad arguments are told on stderr, with status 2."""
        for arguments, words in (
            ([], "COMMAND"),
            (["nonsense"], "nonsense"),
            (["--nonsense"], "COMMAND"),
            (["init"], "DIR"),
            (["init", "a", "b"], "b"),
            (["template", "x"], "x"),
            (["userdata"], "WORKER"),
            (["userdata", "w", "farm"], "farm"),
            (["userdata", "w", "--json", "--raw"], "not allowed with argument"),
            (["check", "--raw"], "--raw"),
            (["instances", "a", "b"], "b"),
            (["instances", "--yes"], "--yes"),
            (["reap", "a", "b"], "b"),
            (["reap", "--json"], "--json"),
            (["reap", "--timeout", "0"], "not seconds: '0'"),
            (["reap", "--timeout", "soon"], "not seconds: 'soon'"),
            (["demo", "--workers", "0"], "not a number above 0: '0'"),
            (["demo", "--workers", "-1"], "--workers"),
            (["demo", "--workers", "many"], "not a number above 0: 'many'"),
            (["demo", "--workers", "²"], "²"),
            (["demo", "--port", "65536"], "not a TCP port: '65536'"),
            (["demo", "--port", "http"], "not a TCP port: 'http'"),
            (["demo", "--port"], "--port"),
            (["demo", "--faults"], "--faults"),
            (["demo", "--faults", ""], "argument --faults: an empty part in ''"),
            (["demo", "--faults", "throttle,lostreply"], "unknown kind of fault 'lostreply'; did you mean lost-reply?"),
            (["demo", "--faults", "reset:RunInstance"], "unknown action 'RunInstance'; did you mean RunInstances?"),
            (["demo", "--faults", "100%"], "unknown kind of fault '100%'"),
        ):
            status, out, err = self.command(*arguments)
            self.assertEqual((status, out), (2, ""), arguments)
            self.assertIn("usage: ", err)
            self.assertIn(words, err)

    def test_faults(self) -> None:
        """Help knows every kind of fault and every setting."""
        words = self.command("demo", "--help")[1].split()
        for name in (*KINDS, *SETTINGS, "--faults"):
            self.assertIn(name, words)

    def test_without_the_extra(self) -> None:
        """Where moto is not installed, help still helps, and the rest says what to install."""
        names = ["buildbot_ec2ud.demo", *(name for name in sys.modules if name.startswith("buildbot_ec2ud.embedded"))]
        patch = mock.patch.dict(sys.modules, dict.fromkeys(names))  # None: cannot be imported
        patch.start()
        self.addCleanup(patch.stop)
        status, out, err = self.command("demo", "--help")
        self.assertEqual((status, err), (0, ""))
        self.assertIn("--once", out)
        self.assertIn("pip install 'buildbot-ec2ud[embedded]'", out)
        for arguments, expected in ((["--faults", "reset"], 2), (["--once"], 1)):
            status, out, err = self.command("demo", *arguments)
            self.assertEqual((status, out), (expected, ""))
            self.assertIn("pip install 'buildbot-ec2ud[embedded]'", err)
            self.assertNotIn("Traceback", err)


class InstancesTests(CommandTestCase):
    """``instances`` and ``reap``: what is asked for; ``tests/integration/test_leftovers.py`` has what comes of it."""

    def asked(self, *arguments: str) -> tuple[Any, ...]:
        """The directory, what is called, and with what."""
        found = mock.Mock()
        called: list[str] = []

        def run(directory: str, command: Any) -> int:
            called.append(directory)
            command(found)
            return 42

        self.patch(instances, "run", run)
        self.assertEqual(self.command(*arguments), (42, "", ""))
        ((name, args, kwargs),) = found.mock_calls
        return (*called, name, inspect.signature(getattr(Instances, name)).bind(None, *args, **kwargs).arguments)

    def test_instances(self) -> None:
        for arguments, basedir, as_json, all_masters in (
            ([], ".", False, False),
            (["farm", "--json"], "farm", True, False),
            (["--all-masters", "farm"], "farm", False, True),
        ):
            options = {"self": None, "as_json": as_json, "all_masters": all_masters}
            self.assertEqual(self.asked("instances", *arguments), (basedir, "show", options))

    def test_reap(self) -> None:
        """Nothing is ended, and no running master is passed over, unless that is said."""
        for arguments, basedir, timeout, really, force in (
            ([], ".", 300, False, False),
            (["farm"], "farm", 300, False, False),
            (["farm", "--yes"], "farm", 300, True, False),
            (["--force", "farm"], "farm", 300, False, True),
            (["--yes", "--timeout", "5"], ".", 5, True, False),
        ):
            options = {"self": None, "timeout": timeout, "really": really, "force": force}
            self.assertEqual(self.asked("reap", *arguments), (basedir, "reap", options))

    def test_statuses(self) -> None:
        """Help tells every exit status."""
        for command, statuses in (
            ("init", "0 1 2 3"),
            ("template", "0 2"),
            ("userdata", "0 1 2"),
            ("check", "0 1 2 3"),
            ("instances", "0 1 2"),
            ("reap", "0 1 2 3"),
        ):
            text = " ".join(self.command(command, "--help")[1].split())
            _, told, rest = text.partition("Exit status:")
            self.assertTrue(told)
            rest = re.split(" positional | options:", rest)[0]
            self.assertEqual(re.findall(r"(?<!\S)[0-9](?=[ ,:]|$)", rest), statuses.split())


class LookTests(CommandTestCase):
    """``userdata`` and ``check``: what is asked for; the integration tests have what comes of it."""

    def asked(self, *arguments: str) -> tuple[Any, ...]:
        """The directory, and what is called with what there."""
        called: list[Any] = []

        def run(directory: str, command: Any) -> int:
            called.append(directory)
            command("reactor", "path")
            return 42

        def show(*args: Any, **kwargs: Any) -> None:
            called.append(SHOW.bind(*args, **kwargs).arguments)

        self.patch(commands, "run", run)
        self.patch(userdata, "show", show)
        self.patch(check, "Check", lambda *args: mock.Mock(run=lambda as_json: called.append((*args, as_json))))
        self.assertEqual(self.command(*arguments), (42, "", ""))
        return tuple(called)

    def test_userdata(self) -> None:
        for arguments, basedir, as_json, raw in (
            (["w"], ".", False, False),
            (["w", "--directory", "farm", "--json"], "farm", True, False),
            (["--raw", "w"], ".", False, True),
        ):
            options = {"reactor": "reactor", "directory": "path", "name": "w", "as_json": as_json, "raw": raw}
            self.assertEqual(self.asked("userdata", *arguments), (basedir, options))

    def test_check(self) -> None:
        for arguments, basedir, names, as_json in (
            ([], ".", [], False),
            (["farm"], "farm", [], False),
            (["farm", "a", "b", "--json"], "farm", ["a", "b"], True),
        ):
            self.assertEqual(self.asked("check", *arguments), (basedir, ("reactor", "path", names, as_json)))


class TemplateTests(CommandTestCase):
    """``template``."""

    def test_path(self) -> None:
        """Prints the path of the packaged master.cfg, and nothing else: it is used in ``$(...)``."""
        status, out, err = self.command("template")
        self.assertEqual((status, err), (0, ""))
        self.assertEqual(out.count("\n"), 1)
        path = out.rstrip("\n")
        self.assertTrue(os.path.isabs(path))
        self.assertEqual(os.path.basename(path), "master.cfg")
        self.assertTrue(os.path.isfile(path))

    def test_from_a_shell(self) -> None:
        """As a command of its own it does the same, from any directory."""
        command = [sys.executable, "-m", "buildbot_ec2ud.cli", "template"]
        done = subprocess.run(command, cwd=directory(self), capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stdout), (0, self.command("template")[1]), done.stderr)


class InitTests(CommandTestCase):
    """``init``."""

    def test_init(self) -> None:
        """Makes a master with a copy of the template; a second time nothing that is there is changed."""
        basedir = Path(directory(self)) / "farm"
        status, out, err = self.command("init", str(basedir))
        self.assertEqual((status, err), (0, ""), out)
        for name in template.FILES:
            self.assertEqual((basedir / name).read_bytes(), (template.directory() / name).read_bytes())
            self.assertIn(f"creating {basedir / name}", out)
        self.assertTrue((basedir / "buildbot.tac").is_file())
        self.assertTrue((basedir / "state.sqlite").is_file())
        # Relocatable: the directory may be moved.
        self.assertNotIn(str(basedir), (basedir / "buildbot.tac").read_text())
        self.assertTrue(FileLoader(str(basedir), "master.cfg").loadConfig().builders)

        (basedir / "platforms.toml").write_text("# edited\n")
        (basedir / "settings.toml").unlink()
        tac = (basedir / "buildbot.tac").read_bytes()
        status, out, err = self.command("init", str(basedir))
        self.assertEqual((status, err), (0, ""), out)
        self.assertEqual((basedir / "platforms.toml").read_text(), "# edited\n")
        self.assertEqual((basedir / "buildbot.tac").read_bytes(), tac)
        self.assertTrue((basedir / "settings.toml").is_file())
        self.assertIn(f"keeping {basedir / 'platforms.toml'}", out)
        self.assertIn(f"creating {basedir / 'settings.toml'}", out)

    def test_impossible(self) -> None:
        """Where no master can be made, the status says so, and nothing is made of it."""
        path = Path(directory(self)) / "file"
        path.write_text("mine\n")
        status, out, _ = self.command("init", str(path))
        self.assertEqual(status, 1)
        self.assertIn("Not a directory", out)
        self.assertNotIn("buildbot start", out)
        self.assertEqual(path.read_text(), "mine\n")
