"""The packaged master template: its files, and what is said of mistakes in them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from buildbot.config import ConfigErrors
from buildbot.config.master import FileLoader, MasterConfig
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from buildbot_ec2ud import template, template_files
from buildbot_ec2ud.template import SETTINGS, load_platforms, load_settings
from buildbot_ec2ud.userdata import scripts
from tests.unit.files import directory, write


class TemplateTestCase(SynchronousTestCase):
    """A master's directory."""

    def setUp(self) -> None:
        self.basedir = directory(self)

    def write(self, name: str, content: str | bytes) -> str:
        """Make a file in it; gives its path."""
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
            self.assertTrue(error.startswith(path), error)
        return [error.removeprefix(path) for error in errors]

    def test_packaged(self) -> None:
        """Without a file of its own, a master has the packaged settings; all are there but the optional ones."""
        settings = load_settings(self.basedir)
        self.assertEqual(set(SETTINGS) - set(settings), {"bb_master", "owner", "mq"})
        for name, value in settings.items():
            self.assertTrue(SETTINGS[name].takes(value), name)

    def test_optional(self) -> None:
        """The optional ones are there as comments, and are right when they are taken in."""
        text = template.directory().joinpath("settings.toml").read_text(encoding="utf-8")
        text, count = re.subn("^#(?=[a-z_]+ = )", "", text, flags=re.MULTILINE)
        self.assertEqual(count, 3)
        text = text.replace("multi_master = false", "multi_master = true").replace("sqlite:", "postgresql:")
        self.write("settings.toml", text)
        self.assertEqual(set(load_settings(self.basedir)), set(SETTINGS))

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
        """Unknown names and wrong types, all at once, with their lines."""
        self.assertEqual(
            self.errors(
                'titel = "x"\ntitle = 5\nnightly_hour = true\npoll_interval = "300"\ncollapse_requests = 1\n'
                "users = ['a b']\nmq = { router = 'x' }\nmail_to = ['']\nfetches_at_once = 0\nqqqq = 1\n"
            ),
            [
                ":1: unknown setting 'titel'; did you mean title?",
                ":2: title must be a text, not 5",
                ":3: nightly_hour must be a number from 0 to 23, not True",
                ":4: poll_interval must be a number from 0 on, not '300'",
                ":5: collapse_requests must be true or false, not 1",
                ":6: users must be a list of names, of letters, digits, - and _, not ['a b']",
                ':7: mq must be a table like { router_url = "ws://127.0.0.1:8085", realm = "buildbot" }, '
                "not {'router': 'x'}",
                ":8: mail_to must be a list of texts, not ['']",
                ":9: fetches_at_once must be a number from 1 on, not 0",
                ":10: unknown setting 'qqqq'",
            ],
        )

    def test_hour(self) -> None:
        """A day ends."""
        self.assertEqual(self.errors("nightly_hour = 24\n"), [":1: nightly_hour must be a number from 0 to 23, not 24"])

    def test_contradictions(self) -> None:
        """Settings that need others."""
        self.assertEqual(
            self.errors(
                'github_hook = true\ntry_port = "1"\nmail_to = ["a@example.org"]\n'
                'mq = { router_url = "ws://a:1", realm = "b" }\n'
            ),
            [
                ":1: github_hook needs a repository",
                ":2: try_port needs try_users: nobody could log in",
                ":3: mail_to needs mail_from",
                ":4: mq is for several masters: set multi_master = true",
            ],
        )
        self.assertEqual(
            self.errors("multi_master = true\n"),
            [
                ":1: multi_master needs a db_url of a database server",
                ":1: multi_master needs mq: the masters tell each other of builds by a router",
            ],
        )

    def test_unreadable(self) -> None:
        """What is not TOML, or not even text."""
        [error] = self.errors("title = \n")
        self.assertIn("line 1", error)
        self.assertEqual(len(self.errors("title = 'é'".encode("latin-1"))), 1)


class MasterTests(TemplateTestCase):
    """``master.cfg``, as Buildbot loads it."""

    def load(self) -> MasterConfig:
        return FileLoader(self.basedir, str(template.directory() / "master.cfg")).loadConfig()

    def errors(self) -> list[str]:
        return self.assertRaises(ConfigErrors, self.load).errors

    def secret(self, name: str, mode: int = 0o600, content: str = "s3cret\n") -> None:
        os.makedirs(os.path.join(self.basedir, "secrets"), exist_ok=True)
        write(os.path.join(self.basedir, "secrets"), name, content, mode)

    def builders_of(self, loaded: MasterConfig) -> dict[str, list[str]]:
        return {name: list(each.builderNames) for name, each in loaded.schedulers.items() if "Janitor" not in name}

    def test_packaged(self) -> None:
        """As it is packaged, it is a master with a builder for each platform, and its schedulers."""
        loaded = self.load()
        platforms = load_platforms(self.basedir)
        names = [platform.name for platform in platforms]
        self.assertEqual([builder.name for builder in loaded.builders], [*names, "__Janitor"])
        self.assertEqual(
            {builder.name: builder.workernames for builder in loaded.builders[:-1]},
            {platform.name: platform.workers for platform in platforms},
        )
        self.assertEqual(
            [worker.name for worker in loaded.workers],
            [*(name for platform in platforms for name in platform.workers), "__Janitor"],
        )
        self.assertEqual(self.builders_of(loaded), dict.fromkeys(("commits", "nightly", "force"), names))
        self.assertEqual({builder.nextWorker for builder in loaded.builders[:-1]}, {template.prefer_running})
        self.assertEqual(list(loaded.change_sources), [])
        self.assertEqual(loaded.www["port"], load_settings(self.basedir)["www_port"])
        self.assertEqual(loaded.www["plugins"], {"ec2_scripts": {}})
        self.assertIsNone(loaded.buildbotNetUsageData)
        self.assertFalse(loaded.multiMaster)
        self.assertEqual(list(loaded.services), [])

    def test_when(self) -> None:
        """What is built when."""
        self.write("settings.toml", "other_branches = true\nkeep_logs = 0\n")
        common = '[defaults]\nami = "ami-1"\ninstance_type = "a"\n'
        self.write(
            "platforms.toml",
            f'{common}[platforms.one]\n[platforms.two]\nwhen = "after"\n[platforms.three]\nwhen = "night"\n',
        )
        loaded = self.load()
        self.assertEqual(
            self.builders_of(loaded),
            {
                "commits": ["one"],
                "branches": ["one"],
                "after": ["two"],
                "nightly": ["one", "three"],
                "force": ["one", "two", "three"],
            },
        )
        self.assertEqual([builder.name for builder in loaded.builders], ["one", "two", "three"])
        self.write("platforms.toml", f'{common}when = "night"\n[platforms.one]\n')
        self.assertEqual(self.builders_of(self.load()), {"nightly": ["one"], "force": ["one"]})

    def test_own_settings(self) -> None:
        """A master with settings, platforms and a script of its own."""
        self.write(
            "settings.toml",
            'repository = "https://example.org/a.git"\nbb_master = "example.org:1234"\nowner = "farm"\n'
            'mail_to = ["a@example.org"]\nmail_from = "b@example.org"\nother_branches = true\n',
        )
        self.write("a.sh", "#!/bin/sh\n")
        self.write(
            "platforms.toml",
            '[defaults]\ncount = 3\nami = "ami-1"\nbootstrap_script = "a.sh"\nbuild = ["make", "make test"]\n'
            '[platforms.one]\ninstance_type = "a"\n[platforms.two]\ninstance_type = "b"\nbb_master = "other:1"\n',
        )
        loaded = self.load()
        found: dict[str, set[tuple[str, str]]] = {}
        for worker in loaded.workers[:6]:
            found.setdefault(worker.name[:3], set()).add((worker.settings.bb_master, worker.settings.owner))
        self.assertEqual(found, {"one": {("example.org:1234", "farm")}, "two": {("other:1", "farm")}})
        [poller] = loaded.change_sources
        self.assertIs(poller._config_kwargs["branches"], True)
        self.assertEqual(len(loaded.builders[0].factory.steps), 3)
        self.assertEqual([type(service).__name__ for service in loaded.services.values()], ["MailNotifier"])

    def test_hook(self) -> None:
        """GitHub's hook needs its secret, and no poller beside it."""
        self.write("settings.toml", 'repository = "https://example.org/a.git"\ngithub_hook = true\npoll_interval = 0\n')
        [error] = self.errors()
        self.assertIn("settings.toml:2: github_hook: there is no secret 'github-hook'", error)
        self.secret("github-hook")
        loaded = self.load()
        self.assertEqual(list(loaded.change_sources), [])
        hook = loaded.www["change_hook_dialects"]["github"]
        self.assertEqual((repr(hook["secret"]), hook["strict"]), ("Secret(github-hook)", True))

    def test_users(self) -> None:
        """A web UI that others can reach needs users, and they need passwords."""
        self.write("settings.toml", 'www_port = "tcp:8010"\n')
        [error] = self.errors()
        self.assertIn("settings.toml:1: others can reach the web UI at 'tcp:8010'", error)
        self.write("settings.toml", 'www_port = "tcp:8010"\nusers = ["anna", "bert"]\n')
        self.secret("web-anna")
        [error] = self.errors()
        self.assertIn("settings.toml:2: users: there is no secret 'web-bert': neither a file ", error)
        self.assertIn("BUILDBOT_SECRET_WEB_BERT", error)
        self.patch(os, "environ", {**os.environ, "BUILDBOT_SECRET_WEB_BERT": "s3cret"})
        loaded = self.load()
        self.assertEqual(loaded.www["auth"].users, ("anna", "bert"))
        self.assertEqual(len(loaded.secretsProviders), 2)
        self.secret("web-bert", content="")
        [error] = self.errors()
        self.assertIn("the secret 'web-bert' is empty", error)
        self.secret("web-bert", 0o644)
        [error] = self.errors()
        self.assertIn("Permissions 0o644 on file web-bert are too open", error)

    def test_try(self) -> None:
        """`buildbot try` is off, and on with users who have secrets."""
        self.write("settings.toml", 'try_port = "tcp:0:interface=127.0.0.1"\ntry_users = ["anna"]\n')
        [error] = self.errors()
        self.assertIn("settings.toml:2: try_users: there is no secret 'try-anna'", error)
        self.secret("try-anna")
        self.assertIn("try", self.load().schedulers)

    def test_several_masters(self) -> None:
        """What several masters have in common."""
        self.write(
            "settings.toml",
            'multi_master = true\ndb_url = "postgresql+psycopg2://b@127.0.0.1:5432/b"\n'
            'mq = { router_url = "ws://127.0.0.1:1", realm = "r" }\n',
        )
        loaded = self.load()
        self.assertTrue(loaded.multiMaster)
        self.assertEqual(loaded.mq, {"type": "wamp", "router_url": "ws://127.0.0.1:1", "realm": "r"})
        self.assertEqual(loaded.db.db_url, "postgresql+psycopg2://b@127.0.0.1:5432/b")

    def test_mistakes(self) -> None:
        """All mistakes in the workers' arguments are told, by line, platform and argument."""
        path = self.write("platforms.toml", '[platforms.one]\nami = 5\n[platforms.two]\ninstance_type = "b"\nzzz = 1\n')
        found = [error.removeprefix(path).split(": ")[:3] for error in self.errors()]
        self.assertEqual(
            sorted(found),
            [
                [":1", "platform one", "instance_type"],
                [":2", "platform one", "ami"],
                [":3", "platform two", "ami"],
                [":5", "platform two", "zzz"],
            ],
        )

    def test_copy(self) -> None:
        """A copy in the master's directory does the same."""
        for name in template.FILES:
            self.write(name, (template.directory() / name).read_bytes())
        loaded = FileLoader(self.basedir, os.path.join(self.basedir, "master.cfg")).loadConfig()
        self.assertEqual(
            [builder.name for builder in loaded.builders], [builder.name for builder in self.load().builders]
        )


class CopyTests(TemplateTestCase):
    """A master's own copy, and how it differs from the packaged files."""

    def test_copy(self) -> None:
        """All files are copied; what is there stays, even a link that leads nowhere."""
        self.write("settings.toml", "# ours\n")
        os.symlink("nowhere", os.path.join(self.basedir, "platforms.toml"))
        said = list(template_files.copy(Path(self.basedir)))
        self.assertIn(f"keeping {self.basedir}/settings.toml", said)
        self.assertIn(f"keeping {self.basedir}/platforms.toml", said)
        self.assertIn(f"creating {self.basedir}/master.cfg", said)
        self.assertEqual(Path(self.basedir, "settings.toml").read_text(), "# ours\n")
        for family, name in scripts.FAMILIES.items():
            self.assertIn(f"creating {self.basedir}/bootstrap/{name}", said)
            self.assertEqual(
                scripts.load(f"bootstrap/{name}", None, [self.basedir]).windows, family == "windows", "it can be used"
            )

    def test_same(self) -> None:
        """There is no difference in a fresh copy."""
        list(template_files.copy(Path(self.basedir)))
        self.assertEqual(list(template_files.differences(Path(self.basedir))), [])

    def test_differences(self) -> None:
        """They are a diff that patch applies, after which there are none."""
        list(template_files.copy(Path(self.basedir)))
        self.write("settings.toml", "# ours")
        text = Path(self.basedir, "master.cfg").read_text()
        self.write("master.cfg", text.replace("c = BuildmasterConfig", "b = BuildmasterConfig"))
        os.unlink(os.path.join(self.basedir, "bootstrap", "debian.sh"))
        found = "".join(template_files.differences(Path(self.basedir)))
        self.assertIn("\n-b = BuildmasterConfig = {}\n+c = BuildmasterConfig = {}\n", found)
        self.assertIn("\n-# ours\n\\ No newline at end of file\n", found)
        self.assertIn("--- /dev/null\n+++ b/bootstrap/debian.sh\n", found)
        self.assertNotIn("platforms.toml", found)
        if shutil.which("patch") is None:
            raise SkipTest("there is no patch on this machine")
        subprocess.run(["patch", "-sp1", "-d", self.basedir], input=found, text=True, check=True)
        self.assertEqual(list(template_files.differences(Path(self.basedir))), [])
