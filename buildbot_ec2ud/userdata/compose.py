"""Scripts made of parts: what several of them share is written once, and travels without its comments."""

from __future__ import annotations

import base64
import functools
import gzip
import re
import textwrap
from collections.abc import Sequence
from importlib.resources import files

#: A line that stands for a packaged part, such as ``# ec2ud: include worker.sh``.
_INCLUDE = re.compile(r"^[ \t]*# ec2ud: include (.*)$", re.MULTILINE)
#: A line that what follows it is packed after, and its line end.
_PACK = re.compile(r"^[ \t]*# ec2ud: pack[ \t]*\n", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z0-9_-]+\.sh\Z")


class ComposeError(ValueError):
    """A script names a part that there is not; the text begins with the number of the line."""


@functools.lru_cache(maxsize=32)
def compose(text: str, pack: bool = True) -> str:
    """Put the packaged parts into a script that its lines ``# ec2ud: include NAME.sh`` name.

    A part comes without its comments, indentation and empty lines, and may include others; everything else stays as it is.
    What follows a line ``# ec2ud: pack`` is cut too, and unpacks itself when it is run: it takes half of the room.

    :param text: the script: a packaged one, a file of the master or an inline text.
    :param pack: whether that line has this effect.
    :raises ComposeError: there is no such part, or it includes itself.
    """
    text = _compose(text, ())
    mark = _PACK.search(text) if pack else None
    return text[: mark.start()] + _packed(cut(text[mark.end() :])) if mark else text


def _packed(text: str) -> str:
    """A script that is *text*, packed with what a minimal system can unpack."""
    data = base64.b64encode(gzip.compress(text.encode("utf-8"), mtime=0)).decode("ascii")
    return _UNPACK.replace("@DATA@", textwrap.fill(data, 76))


#: A BSD and an older macOS have other names for it.
_UNPACK = """\
ec2ud_text=$({ base64 -d || base64 -D || b64decode -r || openssl base64 -d; } 2>/dev/null <<'E' | gzip -dc
@DATA@
E
) || exit
eval "$ec2ud_text"
"""


def _compose(text: str, inside: Sequence[str]) -> str:
    """As :func:`compose`, for the text of the last of the parts *inside* each other; or else of the script."""

    def part(line: re.Match[str]) -> str:
        name, number = line[1].strip(), text.count("\n", 0, line.start()) + 1
        place = f"line {number}" + "".join(f" of {name}" for name in inside[-1:])
        if name in inside:
            raise ComposeError(f"{place}: {name} would include itself")
        path = files(__package__).joinpath("bootstrap", name)
        if not _NAME.match(name) or not path.is_file():
            raise ComposeError(f"{place}: there is no packaged part {name!r} to include")
        return cut(_compose(path.read_text(encoding="utf-8"), (*inside, name))).removesuffix("\n")

    return _INCLUDE.sub(part, text)


def cut(text: str, head: bool = False) -> str:
    """A script without comments, indentation and empty lines: an instance has little room.

    It must not have a here-document that one of these matters to.

    :param head: whether it keeps the comments that it begins with.
    """
    kept = re.match("(#.*\n)*", text)[0] if head else ""
    return kept + re.sub("^[ \t]*#.*\n|^[ \t]+|^\n", "", text[len(kept) :], flags=re.MULTILINE)
