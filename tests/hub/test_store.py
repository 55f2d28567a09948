from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.crypto.identity import Identity
from agent.errors import CorruptStateError, MergeError, NotInitialisedError, StateError
from agent.federation.messages import Manifest
from agent.hub import round_book
from agent.hub.database import COUNTER_BLOCK
from agent.hub.gate import GateDecision, Judgement
from agent.hub.round_book import RoundMovedError
from agent.hub.rounds import RoundState
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


OPEN = RoundState(number=1, phase="open", deadline=1.0)
MERGING = RoundState(number=1, phase="merging", deadline=1.0)
TRIAL = RoundState(number=1, phase="trial", deadline=2.0)
YES = GateDecision(promote=True, reason="better")
NO = GateDecision(promote=False, reason="worse")


def update(
    device: str = "a", *, number: int = 1, transfer: str = "t", update_id: str = "u", merge: int | None = None
) -> UpdateRow:
    return UpdateRow(
        update_id=update_id,
        round=number,
        device=device,
        transfer=transfer,
        tokens=1,
        norm=1.0,
        wire_bytes=1,
        fp32_bytes=1,
        merge=merge or number,
    )


def release(sha256: str, *, number: int, state: str = "candidate", carry: str = "") -> ReleaseRow:
    manifest = Manifest(number=number, sha256=sha256 * 64, parent="", size=1, round=number)
    return ReleaseRow(manifest=manifest, content_key=bytes(32), state=state, updates=("u",), carry=carry)


@pytest.fixture
def merging(store: HubStore) -> HubStore:
    """A store whose first round is about to be merged."""
    store.add_release(release("a", number=0, state="promoted"))
    store.open_round(None, OPEN, start_release=0, seal_seed=b"seed", oldest=-1)
    store.add_update(update(), accepted=0)
    store.move(OPEN, MERGING)
    return store


def test_counter_never_goes_back_over_a_restart(store: HubStore, home: Home) -> None:
    given = [store.next_number("counter") for _ in range(3)]
    assert given == sorted(set(given))
    assert given[0] > 10**12  # not below the clock: a restored backup must not give again what it gave since
    with open_store(home) as again:
        assert again.next_number("counter") > given[-1]


def test_device_counts_once_a_round(store: HubStore) -> None:
    assert store.add_update(update("a"), accepted=0) == ("counted", "")
    assert store.add_update(update("a", update_id="other", transfer="x"), accepted=0)[0] == "already-counted"
    assert store.add_update(update("b", update_id="u", transfer="w"), accepted=0)[0] == "already-counted"  # a copy
    assert store.add_update(update("b", update_id="bs", transfer="y"), accepted=0) == ("counted", "")
    assert store.add_update(update("a", number=2, update_id="next", transfer="z"), accepted=0) == ("counted", "")
    assert [row.device for row in store.updates(1)] == ["a", "b"]


def test_of_a_devices_updates_in_one_merge_the_newest_counts(store: HubStore) -> None:
    late = update("a", number=1, merge=3)
    assert store.add_update(late, accepted=0) == ("counted", "")
    fresh = update("a", number=3, update_id="v", transfer="v")
    assert store.add_update(fresh, accepted=0) == ("counted", "u")
    between = update("a", number=2, update_id="w", transfer="w", merge=3)
    assert store.add_update(between, accepted=0) == ("superseded", "")
    assert store.updates_in(3, "waiting") == [fresh]
    assert store.updates_in(3, "superseded") == [replace(late, state="superseded")]


def test_settlement_says_what_became_of_a_transfer(store: HubStore) -> None:
    assert store.settlement("a", "t") is None
    store.add_update(update(), accepted=0)
    store.add_refusal(number=1, device="a", transfer="r", reason="norm", message="too large")
    assert store.settlement("a", "t") == ("", "")
    assert store.settlement("a", "r") == ("norm", "too large")
    assert store.settlement("b", "t") is None
    assert store.settlement("b", "r") is None


def test_first_verdict_of_a_device_counts(store: HubStore) -> None:
    first, second = (Judgement(device="a", before=2.0, after=after, targets=5) for after in (1.0, 9.0))
    assert store.add_verdict(first, candidate="c", number=1)
    assert not store.add_verdict(second, candidate="c", number=1)
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


def test_promotion_makes_a_release_with_the_carry_beside_it(merging: HubStore) -> None:
    merging.save_candidate(MERGING, TRIAL, release("b", number=1, carry="c" * 64), report={"x": 1}, oldest=0)
    assert [key.seal_seed for key in merging.round_keys()] == [b"seed"]
    assert merging.round_state() == TRIAL
    merging.end_round(TRIAL, "b" * 64, YES)
    assert [(row.manifest.number, row.carry) for row in merging.releases()] == [(0, ""), (1, "c" * 64)]
    row = merging.round_rows()[0]
    assert (row["outcome"], row["report"]["x"]) == ("promoted", 1)
    assert row["report"]["gate"]["promote"] is True
    assert merging.next_release_number() == 2


def test_key_is_forgotten_with_the_merge_where_nothing_late_can_count(merging: HubStore) -> None:
    merging.save_candidate(MERGING, TRIAL, release("b", number=1), report={}, oldest=2)
    assert merging.round_keys() == []


def test_rejection_changes_neither_the_release_nor_its_carry(merging: HubStore) -> None:
    merging.save_candidate(MERGING, TRIAL, release("b", number=1, carry="c" * 64), report={}, oldest=0)
    merging.end_round(TRIAL, "b" * 64, NO)
    assert merging.current().manifest.number == 0
    assert merging.current().carry == ""
    assert merging.candidate(1) is None
    assert set(merging.forget_releases(keep=5)) == {"b" * 64, "c" * 64}
    assert merging.wanted_blobs() == {"a" * 64}


def test_candidate_that_was_rejected_before_may_come_again(merging: HubStore) -> None:
    merging.save_candidate(MERGING, TRIAL, release("b", number=1), report={}, oldest=0)
    rejected = RoundState(number=1, phase="rejected", deadline=2.0)
    merging.end_round(TRIAL, "b" * 64, NO)
    again = RoundState(number=2, phase="merging", deadline=1.0)
    merging.open_round(rejected, again, start_release=0, seal_seed=b"next", oldest=0)
    trial = RoundState(number=2, phase="trial", deadline=1.0)
    merging.save_candidate(
        again, trial, replace(release("b", number=1), manifest=manifest("b", 1, 2)), report={}, oldest=0
    )
    assert merging.candidate(2) is not None


def manifest(sha256: str, number: int, made_in: int) -> Manifest:
    return Manifest(number=number, sha256=sha256 * 64, parent="", size=1, round=made_in)


def test_merge_that_gives_the_standing_release_again_does_not_take_its_place(merging: HubStore) -> None:
    with pytest.raises(MergeError, match="release 0 again"):
        merging.save_candidate(MERGING, TRIAL, release("a", number=1), report={}, oldest=0)
    assert merging.round_state() == MERGING
    assert merging.current().manifest.number == 0


def test_step_from_where_the_hub_is_not_any_more_is_refused(merging: HubStore) -> None:
    with pytest.raises(RoundMovedError):
        merging.move(OPEN, MERGING)
    with pytest.raises(RoundMovedError):
        merging.end_round(TRIAL, "", NO)
    with pytest.raises(RoundMovedError):
        merging.save_candidate(OPEN, TRIAL, release("b", number=1), report={}, oldest=0)
    assert merging.round_state() == MERGING
    assert merging.release("b" * 64) is None


def test_message_counters_are_given_once_and_never_again_after_a_kill(store: HubStore, home: Home) -> None:
    given = [store.next_counter() for _ in range(COUNTER_BLOCK + 5)]
    with open_store(home) as again:
        given += [again.next_counter() for _ in range(5)]
    assert given == sorted(set(given))
    assert given[0] > 10**12


def test_what_fails_inside_a_transaction_is_undone_and_the_rest_stays(store: HubStore) -> None:
    with store.transaction():
        store.set_fact("one", b"1")
        with contextlib.suppress(ZeroDivisionError), store.attempt():
            store.set_fact("two", b"2")
            store.set_fact("two", str(1 // 0).encode())
        store.set_fact("three", b"3")
    assert [store.fact(key) for key in ("one", "two", "three")] == [b"1", None, b"3"]


def test_two_processes_change_the_database_one_after_the_other(store: HubStore, home: Home) -> None:
    def count(shared: HubStore) -> None:
        for _ in range(20):
            with shared.transaction():
                shared.set_fact("count", str(int(shared.fact("count") or b"0") + 1).encode())

    with open_store(home) as other:
        threads = [threading.Thread(target=count, args=(shared,)) for shared in (store, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert store.fact("count") == b"40"


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


def test_a_device_that_never_stops_to_be_refused_does_not_fill_the_disk(
    store: HubStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(round_book, "KEPT_REFUSALS", 10)
    monkeypatch.setattr(round_book, "TRIM_EVERY", 5)
    for number in range(40):
        store.add_refusal(number=1, device="a", transfer=str(number), reason="norm", message="too large")
        assert len(store.refusals()) <= 15
    assert store.settlement("a", "39") == ("norm", "too large")
