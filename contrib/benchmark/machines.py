"""An instance of the benchmark's stand-in for EC2, and what is said of it."""

from __future__ import annotations

import dataclasses
import html
import re
import time
from collections.abc import Mapping

import standin

_CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48}


class Template:
    """What moto says of an instance, to be said of others.

    :param described: moto's answer to DescribeInstances.
    """

    def __init__(self, described: bytes | None = None) -> None:
        text = (described or standin.moto_answers()[1]).decode()
        self.namespace = re.search('xmlns="([^"]*)"', text)[1]  # type: ignore[index]
        item = re.search("<reservationSet><item>(.*)</item></reservationSet>", text, re.S)[1]  # type: ignore[index]
        item = re.sub("<launchTime>[^<]*", "<launchTime>{launched}", item.replace("{", "").replace("}", ""))
        item = re.sub("<tagSet>.*?</tagSet>", "<tagSet>{tags}</tagSet>", item, flags=re.S)
        item = re.sub("<instanceState>.*?</instanceState>", "<instanceState>{state}</instanceState>", item, flags=re.S)
        item = re.sub("<stateReason>.*?</stateReason>", "{reason}", item, flags=re.S)
        item = re.sub("<instanceType>[^<]*", "<instanceType>{type}", item)
        item = re.sub("<imageId>[^<]*", "<imageId>{image}", item)
        item = re.sub("<clientToken>[^<]*", "<clientToken>{token}", item)
        self._item = re.sub("(?<=<instanceId>)[^<]*", "{id}", item)

    def fill(self, **values: str) -> bytes:
        """The reservation of an instance."""
        return self._item.format(**values).encode()


@dataclasses.dataclass
class Machine:
    """An instance.

    :ivar texts: what is said of it in each state, once somebody has asked.
    """

    id: str
    asked: Mapping[str, str]
    tags: dict[str, str]
    state: str = "pending"
    launched: str = dataclasses.field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()))
    texts: dict[str, bytes] = dataclasses.field(default_factory=dict)

    def text(self, template: Template) -> bytes:
        if self.state not in self.texts:
            ended = self.state in ("shutting-down", "terminated")
            code = "Client.UserInitiatedShutdown"
            self.texts[self.state] = template.fill(
                id=self.id,
                launched=self.launched,
                state=state_xml(self.state),
                reason=f"<stateReason><code>{code}</code><message>{code}</message></stateReason>" if ended else "",
                type=self.asked.get("InstanceType", "m1.small"),
                image=self.asked.get("ImageId", ""),
                token=self.asked.get("ClientToken", ""),
                tags="".join(
                    f"<item><key>{html.escape(key)}</key><value>{html.escape(value)}</value></item>"
                    for key, value in self.tags.items()
                ),
            )
        return self.texts[self.state]


def state_xml(name: str) -> str:
    return f"<code>{_CODES[name]}</code><name>{name}</name>"
