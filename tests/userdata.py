"""Reads user-data as somebody does who is not the code that has made it."""

from __future__ import annotations

import re
import shlex


def variables(user_data: bytes) -> dict[str, str]:
    """The variables that user-data for a shell gives its bootstrap script, those of a line each; ``BB_PASSWORD`` too."""
    text = user_data.decode()
    found = {}
    for name, value in re.findall(r"^export ([A-Z]\w*)=(.*)$", text, re.M):
        try:
            found[name] = "".join(shlex.split(value))
        except ValueError:  # it goes on in the next line
            continue
    found["BB_PASSWORD"] = re.search(r"^IFS= read -r BB_PASSWORD <<'(\w+)'\n(.*)\n\1$", text, re.M)[2]
    return found
