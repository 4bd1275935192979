"""``settings.toml``: what differs from site to site."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from buildbot import config

from buildbot_ec2ud.template.toml_lines import TomlFile
from buildbot_ec2ud.template_files import directory, find

NAME = "settings.toml"


def _any(value: Any) -> bool:
    return True


@dataclass(frozen=True)
class Setting:
    """What a setting may be.

    :ivar kind: its type.
    :ivar text: the same in words.
    :ivar fits: whether a value of that type will do.
    """

    kind: type
    text: str
    fits: Callable[[Any], bool] = _any

    def takes(self, value: Any) -> bool:
        return type(value) is self.kind and self.fits(value)


def _number(least: int, most: float = float("inf")) -> Setting:
    limits = f"from {least} on" if most == float("inf") else f"from {least} to {most}"
    return Setting(int, f"a number {limits}", lambda value: least <= value <= most)


_TEXT = Setting(str, "a text")
_SWITCH = Setting(bool, "true or false")
_TEXTS = Setting(list, "a list of texts", lambda value: all(isinstance(each, str) and each for each in value))
_NAMES = Setting(
    list,
    "a list of names, of letters, digits, - and _",
    lambda value: all(isinstance(each, str) and each.replace("-", "_").isidentifier() for each in value),
)
_MQ = Setting(
    dict,
    'a table like { router_url = "ws://127.0.0.1:8085", realm = "buildbot" }',
    lambda value: set(value) == {"router_url", "realm"} and all(isinstance(each, str) for each in value.values()),
)

SETTINGS: dict[str, Setting] = {
    "title": _TEXT,
    "www_port": _TEXT,
    "www_url": _TEXT,
    "users": _NAMES,
    "secrets": _TEXT,
    "pb_port": _TEXT,
    "bb_master": _TEXT,
    "tls": _SWITCH,
    "owner": _TEXT,
    "repository": _TEXT,
    "branch": _TEXT,
    "other_branches": _SWITCH,
    "poll_interval": _number(0),
    "github_hook": _SWITCH,
    "tree_stable_timer": _number(0),
    "nightly_hour": _number(0, 23),
    "try_port": _TEXT,
    "try_users": _NAMES,
    "collapse_requests": _SWITCH,
    "fetches_at_once": _number(1),
    "mail_to": _TEXTS,
    "mail_from": _TEXT,
    "mail_relay": _TEXT,
    "keep_logs": _number(0),
    "db_url": _TEXT,
    "multi_master": _SWITCH,
    "mq": _MQ,
}


class Settings(dict[str, Any]):
    """The settings of a master, by name.

    :param file: where they are.
    """

    def __init__(self, file: TomlFile, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._file = file

    def where(self, name: str) -> str:
        """The beginning of an error: the path of the file, and the line of the setting if it is there."""
        return self._file.where(name)


def load_settings(basedir: str) -> Settings:
    """Read ``settings.toml``; what the master's own does not say is as in the packaged one.

    :param basedir: the master's directory.
    :raises buildbot.config.ConfigErrors: all that is wrong.
    """
    file = TomlFile(find(basedir, NAME))
    errors = list(_check(file))
    if errors:
        raise config.ConfigErrors(errors)
    settings = Settings(file, {**TomlFile(str(directory() / NAME)).content, **file.content})
    errors = [f"{settings.where(name)}: {text}" for name, text in _contradictions(settings)]
    if errors:
        raise config.ConfigErrors(errors)
    return settings


def _check(file: TomlFile) -> Iterator[str]:
    for name, value in file.content.items():
        setting = SETTINGS.get(name)
        if setting is None:
            near = difflib.get_close_matches(name, SETTINGS, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            yield f"{file.where(name)}: unknown setting {name!r}{meant}"
        elif not setting.takes(value):
            yield f"{file.where(name)}: {name} must be {setting.text}, not {value!r}"


def _contradictions(settings: Settings) -> Iterator[tuple[str, str]]:
    """Give the name of each setting that needs another one, and what is wrong."""
    if settings["github_hook"] and not settings["repository"]:
        yield "github_hook", "github_hook needs a repository"
    if settings["try_port"] and not settings["try_users"]:
        yield "try_port", "try_port needs try_users: nobody could log in"
    if settings["mail_to"] and not settings["mail_from"]:
        yield "mail_to", "mail_to needs mail_from"
    if "mq" in settings and not settings["multi_master"]:
        yield "mq", "mq is for several masters: set multi_master = true"
    if settings["multi_master"] and settings["db_url"].startswith("sqlite:"):
        yield "multi_master", "multi_master needs a db_url of a database server"
    if settings["multi_master"] and "mq" not in settings:
        yield "multi_master", "multi_master needs mq: the masters tell each other of builds by a router"
