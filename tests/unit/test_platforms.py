"""``platforms.toml``: what is made of it, and that mistakes in it are told with their lines."""

from __future__ import annotations

import tomllib
from typing import Any

from buildbot.config import ConfigErrors
from buildbot.config.errors import capture_config_errors
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.template.platforms import Platform, load_platforms
from buildbot_ec2ud.template.toml_lines import TomlFile, _lines
from tests.unit.files import directory, write


class PlatformsTestCase(SynchronousTestCase):
    """A master's directory."""

    def setUp(self) -> None:
        self.basedir = directory(self)

    def load(self, content: str | bytes) -> list[Platform]:
        self.path = write(self.basedir, "platforms.toml", content)
        return load_platforms(self.basedir)

    def told(self, errors: list[str]) -> list[str]:
        """The errors, without the path that each begins with."""
        for error in errors:
            self.assertTrue(error.startswith(self.path), error)
        return [error.removeprefix(self.path) for error in errors]

    def errors(self, content: str | bytes) -> list[str]:
        return self.told(self.assertRaises(ConfigErrors, self.load, content).errors)


class ContentTests(PlatformsTestCase):
    """What is in the file."""

    def test_packaged(self) -> None:
        """The packaged platforms can be made workers of, and have something to build."""
        platforms = load_platforms(self.basedir)
        self.assertGreater(len(platforms), 1)
        for platform in platforms:
            self.assertTrue(platform.build)
            self.assertEqual([worker.name for worker in platform.make_workers()], platform.workers)

    def test_defaults(self) -> None:
        """What [defaults] says holds for all who do not say otherwise."""
        one, two = self.load(
            """
            [defaults]
            count = 2
            instance_type = ["a", "b"]
            build = ["make"]
            [platforms.one]
            ami = "ami-1"
            [platforms.two]
            ami = "ami-2"
            count = 1
            instance_type = "c"
            build = ["cmake", "ctest"]
            when = "after"
            """
        )
        self.assertEqual(one, Platform("one", 2, ("make",), {"instance_type": ["a", "b"], "ami": "ami-1"}))
        self.assertEqual(
            two, Platform("two", 1, ("cmake", "ctest"), {"instance_type": "c", "ami": "ami-2"}, when="after")
        )
        self.assertEqual((one.workers, two.workers), (["one-1", "one-2"], ["two-1"]))

    def test_tables(self) -> None:
        """Of tables that both have, the platform's keys win; a table that describes one thing is one value."""
        one, two = self.load(
            """
            [defaults]
            tags = { team = "a", farm = "f" }
            bootstrap_env = { BB_PACKAGES = "gcc" }
            ami = { owners = ["self"], name = "x*" }
            [platforms.one]
            tags = { team = "b" }
            bootstrap_env = { BB_SETUP = "true" }
            ami = { owners = ["amazon"] }
            [platforms.two]
            """
        )
        self.assertEqual(
            one.worker,
            {
                "tags": {"team": "b", "farm": "f"},
                "bootstrap_env": {"BB_PACKAGES": "gcc", "BB_SETUP": "true"},
                "ami": {"owners": ["amazon"]},
            },
        )
        self.assertEqual(two.worker["tags"], {"team": "a", "farm": "f"})

    def test_least(self) -> None:
        """A platform needs nothing but its name to be one; its worker tells what it lacks."""
        self.assertEqual(self.load("[platforms.one]\n"), [Platform("one", 1, (), {})])

    def test_arguments(self) -> None:
        """What all workers of a master have, a platform may have of its own; None is as if not given."""
        common = '[defaults]\nami = "ami-1"\ninstance_type = "t"\n'
        one, two = self.load(common + '[platforms.one]\n[platforms.two]\nbb_master = "own:1"\n')
        workers = one.make_workers(bb_master="a:1", owner=None) + two.make_workers(bb_master="a:1", owner=None)
        self.assertEqual([worker.settings.bb_master for worker in workers], ["a:1", "own:1"])
        self.assertEqual({worker.settings.owner for worker in workers}, {None})


class MistakeTests(PlatformsTestCase):
    """What is wrong with the file."""

    def test_form(self) -> None:
        """Each mistake, by its line and its platform."""
        for content, expected in (
            ("", ": there is no [platforms.NAME] in it"),
            ("[defaults]\ncount = 1\n", ": there is no [platforms.NAME] in it"),
            ("\n[platforms]\n", ":2: there is no [platforms.NAME] in it"),
            ("platforms = 5\n", ":1: there is no [platforms.NAME] in it"),
            ("[platform.one]\n[platforms.two]\n", ":1: unknown table 'platform'"),
            ("defaults = 5\n[platforms.one]\n", ":1: defaults is not a table: 5"),
            ("[platforms]\none = 5\n", ":2: platform one is not a table: 5"),
            ("[platforms.one]\ncount = 0\n", ":2: platform one: count must be a number above 0, not 0"),
            ("[platforms.one]\ncount = true\n", ":2: platform one: count must be a number above 0, not True"),
            ("[platforms.one]\ncount = '2'\n", ":2: platform one: count must be a number above 0, not '2'"),
            (
                "[defaults]\nbuild = 'make'\n[platforms.one]\n",
                ":2: platform one: build must be a list of shell commands, not 'make'",
            ),
            ("[platforms.one]\nbuild = [1]\n", ":2: platform one: build must be a list of shell commands, not [1]"),
            (
                "[platforms.one]\n\nwhen = 'never'",
                ":3: platform one: when must be one of 'commit', 'after', 'night', not 'never'",
            ),
            (
                "[platforms.one]\nwhen = 'after'\n[platforms.two]\nwhen = 'night'",
                ":2: platform one: when is 'after', and no platform is built on a commit",
            ),
        ):
            self.assertEqual(self.errors(content), [expected])

    def test_unreadable(self) -> None:
        """What is not TOML, or not even text."""
        [error] = self.errors("[platforms.one\n")
        self.assertIn("line 1", error)
        [error] = self.errors("[platforms.one]\n# é".encode("latin-1"))
        self.assertIn("utf-8", error)
        [error] = self.errors("[platforms.one]\ncount = 1\ncount = 2\n")
        self.assertIn("line 3", error)

    def test_all_at_once(self) -> None:
        """All mistakes are told in one go."""
        errors = self.errors("[other]\n[platforms.one]\ncount = 0\n[platforms.two]\nbuild = 1\nwhen = 1\n")
        self.assertEqual(
            [error.split(": ")[:3] for error in errors],
            [
                [":1", "unknown table 'other'"],
                [":3", "platform one", "count must be a number above 0, not 0"],
                [":5", "platform two", "build must be a list of shell commands, not 1"],
                [":6", "platform two", "when must be one of 'commit', 'after', 'night', not 1"],
            ],
        )

    def test_arguments(self) -> None:
        """Mistakes in the arguments of the workers: once for all workers of a platform, with the line; all in one go."""
        platforms = self.load(
            "[defaults]\n"
            'instance_type = ["a", 5]\n'
            "count = 3\n"
            "[platforms.one]\n"
            "ami = 'ami-1'\n"
            "[platforms.two]\n"
            "instance_type = 't3.micro'\n"
            "instance_typ = 't3.micro'\n"
            "[platforms.three]\n"
            "ami = 'ami-1'\n"
            "instance_type = [\n"
            "  't3.micro',\n"
            "]\n"
            "[platforms.three.bootstrap_env]\n"
            'BB_SETUP = """\n'
            "a = 5\n"
            '"""\n'
            "'no name' = 'x'\n"
        )
        with capture_config_errors() as found:
            for platform in platforms:
                workers = platform.make_workers()
                # Buildbot goes on to tell what else is wrong: the builders have their workers.
                self.assertEqual([worker.name for worker in workers], platform.workers)
        errors = self.told(found.errors)
        self.assertEqual(
            [error.split(": ")[:3] for error in errors],
            [
                [":2", "platform one", "instance_type"],
                [":8", "platform two", "instance_typ"],
                [":6", "platform two", "ami"],
                [":18", "platform three", "bootstrap_env"],
            ],
            errors,
        )

    def test_own_and_default(self) -> None:
        """Of an argument that a platform and [defaults] have, the line of the one that counts; of a table's key, its own."""
        platforms = self.load(
            "[defaults]\n"
            "instance_type = 't3.micro'\n"
            "ami = 'ami-1'\n"
            "bootstrap_env = { 'a b' = 'x' }\n"
            "[platforms.one]\n"
            "instance_type = 5\n"
            "bootstrap_env = { BB_PACKAGES = 'gcc' }\n"
        )
        errors = self.told(self.assertRaises(ConfigErrors, platforms[0].make_workers).errors)
        self.assertEqual(
            sorted(error.split(": ")[0:3] for error in errors),
            [[":4", "platform one", "bootstrap_env"], [":6", "platform one", "instance_type"]],
        )

    def test_by_itself(self) -> None:
        """Outside of a configuration that is being loaded, the errors are raised."""
        [platform] = self.load("[platforms.one]\ncount = 2\n")
        errors = self.told(self.assertRaises(ConfigErrors, platform.make_workers).errors)
        self.assertEqual({error.split(": ")[0] for error in errors}, {":1"})
        without_file = Platform("one", 1, (), {})
        for error in self.assertRaises(ConfigErrors, without_file.make_workers).errors:
            self.assertTrue(error.startswith("platform one: "), error)


class LineTests(SynchronousTestCase):
    """Where values are in a TOML file."""

    TEXT = (
        "# a comment\n"  # 1
        "top = 1\n"
        'a."b c".d = 2\n'
        'text = """\n'  # 4
        "[not.a.table]\n"
        "no = 'value'\n"
        '"""\n'
        "list = [ # x = 5\n"  # 8
        "  '[x]',\n"
        "]\n"
        '  [t . "u.v"]  # w\n'  # 11
        "inline = { k = { l = 1 } }\n"
        "[[array]]\n"  # 13
        "in_array = 1\n"
        "[[array]]\n"
        "in_array = 2\n"
    )

    def test_lines(self) -> None:
        found = _lines(self.TEXT)
        self.assertEqual(
            found,
            {
                ("top",): 2,
                ("a",): 3,
                ("a", "b c"): 3,
                ("a", "b c", "d"): 3,
                ("text",): 4,
                ("list",): 8,
                ("t",): 11,
                ("t", "u.v"): 11,
                ("t", "u.v", "inline"): 12,
                ("t", "u.v", "inline", "k"): 12,
                ("t", "u.v", "inline", "k", "l"): 12,
                ("array",): 13,
                ("array", "in_array"): 14,
            },
        )

    def test_line_ends(self) -> None:
        """Those of Windows are line ends too."""
        self.assertEqual(_lines(self.TEXT.replace("\n", "\r\n")), _lines(self.TEXT))

    def test_where(self) -> None:
        """As far as the keys lead."""
        path = write(directory(self), "a.toml", self.TEXT)
        file = TomlFile(path)
        self.assertEqual(file.where("t", "u.v", "inline", "zzz"), f"{path}:12")
        self.assertEqual(file.where("zzz", "t"), path)
        self.assertEqual((file.line("top"), file.line("zzz"), file.line()), (2, None, None))

    @given(
        st.dictionaries(
            st.text("ab. \"'[]#=", min_size=1, max_size=4),
            st.recursive(
                st.integers(0, 9) | st.text("a\n\"'[]#= {}", max_size=9),
                lambda inner: st.lists(inner, max_size=2),
                max_leaves=4,
            ),
            max_size=5,
        ),
        st.booleans(),
    )
    def test_any(self, content: dict[str, Any], table: bool) -> None:
        """Whatever a value is and looks like, those after it have their lines."""
        lines, expected = (["[t]"], {("t",): 1}) if table else ([], {})
        for key, value in content.items():
            expected[(*(("t",) if table else ()), key)] = len(lines) + 1
            lines += f"{_quoted(key)} = {_toml(value)}".split("\n")
        text = "\n".join(lines)
        self.assertEqual(tomllib.loads(text), {"t": content} if table else content)
        self.assertEqual(_lines(text), expected)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _toml(value: Any) -> str:
    """A value, over as many lines as it can have."""
    if isinstance(value, list):
        return "[\n" + "".join(f"{_toml(each)}, # ]\n" for each in value) + "]"
    if isinstance(value, str):
        return '"""\n' + value.replace("\\", "\\\\").replace('"', '\\"') + '"""'
    return str(value)
