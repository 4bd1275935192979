"""docs/worker.md says what the code does."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from buildbot.config.master import FileLoader
from buildbot.worker.ec2 import EC2LatentWorker
from twisted.internet import defer
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud import preparation
from buildbot_ec2ud.ec2 import endpoints
from buildbot_ec2ud.fleet.capacity import MEMORY
from buildbot_ec2ud.launch import LaunchConfig
from buildbot_ec2ud.parameters import Names, run_instances
from buildbot_ec2ud.settings import BUILDBOT_ARGUMENTS, Settings
from buildbot_ec2ud.worker import CHECK_INTERVAL, EC2UserDataLatentWorker
from tests.unit.files import directory, write
from tests.unit.secure import environment

TEXT = Path(__file__).parents[2].joinpath("docs", "worker.md").read_text(encoding="utf-8")
SIGNATURE = {
    name: parameter.default
    for name, parameter in inspect.signature(EC2UserDataLatentWorker).parameters.items()
    if parameter.kind is not inspect.Parameter.VAR_KEYWORD
}
COLUMNS = ("argument", "type", "default", "meaning", "checked", "before")


def table() -> list[dict[str, str]]:
    """The rows of the table of arguments."""
    (text,) = re.findall(r"^\| Argument .*\n\|[-|]+\|\n((?:\|.*\n)+)", TEXT, re.M)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


class TableTests(SynchronousTestCase):
    """The table of the arguments."""

    def setUp(self) -> None:
        environment(self, HOME=directory(self))

    def test_arguments(self) -> None:
        """Each argument is there once, in the order of the signature, and no others."""
        self.assertEqual([row["argument"] for row in table()], [f"`{name}`" for name in SIGNATURE])

    def test_cells(self) -> None:
        """Everything is said of each; and what is new is said to be so."""
        before = [name for name in inspect.signature(EC2LatentWorker).parameters if name != "kwargs"]
        for row in table():
            self.assertTrue(all(row.values()), row)
            known = row["argument"].strip("`") in before
            self.assertTrue(row["before"].startswith(("the same", "better:") if known else "new"), row)
        self.assertEqual(len(before), 26)

    def test_defaults(self) -> None:
        """The defaults are those of the code."""
        defaults = self.defaults()
        self.assertEqual(set(defaults), set(SIGNATURE))
        for row in table():
            name, cell = row["argument"].strip("`"), row["default"]
            literal = re.match("`([^`]*)`", cell)
            if cell == "required":
                self.assertIs(defaults[name], inspect.Parameter.empty, name)
            elif literal is None:
                self.assertEqual((cell[0], defaults[name]), ("—", None), name)
            else:
                self.assertEqual(ast.literal_eval(literal[1]), defaults[name], name)

    def defaults(self) -> dict[str, Any]:
        """What each argument is when it is not given."""
        settings = Settings.parse(None, {})
        found = {**SIGNATURE, **vars(LaunchConfig()), **vars(settings)}
        asked = run_instances(LaunchConfig(), Names("", "", ""), b"", None, None, "on-demand")
        found |= {
            "region": endpoints.default_region(),
            "market": LaunchConfig().markets[0],
            "http_tokens": asked["MetadataOptions"]["HttpTokens"],
            "product_description": self.product(),
        }
        self.assertEqual(found["capacity_memory"], MEMORY)
        # What is left out of a configuration is as if the signature's default were given.
        self.assertEqual(
            {name: value for name, value in SIGNATURE.items() if value not in (None, inspect.Parameter.empty)},
            {"spot_instance": found["spot_instance"]},
        )
        return {name: found[name] for name in SIGNATURE}

    def product(self) -> Any:
        """For what product prices are asked for when none is named."""
        asked = []

        def average(kind: str, product: str, zone: str | None) -> defer.Deferred[None]:
            asked.append(product)
            return defer.succeed(None)

        fleet = SimpleNamespace(prices=SimpleNamespace(average=average))
        config = LaunchConfig(instance_type="t3.micro", market="spot", price_multiplier=1.2)
        self.successResultOf(preparation._max_prices(fleet, config))
        return asked[0]

    def test_renderable(self) -> None:
        """What is said to be renderable is what is rendered at a start."""
        rendered = {*vars(LaunchConfig()), "bootstrap_env", "user_data"} - {"region"}
        said = {row["argument"].strip("`") for row in table() if "renderable" in row["type"]}
        self.assertEqual(said, rendered)

    def test_of_buildbot(self) -> None:
        """The arguments of all latent workers are named before the table."""
        before = TEXT.partition("| Argument ")[0]
        for name in BUILDBOT_ARGUMENTS:
            self.assertIn(f"`{name}`", before)
        self.assertIn(f"`check_instance_interval` (seconds; default {CHECK_INTERVAL},", before)


class ExampleTests(SynchronousTestCase):
    """The examples."""

    def setUp(self) -> None:
        environment(self, HOME=directory(self))

    def test_blocks(self) -> None:
        """Each block of Python runs: a whole configuration is loaded by Buildbot, the others are executed."""
        blocks = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)
        self.assertEqual(len(blocks), TEXT.count("```") // 2)
        configurations = [block for block in blocks if "BuildmasterConfig" in block]
        self.assertEqual((len(configurations), len(blocks) > 5), (1, True))
        for block in blocks:
            if block in configurations:
                basedir = directory(self)
                write(basedir, "master.cfg", block)
                loaded = FileLoader(basedir, "master.cfg").loadConfig()
                self.assertEqual([worker.name for worker in loaded.workers][:3], ["linux-1", "arm-1", "arm-2"])
            else:
                self.assertIn("EC2UserDataLatentWorker(", block)
                exec(compile(block, "docs/worker.md", "exec"), {"__name__": "example"})  # noqa: S102

    def test_links(self) -> None:
        """Links lead to a section, or to a file."""
        sections = {
            re.sub("[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in re.findall("^## (.*)$", TEXT, re.M)
        }
        links = re.findall(r"\]\(([^)]*)\)", TEXT)
        self.assertTrue(links)
        for link in links:
            if link.startswith("#"):
                self.assertIn(link[1:], sections)
            else:
                self.assertTrue(Path(__file__).parents[2].joinpath("docs", link).exists(), link)
