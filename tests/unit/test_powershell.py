"""User-data for Windows: what it says, as far as that shows where there is no PowerShell."""

from __future__ import annotations

import hashlib
import os
import re
from importlib.resources import files
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.endpoints import clientFromString
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from buildbot_ec2ud.userdata import powershell
from buildbot_ec2ud.userdata.posix import LIMIT, TLS, TooLarge, UserDataError
from buildbot_ec2ud.userdata.powershell import WindowsUserData, quote
from buildbot_ec2ud.userdata.scripts import InlineScript, RemoteScript, load, packaged
from tests.unit.files import directory, write
from tests.unit.secure import Certificate

MASTER, WORKER, PASSWORD = "master.example.org:9989", "worker-1", "p4ssw0rd-of-this-start"
SCRIPT = InlineScript("#!powershell\n'working'\n")
URL, SHA256 = "https://example.org/it's.ps1", hashlib.sha256(b"").hexdigest()
BOOTSTRAP = files(powershell.__package__).joinpath("bootstrap", "windows.ps1").read_text(encoding="ascii")

#: What PowerShell takes for a single quote.
QUOTES = "'\u2018\u2019\u201a\u201b"
NASTY = (
    *QUOTES,
    "'; Stop-Computer; '",
    "\u2019; Stop-Computer; \u2018",
    '"',
    "$(Stop-Computer)",
    "`",
    "`n",
    "\n",
    "\r\n",
    "\n'@\nStop-Computer\n@'\n",
    "\\",
    "\\u003c",
    "\\'",
    "</powershell>",
    "<powershell>",
    "<script>shutdown</script>",
    "<persist>true</persist>",
    "<#",
    "'@SCRIPT@'",
    "'@VARIABLES@'",
    "@{}",
    "#",
    "\t ",
    " ",
    "\x7f\x85\u2028\u00e9\u65e5\U0001f600",
)
texts = st.lists(
    st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))),
    max_size=5,
).map("".join)

#: Words by which PowerShell logs a script without being told to; its list, as far as it could matter here.
LOGGED = re.findall(
    "[A-Za-z0-9-]+",
    """
    Add-Type DllImport CreateType Emit Methods Properties GetConstructor GetField GetInterface GetMember GetMethod
    GetProperty InvokeMember InteropServices Marshal IntPtr MemoryStream DeflateStream FromBase64String EncodedCommand
    Bypass ToBase64String ExpandString GetPowerShell CryptoServiceProvider Cryptography CryptoStream BindingFlags NonPublic
    ScriptBlockLogging
    """,
)


def read_string(text: str, at: int) -> tuple[str, int]:
    """Read a string in single quotes as PowerShell does; gives it, and where it has ended."""
    assert text[at] in QUOTES, text[at : at + 20]
    value, at = "", at + 1
    while True:
        letter = text[at]  # an IndexError: it does not end
        if letter in QUOTES:
            if text[at + 1 : at + 2] not in tuple(QUOTES):
                return value, at + 1
            at += 1
        value += text[at]
        at += 1


def unescape(text: str) -> str:
    """What .NET's Regex.Unescape gives, of the escapes that are used here: any other is refused."""

    def letter(escape: re.Match[str]) -> str:
        return "\\" if escape[0] == "\\\\" else chr(int(escape[1], 16))

    assert not re.search(r"\\(?!\\|u[0-9a-f]{4})", re.sub(r"\\\\", "", text)), text
    units = re.sub(r"\\(?:\\|u([0-9a-f]{4}))", letter, text)
    return units.encode("utf-16-le", "surrogatepass").decode("utf-16-le")


def read_expression(text: str, at: int) -> tuple[str, int]:
    """Read one of the two expressions that :func:`quote` makes."""
    head = "([regex]::Unescape("
    if not text.startswith(head, at):
        return read_string(text, at)
    value, at = read_string(text, at + len(head))
    assert text[at : at + 2] == "))", text[at : at + 20]
    return unescape(value), at + 2


def parse(data: bytes) -> dict[str, str]:
    """Read user-data: gives its parts, when it has nothing else but what the template has."""
    text = data.decode("ascii")
    assert text.startswith("<powershell>\n") and text.endswith("\n</powershell>\n"), text
    assert re.findall("<.*", text) == ["<powershell>", "</powershell>"], text
    at, parts = len("<powershell>\n"), {}
    pieces = re.split("'@([A-Z]+)@'", powershell._TEMPLATE)
    for number, piece in enumerate(pieces):
        if number % 2:
            parts[piece], at = read_expression(text, at)
        else:
            assert text.startswith(piece, at), (piece, text[at:])
            at += len(piece)
    assert text[at:] == "</powershell>\n", text[at:]
    return parts


def variables(data: bytes) -> dict[str, str]:
    """The variables that user-data has for the bootstrap script, as the instance reads them."""
    lines = parse(data)["VARIABLES"].removesuffix("\n").split("\n")
    return {name: unescape(value) for name, _, value in (line.partition(" ") for line in lines)}


def render(environment: Any = None, script: Any = SCRIPT, master: str = MASTER, **more: Any) -> bytes:
    return WindowsUserData(master, WORKER, PASSWORD, environment or {}, script, **more).render()


class QuotingTests(SynchronousTestCase):
    """Whatever text goes in comes out exactly so, and nothing else runs."""

    @settings(max_examples=300, deadline=None, database=None)
    @given(texts)
    def test_quote(self, text: str) -> None:
        """An expression is one string, without what an agent or an encoding could change."""
        expression = quote(text)
        self.assertEqual(read_expression(expression, 0), (text, len(expression)))
        self.assertTrue(re.fullmatch(r"[\t\n\x20-;=-~]*", expression), expression)

    @settings(max_examples=150, deadline=None, database=None)
    @given(texts, texts, texts, texts, texts)
    def test_any_text(self, master: str, worker: str, password: str, value: str, script: str) -> None:
        """All that user-data tells is in strings; the rest is the template's."""
        data = WindowsUserData(
            master, worker, password, {"VALUE": value, "_x1": 7}, InlineScript("#!" + script), tls_certificates=value
        ).render()
        self.assertEqual(
            variables(data),
            {"BB_MASTER": master, "BB_NAME": worker, "BB_PASSWORD": password, TLS: value, "VALUE": value, "_x1": "7"},
        )
        self.assertEqual(parse(data)["SCRIPT"], "#!" + script)

    def test_reader(self) -> None:
        """The reader of these tests knows what it reads."""
        self.assertEqual(read_string("x'a''b\u2019\u2018c' d", 1), ("a'b\u2018c", 10))
        self.assertRaises(IndexError, read_string, "'a''", 0)
        self.assertEqual(unescape(r"\\u003c\u003c\ud83d\ude00"), "\\u003c<\U0001f600")
        for text in (r"\n", r"\u12", "\\"):
            self.assertRaises(AssertionError, unescape, text)

    def test_plain(self) -> None:
        """What needs no escapes can be read by people."""
        self.assertEqual(quote("it's C:\\x $y"), "'it''s C:\\x $y'")
        self.assertEqual(quote("a < b\nc:\\é"), "([regex]::Unescape('a \\u003c b\nc:\\\\\\u00e9'))")

    def test_password(self) -> None:
        """It is there once: among the variables, which are last; neither in what a task or program is started with."""
        for more in ({}, {"script": RemoteScript(URL, SHA256)}, {"max_lifetime": 60, "spot": True}):
            data = render(**more)
            self.assertEqual(data.count(PASSWORD.encode()), 1)
            parts = parse(data)
            self.assertIn(f"BB_PASSWORD {PASSWORD}\n", parts.pop("VARIABLES"))
            self.assertNotIn(PASSWORD, str(parts))
        self.assertNotIn(PASSWORD, repr(WindowsUserData(MASTER, WORKER, PASSWORD, {}, SCRIPT)))

    def test_not_logged(self) -> None:
        """PowerShell has no reason of its own to write the script, with the password, to the event log."""
        for script in (load(packaged("windows.ps1"), None, []), RemoteScript(URL, SHA256)):
            data = render(
                {"BB_X": "\u65e5<"}, script, max_lifetime=1, orphan_timeout=1, spot=True, tls_certificates="\n"
            )
            for word in LOGGED:
                self.assertNotIn(word.lower(), data.decode().lower())


class PartsTests(SynchronousTestCase):
    """What user-data brings."""

    def test_watches(self) -> None:
        """What ends the machine is told for how long to wait, and is not even started without."""
        self.assertEqual(parse(render())["WATCHES"], "")
        self.assertEqual(parse(render(max_lifetime=3600))["WATCHES"], "-Port 9989 -Lifetime 3600")
        self.assertEqual(
            parse(render(max_lifetime=1, orphan_timeout=600, spot=True))["WATCHES"],
            "-Port 9989 -Lifetime 1 -Orphan 600 -Spot",
        )

    def test_only_what_is_called(self) -> None:
        """Every function that can be called travels, once; and of the parts only those."""
        for script, spot in ((SCRIPT, False), (SCRIPT, True), (RemoteScript(URL, None), False)):
            instance = parse(render(script=script, spot=spot))["INSTANCE"]
            self.assertTrue(instance.startswith("# Runs the bootstrap script"), instance)
            self.assertEqual(instance.count("function Test-Spot"), spot)
            self.assertEqual(instance.count("function Get-Script"), isinstance(script, RemoteScript))
            self.assertNotIn("@PARTS@", instance)
        instance = parse(render(script=RemoteScript(URL, None), spot=True))["INSTANCE"]
        defined = re.findall(r"^function (\S+?)[ (]", instance, re.MULTILINE)
        self.assertEqual(len(set(defined)), len(defined))
        own = r"\b(?:Write-(?:Line|Phase)|Stop-(?:Machine|Worker)|Get-(?:Metadata|Fact|Script|Connection)|Test-Spot)\b"
        self.assertLessEqual(set(re.findall(own, instance)), set(defined))

    def test_url(self) -> None:
        """A script at a URL is fetched by the instance, which is told the checksum."""
        data = render({"A": "b"}, RemoteScript(URL, SHA256))
        self.assertEqual(parse(data)["SCRIPT"], "")
        given = variables(data)
        self.assertEqual((given["EC2UD_URL"], given["EC2UD_SHA256"], given["A"]), (URL, SHA256, "b"))
        self.assertEqual(variables(render(script=RemoteScript(URL, None)))["EC2UD_SHA256"], "")
        self.assertNotIn("EC2UD_URL", variables(render()))

    def test_comments(self) -> None:
        """The packaged script travels without comments; a script that does not say so as it is."""
        text = parse(render(script=load(packaged("windows.ps1"), None, [])))["SCRIPT"]
        self.assertNotRegex(text, r"(?m)^\s*#|^\s")
        self.assertIn("Start-ScheduledTask $task\n", text)
        own = "#!powershell\n# ec2ud: without  comments\n@'\n # kept\n'@\n"
        self.assertEqual(parse(render(script=InlineScript(own)))["SCRIPT"], own)

    def test_tags(self) -> None:
        """A script in the tags that an agent would look for runs as one of theirs."""
        for text in ("<powershell>\n'working'\n</powershell>\n", "<powershell>\n'working'\n</powershell>"):
            self.assertEqual(parse(render(script=InlineScript(text)))["SCRIPT"], "\n'working'\n")
        batch = "@echo off\necho it's <working>\n"
        script = parse(render(script=InlineScript(f"<script>{batch}</script>")))["SCRIPT"]
        self.assertEqual(read_expression(script, script.index("([regex]"))[0], batch)
        self.assertIn("exit $LASTEXITCODE\n", script)
        for text in ("<powershell>1", "<script>1</powershell>", "<script>1</script>\n<persist>true</persist>"):
            error = self.assertRaises(UserDataError, render, script=InlineScript(text))
            self.assertTrue(str(error).startswith("bootstrap_script: "), error)


class SizeTests(SynchronousTestCase):
    """EC2 takes 16,384 bytes."""

    def test_packaged(self) -> None:
        """With everything there is, and a certificate, the packaged script leaves room."""
        script = load(packaged("windows.ps1"), None, [])
        certificate = "".join(f"{'x' * 64}\n" for _ in range(20))
        data = render({}, script, max_lifetime=1, orphan_timeout=1, spot=True, tls_certificates=certificate)
        self.assertLess(len(data), LIMIT - 1024)

    def test_limit(self) -> None:
        """One byte more is refused, and told with what helps on Windows."""
        room = LIMIT - len(render(script=InlineScript("#!")))
        self.assertEqual(len(render(script=InlineScript("#!" + "x" * room))), LIMIT)
        error = self.assertRaises(TooLarge, render, script=InlineScript("#!" + "x" * (room + 1)))
        self.assertIsInstance(error, UserDataError)
        self.assertTrue(str(error).startswith("bootstrap_script: the user-data would have 16,385 bytes"), error)
        self.assertNotIn("gzip", str(error))


class MistakesTests(SynchronousTestCase):
    """What cannot be told to an instance."""

    def refused(self, environment: Any = None, **more: Any) -> list[str]:
        return str(self.assertRaises(UserDataError, render, environment, **more)).split("\n")

    def test_names(self) -> None:
        """Windows knows a variable by its name in whatever case."""
        self.assertEqual(
            self.refused({"Path": "x", "ec2ud_url": "y", "ComSpec": "z", "A": 1, "a": 2, "bb_password": "p"}),
            [
                "bootstrap_env: Path is not yours to set",
                "bootstrap_env: ec2ud_url is not yours to set",
                "bootstrap_env: ComSpec is not yours to set",
                "bootstrap_env: A and a are one variable on Windows",
                "bootstrap_env: bb_password is not yours to set",
            ],
        )

    def test_as_elsewhere(self) -> None:
        """What no system takes."""
        for environment in ({"BB_PASSWORD": "x"}, {"a b": "x"}, {"A": "\0"}, {"A": "\ud800"}, {"A": None}):
            self.assertTrue(self.refused(environment)[0].startswith("bootstrap_env: "))

    def test_watches(self) -> None:
        """No number of seconds, and no port to know a connection by."""
        for value in (0, -1, 1.5, "60", True, "1; Stop-Computer"):
            self.assertTrue(self.refused(max_lifetime=value)[0].startswith("max_lifetime: not a number"))
            self.assertTrue(self.refused(orphan_timeout=value)[0].startswith("orphan_timeout: not a number"))
        for master in ("master", "master:x", "master:0", "master:9989 -Spot"):
            self.assertTrue(self.refused(master=master, spot=True)[0].startswith("bb_master: has no port"))


def errors(text: bytes) -> list[tuple[int, str]]:
    """The lines of a script that a parser of PowerShell does not understand."""
    try:
        from tree_sitter import Language, Parser
        from tree_sitter_powershell import language
    except ImportError as error:
        raise SkipTest(f"no parser of PowerShell is installed: {error}") from error
    found, nodes = [], [Parser(Language(language())).parse(text).root_node]
    while nodes:
        node = nodes.pop()
        nodes.extend(node.children)
        if node.type == "ERROR" or node.is_missing:
            line = node.start_point[0]
            found.append((line + 1, text.split(b"\n")[line].decode()))
    return sorted(found)


class SyntaxTests(SynchronousTestCase):
    """A parser understands all of it."""

    def texts(self) -> dict[str, bytes]:
        texts = {}
        for name, script in (("inline", load(packaged("windows.ps1"), None, [])), ("url", RemoteScript(URL, SHA256))):
            data = render(
                {"A": "".join(NASTY)}, script, max_lifetime=1, orphan_timeout=1, spot=True, tls_certificates="c"
            )
            texts[f"{name} user-data"] = data.removeprefix(b"<powershell>\n").removesuffix(b"</powershell>\n")
            for part, text in parse(data).items():
                if part in ("INSTANCE", "SCRIPT") and text:
                    texts[f"{name} {part}"] = text.encode()
        batch = parse(render(script=InlineScript("<script>echo it's <working></script>")))["SCRIPT"]
        return {**texts, "batch": batch.encode()}

    def test_syntax(self) -> None:
        """User-data, and the scripts that it makes on the instance."""
        self.assertEqual({name: found for name, text in self.texts().items() if (found := errors(text))}, {})

    def test_parser(self) -> None:
        """It does see what is wrong."""
        for text in (b"'a' 'b", b"if ($x) { 1\n", b"$x = @{ A = }\n", b"function { )", b"foreach ($a on $b) { 1 }\n"):
            self.assertNotEqual(errors(text), [], text)


class BootstrapTests(SynchronousTestCase):
    """What the packaged script makes of the worker."""

    def replacement(self, pattern: str) -> str:
        """What the script has for the lines of the tac that match *pattern*."""
        start = BOOTSTRAP.index(f"-replace '{pattern}', (")
        expression = BOOTSTRAP[start + len(f"-replace '{pattern}', (") :]
        # Strings in double quotes, joined by +; of all that has a meaning in them there is but `n.
        strings = re.match(r'(?:\s*"[^"$]*"\s*\+?)+\)\n', expression)
        self.assertIsNotNone(strings, expression[:200])
        return "".join(re.findall(r'"([^"]*)"', strings[0])).replace("`n", "\n")

    def tac(self, password: str, tls: bool, master: str = MASTER) -> dict[str, Any]:
        """Make a worker's directory as the script does, and run its tac."""
        from buildbot_worker.scripts.create_worker import createWorker
        from buildbot_worker.scripts.runner import CreateWorkerOptions

        worker = os.path.join(directory(self), "worker")
        options = CreateWorkerOptions()
        self.assertIn("'create-worker', '--relocatable', '--allow-shutdown=file', $worker", BOOTSTRAP)
        options.parseOptions(["-q", "--relocatable", "--allow-shutdown=file", worker, master, WORKER, "from-file"])
        self.assertEqual(createWorker(options), 0)
        with open(os.path.join(worker, "buildbot.tac"), encoding="utf-8") as file:
            text = file.read()
        patterns = ["(?m)^passwd = .*$", *(["(?m)^connection_string = .*$"] if tls else [])]
        for pattern in patterns:
            made = self.replacement(pattern)
            text, count = re.subn(pattern, lambda _, made=made: made, text)
            self.assertEqual(count, 1, pattern)
        write(worker, ".password", password.encode())
        if tls:
            os.mkdir(os.path.join(worker, "trusted"))
            with open(Certificate(self, "localhost").bundle, encoding="ascii") as file:
                write(worker, "trusted/master.pem", file.read())
        names: dict[str, Any] = {"__file__": os.path.join(worker, "buildbot.tac")}
        exec(compile(text, "buildbot.tac", "exec"), names)
        self.assertFalse(os.path.exists(os.path.join(worker, ".password")))
        self.assertNotIn(password, text)
        return names

    def test_tac(self) -> None:
        """The worker reads its password from a file, which is gone then."""
        names = self.tac("p4ss'\"\\é", False)
        self.assertEqual(names["passwd"], "p4ss'\"\\é")
        self.assertEqual((names["buildmaster_host"], names["port"]), ("master.example.org", 9989))
        self.assertEqual(names["allow_shutdown"], "file")

    def test_tls(self) -> None:
        """With certificates to trust, it connects by TLS and knows the master by its name."""
        names = self.tac("p4ss", True)
        self.assertEqual((names["buildmaster_host"], names["port"], names["use_tls"]), (None, None, 0))
        endpoint = clientFromString(reactor, names["connection_string"])
        inner = endpoint._wrappedEndpoint
        self.assertEqual((inner._hostText, inner._port), ("master.example.org", 9989))

    def test_secret(self) -> None:
        """The script reads the password once, forgets the variable, and writes it to nothing but that file."""
        lines = [line for line in BOOTSTRAP.split("\n") if re.search(r"(?i)\$password|Env:BB_PASSWORD", line)]
        self.assertEqual(
            [line.partition(" #")[0] for line in lines],
            [
                "$password = $env:BB_PASSWORD",
                "Remove-Item Env:BB_PASSWORD",
                '[IO.File]::WriteAllText("$worker\\.password", $password)',
            ],
        )

    def test_is_a_script(self) -> None:
        """A master takes it as it takes any other, and PowerShell reads it without a byte order mark."""
        self.assertEqual(load(packaged("windows.ps1"), None, []).text, BOOTSTRAP)
        self.assertTrue(BOOTSTRAP.startswith("#!"))
