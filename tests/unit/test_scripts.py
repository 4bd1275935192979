"""Where a bootstrap script comes from."""

from __future__ import annotations

import builtins
import errno
import os
import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import buildbot_ec2ud.userdata
from buildbot_ec2ud.userdata import scripts
from buildbot_ec2ud.userdata.posix import UserData
from buildbot_ec2ud.userdata.scripts import InlineScript, RemoteScript, ScriptError, load
from tests.unit.files import directory, write

TEXT = "#!/bin/sh\necho 'wörk'\n"
SHA256 = "0123456789abcdef" * 4
PACKAGED = sorted(Path(buildbot_ec2ud.userdata.__file__).parent.rglob("*.sh"))


class LoadTests(SynchronousTestCase):
    """What the arguments can name."""

    def test_default(self) -> None:
        """The packaged script for the usual systems."""
        with open(scripts.packaged("generic.sh"), encoding="utf-8") as file:
            self.assertEqual(load(None, None, []), InlineScript(file.read()))

    def test_text(self) -> None:
        """Text stays as it is, with or without an end of its last line."""
        for text in (TEXT, TEXT.rstrip(), "#!"):
            self.assertEqual(load(text, None, []), InlineScript(text))

    def test_file(self) -> None:
        """A relative path is looked for in each directory, in order; an absolute one is not."""
        first, second = directory(self), directory(self)
        write(second, "a.sh", TEXT)
        self.assertEqual(load("a.sh", None, [first, second]), InlineScript(TEXT))
        write(first, "a.sh", "#!first\n")
        self.assertEqual(load("a.sh", None, [first, second]), InlineScript("#!first\n"))
        os.mkdir(os.path.join(first, "sub"))
        write(os.path.join(first, "sub"), "b.sh", "#!b\n")
        self.assertEqual(load("sub/b.sh", None, [first, second]), InlineScript("#!b\n"))
        self.assertEqual(load(os.path.join(second, "a.sh"), None, [first]), InlineScript(TEXT))

    def test_file_is_read_anew(self) -> None:
        """Who edits the script need not tell the master."""
        path = directory(self)
        for text in (TEXT, TEXT + "# more\n"):
            write(path, "a.sh", text)
            self.assertEqual(load("a.sh", None, [path]), InlineScript(text))

    def test_url(self) -> None:
        """The machine fetches from a URL; a plain one needs a checksum."""
        self.assertEqual(load("https://example.org/a.sh", None, []), RemoteScript("https://example.org/a.sh", None))
        for url in ("https://example.org/a.sh", "http://example.org:8080/a.sh?x=1"):
            self.assertEqual(load(url, SHA256.upper(), []), RemoteScript(url, SHA256))

    def test_wrong(self) -> None:
        """Each mistake begins with the name of the argument, and says what is wrong."""
        path = directory(self)
        write(path, "perl", "print 1\n")
        write(path, "nul", "#!/bin/sh\n\0")
        write(path, "dos", "#!/bin/sh\r\necho\r\n")
        write(path, "latin", "#!/bin/sh\n# é\n".encode("latin-1"))
        write(path, "bom", "\ufeff#!/bin/sh\n")
        write(path, "fine", TEXT)
        for script, sha256, argument, words in (
            ("missing.sh", None, "bootstrap_script", "there is no file 'missing.sh'"),
            ("/does/not/exist.sh", None, "bootstrap_script", "there is no file"),
            ("", None, "bootstrap_script", "there is no file"),
            (".", None, "bootstrap_script", "there is no file"),
            ("perl", None, "bootstrap_script", f"{path}/perl does not start with #!"),
            ("nul", None, "bootstrap_script", "NUL"),
            ("dos", None, "bootstrap_script", "Windows line ends"),
            ("latin", None, "bootstrap_script", f"cannot read {path}/latin"),
            ("bom", None, "bootstrap_script", "does not start with #!"),
            ("#!/bin/sh\n\0", None, "bootstrap_script", "the text has a NUL in it"),
            ("#!/bin/sh\r\n", None, "bootstrap_script", "the text has Windows line ends"),
            (5, None, "bootstrap_script", "5"),
            (TEXT.encode(), None, "bootstrap_script", "#!/bin/sh"),
            ("ftp://example.org/a.sh", None, "bootstrap_script", "not an http or https URL"),
            ("https:///a.sh", None, "bootstrap_script", "not an http or https URL"),
            ("https://[::1/a.sh", None, "bootstrap_script", "https://[::1/a.sh"),
            ("http://example.org/a.sh", None, "bootstrap_script", "bootstrap_sha256"),
            ("fine", SHA256, "bootstrap_sha256", "is for a script at a URL"),
            (TEXT, SHA256, "bootstrap_sha256", "is for a script at a URL"),
            (None, SHA256, "bootstrap_sha256", "is for a script at a URL"),
            ("https://example.org/a.sh", "abc", "bootstrap_sha256", "not a SHA-256"),
            ("https://example.org/a.sh", SHA256 + "\n", "bootstrap_sha256", "not a SHA-256"),
            ("https://example.org/a.sh", "g" * 64, "bootstrap_sha256", "not a SHA-256"),
            ("https://example.org/a.sh", 5, "bootstrap_sha256", "not a SHA-256"),
        ):
            failure = self.assertRaises(ScriptError, load, script, sha256, [path])
            self.assertTrue(str(failure).startswith(argument + ": "), str(failure))
            self.assertIn(words, str(failure))

    def test_unreadable(self) -> None:
        """A file that may not be read is there, and it is said why it is of no use."""
        path = directory(self)
        write(path, "a.sh", TEXT)

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        self.patch(builtins, "open", refuse)  # root may read whatever its mode
        failure = self.assertRaises(ScriptError, load, "a.sh", None, [path])
        self.assertIn("bootstrap_script: cannot read", str(failure))
        self.assertIn("Permission denied", str(failure))

    def test_packaged(self) -> None:
        """A packaged script is found by its name."""
        for name in ("generic.sh", "embedded.sh"):
            self.assertTrue(scripts.packaged(name).endswith(name))
        self.assertRaises(FileNotFoundError, scripts.packaged, "missing.sh")


class PackagedTests(SynchronousTestCase):
    """The scripts that come with this package."""

    def texts(self) -> dict[str, bytes]:
        """Each script, and the user-data that brings it; what is a template only in the latter."""
        texts = {}
        for path in PACKAGED:
            if path.name != "posix.sh":
                texts[path.name] = path.read_bytes()
                script = load(str(path), None, [])
                texts[f"user-data-{path.name}"] = UserData("m:1", "w", "p", {"A": "'"}, script).render()
        remote = RemoteScript("https://example.org/a.sh", SHA256)
        texts["user-data-remote.sh"] = UserData("m:1", "w", "p", {}, remote).render()
        return texts

    def test_there_are_some(self) -> None:
        """All of them are looked at."""
        self.assertLessEqual({"posix.sh", "generic.sh", "embedded.sh"}, {path.name for path in PACKAGED})

    def check(self, *command: str) -> None:
        path = directory(self)
        for name, text in self.texts().items():
            done = subprocess.run(
                [*command, write(path, name, text)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
            )
            self.assertEqual((name, done.stdout.decode(), done.returncode), (name, "", 0))

    def test_syntax(self) -> None:
        """Every sh at hand can read them."""
        for shell in (["sh"], ["dash"], ["busybox", "sh"], ["bash", "--posix"], ["ksh"], ["mksh"], ["yash"]):
            if shutil.which(shell[0]):
                self.check(*shell, "-n")

    def test_shellcheck(self) -> None:
        """shellcheck has nothing to say, nor on anything that is not POSIX."""
        if shutil.which("shellcheck") is None:
            raise SkipTest("shellcheck is not installed")
        self.check("shellcheck", "--shell=sh")

    def test_plain(self) -> None:
        """Every agent takes them: ASCII, and lines that end as on Unix."""
        for path in PACKAGED:
            data = path.read_bytes()
            self.assertTrue(data.startswith(b"#!/bin/sh\n"), path)
            self.assertTrue(data.isascii(), path)
            self.assertTrue(data.endswith(b"\n"), path)
            self.assertNotIn(b"\r", data, path)
