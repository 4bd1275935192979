"""The file with an AWS access key that ``EC2LatentWorker`` has read since 2009: two lines, the key's id and its secret."""

from __future__ import annotations

import os

#: Read where nothing else gives credentials, if it is there.
DEFAULT_PATH = "~/.ec2/aws_id"


class FileError(ValueError):
    """The file cannot be used. The text is one line, and has nothing of what is in the file."""


def default_path() -> str | None:
    """The path of the usual file; None if there is no such file."""
    path = os.path.expanduser(DEFAULT_PATH)
    return path if os.path.exists(path) else None


def read(path: str) -> tuple[str, str]:
    """Read an access key's id and its secret.

    :raises FileError: the file cannot be read, or has not two lines.
    """
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            lines = [line.strip() for line in file.read().splitlines()]
    except (OSError, UnicodeDecodeError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise FileError(f"cannot read {path!r}: {reason}") from None
    if len(lines) < 2 or not lines[0] or not lines[1]:
        raise FileError(f"{path!r} has not the id of an access key in its first line and the secret in its second")
    return lines[0], lines[1]
