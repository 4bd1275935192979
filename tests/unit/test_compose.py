"""Scripts that are made of parts."""

from __future__ import annotations

import os
import shutil
import subprocess
import time

from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.userdata import compose as module
from buildbot_ec2ud.userdata.compose import ComposeError, compose, cut
from tests.unit.files import directory, write
from tests.unit.sandbox import SHELLS


class ComposeTests(SynchronousTestCase):
    """``compose``, with parts of the test's own."""

    def setUp(self) -> None:
        self.root = directory(self)
        os.mkdir(os.path.join(self.root, "bootstrap"))
        test = self

        class Root:
            def joinpath(self, *names: str) -> object:
                from pathlib import Path

                return Path(test.root, *names)

        self.patch(module, "files", lambda package: Root())

    def part(self, name: str, text: str) -> None:
        write(self.root, f"bootstrap/{name}", text)

    def test_nothing_to_do(self) -> None:
        """A text that includes nothing stays as it is, to the byte."""
        for text in ("", "#!/bin/sh", "#!/bin/sh\n# a\n\n  b\n", "# ec2ud: includes a.sh\n#ec2ud: include a.sh\n"):
            self.assertEqual(compose(text), text)

    def test_include(self) -> None:
        """Parts come cut, also those of parts; the rest stays."""
        self.part("a.sh", "#!/bin/sh\n# About a.\n\nif a; then\n    # why\n    b # ec2ud: include no.sh\nfi\n")
        self.part("b.sh", "x\n# ec2ud: include a.sh\n\ty\n")
        self.assertEqual(
            compose("#!/bin/sh\n# mine\n\n  # ec2ud: include b.sh  \n  z\n# ec2ud: include a.sh"),
            "#!/bin/sh\n# mine\n\nx\nif a; then\nb # ec2ud: include no.sh\nfi\ny\n  z\n"
            "if a; then\nb # ec2ud: include no.sh\nfi",
        )

    def test_mistakes(self) -> None:
        """What cannot be included, and where that stands."""
        self.part("loop.sh", "\n# ec2ud: include other.sh\n")
        self.part("other.sh", "# ec2ud: include loop.sh\n")
        self.part("bad.sh", "a\n\n# ec2ud: include missing.sh\n")
        self.part("windows.ps1", "")
        write(self.root, "outside.sh", "")
        for name, expected in (
            ("missing.sh", "line 3: there is no packaged part 'missing.sh' to include"),
            ("../outside.sh", "line 3: there is no packaged part '../outside.sh' to include"),
            (f"{self.root}/outside.sh", f"line 3: there is no packaged part '{self.root}/outside.sh' to include"),
            ("windows.ps1", "line 3: there is no packaged part 'windows.ps1' to include"),
            ("", "line 3: there is no packaged part '' to include"),
            ("bad.sh", "line 3 of bad.sh: there is no packaged part 'missing.sh' to include"),
            ("loop.sh", "line 1 of other.sh: loop.sh would include itself"),
        ):
            error = self.assertRaises(ComposeError, compose, f"#!/bin/sh\n\n# ec2ud: include {name}\n")
            self.assertEqual(str(error), expected)

    def test_cut(self) -> None:
        """What is of no use to an instance goes; comments at the head may stay."""
        text = "#!/bin/sh\n# head\n\n# body\n  a # b\n\n\tc '#'\n"
        self.assertEqual(cut(text), "a # b\nc '#'\n")
        self.assertEqual(cut(text, head=True), "#!/bin/sh\n# head\na # b\nc '#'\n")

    def test_pack(self) -> None:
        """A packed script does what it did, in any shell, and is the same each time."""
        self.part("a.sh", 'greet() { echo "hello $1"; }\n')
        text = (
            '#!/bin/sh\n# head\n# ec2ud: pack\n# ec2ud: include a.sh\n    greet "\\$(id) `echo x` $1 \u00e9"\nexit 7\n'
        )
        packed = compose(text)
        self.assertTrue(packed.startswith("#!/bin/sh\n# head\nec2ud_text="))
        self.assertNotIn("greet", packed)
        self.patch(time, "time", lambda: 1.0)
        self.assertEqual(compose(text), packed)
        self.assertIn("greet()", compose(text, pack=False))
        path = write(self.root, "script", packed)
        for shell in SHELLS.values():
            done = subprocess.run([*shell, path, "you"], stdout=subprocess.PIPE, timeout=30, check=False)
            self.assertEqual((done.stdout.decode(), done.returncode), ("hello $(id) x you \u00e9\n", 7), shell)

    def test_unpacking(self) -> None:
        """Any of the commands that do it will do; without one, or without gzip, the script fails."""
        packed = write(self.root, "script", compose("#!/bin/sh\n# ec2ud: pack\necho done\n"))
        real = shutil.which("base64")
        for name, wanted, there, output in (
            ("base64", "-d", True, b"done\n"),
            ("base64", "-D", True, b"done\n"),
            ("b64decode", "-r", True, b"done\n"),
            ("openssl", "base64 -d", True, b"done\n"),
            ("another", "", True, b""),
            ("base64", "-d", False, b""),
        ):
            commands = directory(self)
            text = f'#!/bin/sh\n[ "$*" = "{wanted}" ] && exec {real} -d\n'
            write(commands, name, text, 0o755)
            if there:
                os.symlink(shutil.which("gzip"), os.path.join(commands, "gzip"))
            done = subprocess.run(
                ["/bin/sh", packed],
                env={"PATH": commands},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                check=False,
            )
            self.assertEqual((done.stdout, done.returncode == 0), (output, bool(output)), (name, wanted, there))

    def test_damaged(self) -> None:
        """A packed script that cannot be unpacked fails, and does nothing."""
        packed = compose("#!/bin/sh\n# ec2ud: pack\necho done\n").splitlines(keepends=True)
        packed[2] = "AAAA" + packed[2][4:]
        path = write(self.root, "script", "".join(packed))
        for shell in SHELLS.values():
            done = subprocess.run(
                [*shell, path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30, check=False
            )
            self.assertEqual(done.stdout, b"")
            self.assertNotEqual(done.returncode, 0)
