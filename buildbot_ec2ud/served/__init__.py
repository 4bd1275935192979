"""Bootstrap scripts that the master's own web server serves: a plugin of ``buildbot.www``.

A script that is too large for user-data is fetched by the instance, at a path that nobody can guess, and verified by its
SHA-256, which is in the user-data: plain http will do. Only the script is served; variables and the password travel in the
user-data.

In a configuration: ``c["www"]["plugins"] = {"ec2_scripts": {}}``.
"""

from __future__ import annotations

import secrets
from importlib.resources import files
from typing import Any
from weakref import WeakKeyDictionary

from twisted.web.pages import notFound
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request
from twisted.web.static import Data, File

from buildbot_ec2ud import __version__

#: The plugin's name in ``c["www"]["plugins"]``.
PLUGIN = "ec2_scripts"
#: Bytes of randomness in a path.
ENTROPY = 32

#: What Buildbot's web UI asks of each plugin.
_UI = ("scripts.js", "styles.css")
_STATIC = files(__package__) / "static"


class NotServed(Exception):
    """The master's web server does not serve scripts. The text says why."""


class ServedScripts(Resource):
    """The scripts of one master. They are in memory only.

    :param clock: the reactor.
    """

    def __init__(self, clock: Any) -> None:
        super().__init__()
        self._clock = clock
        self._names: dict[bytes, str] = {}
        self._scripts: dict[str, tuple[float, bytes]] = {}
        for name in _UI:
            self.putChild(name.encode(), File(str(_STATIC / name)))

    def put(self, script: bytes, seconds: float) -> str:
        """Serve *script* from now on.

        :param seconds: how long at least. Who puts the same one again prolongs that; the name stays.
        :return: the name it has here.
        """
        self._forget()
        name = self._names.setdefault(script, new_name())
        until, _ = self._scripts.get(name, (0.0, b""))
        self._scripts[name] = max(until, self._clock.seconds() + seconds), script
        return name

    def _forget(self) -> None:
        now = self._clock.seconds()
        for name, (until, script) in list(self._scripts.items()):
            if until <= now:
                del self._scripts[name], self._names[script]

    def getChild(self, path: bytes, request: Request) -> IResource:
        self._forget()
        _, script = self._scripts.get(path.decode("latin-1"), (0.0, None))
        # No cache on the way has any business with it.
        request.setHeader(b"Cache-Control", b"no-store")
        return notFound() if script is None else _Script(script, "text/plain; charset=utf-8")

    def render(self, request: Request) -> Any:
        return notFound().render(request)


class _Script(Data):
    def getChild(self, path: bytes, request: Request) -> IResource:
        return notFound()


class Plugin:
    """What Buildbot's web server asks of a plugin. There is one for all masters of a process."""

    description = "Bootstrap scripts of EC2 workers"
    version = __version__
    ui = True
    static_dir = str(_STATIC)

    def __init__(self) -> None:
        self._scripts: WeakKeyDictionary[Any, ServedScripts] = WeakKeyDictionary()
        #: What the web server has below ``plugins/ec2_scripts``; that of the master which was set last.
        self.resource: Resource = Resource()

    def setMaster(self, master: Any) -> None:
        self.resource = self._scripts.setdefault(master, ServedScripts(master.reactor))

    def setConfiguration(self, config: Any) -> None:
        self.config = config

    def serve(self, master: Any, base: str, script: bytes, seconds: float) -> str:
        """Let the web server of *master* serve *script*.

        :param base: the URL of that web server.
        :param seconds: how long at least.
        :return: the URL of the script.
        :raises NotServed: it has no web server, or this plugin is not configured.
        """
        www = master.config.www
        served = self._scripts.get(master)
        if served is None or not www.get("port") or PLUGIN not in www.get("plugins", {}):
            raise NotServed(f"c['www'] has no port, or its plugins no {PLUGIN!r}: {{}}")
        return script_url(base, served.put(script, seconds))


def new_name() -> str:
    """A name that nobody guesses."""
    return secrets.token_urlsafe(ENTROPY)


def script_url(base: str, name: str) -> str:
    """The URL of the script *name* on the web server at the URL *base*."""
    return f"{base.rstrip('/')}/plugins/{PLUGIN}/{name}"


#: The entry point.
plugin = Plugin()
