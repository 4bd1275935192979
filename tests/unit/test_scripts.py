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
from buildbot_ec2ud.userdata.compose import compose, cut
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
        self.assertEqual(load(None, None, []), load("generic", None, []))

    def test_families(self) -> None:
        """A packaged script goes by its name, whatever files there are; it travels without comments, and is not torn."""
        path = directory(self)
        for name, file in scripts.FAMILIES.items():
            write(path, name, TEXT)
            found, whole = load(name, None, [path]), load(scripts.packaged(file), None, [])
            self.assertEqual((found.windows, whole.windows), (name == "windows",) * 2)
            if not found.windows:
                self.assertTrue(found.text.startswith("#!/bin/sh\n"))
                self.assertNotIn("\n#", found.text)
                self.assertEqual(cut(found.text), cut(whole.text))
            # With anything that makes it a path, it is a file.
            self.assertEqual(load("./" + name, None, [path]), InlineScript(TEXT))
        systems = ["alpine", "debian", "freebsd", "generic", "macos", "redhat", "suse", "windows"]
        self.assertEqual(sorted(scripts.FAMILIES), systems)

    def test_includes(self) -> None:
        """Scripts are put together of parts, files and texts alike; what is missing is told with its line."""
        text = "#!/bin/sh\n# ec2ud: include worker.sh\nrun\n"
        path = directory(self)
        write(path, "a.sh", text)
        for script in (text, "a.sh"):
            self.assertEqual(load(script, None, [path]), InlineScript(compose(text)))
        self.assertNotIn("ec2ud: include", compose(text))
        for script, name in (
            ("#!/bin/sh\n# ec2ud: include nothing.sh\n", "the text"),
            ("b.sh", os.path.join(path, "b.sh")),
        ):
            write(path, "b.sh", "#!/bin/sh\n# ec2ud: include nothing.sh\n")
            failure = self.assertRaises(ScriptError, load, script, None, [path])
            self.assertIn(f"bootstrap_script: {name}, line 2: ", str(failure))
            self.assertIn("'nothing.sh'", str(failure))

    def test_windows(self) -> None:
        """Scripts for Windows are known by their names and their tags, and stay as they are."""
        path = directory(self)
        text = "Write-Host 'wörk'\r\n# ec2ud: include worker.sh\r\n"
        for name in ("a.ps1", "B.PS1"):
            write(path, name, text)
            self.assertEqual(load(name, None, [path]), InlineScript(text, windows=True))
        for text in ("<powershell>Write-Host</powershell>", "<script>echo</script>"):
            self.assertEqual(load(text, None, [path]), InlineScript(text, windows=True))
        for url in ("https://example.org/a.ps1?x=1", "https://example.org/A.PS1"):
            self.assertEqual(load(url, None, []), RemoteScript(url, None, windows=True))
        self.assertFalse(load("https://example.org/a.sh?x=.ps1", None, []).windows)

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

    def test_insecure(self) -> None:
        """Plain http without a checksum is possible for who asks for it."""
        url = "http://example.org/a.sh"
        self.assertIn("bootstrap_insecure", str(self.assertRaises(ScriptError, load, url, None, [])))
        self.assertEqual(load(url, None, [], insecure=True), RemoteScript(url, None))
        self.assertEqual(load(url, SHA256, [], insecure=True), RemoteScript(url, SHA256))

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
            ("debain", None, "bootstrap_script", "there is no file 'debain'; did you mean debian?"),
            ("debian", SHA256, "bootstrap_sha256", "is for a script at a URL"),
            ("<powershell>\0", None, "bootstrap_script", "the text has a NUL in it"),
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
            # The parts of bootstrap scripts are looked at in the whole.
            if path.parent.name != "bootstrap" and path.name != "posix.sh":
                texts[path.name] = path.read_bytes()
        remote = RemoteScript("https://example.org/a.sh", SHA256)
        texts["user-data-remote.sh"] = UserData("m:1", "w", "p", {"A": "'"}, remote, 60, 60, True).render()
        for name in ("generic", scripts.packaged("embedded.sh")):
            texts[f"user-data-{os.path.basename(name)}"] = UserData("m:1", "w", "p", {}, load(name, None, [])).render()
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
        # What user-data sources stands inside of it.
        self.check("shellcheck", "--shell=sh", "--exclude=SC1091")

    def test_plain(self) -> None:
        """Every agent takes them: ASCII, and lines that end as on Unix."""
        for path in PACKAGED:
            data = path.read_bytes()
            self.assertTrue(data.startswith(b"#!/bin/sh\n"), path)
            self.assertTrue(data.isascii(), path)
            self.assertTrue(data.endswith(b"\n"), path)
            self.assertNotIn(b"\r", data, path)
