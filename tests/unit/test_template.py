"""The packaged master template: its files, and what is said of mistakes in them."""

from __future__ import annotations

import os

from buildbot.config import ConfigErrors
from buildbot.config.master import FileLoader, MasterConfig
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud import template
from buildbot_ec2ud.template import Platform, load_platforms, load_settings
from buildbot_ec2ud.worker import EC2UserDataLatentWorker
from tests.unit.files import directory, write


class TemplateTestCase(SynchronousTestCase):
    """A master's directory."""

    def setUp(self) -> None:
        self.basedir = directory(self)

    def write(self, name: str, content: str | bytes) -> str:
        return write(self.basedir, name, content)


class FileTests(TemplateTestCase):
    """Where the files are."""

    def test_directory(self) -> None:
        """All files of the template are there."""
        for name in template.FILES:
            self.assertTrue((template.directory() / name).is_file(), name)

    def test_own_before_packaged(self) -> None:
        """The master's own file wins over the packaged one."""
        self.assertEqual(template.find(self.basedir, "settings.toml"), str(template.directory() / "settings.toml"))
        path = self.write("settings.toml", "")
        self.assertEqual(template.find(self.basedir, "settings.toml"), path)


class SettingsTests(TemplateTestCase):
    """``settings.toml``."""

    def errors(self, content: str | bytes) -> list[str]:
        """What is wrong; each error names the file."""
        path = self.write("settings.toml", content)
        errors = self.assertRaises(ConfigErrors, load_settings, self.basedir).errors
        for error in errors:
            self.assertTrue(error.startswith(f"{path}: "), error)
        return [error.removeprefix(f"{path}: ") for error in errors]

    def test_packaged(self) -> None:
        """Without a file of its own, a master has the packaged settings; all are there but the optional one."""
        settings = load_settings(self.basedir)
        self.assertEqual(set(template.SETTINGS) - set(settings), {"bb_master"})
        for name, value in settings.items():
            self.assertIs(type(value), template.SETTINGS[name], name)

    def test_loopback(self) -> None:
        """The packaged web UI is not for others to reach."""
        self.assertIn("interface=127.0.0.1", load_settings(self.basedir)["www_port"])

    def test_own_over_packaged(self) -> None:
        """What a file does not say is as in the packaged one."""
        packaged = load_settings(self.basedir)
        self.write("settings.toml", 'title = "Ours"\nbb_master = "example.org"\nnightly_hour = 4\n')
        self.assertEqual(
            load_settings(self.basedir), {**packaged, "title": "Ours", "bb_master": "example.org", "nightly_hour": 4}
        )

    def test_wrong(self) -> None:
        """Unknown names and wrong types, all at once."""
        self.assertEqual(
            self.errors('titel = "x"\ntitle = 5\nnightly_hour = true\npoll_interval = "300"\ncollapse_requests = 1\n'),
            [
                "unknown setting 'titel'",
                "title must be a text, not 5",
                "poll_interval must be a number, not '300'",
                "nightly_hour must be a number, not True",
                "collapse_requests must be true or false, not 1",
            ],
        )

    def test_unreadable(self) -> None:
        """What is not TOML, or not even text."""
        [error] = self.errors("title = \n")
        self.assertIn("line 1", error)
        self.assertEqual(len(self.errors("title = 'é'".encode("latin-1"))), 1)


class PlatformTests(TemplateTestCase):
    """``platforms.toml``."""

    def load(self, content: str) -> list[Platform]:
        self.write("platforms.toml", content)
        return load_platforms(self.basedir)

    def errors(self, content: str | bytes) -> list[str]:
        """What is wrong; each error names the file."""
        path = self.write("platforms.toml", content)
        errors = self.assertRaises(ConfigErrors, load_platforms, self.basedir).errors
        for error in errors:
            self.assertTrue(error.startswith(f"{path}: "), error)
        return [error.removeprefix(f"{path}: ") for error in errors]

    def test_packaged(self) -> None:
        """The packaged platforms can be made workers of."""
        platforms = load_platforms(self.basedir)
        self.assertGreater(len(platforms), 1)
        for platform in platforms:
            self.assertTrue(platform.build)
            EC2UserDataLatentWorker(platform.workers[0], **platform.worker)

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
            """
        )
        self.assertEqual(one, Platform("one", 2, ("make",), {"instance_type": ["a", "b"], "ami": "ami-1"}))
        self.assertEqual(two, Platform("two", 1, ("cmake", "ctest"), {"instance_type": "c", "ami": "ami-2"}))
        self.assertEqual((one.workers, two.workers), (["one-1", "one-2"], ["two-1"]))

    def test_least(self) -> None:
        """A platform needs nothing but its name to be one; its worker tells what it lacks."""
        self.assertEqual(self.load("[platforms.one]\n"), [Platform("one", 1, (), {})])

    def test_wrong(self) -> None:
        """Each mistake, by its file and its platform."""
        for content, words in (
            ("", "no [platforms.NAME]"),
            ("[defaults]\ncount = 1\n", "no [platforms.NAME]"),
            ("[platforms]\n", "no [platforms.NAME]"),
            ("platforms = 5\n", "no [platforms.NAME]"),
            ("[platform.one]\n[platforms.two]\n", "unknown table 'platform'"),
            ("defaults = 5\n[platforms.one]\n", "defaults is not a table: 5"),
            ("[platforms]\none = 5\n", "platform one is not a table: 5"),
            ("[platforms.one]\ncount = 0\n", "platform one: count must be a number above 0, not 0"),
            ("[platforms.one]\ncount = true\n", "platform one: count must be a number above 0, not True"),
            ("[platforms.one]\ncount = '2'\n", "platform one: count must be a number above 0, not '2'"),
            ("[platforms.one]\nbuild = 'make'\n", "platform one: build must be a list of shell commands"),
            ("[platforms.one]\nbuild = [1]\n", "platform one: build must be a list of shell commands"),
            ("[platforms.one\n", "line 1"),
            ("[platforms.one]\n# é".encode("latin-1"), "utf-8"),
        ):
            errors = self.errors(content)
            self.assertEqual(len(errors), 1, errors)
            self.assertIn(words, errors[0])

    def test_all_at_once(self) -> None:
        """All mistakes are told in one go."""
        errors = self.errors("[other]\n[platforms.one]\ncount = 0\n[platforms.two]\nbuild = 1\n")
        self.assertEqual(
            [error.partition(":")[0] for error in errors], ["unknown table 'other'", "platform one", "platform two"]
        )


class MasterTests(TemplateTestCase):
    """``master.cfg``, as Buildbot loads it."""

    def load(self) -> MasterConfig:
        return FileLoader(self.basedir, str(template.directory() / "master.cfg")).loadConfig()

    def test_packaged(self) -> None:
        """As it is packaged, it is a master with a builder for each platform, and its schedulers."""
        loaded = self.load()
        platforms = load_platforms(self.basedir)
        names = [platform.name for platform in platforms]
        self.assertEqual([builder.name for builder in loaded.builders], names)
        self.assertEqual(
            {builder.name: builder.workernames for builder in loaded.builders},
            {platform.name: platform.workers for platform in platforms},
        )
        self.assertEqual(
            [worker.name for worker in loaded.workers], [name for platform in platforms for name in platform.workers]
        )
        self.assertEqual(set(loaded.schedulers), {"commits", "nightly", "force"})
        self.assertEqual(list(loaded.change_sources), [])
        self.assertEqual(loaded.www["port"], load_settings(self.basedir)["www_port"])

    def test_own_settings(self) -> None:
        """A master with settings, platforms and a script of its own."""
        self.write("settings.toml", 'repository = "https://example.org/a.git"\nbb_master = "example.org:1234"\n')
        self.write("a.sh", "#!/bin/sh\n")
        self.write(
            "platforms.toml",
            '[defaults]\ncount = 3\nami = "ami-1"\nbootstrap_script = "a.sh"\nbuild = ["make", "make test"]\n'
            '[platforms.one]\ninstance_type = "a"\n[platforms.two]\ninstance_type = "b"\nbb_master = "other:1"\n',
        )
        loaded = self.load()
        self.assertEqual(len(loaded.workers), 6)
        self.assertEqual(
            {worker.settings.bb_master for worker in loaded.workers if worker.name.startswith("one")},
            {"example.org:1234"},
        )
        self.assertEqual(
            {worker.settings.bb_master for worker in loaded.workers if worker.name.startswith("two")}, {"other:1"}
        )
        self.assertEqual(len(loaded.change_sources), 1)
        self.assertEqual(len(loaded.builders[0].factory.steps), 3)

    def test_mistakes(self) -> None:
        """All mistakes in the workers' arguments are told, by worker and argument."""
        self.write("platforms.toml", '[platforms.one]\nami = 5\n[platforms.two]\ninstance_type = "b"\nzzz = 1\n')
        errors = self.assertRaises(ConfigErrors, self.load).errors
        found = {tuple(error.split(": ")[:2]) for error in errors}
        self.assertLessEqual(
            {
                ("worker one-1", "instance_type"),
                ("worker one-1", "ami"),
                ("worker two-1", "ami"),
                ("worker two-1", "zzz"),
            },
            found,
        )

    def test_copy(self) -> None:
        """A copy in the master's directory does the same."""
        for name in template.FILES:
            self.write(name, (template.directory() / name).read_bytes())
        loaded = FileLoader(self.basedir, os.path.join(self.basedir, "master.cfg")).loadConfig()
        self.assertEqual(
            [builder.name for builder in loaded.builders], [builder.name for builder in self.load().builders]
        )
