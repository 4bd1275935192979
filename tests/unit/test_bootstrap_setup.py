"""What a bootstrap script installs and sets up: the worker, packages, and what the user wishes besides."""

from __future__ import annotations

import hashlib
import os
import re

from buildbot_ec2ud.userdata import scripts
from buildbot_ec2ud.userdata.compose import compose
from tests.unit.bootstrap import APT, CREATE_WORKER, FAMILIES, FamilyTestCase, packaged
from tests.unit.files import write
from tests.unit.sandbox import WORKER


class WorkerTests(FamilyTestCase):
    """Where buildbot-worker comes from."""

    def pip(self, **environment: str) -> str:
        self.setUp()
        self.family("redhat")
        lines = self.bootstrap(packaged("redhat"), **environment)
        self.assertEqual(self.status, 0, lines)
        (call,) = (call for call in self.called if call.startswith("pip "))
        return call.removeprefix("pip -q install --prefer-binary ")

    def test_pip(self) -> None:
        """A version, an index and a directory of the user's; what TLS needs."""
        self.assertEqual(self.pip(BB_WORKER_VERSION="4.2.1"), "buildbot-worker==4.2.1")
        self.assertEqual(
            self.pip(BB_WORKER_INDEX="https://a.example/simple/?a b"),
            "--index-url https://a.example/simple/?a b buildbot-worker",
        )
        self.assertEqual(self.pip(BB_WORKER_WHEELS="/my wheels"), "--no-index --find-links /my wheels buildbot-worker")
        self.assertEqual(self.pip(BB_TLS_CERT="system"), "buildbot-worker twisted[tls]")

    def test_package(self) -> None:
        """The distribution's own package, where asked for; on FreeBSD, if nothing else is."""
        for name, tls in (
            ("debian", "python3-openssl python3-service-identity"),
            ("redhat", "python3-pyOpenSSL python3-service-identity"),
            ("suse", "python3-pyOpenSSL python3-service_identity"),
            ("alpine", "py3-openssl py3-service_identity"),
            ("freebsd", "security/py-openssl security/py-service_identity"),
        ):
            self.setUp()
            self.family(name)
            manager, install = FAMILIES[name]
            package = "devel/py-buildbot-worker" if name == "freebsd" else "buildbot-worker"
            made = f"{self.sandbox.path('template')}/buildbot-worker"
            self.record(manager, f'case "$*" in *buildbot*) cp "{made}" "{self.sandbox.bin}" ;; info*) exit 1 ;; esac')
            more = {} if name == "freebsd" else {"BB_WORKER_FROM": "package"}
            lines = self.bootstrap(packaged(name), BB_TLS_CERT="system", **more)
            self.assertEqual(self.status, 0, lines)
            self.assertIn(install % f"{package} {tls}", self.steps)
            self.assertEqual([call for call in self.called if call.startswith(("pip ", "python3 "))], [])

    def test_prepared(self) -> None:
        """Where buildbot-worker is there already, on the PATH or in the virtualenv, nothing is installed."""
        for where in ("path", "venv"):
            self.setUp()
            self.family("debian")
            if where == "path":
                self.prepared()
            else:
                os.makedirs(f"{self.home}/venv/bin")
                self.record("buildbot-worker", CREATE_WORKER, f"{self.home}/venv/bin")
            os.unlink(os.path.join(self.sandbox.bin, "git"))
            self.assertEqual(self.phases(self.bootstrap(packaged("generic"))), ["start-worker"])
            self.assertEqual((self.status, self.steps[0]), (0, "id buildbot"))

    def test_prepared_packages(self) -> None:
        """Of BB_PACKAGES, what is there is not asked for again."""
        self.family("debian")
        self.prepared()
        self.record("dpkg", '[ "$2" != there ] || echo "Status: install ok installed"')
        self.bootstrap(packaged("debian"), BB_PACKAGES="there")
        self.assertEqual((self.status, self.steps[0]), (0, "id buildbot"))
        self.bootstrap(packaged("debian"), BB_PACKAGES="there missing")
        self.assertIn(FAMILIES["debian"][1] % "missing", self.steps)

    def test_git(self) -> None:
        """git is installed, where there is none."""
        self.family("redhat")
        os.unlink(os.path.join(self.sandbox.bin, "git"))
        self.bootstrap(packaged("redhat"), BB_PACKAGES="one")
        self.assertIn("dnf -q -y install git one", self.steps)


class SetupTests(FamilyTestCase):
    """``BB_BUILD_DEP`` and ``BB_SETUP``."""

    def setUp(self) -> None:
        super().setUp()
        self.prepared()

    def test_build_dep(self) -> None:
        """What is needed to build a package of the distribution."""
        for name, expected in (
            ("debian", f"{APT} build-dep %s"),
            ("redhat", "dnf -q -y builddep %s"),
            ("suse", "zypper -q -n source-install -d %s"),
            ("freebsd", "pkg install -q needed-by-%s"),
            ("macos", "brew install -q --only-dependencies --include-build %s"),
        ):
            self.setUp()
            self.family(name)
            if name == "suse":
                self.record(
                    "zypper", "echo '# | Alias | Name'; echo '2 | repo-source | Sources'; echo '3 | repo | Main'"
                )
            if name == "freebsd":
                self.record("pkg", '[ "$1" != rquery ] || echo "needed-by-$3"')
            lines = self.bootstrap(packaged(name), BB_BUILD_DEP="one two")
            if name in ("freebsd", "macos"):
                lines = self.sandbox.log.splitlines()
            self.assertEqual(self.phases([line for line in lines if "phase" in line]), ["build-dep", "start-worker"])
            for package in ("one", "two"):
                self.assertIn(expected % package, self.steps)
            if name == "suse":
                self.assertIn("zypper -q -n modifyrepo -e 2", self.steps)
                self.assertNotIn("zypper -q -n modifyrepo -e 3", self.steps)

    def test_build_dep_of_dnf(self) -> None:
        """It is a plugin of dnf's, which may be missing; yum has a command for it."""
        self.family("redhat")
        self.record("dnf", 'case "$*" in "builddep --help") exit 1 ;; esac')
        self.bootstrap(packaged("redhat"), BB_BUILD_DEP="one")
        self.assertEqual(self.status, 0)
        self.assertEqual(
            self.steps[:3], ["dnf builddep --help", "dnf -q -y install dnf-command(builddep)", "dnf -q -y builddep one"]
        )
        os.unlink(os.path.join(self.sandbox.bin, "dnf"))
        os.unlink(self.sandbox.path("names"))
        for name in ("yum", "yum-builddep"):
            self.record(name)
        self.bootstrap(packaged("redhat"), BB_BUILD_DEP="one")
        self.assertEqual(self.status, 0)
        self.assertEqual(self.steps[:2], ["yum -q -y install yum-utils", "yum-builddep -q -y one"])

    def test_build_dep_sources(self) -> None:
        """apt gets to know where sources are: files of both kinds."""
        self.family("debian")
        etc = self.sandbox.path("etc/apt")
        write(etc, "sources.list.d/debian.sources", "Types: deb\nURIs: x\n\nTypes: deb deb-src\n")
        write(etc, "sources.list.d/other.list", "# deb a\ndeb [signed-by=k] https://b.example c d\n")
        self.bootstrap(packaged("debian"), BB_PACKAGES="a", BB_BUILD_DEP="one two")
        self.assertEqual(self.status, 0)
        self.assertEqual(
            self.sandbox.read(etc, "sources.list.d/debian.sources"),
            "Types: deb deb-src\nURIs: x\n\nTypes: deb deb-src\n",
        )
        self.assertEqual(
            self.sandbox.read(etc, "sources.list.d/ec2ud.list"), "deb-src [signed-by=k] https://b.example c d\n"
        )
        # Of sources, the first update knew nothing.
        self.assertEqual(self.steps.count("apt-get -qq update"), 2)

    def test_no_build_dep(self) -> None:
        """Where there is no such thing, the script fails and says so."""
        self.family("alpine")
        lines = self.bootstrap(packaged("alpine"), BB_BUILD_DEP="one")
        self.assertNotEqual(self.status, 0)
        self.assertEqual(lines[-1], "ec2ud: BB_BUILD_DEP: apk cannot do that; name packages in BB_PACKAGES")

    def test_commands(self) -> None:
        """Shell commands; the worker's user is there already, and the password is not."""
        self.family("redhat")
        mark = self.sandbox.path("set up")
        setup = f"printf '%s' \"$BB_NAME ${{BB_PASSWORD-none}}\" >'{mark}'; false || :; echo '# done'"
        lines = self.bootstrap(packaged("redhat"), BB_SETUP=setup)
        self.assertEqual(self.phases([lines[0], lines[2]]), ["setup", "start-worker"])
        self.assertEqual((lines[1], self.sandbox.read("set up")), ("# done", f"{WORKER} none"))

    def test_commands_with_urls(self) -> None:
        """Commands that begin like a URL, such as those that set a proxy, are none."""
        for setup in ("http_proxy=http://p.example; echo $http_proxy", "https_proxy=http://p.example echo a://b"):
            self.setUp()
            self.family("redhat")
            lines = self.bootstrap(packaged("redhat"), BB_SETUP=setup)
            self.assertEqual((self.status, lines[1]), (0, "http://p.example" if setup[4] == "_" else "a://b"), lines)

    def fetched(self, script: str, url: str = "https://a.example/setup", **environment: str) -> list[str]:
        """Run with a script at a URL, which is there at the third attempt."""
        write(self.sandbox.root, "served", script)
        self.family("redhat")
        self.record(
            "curl",
            f"echo x >>{self.sandbox.path('attempts')}\n"
            f'[ "$(grep -c x {self.sandbox.path("attempts")})" = 3 ] && cat {self.sandbox.path("served")} >"$2"',
        )
        return self.bootstrap(packaged("redhat"), BB_SETUP=url, **environment)

    def test_url(self) -> None:
        """A script at a URL is fetched, again if need be, and run: whatever it is written in."""
        lines = self.fetched('#!/bin/sh\necho "set up $BB_NAME ${BB_PASSWORD-}"\n')
        self.assertEqual((self.status, lines[1]), (0, f"set up {WORKER} "), lines)
        self.assertEqual(self.steps.count(f"curl -fsSLo {self.home}/setup https://a.example/setup"), 3)

    def test_checksum(self) -> None:
        """With a checksum, another script is not run."""
        script = "#!/bin/sh\necho 'set up'\n"
        right = hashlib.sha256(script.encode()).hexdigest()
        for wanted, ends_well in ((right, True), (right.replace(right[0], "x"), False)):
            self.setUp()
            self.sandbox.link("sha256sum")
            lines = self.fetched(script, "http://a.example/setup", BB_SETUP_SHA256=wanted)
            self.assertEqual((self.status == 0, "set up" in lines), (ends_well, ends_well))
            if not ends_well:
                self.assertEqual(lines[-1], f"ec2ud: http://a.example/setup has the wrong SHA-256: {right}")

    def test_plain_http(self) -> None:
        """By plain http, and without a checksum: nothing is fetched."""
        lines = self.fetched("#!/bin/sh\n", "http://a.example/setup")
        self.assertEqual(lines, ["ec2ud: BB_SETUP: plain http needs BB_SETUP_SHA256"])
        self.assertNotEqual(self.status, 0)
        self.assertEqual(self.steps, [])

    def test_not_fetched(self) -> None:
        """A URL where nothing is, and nothing to fetch with."""
        self.family("redhat")
        lines = self.bootstrap(packaged("redhat"), BB_SETUP="https://a.example/setup")
        self.assertEqual(lines[-1], "ec2ud: cannot fetch https://a.example/setup")
        self.assertNotEqual(self.status, 0)

    def test_failures(self) -> None:
        """A setup that fails ends the script, so that its machine goes."""
        self.family("redhat")
        self.bootstrap(packaged("redhat"), BB_SETUP="false\ntrue")
        self.assertNotEqual(self.status, 0)
        self.setUp()
        self.fetched("#!/bin/sh\nexit 3\n")
        self.assertEqual(self.status, 3)
        self.assertEqual(self.secrets(), [])


class DocsTests(FamilyTestCase):
    """The scripts that ``docs/bootstrap.md`` shows."""

    def setUp(self) -> None:
        super().setUp()
        path = os.path.join(os.path.dirname(__file__), "../../docs/bootstrap.md")
        with open(path, encoding="utf-8") as file:
            self.packaged, self.own = re.findall(r"^```sh\n(#!.*?)^```", file.read(), re.MULTILINE | re.DOTALL)

    def test_packaged(self) -> None:
        """The packaged one is as it is shown."""
        with open(scripts.packaged("debian.sh"), encoding="utf-8") as file:
            self.assertEqual(self.packaged, file.read())

    def test_own(self) -> None:
        """The other one does what it says."""
        self.family("debian")
        self.record("mkfs.ext4")
        self.record("mount")
        lines = self.bootstrap(compose(self.own).replace("/dev/nvme", "nvme"), BB_PACKAGES="mine")
        self.assertEqual(self.status, 0, lines)
        self.assertIn(FAMILIES["debian"][1] % "gcc make mine", self.steps)
        start = self.steps.index("mkfs.ext4 -q nvme1n1")
        self.assertEqual(self.steps[start + 1], f"mount nvme1n1 {self.home}/worker")
        self.assertTrue(self.steps[start + 2].startswith("buildbot-worker create-worker "))
