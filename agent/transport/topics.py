"""Where messages go: the topics of one community.

::

    bramble/<community>/hub/<kind>                  hub to all
    bramble/<community>/to/<device>/<kind>          hub to one device
    bramble/<community>/from/<device>/<kind>        device to hub
    bramble/<community>/join/<invite>/<device>      newcomer to hub
    bramble/<community>/joined/<invite>/<device>    hub to newcomer
    bramble/<community>/life/<device>               birth, last will

``<community>`` is 32 hexadecimal digits. Retained messages live only under ``hub/`` and ``life/``, and nothing depends
on reaching one through a wildcard. Four slashes at most, so that brokers with a limit of seven carry them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from agent.errors import MalformedMessageError

ROOT = "bramble"
MAX_TOPIC_BYTES = 256

RETAINED_KINDS = ("card", "charter", "round")
"""The kinds under ``hub/`` whose last message is kept by the broker for whoever comes later."""

Room: TypeAlias = Literal["hub", "to", "from", "join", "joined", "life"]

COMMUNITY = re.compile(r"[0-9a-f]{32}", re.ASCII)
DEVICE = re.compile(r"[a-z2-7]{52}", re.ASCII)
KIND = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)
INVITE = re.compile(r"[a-z0-9]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedTopic:
    """What a topic says. Only the fields that its room has are set."""

    community: str
    room: Room
    device: str | None = None
    kind: str | None = None
    invite: str | None = None


@dataclass(frozen=True, slots=True)
class Topics:
    """Builds the topics and filters of one community.

    Raises:
        ValueError: from any method, when a part does not have its form; a topic is never built from unchecked text.
    """

    community: str

    def __post_init__(self) -> None:
        _require(COMMUNITY, self.community, "community")

    @property
    def root(self) -> str:
        """What every topic of the community begins with, without a slash at the end."""
        return f"{ROOT}/{self.community}"

    def hub(self, kind: str) -> str:
        """From the hub to all; the kinds in ``RETAINED_KINDS`` are retained."""
        return f"{self.root}/hub/{_require(KIND, kind, 'kind')}"

    def to(self, device: str, kind: str) -> str:
        """From the hub to one device."""
        return f"{self.root}/to/{_require(DEVICE, device, 'device')}/{_require(KIND, kind, 'kind')}"

    def from_(self, device: str, kind: str) -> str:
        """From one device to the hub."""
        return f"{self.root}/from/{_require(DEVICE, device, 'device')}/{_require(KIND, kind, 'kind')}"

    def join(self, invite: str, device: str) -> str:
        """From a newcomer to the hub."""
        return f"{self.root}/join/{_require(INVITE, invite, 'invite')}/{_require(DEVICE, device, 'device')}"

    def joined(self, invite: str, device: str) -> str:
        """From the hub to a newcomer."""
        return f"{self.root}/joined/{_require(INVITE, invite, 'invite')}/{_require(DEVICE, device, 'device')}"

    def life(self, device: str) -> str:
        """Retained birth message and last will of a device or the hub."""
        return f"{self.root}/life/{_require(DEVICE, device, 'device')}"

    def all_to(self, device: str) -> str:
        """A filter: whatever the hub says to this device."""
        return f"{self.root}/to/{_require(DEVICE, device, 'device')}/+"

    def all_from(self) -> str:
        """A filter, for the hub: whatever devices say."""
        return f"{self.root}/from/+/+"

    def all_joins(self) -> str:
        """A filter, for the hub: whatever newcomers say."""
        return f"{self.root}/join/+/+"

    def all_lives(self) -> str:
        """A filter, for the hub: births and last wills."""
        return f"{self.root}/life/+"

    def parse(self, topic: str) -> ParsedTopic:
        """Read a topic of this community.

        Raises:
            MalformedMessageError: not a topic, or another community's.
        """
        parsed = parse(topic)
        if parsed.community != self.community:
            raise _malformed(topic)
        return parsed

    def device_of(self, topic: str) -> str | None:
        """Give the device that a topic of this community names, if it is one and names any."""
        try:
            return self.parse(topic).device
        except MalformedMessageError:
            return None


def parse(topic: str) -> ParsedTopic:
    """Read a topic of any community.

    Raises:
        MalformedMessageError: not a topic of this protocol.
    """
    if len(topic) > MAX_TOPIC_BYTES:
        raise _malformed(topic)
    match topic.split("/"):
        case [root, community, *rest] if root == ROOT and COMMUNITY.fullmatch(community):
            pass
        case _:
            raise _malformed(topic)
    match rest:
        case ["hub", kind] if KIND.fullmatch(kind):
            return ParsedTopic(community=community, room="hub", kind=kind)
        case ["to" | "from" as room, device, kind] if DEVICE.fullmatch(device) and KIND.fullmatch(kind):
            return ParsedTopic(community=community, room=_room(room), device=device, kind=kind)
        case ["join" | "joined" as room, invite, device] if INVITE.fullmatch(invite) and DEVICE.fullmatch(device):
            return ParsedTopic(community=community, room=_room(room), invite=invite, device=device)
        case ["life", device] if DEVICE.fullmatch(device):
            return ParsedTopic(community=community, room="life", device=device)
        case _:
            raise _malformed(topic)


def matches(topic_filter: str, topic: str) -> bool:
    """Say whether a message on ``topic`` reaches a subscription to ``topic_filter`` (MQTT 3.1.1 section 4.7)."""
    if topic.startswith("$") and not topic_filter.startswith("$"):
        return False
    wanted, levels = topic_filter.split("/"), topic.split("/")
    for position, level in enumerate(wanted):
        if level == "#":
            return True
        if position >= len(levels) or level not in ("+", levels[position]):
            return False
    return len(wanted) == len(levels)


def is_filter(text: str) -> bool:
    """Say whether ``text`` is a valid topic filter: ``#`` only at the end, wildcards alone in their level."""
    levels = text.split("/")
    return (
        0 < len(text.encode("utf-8", "surrogatepass")) <= 65_535
        and "\0" not in text
        and all(level == "+" or "+" not in level for level in levels)
        and all("#" not in level for level in levels[:-1])
        and (levels[-1] == "#" or "#" not in levels[-1])
    )


def is_topic(text: str) -> bool:
    """Say whether ``text`` is a valid topic to publish on: a filter without wildcards."""
    return is_filter(text) and "+" not in text and "#" not in text


def _room(text: str) -> Room:
    match text:
        case "to" | "from" | "join" | "joined":
            return text
        case _:
            raise ValueError(text)


def _require(form: re.Pattern[str], text: str, what: str) -> str:
    if not form.fullmatch(text):
        raise ValueError(f"{text!r} is not a {what}")
    return text


def _malformed(topic: str) -> MalformedMessageError:
    return MalformedMessageError(
        f"{topic[:80]!r} is not a topic of this community.", advice="The message is dropped; nothing needs to be done."
    )
