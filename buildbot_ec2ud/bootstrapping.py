"""A worker's user-data: made of its arguments for a start, and checked while the configuration is loaded."""

from __future__ import annotations

import base64
import functools
import hashlib
import ipaddress
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from buildbot_ec2ud.addresses import has_port, host_of, is_address
from buildbot_ec2ud.launch import is_dynamic
from buildbot_ec2ud.served import NotServed, new_name, plugin, script_url
from buildbot_ec2ud.userdata import scripts
from buildbot_ec2ud.userdata.posix import LIMIT, TooLarge, UserData, UserDataError, check_environment
from buildbot_ec2ud.userdata.powershell import WindowsUserData, program
from buildbot_ec2ud.userdata.scripts import InlineScript, RemoteScript

if TYPE_CHECKING:
    from buildbot_ec2ud.settings import Settings

#: With any of these, the user-data is made here; without one and with a password of one's own, nothing is added to it.
ARGUMENTS = (
    *("bb_master", "bootstrap_script", "bootstrap_sha256", "bootstrap_env"),
    *("bootstrap_insecure", "gzip_user_data", "bb_www", "bb_tls"),
)

#: Letters of the longest name of a host (RFC 1035), and of the longest password that is not known before a start.
_HOST_LIMIT, _PASSWORD_LIMIT = 253, 64

#: Puts a script on a web server: gives its URL.
Serve = Callable[[bytes], str]


def make_user_data(
    settings: Settings,
    worker: str,
    master: str,
    password: str,
    environment: Mapping[str, Any],
    directories: Sequence[str],
    spot: bool = True,
    serve: Serve | None = None,
) -> bytes:
    """Make the user-data of one start. The files of the script and of the certificates are read anew.

    :param settings: the worker's.
    :param worker: the worker's name.
    :param master: ``host:port`` of the master.
    :param password: the worker's password.
    :param environment: ``bootstrap_env``, rendered.
    :param directories: where a relative path begins.
    :param spot: whether the instance may be a spot instance.
    :param serve: what a script goes to that EC2 does not take inside of user-data.
    :raises ScriptError: the bootstrap script cannot be used.
    :raises UserDataError: the user-data cannot be made of this.
    """
    script = scripts.load(
        settings.bootstrap_script, settings.bootstrap_sha256, directories, settings.bootstrap_insecure
    )
    for argument, text in (("name", worker), ("bb_master", master), ("password", password)):
        if "\0" in text:
            raise UserDataError(f"{argument}: has a NUL in it")
    if script.windows and settings.gzip_user_data:
        raise UserDataError("gzip_user_data: Windows does not unpack it")

    def render(script: InlineScript | RemoteScript) -> bytes:
        common = {
            "master": master,
            "worker": worker,
            "password": password,
            "environment": environment,
            "script": script,
            "max_lifetime": settings.max_lifetime,
            "orphan_timeout": settings.patience_of_orphans,
            "spot": spot,
            "tls_certificates": certificates(settings.bb_tls, directories),
        }
        if script.windows:
            return WindowsUserData(**common).render()
        return UserData(**common, gzip=settings.gzip_user_data).render()

    try:
        return render(script)
    except TooLarge:
        if serve is None or not isinstance(script, InlineScript):
            raise
    # Without a byte order mark, PowerShell takes what is no ASCII for a code page of its own.
    text, encoding = (program(script.text), "utf-8-sig") if script.windows else (script.text, "utf-8")
    content = text.encode(encoding)
    return render(RemoteScript(serve(content), hashlib.sha256(content).hexdigest(), script.windows))


def server(settings: Settings, master: Any, address: str) -> Serve | None:
    """What the web server of *master* serves a script with; None where ``bb_www`` does not ask for that.

    :param master: Buildbot's master.
    :param address: ``host:port`` that instances connect to.
    """
    if settings.bb_www is None:
        return None

    def serve(script: bytes) -> str:
        base = master.config.buildbotURL if settings.bb_www is True else settings.bb_www
        if settings.bb_www is True and _is_loopback(urlsplit(base).hostname) and not _is_loopback(host_of(address)):
            raise UserDataError(f"bb_www: no instance can reach c['buildbotURL'], {base!r}: give the URL")
        try:
            # An instance that has not come up until then is ended.
            return plugin.serve(master, base, script, settings.boot_timeout)
        except NotServed as error:
            raise UserDataError(f"bb_www: {error}") from error

    return serve


def _is_loopback(host: str | None) -> bool:
    try:
        return ipaddress.ip_address((host or "").strip("[]")).is_loopback
    except ValueError:
        return (host or "").rstrip(".").lower() in ("localhost", "localhost.localdomain")


def certificates(bb_tls: Any, directories: Sequence[str]) -> str | None:
    """What the argument ``bb_tls`` lets an instance trust: certificates in PEM form, ``system``, or None without TLS.

    :param directories: where a relative path is looked for, in this order.
    :raises UserDataError: the file cannot be used.
    """
    if bb_tls is None:
        return None
    if bb_tls is True:
        return "system"
    if not isinstance(bb_tls, str) or not bb_tls:
        raise UserDataError(f"bb_tls: neither True nor the path of a file: {bb_tls!r}")
    paths = [os.path.join(directory, bb_tls) for directory in ([""] if os.path.isabs(bb_tls) else directories)]
    path = next(filter(os.path.isfile, paths), paths[0])
    try:
        with open(path, "rb") as file:
            return _certificates(file.read())
    except OSError as error:
        raise UserDataError(f"bb_tls: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserDataError(f"bb_tls: {path} {error}") from error


@functools.lru_cache(maxsize=16)
def _certificates(content: bytes) -> str:
    """The certificates in *content*, without anything beside them."""
    if b"PRIVATE KEY-----" in content:
        raise ValueError("has a private key in it, which is not for the instances")
    try:
        found = x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise ValueError(f"has no certificate in PEM form, or a broken one: {error}") from error
    return "".join(certificate.public_bytes(Encoding.PEM).decode("ascii") for certificate in found)


def check(settings: Settings, name: str) -> Iterator[str]:
    """Give a line for each thing that is wrong with what the user-data of worker *name* is to be made of.

    It is made, with the longest of all that is known only at a start.
    """
    wrong = list(_check_forms(settings))
    yield from wrong
    try:
        check_environment(environment := _known_environment(settings.bootstrap_env))
    except UserDataError as error:
        yield from str(error).splitlines()
        environment = {}
    if wrong:
        return
    # While it loads a configuration, Buildbot has the master's directory at the end of the module path.
    directories = (sys.path[-1],)
    password = settings.password if isinstance(settings.password, str) else _filling(_PASSWORD_LIMIT)
    try:
        make_user_data(
            settings,
            name,
            _longest_master(settings.bb_master),
            password,
            environment,
            directories,
            serve=None if settings.bb_www is None else _serve_longest(settings.bb_www),
        )
    except (scripts.ScriptError, UserDataError) as error:
        yield str(error)


def _check_forms(settings: Settings) -> Iterator[str]:
    for argument in ("bootstrap_insecure", "gzip_user_data"):
        if not isinstance(value := getattr(settings, argument), bool):
            yield f"{argument}: neither True nor False: {value!r}"
    if settings.bb_www is not None and settings.bb_www is not True:
        try:
            parts = urlsplit(settings.bb_www if isinstance(settings.bb_www, str) else "")
            right = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
        except ValueError:
            right = False
        if not right:
            yield f"bb_www: neither True nor an http or https URL: {settings.bb_www!r}"


def _longest_master(bb_master: Any) -> str:
    if is_address(bb_master):
        return bb_master if has_port(bb_master) else f"{bb_master}:65535"
    return _filling(_HOST_LIMIT) + ":65535"


def _filling(letters: int) -> str:
    """So many letters, always the same, and as good as random: those that are alike would be nothing when packed."""
    return base64.urlsafe_b64encode(hashlib.shake_256(b"").digest(letters)).decode("ascii")[:letters]


def _serve_longest(bb_www: Any) -> Serve:
    base = f"https://{_filling(_HOST_LIMIT)}/" if bb_www is True else bb_www
    return lambda script: script_url(base, new_name())


def check_as_it_is(settings: Settings) -> Iterator[str]:
    """Give a line for each thing that is wrong with user-data that is sent as it is."""
    for argument in ARGUMENTS:
        if getattr(settings, argument):
            yield f"user_data: is sent as it is, without {argument}; give one or the other"
    if settings.password is None:
        yield "user_data: is sent as it is, so it cannot have a password that is made for each start: give password"
    for argument in ("max_lifetime", "orphan_timeout"):
        if getattr(settings, argument) is not None:
            yield f"{argument}: not possible where the user-data is not made here"
    data = settings.user_data
    if data is None or is_dynamic(data):
        return
    if not isinstance(data, (str, bytes)):
        yield f"user_data: not a text: {type(data).__name__}"
    elif (size := len(data if isinstance(data, bytes) else data.encode())) > LIMIT:
        yield f"user_data: has {size:,} bytes; EC2 takes {LIMIT:,}"


def _known_environment(bootstrap_env: Any) -> Any:
    """``bootstrap_env``, as far as it is known without a build."""
    if is_dynamic(bootstrap_env):
        return {}
    if not isinstance(bootstrap_env, Mapping):
        return bootstrap_env
    return {name: "" if is_dynamic(value) else value for name, value in bootstrap_env.items()}
