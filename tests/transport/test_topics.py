from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import MalformedMessageError
from agent.transport.topics import ParsedTopic, Topics, is_filter, is_topic, matches, parse

COMMUNITY = "0123456789abcdef0123456789abcdef"
DEVICE = "a" * 52
T = Topics(COMMUNITY)


def test_what_is_built_is_read_back() -> None:
    c = COMMUNITY
    assert T.parse(T.hub("release")) == ParsedTopic(community=c, room="hub", kind="release")
    assert T.parse(T.to(DEVICE, "receipt")) == ParsedTopic(community=c, room="to", device=DEVICE, kind="receipt")
    assert T.parse(T.from_(DEVICE, "chunk")) == ParsedTopic(community=c, room="from", device=DEVICE, kind="chunk")
    assert T.parse(T.join("k3y", DEVICE)) == ParsedTopic(community=c, room="join", invite="k3y", device=DEVICE)
    assert T.parse(T.joined("k3y", DEVICE)) == ParsedTopic(community=c, room="joined", invite="k3y", device=DEVICE)
    assert T.parse(T.life(DEVICE)) == ParsedTopic(community=c, room="life", device=DEVICE)


def test_topics_stay_within_the_limits_of_hosted_brokers() -> None:
    for topic in (T.join("z" * 64, DEVICE), T.from_(DEVICE, "k" * 32), T.joined("z" * 64, DEVICE)):
        assert topic.count("/") <= 7
        assert len(topic) <= 256


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "bramble",
        f"bramble/{COMMUNITY}",
        f"bramble/{COMMUNITY}/hub",
        f"bramble/{COMMUNITY}/hub/card/x",
        f"bramble/{COMMUNITY}/hub/CARD",
        f"bramble/{COMMUNITY}/from/{DEVICE}",
        f"bramble/{COMMUNITY}/from/short/x",
        f"bramble/{COMMUNITY}/other/{DEVICE}/x",
        f"bramble/{COMMUNITY.upper()}/hub/card",
        f"/bramble/{COMMUNITY}/hub/card",
        f"bramble/{COMMUNITY}/hub/card\n",
        f"bramble/{COMMUNITY}/hub/+",
        "x" * 300,
    ],
)
def test_what_is_no_topic_of_ours_is_refused(topic: str) -> None:
    with pytest.raises(MalformedMessageError):
        parse(topic)


def test_another_communitys_topic_is_refused() -> None:
    with pytest.raises(MalformedMessageError):
        Topics("f" * 32).parse(T.hub("card"))


@pytest.mark.parametrize("bad", ["", "+", "#", "a/b", "ä", "A"])
def test_unchecked_text_never_becomes_a_topic(bad: str) -> None:
    for build in (T.hub, T.life, T.all_to):
        with pytest.raises(ValueError, match="is not a"):
            build(bad)
    with pytest.raises(ValueError, match="invite"):
        T.join(bad, DEVICE)
    with pytest.raises(ValueError, match="community"):
        Topics(bad)


@pytest.mark.parametrize(
    ("topic_filter", "topic", "reached"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/b/c", False),
        ("a/+", "a/", True),
        ("+/+", "/a", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
    ],
)
def test_filters_reach_what_mqtt_says(topic_filter: str, topic: str, reached: bool) -> None:  # noqa: FBT001
    assert matches(topic_filter, topic) is reached


@pytest.mark.parametrize("text", ["", "a/#/b", "a#", "+a", "a/b+", "##", "\0", "x" * 65_536])
def test_invalid_filters_are_known(text: str) -> None:
    assert not is_filter(text)


@given(st.text(alphabet="ab/+#", max_size=8))
def test_a_topic_is_a_filter_without_wildcards_and_reaches_itself(text: str) -> None:
    if is_topic(text):
        assert is_filter(text)
        assert matches(text, text)
