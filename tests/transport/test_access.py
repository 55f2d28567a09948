from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.transport.access import Action, allowed, covers, join_user
from agent.transport.topics import Topics, is_filter, matches

COMMUNITY = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32
ALICE, BOB = "a" * 52, "b" * 52
T, ELSEWHERE = Topics(COMMUNITY), Topics(OTHER)

EVERYTHING = {
    "hub card": T.hub("card"),
    "hub charter": T.hub("charter"),
    "hub release": T.hub("release"),
    "to alice": T.to(ALICE, "receipt"),
    "to bob": T.to(BOB, "receipt"),
    "from alice": T.from_(ALICE, "update"),
    "from bob": T.from_(BOB, "update"),
    "join": T.join("k3y", ALICE),
    "join other": T.join("0ther", ALICE),
    "joined": T.joined("k3y", ALICE),
    "joined other": T.joined("0ther", ALICE),
    "life alice": T.life(ALICE),
    "life bob": T.life(BOB),
    "elsewhere": ELSEWHERE.hub("card"),
}
OURS = {name for name in EVERYTHING if name != "elsewhere"}


@pytest.mark.parametrize(
    ("user", "says", "hears"),
    [
        ("hub", OURS, OURS),
        (ALICE, {"from alice", "life alice"}, {"hub card", "hub charter", "hub release", "to alice"}),
        (join_user("k3y"), {"join"}, {"hub card", "hub charter", "joined"}),
        ("", set(), set()),
        ("nobody", set(), set()),
        ("join-", set(), set()),
        ("join-#", set(), set()),
        ("+", set(), set()),
        ("hub/#", set(), set()),
        (ALICE.upper(), set(), set()),
    ],
)
def test_each_user_may_do_exactly_this(user: str, says: set[str], hears: set[str]) -> None:
    actions: dict[Action, set[str]] = {"publish": says, "subscribe": hears, "receive": hears}
    for action, expected in actions.items():
        assert {name for name, topic in EVERYTHING.items() if allowed(user, action, topic, COMMUNITY)} == expected


@pytest.mark.parametrize(
    "topic_filter",
    [
        "#",
        "+/#",
        "bramble/#",
        "bramble/+/hub/card",
        f"bramble/{COMMUNITY}/#",
        f"bramble/{COMMUNITY}/+/+",
        f"bramble/{COMMUNITY}/from/#",
        f"$share/group/{T.hub('card')}",
        T.all_from(),
        T.all_to(BOB),
        T.all_lives(),
    ],
)
def test_a_device_may_not_subscribe_beyond_its_own(topic_filter: str) -> None:
    assert not allowed(ALICE, "subscribe", topic_filter, COMMUNITY)
    assert not allowed(join_user("k3y"), "subscribe", topic_filter, COMMUNITY)


def test_a_device_may_subscribe_to_all_that_is_its_own() -> None:
    assert allowed(ALICE, "subscribe", T.all_to(ALICE), COMMUNITY)
    assert allowed(ALICE, "subscribe", f"bramble/{COMMUNITY}/hub/+", COMMUNITY)
    assert allowed("hub", "subscribe", T.all_from(), COMMUNITY)


def test_an_unknown_community_gives_no_rights() -> None:
    assert not allowed("hub", "publish", "bramble/x/hub/card", "x")
    with pytest.raises(ValueError, match="invite"):
        join_user("a/b")


LEVELS = st.lists(st.sampled_from(["a", "b", "+", "#"]), min_size=1, max_size=4).map("/".join).filter(is_filter)
TOPICS = ["/".join(levels) for size in range(1, 5) for levels in itertools.product("ab", repeat=size)]


@given(LEVELS, LEVELS)
def test_a_rule_that_covers_a_filter_covers_every_topic_of_it(rule: str, asked: str) -> None:
    reached = [topic for topic in TOPICS if matches(asked, topic)]
    if covers(rule, asked):
        assert all(matches(rule, topic) for topic in reached)
