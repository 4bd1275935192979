"""What the pages in docs/ show is so: examples, tables, links, and the words that people look for in them."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import buildbot.www
from buildbot.config import ConfigErrors
from buildbot.config.master import FileLoader, MasterConfig
from buildbot.plugins import util, worker
from buildbot.scripts import runner
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud import cli, template
from buildbot_ec2ud.embedded import Faults
from buildbot_ec2ud.embedded.fault_list import SETTINGS as FAULT_SETTINGS
from buildbot_ec2ud.embedded.kinds import KINDS
from buildbot_ec2ud.template.site_settings import SETTINGS
from tests.unit.files import directory, write

SOURCE = Path(__file__).parents[2]
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted(SOURCE.joinpath("docs").glob("*.md")))]
#: The pages whose blocks of Python are looked at elsewhere: in test_docs.py and in the integration tests.
RUN_ELSEWHERE = ("README.md", "docs/worker.md", "docs/embedded.md")
#: Commands of the system that the examples may use.
SYSTEM = {"cd", "mkdir", "umask", "echo", "pip", "python3", "python3.11", ".", "apt-get"}
#: ... and those that they make themselves.
OWN = ("crossbar/bin/", "../crossbar/bin/", "#")


def page(name: str) -> str:
    return (SOURCE / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return [textwrap.dedent(block) for block in re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, re.M | re.S)]


def rows(text: str, first: str) -> list[list[str]]:
    """The cells of all tables whose first head is *first*."""
    found = re.findall(rf"^\| {re.escape(first)} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.M)
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for table in found for line in table.splitlines()]


class PageTests(SynchronousTestCase):
    """All pages."""

    def test_languages(self) -> None:
        """Each block is of a kind that is looked at here, or in the integration tests; or a picture, or SQL."""
        for name in PAGES:
            text = page(name)
            languages = re.findall("^ *```([a-z]+)$", text, re.M)
            self.assertLessEqual(set(languages), {"python", "toml", "json", "sh", "text", "mermaid", "sql"}, name)

    def test_python(self) -> None:
        """Fragments of a configuration run, where a configuration has been begun."""
        for name in PAGES:
            for block in blocks(page(name), "python") if name not in RUN_ELSEWHERE else ():
                names: dict[str, Any] = {"c": {"workers": []}, "worker": worker, "util": util}
                exec(compile(block, name, "exec"), names)  # noqa: S102

    def test_data(self) -> None:
        """Blocks of data are of the language that they say."""
        for name in PAGES:
            for block in blocks(page(name), "json"):
                json.loads(block)
            for block in blocks(page(name), "toml"):
                tomllib.loads(block)

    def test_links(self) -> None:
        """Links lead to a file that is there, or to a section of one."""
        for name in PAGES:
            for link in re.findall(r"\]\(([^)]*)\)", page(name)):
                if link.startswith("https://"):
                    continue
                path, _, section = link.partition("#")
                target = (SOURCE / name).parent / path if path else SOURCE / name
                self.assertTrue(target.exists(), f"{name}: {link}")
                if section:
                    titles = re.findall("^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
                    anchors = [re.sub("[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in titles]
                    self.assertIn(section, anchors, name)

    def test_commands(self) -> None:
        """Whatever is to be typed can be: our commands take these arguments, and the others are known."""
        count = 0
        for name in PAGES:
            text = page(name)
            shell = blocks(text, "sh")
            for script in shell:
                done = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True, check=False)
                self.assertEqual((done.returncode, done.stderr), (0, ""), name)
            lines = [line for block in shell if "# ec2ud: include" not in block for line in block.splitlines()]
            lines += re.findall(r"`((?:buildbot|buildbot-ec2ud) [a-z][^`]*)`", text)
            for line in lines:
                for command in re.split(r"&&|;", line.strip("()")):
                    self.check_command(f"{name}: {line}", command.strip())
                    count += 1
        self.assertGreater(count, 30)

    def check_command(self, where: str, command: str) -> None:
        words = shlex.split(re.sub(r"\$\(.*?\)|>.*", "X", command))
        if words[0] == "buildbot-ec2ud":
            options = cli._parser()
            # A mention of a command may leave its arguments out.
            with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.suppress(SystemExit):
                options.parse_args(words[1:])
            wrong = said.getvalue()
            if wrong and not (len(words) == 2 and "required: " in wrong):
                self.fail(f"{where}: {wrong}")
        elif words[0] == "buildbot":
            known = [name for name, *_ in runner.Options.subCommands]
            self.assertIn(words[1], known, where)
        else:
            self.assertTrue(words[0] in SYSTEM or words[0].startswith(OWN), where)


class TemplateTests(SynchronousTestCase):
    """docs/template.md."""

    def setUp(self) -> None:
        self.text = page("docs/template.md")
        self.basedir = directory(self)

    def load(self) -> MasterConfig:
        return FileLoader(self.basedir, str(template.directory() / "master.cfg")).loadConfig()

    def test_settings(self) -> None:
        """Each setting is there once, in the order of the code, with its default."""
        table = rows(self.text, "setting")
        self.assertEqual([row[0] for row in table], [f"`{name}`" for name in SETTINGS])
        settings = template.load_settings(self.basedir)
        for name, default, meaning in table:
            value = settings.get(name.strip("`"))
            if value is None:
                self.assertTrue(default.startswith("—"), name)
            else:
                said = {"true": True, "false": False}.get(default.strip("`"))
                self.assertEqual(ast.literal_eval(default.strip("`")) if said is None else said, value, name)
            self.assertTrue(meaning)

    def test_order(self) -> None:
        """The packaged file has them in the same order."""
        text = template.directory().joinpath("settings.toml").read_text(encoding="utf-8")
        self.assertEqual(re.findall("^#?([a-z_]+) = ", text, re.M), list(SETTINGS))

    def test_examples(self) -> None:
        """The platforms and the settings are a master together."""
        platforms, settings = blocks(self.text, "toml")
        write(self.basedir, "platforms.toml", platforms)
        write(self.basedir, "settings.toml", settings.replace("tls = true", "tls = false"))
        os.mkdir(os.path.join(self.basedir, "secrets"), 0o700)
        for user in ("anna", "bert"):
            write(os.path.join(self.basedir, "secrets"), f"web-{user}", "change me", 0o600)
        loaded = self.load()
        self.assertEqual(
            [worker.name for worker in loaded.workers[:5]],
            [*(f"debian-12-{n}" for n in (1, 2)), *(f"debian-12-arm-{n}" for n in (1, 2)), "fedora-package-1"],
        )
        self.assertEqual(list(loaded.schedulers["after"].builderNames), ["fedora-package"])
        self.assertEqual(loaded.workers[4].tags, {"farm": "buildbot", "team": "release"})
        self.assertEqual(loaded.buildbotURL, "https://buildbot.example.org/")
        self.assertEqual(loaded.www["auth"].users, ("anna", "bert"))

    def test_tls(self) -> None:
        """With ``tls = true``, as it stands there."""
        write(self.basedir, "settings.toml", blocks(self.text, "toml")[1].replace('["anna", "bert"]', "[]"))
        self.assertTrue(self.load().protocols["pb"]["port"].startswith("ssl:9989:"))

    def test_mistake(self) -> None:
        """The mistake that is shown is told like that."""
        [said] = blocks(self.text, "text")
        lines = "\n" * 7 + "[platforms.debian-12]\ninstance_typ = 'x'\ninstance_type = 'x'\nami = 'ami-1'\n"
        path = write(self.basedir, "platforms.toml", lines)
        [platform] = template.load_platforms(self.basedir)
        error = self.assertRaises(ConfigErrors, platform.make_workers).errors[0]
        self.assertEqual(error.removeprefix(os.path.dirname(path) + "/"), said.strip())


class EmbeddedTests(SynchronousTestCase):
    """docs/embedded.md."""

    def setUp(self) -> None:
        self.text = page("docs/embedded.md")

    def test_tables(self) -> None:
        """All kinds of faults and all settings, in the words of ``demo --help``."""
        kinds = {row[0].strip("`"): row[1] for row in rows(self.text, "kind of fault")}
        self.assertEqual(kinds, {kind.name: kind.text for kind in KINDS.values()})
        settings = {row[0].strip("`"): row[1] for row in rows(self.text, "setting of `Faults.parse`")}
        self.assertEqual(settings, dict(FAULT_SETTINGS))

    def test_faults(self) -> None:
        """The example of faults is executed; what it parses is what it has said before, but for two."""
        [example] = [block for block in blocks(self.text, "python") if "Faults.parse" in block]
        names: dict[str, Any] = {}
        exec(compile(example, "docs/embedded.md", "exec"), names)  # noqa: S102
        for faults in (names["faults"], names["same"]):
            self.assertIsInstance(faults, Faults)
            self.assertEqual((faults.throttle, faults.latency), (True, 0.2))


class OperationsTests(SynchronousTestCase):
    """docs/operations.md: what people look for is what is printed."""

    def sources(self) -> str:
        """All that this package and Buildbot's web server may print."""
        files = [*SOURCE.joinpath("buildbot_ec2ud").rglob("*.py"), *Path(buildbot.www.__file__).parent.rglob("*.py")]
        files += [Path(runner.__file__).parents[1] / name for name in ("config/errors.py", "secrets/providers/file.py")]
        text = "\n".join(path.read_text(encoding="utf-8") for path in files)
        return re.sub(r"\"\s*\n\s*f?\"", "", text)  # a text in two lines of source is one

    def test_symptoms(self) -> None:
        sources = self.sources()
        symptoms = [
            symptom
            for row in rows(page("docs/operations.md").partition("## Troubleshooting")[2], "it says")
            for symptom in re.findall("`([^`]*)`", row[0])
        ]
        self.assertGreater(len(symptoms), 20)
        for symptom in symptoms:
            for part in re.split(r"\.\.\.|platforms\.toml:LINE: | NAME: ", symptom):
                self.assertIn(part.strip(), sources, symptom)
