from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.crypto.identity import Identity
from agent.errors import CorruptStateError, NotInitialisedError, StateError
from agent.federation.messages import Manifest
from agent.hub.rounds import Judgement, RoundState
from agent.hub.store import HubStore, ReleaseRow, UpdateRow, create_store, open_store
from agent.paths import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "hub")
    made.create()
    return made


@pytest.fixture
def store(home: Home) -> Iterator[HubStore]:
    with create_store(home) as made:
        yield made


def update(device: str = "a", *, number: int = 1, transfer: str = "t", update_id: str = "u") -> UpdateRow:
    return UpdateRow(
        update_id=update_id,
        round=number,
        device=device,
        transfer=transfer,
        tokens=1,
        norm=1.0,
        wire_bytes=1,
        fp32_bytes=1,
    )


def release(sha256: str, *, number: int, state: str = "candidate") -> ReleaseRow:
    manifest = Manifest(number=number, sha256=sha256 * 64, parent="", size=1, round=number)
    return ReleaseRow(manifest=manifest, content_key=bytes(32), state=state, updates=("u",))


def test_counter_never_goes_back_over_a_restart(store: HubStore, home: Home) -> None:
    given = [store.next_number("counter") for _ in range(3)]
    assert given == sorted(set(given))
    assert given[0] > 10**12  # not below the clock: a restored backup must not give again what it gave since
    with open_store(home) as again:
        assert again.next_number("counter") > given[-1]


def test_device_counts_once_a_round(store: HubStore) -> None:
    assert store.add_update(update("a"), accepted=0)
    assert not store.add_update(update("a", update_id="other", transfer="x"), accepted=0)
    assert store.add_update(update("b", update_id="bs", transfer="y"), accepted=0)
    assert store.add_update(update("a", number=2, update_id="next", transfer="z"), accepted=0)
    assert [row.device for row in store.updates(1)] == ["a", "b"]


def test_settlement_says_what_became_of_a_transfer(store: HubStore) -> None:
    assert store.settlement("a", "t") is None
    store.add_update(update(), accepted=0)
    store.add_refusal(number=1, device="a", transfer="r", reason="norm", message="too large")
    assert store.settlement("a", "t") == ("", "")
    assert store.settlement("a", "r") == ("norm", "too large")
    assert store.settlement("b", "t") is None
    assert store.settlement("b", "r") is None


def test_first_verdict_of_a_device_counts(store: HubStore) -> None:
    for after in (1.0, 9.0):
        verdict = Judgement(device="a", before=2.0, after=after, targets=5)
        store.add_verdict(verdict, candidate="c", number=1)
    assert store.verdicts("c")["a"].after == 1.0


def test_invite_is_used_up_and_expires(store: HubStore) -> None:
    store.add_invite("i", bytes(32), uses=1, expires=100)
    one, two = Identity.generate().public, Identity.generate().public
    assert store.admit(one, nickname="", invite="i", now=100) == "expired"
    assert store.admit(one, nickname="", invite="i", now=99) == "admitted"
    assert store.admit(one, nickname="", invite="i", now=999) == "member"
    assert store.admit(two, nickname="", invite="i", now=99) == "used-up"
    assert store.invite_secret("i") == bytes(32)
    assert store.invite_secret("j") is None


def test_promotion_makes_a_release_and_takes_over_the_carry(store: HubStore) -> None:
    store.add_release(release("a", number=0, state="promoted"))
    state = RoundState(number=1, phase="open", deadline=1.0)
    store.open_round(state, start_release=0, seal_seed=b"seed")
    assert store.seal_seed(1) == b"seed"
    trial = RoundState(number=1, phase="trial", deadline=2.0)
    store.save_candidate(release("b", number=1), trial, report={"x": 1}, carry=b"left over")
    assert store.seal_seed(1) == b""
    assert store.round_state() == trial
    assert store.fact("carry") is None
    candidate = store.candidate(1)
    assert candidate is not None
    store.end_round(1, candidate=candidate.manifest.sha256, promote=True, reason="better")
    assert store.fact("carry") == b"left over"
    assert [row.manifest.number for row in store.releases()] == [0, 1]
    assert store.round_outcome(1) == "promoted"
    assert store.round_rows()[0]["report"] == {"x": 1}


def test_rejection_changes_neither_the_release_nor_the_carry(store: HubStore) -> None:
    store.add_release(release("a", number=0, state="promoted"))
    store.set_fact("carry", b"before")
    state = RoundState(number=1, phase="trial", deadline=1.0)
    store.open_round(state, start_release=0, seal_seed=b"seed")
    store.save_candidate(release("b", number=1), state, report={}, carry=b"after")
    store.end_round(1, candidate="b" * 64, promote=False, reason="worse")
    assert store.fact("carry") == b"before"
    assert [row.manifest.number for row in store.releases()] == [0]
    assert store.candidate(1) is None
    store.save_candidate(release("b", number=1), state, report={}, carry=b"")  # the same bytes may come again
    assert store.candidate(1) is not None


def test_missing_newer_or_damaged_database_is_explained(store: HubStore, home: Home, tmp_path: Path) -> None:
    with pytest.raises(NotInitialisedError):
        open_store(Home(tmp_path / "elsewhere"))
    store.set_fact("schema", b"99")
    with pytest.raises(StateError, match="schema 99"):
        open_store(home)
    store.close()
    for file in home.root.glob("state.db*"):
        file.write_bytes(b"this is no database" * 1000)
    with pytest.raises(CorruptStateError):
        open_store(home)
