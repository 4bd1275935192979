"""What Buildbot is told of a worker's configuration: what is wrong with it, and nothing that is secret."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from buildbot import config

_HIDDEN = "(hidden)"


def report(errors: list[str]) -> None:
    """Give all errors to Buildbot, which collects them while it loads a configuration.

    :raises buildbot.config.ConfigErrors: with all of them, when no configuration is being loaded.
    """
    if not errors:
        return
    try:
        config.error(errors[0])
    except config.ConfigErrors:
        raise config.ConfigErrors(errors) from None
    for error in errors[1:]:
        config.error(error)


def without_secrets(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """A worker's ``getConfigDict()``, fit for a log."""
    args = [
        value if position != 1 or value is None else _HIDDEN for position, value in enumerate(configuration["args"])
    ]
    secret = ("secret_identifier", "bootstrap_env", "user_data")
    kwargs = {key: _HIDDEN if key in secret else value for key, value in configuration["kwargs"].items()}
    return {**configuration, "args": tuple(args), "kwargs": kwargs}
