"""contrib/init: what runs user-data on images whose own agent does not."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.internet import defer, utils
from twisted.trial.unittest import SkipTest, SynchronousTestCase
from twisted.web import server

from buildbot_ec2ud.userdata.posix import UserData
from buildbot_ec2ud.userdata.scripts import InlineScript
from tests.unit.files import directory, write
from tests.unit.sandbox import PASSWORD, SHELLS, Sandbox
from tests.unit.servers import serve
from tests.unit.watching import Metadata, WatchTestCase

INIT = Path(__file__).parents[2] / "contrib" / "init"
PROGRAM = INIT / "ec2ud-userdata"
INSTALLED = "/usr/local/sbin/ec2ud-userdata"
ID, OTHER = "i-0123456789abcdef0", "i-0fedcba9876543210"
USER_DATA = "/latest/user-data"
DATA = "#!/bin/sh\necho ran >>\"$EC2UD_ROOT/ran\"\nprintf '%s\\n' 'it says: %s \\n'\necho oops >&2\n"
RUNNING = f"ec2ud-userdata: running the user-data of {ID}"
SAYS = [RUNNING, "it says: %s \\n", "oops"]
V1 = "imdsv1=yes\n"


class Raw(bytes):
    """A document that is no text."""

    def encode(self) -> bytes:
        return self


class Cutting(Metadata):
    """A metadata service whose connection ends in the middle of the user-data."""

    def render_GET(self, request: Any) -> Any:
        answer = super().render_GET(request)
        if request.path.decode() != USER_DATA:
            return answer
        request.setHeader("Content-Length", str(len(answer)))
        request.write(answer[: len(answer) // 2])
        request.transport.loseConnection()
        return 1  # NOT_DONE_YET


class InitTestCase(WatchTestCase):
    """A machine without an agent, and its metadata service."""

    def machine(self, shell: str = "sh", *tools: str, conf: str = "") -> Sandbox:
        sandbox = Sandbox(self)
        sandbox.use(SHELLS[shell])
        there = os.listdir(sandbox.bin)
        sandbox.link(*(name for name in ("chmod", "gzip", "mv", "od", "rm", "tail", "wc") if name not in there))
        for name in tools or ("curl",):
            self.install(sandbox, name)
        for name in ("etc", "var/log"):
            os.makedirs(sandbox.path(name))
        write(sandbox.root, "etc/ec2ud-userdata.conf", "tries=2\n" + conf)
        self.shell = SHELLS[shell]
        return sandbox

    def install(self, sandbox: Sandbox, name: str) -> None:
        if name == "python3":
            write(sandbox.bin, name, f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n', 0o755)
        elif name in ("nc", "busybox-wget"):
            if "busybox" not in SHELLS:
                raise SkipTest("busybox is not installed")
            # Debian's wget, unlike Alpine's, knows no -T.
            text = '"$@"' if name == "nc" else '-q "$@"'
            check = "" if name == "nc" else '[ "$1 $2 $3" = "-q -T 5" ] || exit 1\nshift 3\n'
            applet = name.removeprefix("busybox-")
            write(sandbox.bin, applet, f"#!/bin/sh\n{check}exec {SHELLS['busybox'][0]} {applet} {text}\n", 0o755)
        elif name in ("fetch", "ftp"):
            # FreeBSD's and OpenBSD's; both can but GET.
            flags, count = {"fetch": ("-q -T 5 -o", 4), "ftp": ("-V -o", 2)}[name]
            first = " ".join(f"${number}" for number in range(1, count + 1))
            text = f'[ "{first}" = "{flags}" ] || exit 1\nshift {count}\nexec {shutil.which("curl")} -sf -o "$@"'
            write(sandbox.bin, name, f"#!/bin/sh\n{text}\n", 0o755)
        elif not sandbox.link(name):
            raise SkipTest(f"{name} is not installed")

    def serve(
        self, data: str | bytes | None = DATA, tokens: str = "required", kind: type[Metadata] = Metadata
    ) -> Metadata:
        documents: dict[str, Any] = {"instance-id": ID}
        if data is not None:
            documents[USER_DATA] = Raw(data) if isinstance(data, bytes) else data
        service = kind(tokens, documents)
        self.url = serve(self, server.Site(service)).rstrip("/")
        return service

    @defer.inlineCallbacks
    def boot(self, sandbox: Sandbox) -> Any:
        """Boot; gives what is new on the console."""
        before = len(sandbox.console)
        command, *arguments = self.shell
        environment = sandbox.environment(EC2UD_METADATA_URL=self.url)
        output, errors, status = yield utils.getProcessOutputAndValue(
            command, [*arguments, str(PROGRAM), "run"], env=environment, path=sandbox.root
        )
        self.assertEqual((output, errors, status), (b"", b"", 0))
        return sandbox.console[before:]

    def runs(self, sandbox: Sandbox) -> int:
        return len(sandbox.read("ran").splitlines()) if sandbox.exists("ran") else 0


class OnceTests(InitTestCase):
    """Once per instance, in every shell."""

    @defer.inlineCallbacks
    def test_once(self) -> Any:
        """The first boot runs it, the second does not, and an instance made of that one's image runs its own."""
        for shell in SHELLS:
            service, sandbox = self.serve(), self.machine(shell)
            lines = yield self.boot(sandbox)
            self.assertEqual(lines, SAYS)
            lines = yield self.boot(sandbox)
            self.assertEqual((lines, self.runs(sandbox)), ([], 1))
            service.documents["instance-id"] = OTHER
            lines = yield self.boot(sandbox)
            self.assertEqual((lines[0], self.runs(sandbox)), (RUNNING.replace(ID, OTHER), 2))
            self.assertEqual(sandbox.read("var/log/ec2ud-userdata.log").splitlines(), sandbox.console)
            self.assertEqual(sandbox.calls("sleep"), [])
            # Nothing is left that has a secret in it.
            self.assertEqual(os.listdir(sandbox.path("var/lib/ec2ud-userdata")), ["instance-id"])

    @defer.inlineCallbacks
    def test_packed(self) -> Any:
        """User-data that is packed runs as what it is; what only looks so does not."""
        for shell in SHELLS:
            self.serve(gzip.compress(DATA.encode()))
            lines = yield self.boot(self.machine(shell))
            self.assertEqual(lines, SAYS)
        self.serve(gzip.compress(DATA.encode())[:-12])
        sandbox = self.machine()
        lines = yield self.boot(sandbox)
        self.assertEqual((lines[-1], self.runs(sandbox)), ("ec2ud-userdata: the user-data cannot be unpacked", 0))

    @defer.inlineCallbacks
    def test_exactly(self) -> Any:
        """Whatever is in it, also what no shell variable can hold."""
        data = b'#!/bin/sh\ncat "$0" >"$EC2UD_ROOT/itself"\nexit 0\n\0\xff\xfe\r\n\n\n'
        for tool in ("curl", "wget", "python3", "nc"):
            self.serve(data)
            sandbox = self.machine("sh", tool)
            yield self.boot(sandbox)
            self.assertEqual((tool, Path(sandbox.path("itself")).read_bytes()), (tool, data))

    @defer.inlineCallbacks
    def test_not_a_script(self) -> Any:
        """What does not start with #! is not run."""
        for shell in SHELLS:
            for data in ("#cloud-config\nruncmd: []\n", " " + DATA, "\n" + DATA, "#")[: None if shell == "sh" else 1]:
                self.serve(data)
                sandbox = self.machine(shell)
                lines = yield self.boot(sandbox)
                self.assertEqual(lines, ["ec2ud-userdata: the user-data does not start with #!"])
                self.assertEqual(self.runs(sandbox), 0)

    @defer.inlineCallbacks
    def test_none(self) -> Any:
        """An instance without user-data just boots; if it is given some while it is stopped, it runs that."""
        for shell in SHELLS:
            service, sandbox = self.serve(None), self.machine(shell)
            lines = yield self.boot(sandbox)
            self.assertEqual(lines, [f"ec2ud-userdata: {ID} has no user-data"])
            self.assertEqual(sandbox.calls("sleep"), ["2"] * 2)
            service.documents[USER_DATA] = DATA
            lines = yield self.boot(sandbox)
            self.assertEqual(lines, SAYS)

    @defer.inlineCallbacks
    def test_failure(self) -> Any:
        """User-data that fails, or that cannot be run at all, is told, and not tried again."""
        for data, status in (("#!/bin/sh\nexit 7\n", 7), ("#!/does/not/exist\n", None)):
            for shell in SHELLS:
                self.serve(data)
                sandbox = self.machine(shell)
                lines = yield self.boot(sandbox)
                self.assertRegex(lines[-1], f"the user-data failed with status {status or '12[67]'}$")
                lines = yield self.boot(sandbox)
                self.assertEqual(lines, [])

    @defer.inlineCallbacks
    def test_cut_off(self) -> Any:
        """Half of a script is not run, whatever has fetched it."""
        for tool in ("curl", "wget", "python3", "nc"):
            self.serve(DATA * 2, kind=Cutting)
            sandbox = self.machine("sh", tool)
            lines = yield self.boot(sandbox)
            self.assertEqual((tool, lines), (tool, [f"ec2ud-userdata: {ID} has no user-data"]))
            self.assertEqual(self.runs(sandbox), 0)


class RestartTests(InitTestCase):
    """What user-data leaves for restarts, as with cloud-init."""

    @defer.inlineCallbacks
    def test_restart(self) -> Any:
        """It runs at each later boot, but not in an instance that was made of this one's image."""
        script = "var/lib/cloud/scripts/per-boot/buildbot-ec2ud"
        data = (
            "#!/bin/sh\numask >>$EC2UD_ROOT/ran\ncd $EC2UD_ROOT\n"
            f"printf '#!/bin/sh\\necho again\\n' >{script}\nchmod 700 {script}\n"
        )
        for shell in SHELLS:
            service, sandbox = self.serve(data), self.machine(shell)
            for expected in ([RUNNING], ["again"], ["again"]):
                lines = yield self.boot(sandbox)
                self.assertEqual(lines, expected)
            service.documents.update({"instance-id": OTHER, USER_DATA: "#!/bin/sh\n"})
            for expected in ([RUNNING.replace(ID, OTHER)], []):
                lines = yield self.boot(sandbox)
                self.assertEqual(lines, expected)
            self.assertEqual(sandbox.read("ran"), "0022\n")

    @defer.inlineCallbacks
    def test_own(self) -> Any:
        """The user-data of this package: what ends the machine is started at each boot, the worker only at the first."""
        script = "#!/bin/sh\necho ran >>$EC2UD_ROOT/ran\n"
        for shell in SHELLS:
            data = UserData("m.example.org:9989", "w", PASSWORD, {}, InlineScript(script), max_lifetime=3600)
            self.serve(data.render())
            sandbox = self.machine(shell)
            sandbox.record("sleep", f"exec {shutil.which('sleep')} 60")
            lines = yield self.boot(sandbox)
            self.assertEqual(lines[0], RUNNING)
            self.assertRegex("\n".join(lines), "ec2ud: phase=bootstrap t=")
            yield self.until_called(sandbox, "sleep")
            sandbox.end()
            lines = yield self.boot(sandbox)
            yield self.until_called(sandbox, "sleep", 2)
            self.assertEqual((lines, sandbox.calls("sleep"), self.runs(sandbox)), ([], ["3600"] * 2, 1))
            self.assertNotIn(PASSWORD, sandbox.read("var/log/ec2ud-userdata.log") + str(sandbox.console))


class AskingTests(InitTestCase):
    """Whatever a system has to ask the metadata service with."""

    @defer.inlineCallbacks
    def asks(self, tokens: str, *tools: str, conf: str = "", shell: str = "sh", granted: int = 0) -> Any:
        service = self.serve(tokens=tokens)
        sandbox = self.machine(shell, *tools, conf=conf)
        lines = yield self.boot(sandbox)
        self.assertEqual((tools, lines), (tools, SAYS))
        self.assertEqual((service.granted, service.facts, service.asked), (granted, ["instance-id"], [USER_DATA]))

    @defer.inlineCallbacks
    def test_token(self) -> Any:
        """With a token, wherever there is one."""
        for tokens in ("required", "optional"):
            for tool in ("curl", "wget", "python3", "nc"):
                yield self.asks(tokens, tool, granted=1)
        for shell in SHELLS:
            yield self.asks("required", "nc", shell=shell, granted=1)

    @defer.inlineCallbacks
    def test_another_tool(self) -> Any:
        """What cannot ask for one is left for what can."""
        yield self.asks("required", "busybox-wget", "fetch", "ftp", "nc", granted=1)

    @defer.inlineCallbacks
    def test_without(self) -> Any:
        """Without one, where that is allowed."""
        for tool in ("curl", "wget", "busybox-wget", "python3", "nc", "fetch", "ftp"):
            yield self.asks("none", tool, conf=V1)
        for tool in ("busybox-wget", "fetch", "ftp"):
            yield self.asks("optional", tool, conf=V1)

    @defer.inlineCallbacks
    def refused(self, service: Metadata, sandbox: Sandbox) -> Any:
        lines = yield self.boot(sandbox)
        self.assertEqual(
            lines,
            ["ec2ud-userdata: the metadata service does not answer curl, wget, python3 or nc, or gives no token"],
        )
        self.assertEqual((service.asked, self.runs(sandbox)), ([], 0))
        self.assertEqual(sandbox.calls("sleep"), ["2"])

    @defer.inlineCallbacks
    def test_not_allowed(self) -> Any:
        """Nobody asks without a token unless that is allowed; and where one is required, that is of no use."""
        yield self.refused(self.serve(tokens="none"), self.machine())
        yield self.refused(self.serve(tokens="optional"), self.machine("sh", "fetch"))
        yield self.refused(self.serve(tokens="required"), self.machine("sh", "fetch", "busybox-wget", conf=V1))

    @defer.inlineCallbacks
    def test_wrong_token(self) -> Any:
        """A token that is refused is asked for anew."""
        for shell in SHELLS:
            service, sandbox = self.serve(), self.machine(shell)
            grant = service.render_PUT
            service.render_PUT = lambda request: b"no longer valid"  # noqa: B023
            yield self.refused(service, sandbox)
            answers = [b"stale==", service.token]

            def render(request: Any, grant: Any = grant, answers: Any = answers) -> bytes:
                grant(request)
                return answers.pop(0)

            service.render_PUT = render
            lines = yield self.boot(sandbox)
            self.assertEqual((lines, service.granted), (SAYS, 2))

    @defer.inlineCallbacks
    def test_nobody(self) -> Any:
        """Outside of EC2 it gives up, after as many tries as there are by default, and when there is nothing to ask with."""
        with self.listen() as listening:
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        for shell in SHELLS:
            sandbox = self.machine(shell, conf="" if shell != "sh" else "tries=60\n")
            lines = yield self.boot(sandbox)
            self.assertEqual((len(lines), self.runs(sandbox)), (1, 0))
            self.assertEqual(sandbox.calls("sleep"), ["2"] * (59 if shell == "sh" else 1))
            os.unlink(os.path.join(sandbox.bin, "curl"))
            lines = yield self.boot(sandbox)
            self.assertEqual(len(lines), 1)

    @defer.inlineCallbacks
    def test_late(self) -> Any:
        """The network may come up late."""
        service, sandbox = self.serve(), self.machine()
        grant, refusals = service.render_PUT, [503]

        def render(request: Any) -> bytes:
            if not refusals:
                return grant(request)
            request.setResponseCode(refusals.pop())
            return b"<html>"

        service.render_PUT = render
        lines = yield self.boot(sandbox)
        self.assertEqual((lines, sandbox.calls("sleep")), (SAYS, ["2"]))

    @defer.inlineCallbacks
    def test_somebody_else(self) -> Any:
        """What answers with anything is no metadata service."""
        for answer in ("<html>Welcome to our network</html>", "", "i-", "i-0123\n$(reboot)", "../i-1"):
            service = self.serve(tokens="optional")
            service.documents["instance-id"] = answer
            sandbox = self.machine("sh", "curl", conf=V1)
            lines = yield self.boot(sandbox)
            self.assertEqual((len(lines), self.runs(sandbox)), (1, 0))
            self.assertNotIn(USER_DATA, service.asked)


class BackgroundTests(InitTestCase):
    """How init systems call it."""

    @defer.inlineCallbacks
    def test_start(self) -> Any:
        """Boot goes on at once: with setsid, with BSD's daemon, and with nothing of the kind."""
        for shell in SHELLS:
            for way in ("setsid", "daemon", ""):
                self.serve('#!/bin/sh\nuntil [ -e "$EC2UD_ROOT/go" ]; do sleep 2; done\necho ran >"$EC2UD_ROOT/ran"\n')
                sandbox = self.machine(shell)
                sandbox.record("sleep", f"exec {shutil.which('sleep')} 0.02")
                if way != "setsid":
                    os.unlink(os.path.join(sandbox.bin, "setsid"))
                if way == "daemon":
                    sandbox.record("daemon", '[ "$1" = -f ] || exit 1\nshift\nexec "$@"')
                path = write(
                    sandbox.root, "ec2ud-userdata", PROGRAM.read_bytes().replace(b"#!/bin/sh", self.shebang), 0o755
                )
                environment = sandbox.environment(EC2UD_METADATA_URL=self.url)
                output, errors, status = yield utils.getProcessOutputAndValue(path, ["start"], env=environment)
                self.assertEqual((output, errors, status), (b"", b"", 0))
                yield self.until_called(sandbox, "sleep")
                self.assertEqual(self.runs(sandbox), 0)
                write(sandbox.root, "go", "")
                yield self.until(lambda sandbox=sandbox: self.runs(sandbox))
                self.assertEqual(sandbox.calls("daemon"), [f"-f {path} run"] if way == "daemon" else [])

    @property
    def shebang(self) -> bytes:
        return f"#!{self.shell[0]} {' '.join(self.shell[1:])}".rstrip().encode()

    def test_usage(self) -> None:
        """A word it does not know."""
        for shell in SHELLS.values():
            for words in ([], ["stop"]):
                done = subprocess.run([*shell, str(PROGRAM), *words], capture_output=True, check=False)
                self.assertEqual((done.returncode, done.stderr), (2, b"usage: ec2ud-userdata run|start\n"))

    def called(self, name: str, *words: str, subr: str = "") -> tuple[int, list[str]]:
        """Call an init script; gives its status and how it calls the program."""
        path = directory(self)
        program = write(path, "program", f'#!/bin/sh\necho "$@" >>{path}/calls\n', 0o755)
        text = (INIT / name).read_text().replace(INSTALLED, program).replace("/etc/rc.subr", f"{path}/rc.subr")
        write(path, "rc.subr", subr)
        status = subprocess.run(
            ["/bin/sh", write(path, name, text), *words], capture_output=True, check=False
        ).returncode
        calls = Path(path, "calls")
        return status, calls.read_text().splitlines() if calls.exists() else []

    def test_sysv(self) -> None:
        """Of System V's words, one has it do something."""
        self.assertEqual(self.called("ec2ud-userdata.init", "start"), (0, ["start"]))
        for word in ("stop", "restart", "force-reload"):
            self.assertEqual(self.called("ec2ud-userdata.init", word), (0, []))
        self.assertEqual(self.called("ec2ud-userdata.init", "status"), (2, []))

    def test_rc_d(self) -> None:
        """rc.subr of FreeBSD and of NetBSD, whose variables have other names, both start it when they are to."""
        subr = (
            'uname() {{ echo {}; }}\nload_rc_config() {{ [ "$1" = ec2ud_userdata ] && {}; }}\n'
            'run_rc_command() {{ eval "[ \\"\\$$rcvar\\" = YES ] && \\$${{1}}_cmd"; }}\n'
        )
        for system, setting, calls in (
            ("FreeBSD", "ec2ud_userdata_enable=YES", ["start"]),
            ("FreeBSD", "ec2ud_userdata=YES", []),
            ("FreeBSD", ":", []),
            ("NetBSD", "ec2ud_userdata=YES", ["start"]),
            ("NetBSD", ":", []),
        ):
            found = self.called("ec2ud_userdata", "start", subr=subr.format(system, setting))[1]
            self.assertEqual((system, setting, found), (system, setting, calls))
        self.assertEqual(
            self.called("ec2ud_userdata", "stop", subr=subr.format("FreeBSD", "ec2ud_userdata_enable=YES")), (0, [])
        )


class CheckTests(SynchronousTestCase):
    """What other programs say of them."""

    SCRIPTS = ("ec2ud-userdata", "ec2ud-userdata.init", "ec2ud_userdata")

    def test_shellcheck(self) -> None:
        """shellcheck has nothing to say."""
        if shutil.which("shellcheck") is None:
            raise SkipTest("shellcheck is not installed")
        done = subprocess.run(
            ["shellcheck", "--shell=sh", *(str(INIT / name) for name in self.SCRIPTS)], capture_output=True, check=False
        )
        self.assertEqual((done.stdout.decode(), done.returncode), ("", 0))

    def test_plain(self) -> None:
        """Each is a program, in ASCII."""
        for name in self.SCRIPTS:
            data = (INIT / name).read_bytes()
            self.assertTrue(data.startswith(b"#!/bin/sh\n") and data.isascii() and b"\r" not in data, name)
            self.assertTrue(os.access(INIT / name, os.X_OK), name)

    def test_systemd(self) -> None:
        """systemd understands every line of the unit."""
        if shutil.which("systemd-analyze") is None:
            raise SkipTest("systemd is not installed")
        text = (INIT / "ec2ud-userdata.service").read_text()
        self.assertEqual(text.count(INSTALLED), 1)
        path = write(directory(self), "ec2ud-userdata.service", text.replace(INSTALLED, str(PROGRAM)))
        done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, check=False)
        self.assertEqual((done.stdout.decode() + done.stderr.decode(), done.returncode), ("", 0))
