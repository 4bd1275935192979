"""The instance metadata service of the embedded EC2: for each instance its own, below ``/INSTANCE-ID``.

On AWS it has one address, 169.254.169.254, and knows an instance by where it asks from. Here all ask from this machine, and
whoever runs on it can ask for any instance, as they can ask the embedded EC2 itself.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable
from typing import Any

from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from buildbot_ec2ud.embedded import _moto
from buildbot_ec2ud.embedded._metadata import metadata, metadata_options
from buildbot_ec2ud.embedded.instances import Notice

#: Seconds that a token can be good for. Source: EC2 user guide, "Use the Instance Metadata Service".
TOKEN_LIMIT = 21600

_TOKEN = "X-aws-ec2-metadata-token"
_TTL = "X-aws-ec2-metadata-token-ttl-seconds"


class MetadataSite(Site):
    """Answers all instances.

    :param reactor: Twisted's, or a clock.
    :param notice: gives what EC2 has let an instance know of its end.
    """

    noisy = False

    def __init__(self, reactor: Any, notice: Callable[[str], Notice]) -> None:
        super().__init__(_Service(reactor, notice), reactor=reactor)
        self.displayTracebacks = False

    def log(self, request: Any) -> None:
        """Keep the requests out of the log of whoever embeds this."""


class _Service(Resource):
    isLeaf = True

    def __init__(self, reactor: Any, notice: Callable[[str], Notice]) -> None:
        super().__init__()
        self._reactor = reactor
        self._notice = notice
        self._tokens: dict[tuple[str, str], float] = {}

    def render(self, request: Request) -> bytes:
        request.setHeader("Content-Type", "text/plain; charset=utf-8")
        # Some ask for a list with a slash at the end, some for a value: both are answered on AWS.
        instance_id, _, path = request.path.decode("utf-8", "replace").strip("/").partition("/")
        instance = _moto.find(instance_id)
        if instance is None or _moto.state_of(instance) == "terminated":
            return _refuse(request, 404)
        if not metadata_options(instance).enabled:
            return _refuse(request, 403)
        if path == "latest/api/token":
            return self._token(request, instance_id)
        if request.method not in (b"GET", b"HEAD"):
            return _refuse(request, 405)
        token = request.getHeader(_TOKEN)
        if token is None:
            if metadata_options(instance).tokens:
                return _refuse(request, 401)
        elif self._tokens.get((instance_id, token), 0.0) <= self._reactor.seconds():
            return _refuse(request, 401)
        found = self._look_up(instance, path)
        return _refuse(request, 404) if found is None else found

    def _token(self, request: Request, instance_id: str) -> bytes:
        """Make a token, which is good for as long as the request says."""
        if request.method != b"PUT":
            return _refuse(request, 405)
        if request.getHeader("X-Forwarded-For") is not None:  # somebody's open proxy
            return _refuse(request, 403)
        ttl = request.getHeader(_TTL) or ""
        if not re.fullmatch("[0-9]{1,5}", ttl) or not 1 <= int(ttl) <= TOKEN_LIMIT:
            return _refuse(request, 400)
        now = self._reactor.seconds()
        self._tokens = {key: until for key, until in self._tokens.items() if until > now}
        token = secrets.token_urlsafe(40)
        self._tokens[instance_id, token] = now + int(ttl)
        request.setHeader(_TTL, ttl)
        return token.encode()

    def _look_up(self, instance: _moto.Instance, path: str) -> bytes | None:
        """What there is at *path*, a value or a list of names; None if there is nothing."""
        version, _, path = path.partition("/")
        if version != "latest":
            return None
        user_data = _moto.user_data(instance)
        if path == "user-data":
            return user_data or None
        tree = metadata(instance)
        told = self._notice(instance.id)
        if told.advised_at is not None:
            notice = json.dumps({"noticeTime": _utc(told.advised_at)})
            tree["meta-data/events/recommendations/rebalance"] = notice
        if told.ends_at is not None:
            action = json.dumps({"action": "terminate", "time": _utc(told.ends_at)})
            tree["meta-data/spot/instance-action"] = action
            tree["meta-data/spot/termination-time"] = _utc(told.ends_at)
        if path in tree:
            return tree[path].encode()
        names = [*tree, *(["user-data"] if user_data else [])]
        below = path + "/" if path else ""
        rest = [name.removeprefix(below).partition("/") for name in names if name.startswith(below)]
        # The names of lists end with a slash.
        return "\n".join(sorted({name + slash for name, slash, _ in rest})).encode() if rest else None


def _refuse(request: Request, status: int) -> bytes:
    request.setResponseCode(status)
    return b""


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
