"""Who may say and hear what on the broker. Pure rules, enforced by the embedded broker and mirrored in configurations.

Four kinds of user: the hub (``hub``), a member device (its id), and newcomers. The embedded broker knows a newcomer by
its invite (``join-<invite>``). A broker that keeps no account an invite has one for all of them, ``newcomer``, and goes
by the MQTT client id, which must be the device's id. Broker rules are the outer fence: what counts is that every
message is signed, and most are sealed.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from agent.transport.topics import COMMUNITY, DEVICE, INVITE, ROOT

Action: TypeAlias = Literal["publish", "subscribe", "receive"]

HUB_USER = "hub"
JOIN_PREFIX = "join-"
NEWCOMER_USER = "newcomer"


def join_user(invite: str) -> str:
    """Give the broker user of whoever holds this invite."""
    if not INVITE.fullmatch(invite):
        raise ValueError(f"{invite!r} is not an invite id")
    return JOIN_PREFIX + invite


def rules(user: str, action: Action, community: str, *, client: str = "") -> tuple[str, ...]:
    """Give the filters that ``user`` may use for ``action`` in a community; none for an unknown user.

    Args:
        user: the authenticated broker user.
        action: what for.
        community: 32 hexadecimal digits.
        client: the MQTT client id, by which newcomers with one account are told apart.
    """
    if not COMMUNITY.fullmatch(community):
        return ()
    says: tuple[str, ...] = ()
    hears: tuple[str, ...] = ()
    if user == HUB_USER:
        says = hears = ("#",)
    elif DEVICE.fullmatch(user):
        says = (f"from/{user}/+", f"life/{user}")
        hears = ("hub/+", f"to/{user}/+")
    elif user == NEWCOMER_USER and DEVICE.fullmatch(client):
        says = (f"join/+/{client}",)
        hears = ("hub/card", "hub/charter", f"joined/+/{client}")
    elif user.startswith(JOIN_PREFIX) and INVITE.fullmatch(invite := user.removeprefix(JOIN_PREFIX)):
        says = (f"join/{invite}/+",)
        hears = ("hub/card", "hub/charter", f"joined/{invite}/+")
    return tuple(f"{ROOT}/{community}/{rule}" for rule in (says if action == "publish" else hears))


def allowed(user: str, action: Action, topic: str, community: str, *, client: str = "") -> bool:
    """Say whether ``user`` may do this.

    Args:
        user: the authenticated broker user.
        action: ``publish`` and ``receive`` take a topic, ``subscribe`` a filter.
        topic: the topic or filter. A filter is allowed only if every topic it reaches is.
        community: 32 hexadecimal digits.
        client: the MQTT client id.
    """
    return any(covers(rule, topic) for rule in rules(user, action, community, client=client))


def covers(rule: str, topic_filter: str) -> bool:
    """Say whether every topic that ``topic_filter`` reaches is reached by ``rule`` too."""
    granted, asked = rule.split("/"), topic_filter.split("/")
    for position, level in enumerate(granted):
        if level == "#":
            return True
        if position >= len(asked) or asked[position] == "#":
            return False
        if level not in ("+", asked[position]):
            return False
    return len(granted) == len(asked)
