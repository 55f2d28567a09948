from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.crypto import canonical
from agent.crypto.identity import Identity
from agent.errors import CorruptStateError, NotInitialisedError, NotJoinedError, StateError
from agent.federation.messages import Announcement, Manifest
from agent.federation.store import MIGRATIONS, DeviceStore, Residual, RoundRecord, open_device_store
from agent.paths import Home
from agent.transport.outbox import Outbox


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "device")
    made.create()
    return made


@pytest.fixture
def store(home: Home) -> Iterator[DeviceStore]:
    with open_device_store(home, create=True) as made:
        yield made


def manifest(letter: str, number: int) -> Manifest:
    return Manifest(number=number, sha256=letter * 64, parent="", size=1, round=number)


def announcement(sequence: int, number: int = 1) -> Announcement:
    return Announcement(
        sequence=sequence,
        round=number,
        phase="open",
        deadline=0,
        release=manifest("a", 0),
        candidate=None,
        seal_key=b"k",
    )


def test_older_word_of_the_hub_never_replaces_a_newer_one(store: DeviceStore) -> None:
    assert store.announcement is None
    assert store.save_announcement(announcement(5))
    assert not store.save_announcement(announcement(5, number=9))
    assert not store.save_announcement(announcement(4, number=9))
    assert store.save_announcement(announcement(6, number=2))
    assert store.announcement == announcement(6, number=2)


def test_with_a_hub_that_lost_its_memory_what_it_does_not_remember_is_forgotten(store: DeviceStore) -> None:
    left_over = Residual(factors="both", sha256="e" * 64, release=4, start="b" * 64, transfer="t")
    store.save_release(manifest("a", 3), adopt=True)
    store.save_release(manifest("b", 4), adopt=True)
    with store.transaction():
        for number in (4, 5, 6):
            store.add_round(RoundRecord(round=number, transfer=f"t{number}", update_id="u", wire_bytes=1, fp32_bytes=1))
        store.replace_residual("both", left_over, "t")
    store.save_announcement(announcement(50, number=6))
    restarted = announcement(60, number=6).model_copy(update={"release": manifest("c", 5), "forgotten": [(50, 60)]})
    assert store.save_announcement(restarted)
    assert (store.last_round(), store.residual("both"), store.orphaned) == (6, left_over, "")
    restored = restarted.model_copy(update={"sequence": 80, "round": 5, "forgotten": [(55, 80)]})
    assert store.save_announcement(restored)
    assert (store.last_round(), store.residual("both"), store.orphaned) == (4, None, "b" * 64)


def test_release_that_is_known_here_orphans_nothing_though_the_hub_lost_its_memory(store: DeviceStore) -> None:
    store.save_release(manifest("a", 3), adopt=True)
    store.save_release(manifest("b", 4), adopt=False)
    store.save_announcement(announcement(50))
    restored = announcement(80).model_copy(update={"release": manifest("b", 4), "forgotten": [(40, 80)]})
    assert store.save_announcement(restored)
    assert store.orphaned == ""


def test_newest_adopted_release_is_in_use_and_declined_ones_are_remembered(store: DeviceStore) -> None:
    assert store.adopted() is None
    store.save_release(manifest("a", 0), adopt=True)
    store.save_release(manifest("b", 1), adopt=False, before=1.0, after=2.0)
    assert store.adopted() == (0, "a" * 64)
    assert store.declined() == {"b" * 64}
    store.save_release(manifest("c", 2), adopt=True)
    assert store.adopted() == (2, "c" * 64)


def test_round_is_remembered_with_what_the_hub_said_of_it(store: DeviceStore) -> None:
    record = RoundRecord(
        round=3, transfer="ab" * 16, update_id="u", wire_bytes=1, fp32_bytes=4, report={"loss": 1.5, "trained": "x"}
    )
    assert store.last_round() == 0
    with store.transaction():
        store.add_round(record)
    assert store.rounds() == [record]
    with store.transaction():
        store.settle(bytes.fromhex("ab" * 16), state="refused", reason="norm")
    assert store.rounds() == [record.model_copy(update={"state": "refused", "reason": "norm"})]
    assert store.last_round() == 3


def test_transaction_that_fails_changes_nothing(store: DeviceStore) -> None:
    record = RoundRecord(round=1, transfer="t", update_id="u", wire_bytes=1, fp32_bytes=4)

    def half_way() -> None:
        with store.transaction():
            store.add_round(record)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half_way()
    assert store.rounds() == []


def test_device_without_a_community_says_so(store: DeviceStore) -> None:
    assert not store.is_member
    with pytest.raises(NotJoinedError):
        _ = store.membership


def test_database_is_readable_by_its_owner_alone(store: DeviceStore, home: Home) -> None:
    assert home.database.stat().st_mode & 0o077 == 0
    assert store.status == {}


def test_missing_newer_or_damaged_database_is_explained(home: Home) -> None:
    with pytest.raises(NotInitialisedError):
        open_device_store(home)
    connection = sqlite3.connect(home.database)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(StateError, match="has schema"):
        open_device_store(home)
    home.database.write_bytes(b"this is no database" * 1000)
    with pytest.raises(CorruptStateError):
        open_device_store(home)


def test_database_of_an_earlier_version_is_brought_up_to_date_and_keeps_what_is_in_it(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("agent.federation.store.MIGRATIONS", MIGRATIONS[:1])
        with open_device_store(home, create=True) as made:
            made.set_fact("key", b"value")
    with open_device_store(home) as store:
        assert store.fact("key") == b"value"
        assert store.residual("both") is None


def test_hub_that_was_pinned_by_an_earlier_version_is_pinned_as_a_hub(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Identity.generate("hub").public
    old = base64.urlsafe_b64encode(canonical.encode([hub.verify_key, hub.seal_key])).decode()
    with monkeypatch.context() as earlier:
        earlier.setattr("agent.federation.store.MIGRATIONS", MIGRATIONS[:4])
        with open_device_store(home, create=True) as made:
            made.set_fact("membership", json.dumps({**MEMBERSHIP, "hub": old}).encode())
    with open_device_store(home) as store:
        assert store.membership.hub_identity == hub


MEMBERSHIP = {
    "community": "c" * 32,
    "broker": "mqtt://127.0.0.1:1",
    "username": "",
    "password": "",
    "base": "base.gguf",
    "charter": {"name": "c", "base_name": "b", "base_sha256": "a" * 64, "base_bytes": 1},
    "joined": 0,
}


def test_residual_is_kept_for_the_factors_it_belongs_to_until_its_update_is_refused(store: DeviceStore) -> None:
    kept = {
        factors: Residual(factors=factors, sha256=letter * 64, release=3, start="d" * 64, transfer=letter * 32)
        for factors, letter in (("a", "a"), ("b", "b"))
    }
    with store.transaction():
        for residual in kept.values():
            store.replace_residual(residual.factors, residual, residual.transfer)
    assert (store.residual("a"), store.residual("b"), store.residual("both")) == (kept["a"], kept["b"], None)
    with store.transaction():
        store.settle(bytes.fromhex("a" * 32), state="refused", reason="norm")
        store.settle(bytes.fromhex("b" * 32), state="counted")
    assert store.kept_blobs() == {"b" * 64}
    with store.transaction():
        store.replace_residual("b", None, "c" * 32)
        store.settle(bytes.fromhex("c" * 32), state="counted")
    assert store.kept_blobs() == frozenset()


def test_residual_precedes_its_own_release_and_later_ones() -> None:
    residual = Residual(factors="both", sha256="a" * 64, release=3, start="d" * 64, transfer="a" * 32)
    assert residual.precedes(manifest("d", 3))
    assert residual.precedes(manifest("e", 4))
    assert not residual.precedes(manifest("e", 3))
    assert not residual.precedes(manifest("c", 2))


def test_update_that_was_not_counted_yet_is_not_sent_after_consent_was_withdrawn(store: DeviceStore) -> None:
    outbox = Outbox(store.connection)
    fields = {"update_id": "u", "wire_bytes": 1, "fp32_bytes": 4}
    with store.transaction():
        for number, name in ((1, "11" * 16), (2, "22" * 16)):
            outbox.put("offer", b"offer", topic="t", transfer=name)
            store.add_round(RoundRecord(round=number, transfer=name, **fields))
        store.settle(bytes.fromhex("11" * 16), state="counted")
        outbox.done_transfer("11" * 16)
    with store.transaction():
        store.withdraw_unsent()
    assert outbox.count == 0
    assert [(row.state, row.reason) for row in store.rounds()] == [("counted", ""), ("refused", "consent-withdrawn")]
