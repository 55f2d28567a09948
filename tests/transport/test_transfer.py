from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import DiskFullError, OversizedMessageError, ProtocolError, TransferError
from agent.transport.transfer import CHUNK_BYTES, MAX_CHUNKS, DamagedChunksError, TransferPlan, TransferStore, split

ID = bytes(range(16))


def plan_for(data: bytes, chunk_bytes: int = 10, number: int = 0) -> TransferPlan:
    return TransferPlan.of(data, id=bytes([number]) + ID[1:], chunk_bytes=chunk_bytes)


@pytest.fixture
def store(tmp_path: Path) -> TransferStore:
    return TransferStore(tmp_path / "incoming", max_bytes=1000, max_total_bytes=1500)


@given(st.binary(max_size=200), st.integers(1, 50))
def test_chunks_are_as_long_as_the_plan_says(data: bytes, chunk_bytes: int) -> None:
    chunks = split(data, max_chunk=chunk_bytes)
    plan = plan_for(data, chunk_bytes)
    assert b"".join(chunks) == data
    assert [len(chunk) for chunk in chunks] == [plan.chunk_size(index) for index in range(plan.chunk_count)]
    assert TransferPlan.decode(plan.encode()) == plan


@settings(max_examples=20)
@given(order=st.permutations(range(7)), repeated=st.lists(st.integers(0, 6)))
def test_chunks_make_the_whole_in_any_order_and_however_often(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], repeated: list[int]
) -> None:
    data = os.urandom(65)
    chunks = split(data, max_chunk=10)
    store = TransferStore(tmp_path_factory.mktemp("t"), max_bytes=1000, max_total_bytes=1000)
    transfer = store.begin(plan_for(data))
    seen: set[int] = set()
    for index in [*order[:4], *repeated, *order]:
        assert transfer.add(index, chunks[index]) is (index not in seen)
        seen.add(index)
        assert transfer.missing() == [number for number in range(7) if number not in seen]
        assert transfer.complete is (len(seen) == 7)
    assert transfer.assemble() == data


def test_missing_chunks_are_named_in_ranges(store: TransferStore) -> None:
    data = bytes(100)
    transfer = store.begin(plan_for(data))
    assert transfer.missing_ranges() == [(0, 10)]
    for index in (0, 3, 4, 9):
        transfer.add(index, bytes(10))
    assert transfer.missing_ranges() == [(1, 2), (5, 4)]


def test_it_goes_on_after_a_restart_with_what_it_has(tmp_path: Path, store: TransferStore) -> None:
    data = os.urandom(45)
    chunks = split(data, max_chunk=10)
    transfer = store.begin(plan_for(data))
    for index in (0, 2, 4):
        transfer.add(index, chunks[index])
    directory = tmp_path / "incoming" / plan_for(data).hex_id
    (directory / ".1").write_bytes(b"half")  # a write that was interrupted
    (directory / "3").write_bytes(b"short")
    (directory / "77").write_bytes(bytes(10))
    (tmp_path / "incoming" / ("e" * 32)).mkdir()  # a plan that never got written
    again = TransferStore(tmp_path / "incoming", max_bytes=1000, max_total_bytes=1500)
    (found,) = again.stored()
    assert found.plan == plan_for(data)
    assert found.missing() == [1, 3]
    resumed = again.begin(plan_for(data))
    resumed.add(1, chunks[1])
    resumed.add(3, chunks[3])
    assert resumed.assemble() == data
    resumed.discard()
    assert again.stored() == []


def test_a_chunk_that_does_not_belong_is_refused_and_not_written(tmp_path: Path, store: TransferStore) -> None:
    transfer = store.begin(plan_for(bytes(25)))
    for index, data in [(-1, bytes(10)), (3, bytes(10)), (0, bytes(9)), (0, bytes(11)), (2, bytes(10)), (2, b"")]:
        with pytest.raises(TransferError):
            transfer.add(index, data)
    assert [file.name for file in (tmp_path / "incoming" / plan_for(bytes(25)).hex_id).iterdir()] == ["plan"]


def test_a_whole_that_is_not_what_was_announced_is_thrown_away(store: TransferStore) -> None:
    transfer = store.begin(plan_for(b"0123456789abcde"))
    transfer.add(0, b"0123456789")
    with pytest.raises(TransferError, match="lacks 1"):
        transfer.assemble()
    transfer.add(1, b"abcdX")
    with pytest.raises(TransferError, match="not what was announced"):
        transfer.assemble()
    assert store.stored() == []
    assert transfer.missing() == [0, 1]


def test_a_chunk_that_is_not_what_was_sent_is_refused_when_it_comes(store: TransferStore) -> None:
    data = b"0123456789abcde"
    parts = split(data, max_chunk=10)
    transfer = store.begin(plan_for(data), check=lambda index, chunk: chunk == parts[index])
    transfer.add(1, parts[1])
    with pytest.raises(DamagedChunksError) as caught:
        transfer.add(0, b"XXXXXXXXXX")
    assert caught.value.chunks == (0,)
    assert transfer.missing() == [0]
    transfer.add(0, parts[0])
    assert transfer.assemble() == data


def test_chunks_that_changed_on_the_disk_are_thrown_away_alone(tmp_path: Path, store: TransferStore) -> None:
    data = bytes(range(45))
    parts = split(data, max_chunk=10)
    plan = plan_for(data)
    transfer = store.begin(plan, check=lambda index, chunk: chunk == parts[index])
    for index, part in enumerate(parts):
        transfer.add(index, part)
    directory = tmp_path / "incoming" / plan.hex_id
    (directory / "1").write_bytes(b"XXXXXXXXXX")
    (directory / "4").unlink()
    with pytest.raises(DamagedChunksError, match="2 chunks") as caught:
        transfer.assemble()
    assert caught.value.chunks == (1, 4)
    assert transfer.missing_ranges() == [(1, 1), (4, 1)]
    for index in (1, 4):
        transfer.add(index, parts[index])
    assert transfer.assemble() == data


def test_what_is_too_large_is_refused_before_anything_is_written(tmp_path: Path, store: TransferStore) -> None:
    with pytest.raises(OversizedMessageError):
        store.begin(plan_for(bytes(1001)))
    assert not (tmp_path / "incoming").exists()
    store.begin(plan_for(bytes(1000)))
    with pytest.raises(OversizedMessageError):
        store.begin(plan_for(bytes(501), number=1))
    store.begin(plan_for(bytes(500), number=1))
    store.begin(plan_for(bytes(1000)))  # which is here already


def test_the_same_id_for_another_transfer_is_refused(store: TransferStore) -> None:
    store.begin(plan_for(b"one"))
    with pytest.raises(TransferError):
        store.begin(plan_for(b"two"))


@pytest.mark.parametrize(
    ("total", "chunk"),
    [(-1, 10), (1, 0), (1, CHUNK_BYTES + 1), (MAX_CHUNKS + 1, 1), (2**60, CHUNK_BYTES)],
)
def test_a_plan_out_of_range_is_refused(total: int, chunk: int) -> None:
    with pytest.raises(TransferError):
        TransferPlan(id=ID, total_bytes=total, chunk_bytes=chunk, sha256=bytes(32))


@given(st.binary(max_size=80) | st.binary(min_size=60, max_size=60))
def test_any_bytes_are_an_error_of_the_protocol_or_the_one_form_of_a_plan(data: bytes) -> None:
    try:
        plan = TransferPlan.decode(data)
    except ProtocolError:
        return
    assert plan.encode() == data


def test_a_full_disk_is_said_so_and_keeps_what_is_there(
    tmp_path: Path, store: TransferStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer = store.begin(plan_for(bytes(20)))
    transfer.add(0, bytes(10))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError) as caught:
            transfer.add(1, bytes(10))
    assert caught.value.advice
    assert transfer.missing() == [1]
    assert {file.name for file in (tmp_path / "incoming" / plan_for(bytes(20)).hex_id).iterdir()} == {"plan", "0"}
    transfer.add(1, bytes(10))
    assert transfer.assemble() == bytes(20)


KILLED = """
import os, signal, sys
from pathlib import Path
from agent.transport.transfer import TransferPlan, TransferStore
store = TransferStore(Path(sys.argv[1]), max_bytes=1000, max_total_bytes=1000)
transfer = store.begin(TransferPlan.of(bytes(100), id=bytes(16), chunk_bytes=10))
for index in (0, 5, 6):
    transfer.add(index, bytes(10))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_chunks_outlive_a_killed_process(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    (found,) = TransferStore(tmp_path, max_bytes=1000, max_total_bytes=1000).stored()
    assert found.missing() == [1, 2, 3, 4, 7, 8, 9]
