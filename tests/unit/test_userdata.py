"""User-data for images that run a ``#!`` script: what it tells the machine, and what it does there."""

from __future__ import annotations

import gzip
import os
import random
import re
import stat
import string
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from buildbot_ec2ud.userdata.posix import (
    CONTRACT,
    FACTS,
    LIMIT,
    TLS,
    TooLarge,
    UserData,
    UserDataError,
    check_environment,
)
from buildbot_ec2ud.userdata.scripts import FAMILIES, InlineScript, RemoteScript, load
from tests.unit.sandbox import MASTER, PASSWORD, SHELLS, WORKER, Sandbox

OK = "#!/bin/sh\necho working\n"

#: What would do something, were it not quoted.
NASTY = (
    "'",
    '"',
    "\\",
    "\n",
    "'; : >MARK; '",
    '"; : >MARK; "',
    "$(: >MARK)",
    "`: >MARK`",
    "${HOME}",
    "\n: >MARK\n",
    "& : >MARK &",
    "A_EC2UD_END\n: >MARK\n",
    "A_EC2UD_END",
    "A_ECé",
    "Aé",
    "Bé",
    "@EXPORTS@\n",
    "@BOOTSTRAP@\n",
    "'\n}\n: >MARK\n",
    "%s",
    "!x",
    "~",
    "-n",
    "\t ",
    "*",
    "\u2028é日本\U0001f600",
    "\x81\x82\x83\x88",  # with which shells mark what is quoted
    "\r",
)
texts = st.lists(
    st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))),
    max_size=4,
).map("".join)


def phases(lines: list[str]) -> list[str]:
    return [re.sub(r" t=\d+\Z", "", line) for line in lines]


#: What a bootstrap script is given, by the order of the arguments of the test below.
GIVEN = ("BB_MASTER", "BB_NAME", "BB_PASSWORD", "BB_TLS_CERT", "VALUE", "_x1")


class PropertyTests(SynchronousTestCase):
    """Whatever text goes in comes out exactly so, and nothing else happens."""

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(sorted(SHELLS)), texts, texts, texts.map(lambda text: text.replace("\n", "")), texts, texts)
    def test_any_text(self, shell: str, master: str, worker: str, password: str, value: str, text: str) -> None:
        """Variables and the script itself, in every shell."""
        sandbox = Sandbox(self)
        mark = sandbox.path("mark")
        expected = {
            name: given.replace("MARK", mark)
            for name, given in zip(GIVEN, (master, worker, password, value, value, text), strict=True)
        }
        names = [*expected, *FACTS]
        script = (
            "#!/bin/sh\n"
            + "".join(f"printf '%s' \"${{{name}-none}}\" >'{sandbox.path(name)}'\n" for name in names)
            + "exit 0\n"
            + text.replace("MARK", mark)
        )
        master, worker, password, certificates, *_ = expected.values()
        environment = {name: expected[name] for name in ("VALUE", "_x1")}
        data = UserData(master, worker, password, environment, InlineScript(script), tls_certificates=certificates)
        lines = sandbox.execute(SHELLS[shell], data.render())
        self.assertEqual(phases(lines), ["ec2ud: phase=start", "ec2ud: phase=bootstrap"])
        self.assertEqual({name: sandbox.read(name) for name in names}, {**expected, **dict.fromkeys(FACTS, "")})
        self.assertEqual(
            sandbox.read("var/lib/buildbot-ec2ud/bootstrap"), script if script.endswith("\n") else script + "\n"
        )
        self.assertFalse(os.path.exists(mark))
        self.assertEqual(sandbox.calls("shutdown"), [])


class RunTests(SynchronousTestCase):
    """What user-data does on its machine, in every shell."""

    def test_success(self) -> None:
        """The script runs as it is, in a directory of its own; the machine stays."""
        for shell in SHELLS:
            sandbox = Sandbox(self)
            script = OK + "pwd\necho oops >&2\n"
            self.assertEqual(
                phases(sandbox.run(script, shell)),
                [
                    "ec2ud: phase=start",
                    "ec2ud: phase=bootstrap",
                    "working",
                    sandbox.path("var/lib/buildbot-ec2ud"),
                    "oops",
                ],
            )
            self.assertEqual(sandbox.calls("shutdown") + sandbox.calls("poweroff"), [])

    def test_failure(self) -> None:
        """A script that fails takes its machine with it, and its status is told."""
        for shell in SHELLS:
            sandbox = Sandbox(self)
            lines = sandbox.run("#!/bin/sh\necho working\nexit 7\n", shell)
            self.assertEqual(lines[-1], "ec2ud: the bootstrap script failed with status 7; powering off")
            self.assertEqual(sandbox.calls("shutdown"), ["-P now"])
            self.assertEqual(sandbox.calls("poweroff"), [])

    def test_not_a_program(self) -> None:
        """So does one that cannot be run at all."""
        sandbox = Sandbox(self)
        lines = sandbox.run("#!/does/not/exist\n")
        self.assertIn("the bootstrap script failed with status 127; powering off", lines[-1])
        self.assertEqual(sandbox.calls("shutdown"), ["-P now"])

    def test_log(self) -> None:
        """The console, the log file and syslog get the same lines, whatever is in them; and the password none."""
        for shell in SHELLS:
            sandbox = Sandbox(self)
            script = "#!/bin/sh\nprintf '%s\\n' '  a  b ' '\\n%s $HOME' '-n' 'wörk'\nprintf 'no end of line'\nexit 3\n"
            lines = sandbox.run(script, shell)
            for line in ("  a  b ", r"\n%s $HOME", "-n", "wörk"):
                self.assertIn(line, lines)
            self.assertEqual(lines[-1], "no end of lineec2ud: the bootstrap script failed with status 3; powering off")
            self.assertEqual(sandbox.log.splitlines(), lines)
            self.assertEqual(sandbox.calls("logger"), [f"-t buildbot-ec2ud -- {line}" for line in lines])
            for text in ("\n".join(lines), sandbox.log, *sandbox.calls("logger")):
                self.assertNotIn(PASSWORD, text)

    def test_last_line(self) -> None:
        """What a script prints last is kept, even if the line does not end."""
        for shell in SHELLS:
            sandbox = Sandbox(self)
            self.assertEqual(sandbox.run("#!/bin/sh\nprintf 'no end'\n", shell)[-1], "no end")
            self.assertEqual(sandbox.log.splitlines()[-1], "no end")

    def test_no_logger(self) -> None:
        """A system without syslog does without, silently."""
        sandbox = Sandbox(self)
        os.unlink(os.path.join(sandbox.bin, "logger"))
        self.assertEqual(phases(sandbox.run(OK)), ["ec2ud: phase=start", "ec2ud: phase=bootstrap", "working"])

    def test_only_root_reads(self) -> None:
        """Others can read neither the script nor the log; they get to what is beside them."""
        sandbox = Sandbox(self)
        sandbox.run(OK)
        for name, mode in (
            ("var/log/buildbot-ec2ud.log", 0o600),
            ("var/lib", 0o755),
            ("var/lib/buildbot-ec2ud", 0o700),
            ("var/lib/buildbot-ec2ud/bootstrap", 0o700),
        ):
            self.assertEqual(stat.S_IMODE(os.stat(sandbox.path(name)).st_mode), mode, name)

    def test_variables(self) -> None:
        """The script's environment has the contract of 2011, and what was asked for; numbers too."""
        sandbox = Sandbox(self)
        lines = sandbox.run('#!/bin/sh\necho "$BB_MASTER $BB_NAME $A $B"\n', A="a  b", B=5)
        self.assertEqual(lines[-1], f"{MASTER} {WORKER} a  b 5")

    def test_no_final_newline(self) -> None:
        """A script whose last line does not end is run to its end."""
        self.assertEqual(Sandbox(self).run("#!/bin/sh\necho the end")[-1], "the end")

    def test_end_mark(self) -> None:
        """A script may have the very text that marks its end."""
        script = "#!/bin/sh\n"
        for _ in range(3):
            data = UserData(MASTER, WORKER, PASSWORD, {}, InlineScript(script)).render()
            mark = re.search(r"<<'(\w+)'", data.decode())[1]
            script += f"cat <<{mark}\n{mark} in the middle\n{mark}\n"
            lines = Sandbox(self).run(script + "echo at the end\nexit\n" + mark)
            self.assertEqual(lines[-2:], [f"{mark} in the middle", "at the end"])

    def test_letters_at_the_beginning_of_a_line(self) -> None:
        """A line may begin as the mark does: a common sh then loses a byte of a letter that is not ASCII."""
        for shell in SHELLS:
            for letters in (string.ascii_uppercase, string.ascii_letters):
                sandbox = Sandbox(self)
                text = "".join(f"{letter}é\n{letter}_é\n{letter}_EC2UD_ENDé\n" for letter in letters)
                sandbox.run("#!/bin/sh\nexit 0\n" + text, shell)
                self.assertEqual(sandbox.read("var/lib/buildbot-ec2ud/bootstrap"), "#!/bin/sh\nexit 0\n" + text)

    def test_mark_of_the_template(self) -> None:
        """A value may have the text that the template marks its gaps with."""
        sandbox = Sandbox(self)
        value, password = "a@BOOTSTRAP@\n@SECRET@\nb", "@SECRET@"
        lines = sandbox.run("#!/bin/sh\necho \"it is '$VALUE' and $BB_PASSWORD\"\n", password=password, VALUE=value)
        self.assertEqual(lines[-3:], f"it is '{value}' and {password}".splitlines())

    def test_trace(self) -> None:
        """A shell that traces shows what it does, but not the password."""
        for shell in SHELLS:
            sandbox = Sandbox(self)
            script = InlineScript('#!/bin/sh\n[ "$BB_PASSWORD" = \'p "4$$\\w0rd\' ] && echo working\n')
            data = UserData(MASTER, WORKER, 'p "4$$\\w0rd', {"A": "shown"}, script).render()
            lines = sandbox.execute([*SHELLS[shell], "-x"], data)
            self.assertIn("working", lines)
            text = "\n".join([*lines, sandbox.log, *sandbox.calls("logger")])
            self.assertIn("shown", text)
            self.assertIn("BB_PASSWORD", text)
            self.assertNotIn("4$$", text)
            self.assertNotIn("w0rd", text)
            self.assertEqual(sandbox.calls("shutdown"), [])


class LimitTests(SynchronousTestCase):
    """What user-data cannot be made of."""

    def data(self, script: InlineScript | RemoteScript, **environment: Any) -> bytes:
        return UserData(MASTER, WORKER, PASSWORD, environment, script).render()

    def test_size(self) -> None:
        """As many bytes as EC2 takes, and not one more."""
        room = LIMIT - len(self.data(InlineScript(OK)))
        self.assertGreater(room, 8192)
        self.assertEqual(len(self.data(InlineScript(OK + "#" * (room - 1) + "\n"))), 16384)
        failure = self.assertRaises(UserDataError, self.data, InlineScript(OK + "#" * room + "\n"))
        self.assertTrue(str(failure).startswith("bootstrap_script: "))
        self.assertIn("16,385", str(failure))
        # Bytes count, not letters.
        self.assertRaises(UserDataError, self.data, InlineScript(OK + "é" * (room - 1) + "\n"))

    def test_everything(self) -> None:
        """Each packaged script goes inline with all that user-data can watch, and leaves room for variables."""
        master, password = f"{'m' * 253}:9989", "p" * 64
        for family in FAMILIES:
            script = load(family, None, [])
            if not script.windows:
                data = UserData(master, "w" * 64, password, {}, script, 86400, 86400, True).render()
                self.assertGreater(LIMIT - len(data), 2000, family)
        data = UserData("m:1", "w", "p", {}, InlineScript(OK), 86400, 86400, True).render()
        self.assertLess(len(data) - len(OK), 9000)

    def test_gzip(self) -> None:
        """What is too large is packed where that is wanted, nothing else is, and only as far as EC2 takes it."""
        script = InlineScript(OK + "# a comment\n" * 5000)
        failure = self.assertRaises(TooLarge, self.data, script)
        self.assertIn("gzip_user_data", str(failure))
        self.assertIn("bb_www", str(failure))
        packed = UserData(MASTER, WORKER, PASSWORD, {}, script, gzip=True).render()
        self.assertLess(len(packed), LIMIT)
        text = gzip.decompress(packed)
        self.assertTrue(text.startswith(b"#!/bin/sh\n"))
        self.assertIn(script.text.encode(), text)
        sandbox = Sandbox(self)
        self.assertEqual(sandbox.execute(SHELLS["sh"], text)[-1], "working")
        small = [
            UserData(MASTER, WORKER, PASSWORD, {}, InlineScript(OK), gzip=value).render() for value in (True, False)
        ]
        self.assertEqual(small[0], small[1])
        noise = InlineScript(OK + "# " + random.Random(1).randbytes(16000).hex())
        self.assertRaises(TooLarge, UserData(MASTER, WORKER, PASSWORD, {}, noise, gzip=True).render)

    def test_password(self) -> None:
        """A password is one line, or it could be shown; whatever marks its end is not in it."""
        for password in ("a\nb", "a\n", "\n", "a\0b"):
            data = UserData(MASTER, WORKER, password, {}, InlineScript(OK))
            failure = self.assertRaises(UserDataError, data.render)
            self.assertEqual(str(failure), "password: is more than a line")
        for password in ("", " a ", "A_EC2UD_END", "Aé", "\\", "a\\", "-n", "a\rb"):
            script = "#!/bin/sh\nprintf '<%s>' \"$BB_PASSWORD\"\n"
            self.assertEqual(Sandbox(self).run(script, password=password)[-1], f"<{password}>")

    def test_seconds(self) -> None:
        """Numbers of seconds are whole, and at least one."""
        for name in ("max_lifetime", "orphan_timeout"):
            for value in (0, -1, 1.5, "60", True, "$(halt)"):
                data = UserData(MASTER, WORKER, PASSWORD, {}, InlineScript(OK), **{name: value})
                self.assertIn(name, str(self.assertRaises(UserDataError, data.render)))

    def test_port(self) -> None:
        """Connections to the master are known by its port: there must be one."""
        for master in ("master", "master:", "master:$(halt)", "master:0", "master:65536", "[::1]", "master:\u0669"):
            for watch in ({"orphan_timeout": 60}, {"spot": True}):
                data = UserData(master, WORKER, PASSWORD, {}, InlineScript(OK), **watch)
                self.assertIn("bb_master: has no port", str(self.assertRaises(UserDataError, data.render)))
            UserData(master, WORKER, PASSWORD, {}, InlineScript(OK), max_lifetime=60).render()
        for master in ("[::1]:9989", "10.0.0.1:09989"):
            data = UserData(master, WORKER, PASSWORD, {}, InlineScript(OK), orphan_timeout=60).render()
            self.assertIn(b"\nec2ud_watch switch orphan 60 9989\n", data)

    def test_no_end(self) -> None:
        """A script with which nothing can mark its end is refused rather than changed."""
        text = "".join(f"{letter}é\n" for letter in string.ascii_letters + string.digits)
        failure = self.assertRaises(UserDataError, self.data, InlineScript(OK + text))
        self.assertTrue(str(failure).startswith("bootstrap_script: "))

    def test_names(self) -> None:
        """Only names of shell variables, and none that has a meaning already."""
        for name in (
            "",
            "1A",
            "A-B",
            "A B",
            "A=B",
            "A\n",
            "É",
            "A;B",
            5,
            None,
            *CONTRACT,
            *FACTS,
            TLS,
            "PATH",
            "HOME",
            "EC2UD_ROOT",
        ):
            failure = self.assertRaises(UserDataError, check_environment, {name: "x"})
            self.assertTrue(str(failure).startswith("bootstrap_env: "))
            self.assertIn(str(name).strip(), str(failure))

    def test_values(self) -> None:
        """Only texts without a NUL, and whole numbers."""
        for value in (None, b"x", 1.5, ["x"], "a\0b"):
            failure = self.assertRaises(UserDataError, check_environment, {"NAME": value})
            self.assertTrue(str(failure).startswith("bootstrap_env: NAME "))
        self.assertEqual(check_environment({"A": "x", "_b": 5}), {"A": "x", "_b": "5"})

    def test_not_a_dict(self) -> None:
        """Variables have names."""
        for environment in (["A=b"], "A=b", None):
            self.assertRaises(UserDataError, check_environment, environment)

    def test_no_repr(self) -> None:
        """User-data that comes into a log by accident does not tell the password."""
        data = UserData(MASTER, WORKER, PASSWORD, {"TOKEN": "t0ken"}, InlineScript(OK))
        self.assertNotIn(PASSWORD, repr(data) + str(data))
        self.assertNotIn("t0ken", repr(data) + str(data))

    def test_plain_text(self) -> None:
        """Every agent takes it: it begins with ``#!/bin/sh``, and is ASCII where nobody put anything else in."""
        data = self.data(InlineScript(OK))
        self.assertTrue(data.startswith(b"#!/bin/sh\n"))
        self.assertTrue(data.isascii())
        self.assertNotIn(b"\r", data)
        self.assertNotRegex(data, rb"@[A-Z]+@")
