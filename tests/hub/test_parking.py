from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from agent.errors import NoRoomError
from agent.federation.messages import Offer
from agent.hub.parking import SPARE_BYTES, Parking

ADA, BOB = "a" * 52, "b" * 52


def offer(number: int, size: int) -> Offer:
    return Offer(
        transfer=bytes([number]) * 16,
        purpose="update",
        round=1,
        adapter="a" * 64,
        size=size,
        chunk_bytes=90_112,
        sha256=bytes(32),
        sealed_key=b"",
    )


def park(directory: Path, device: str, one: Offer) -> None:
    (directory / device).mkdir(exist_ok=True)
    (directory / device / f"{one.transfer.hex()}.offer").write_bytes(one.encode())


def test_all_devices_together_take_no_more_than_is_there(tmp_path: Path) -> None:
    parking = Parking(tmp_path, max_bytes=1000)
    parking.begin(ADA, offer(1, 600))
    with pytest.raises(NoRoomError, match="500 bytes beside the 600"):
        parking.require(BOB, offer(2, 500))
    parking.require(ADA, offer(1, 600))  # which is here already
    parking.end(ADA, offer(1, 600).transfer)
    parking.require(BOB, offer(2, 500))


def test_what_lies_there_since_before_a_restart_is_counted(tmp_path: Path) -> None:
    park(tmp_path, ADA, offer(1, 600))
    (tmp_path / ADA / "damaged.offer").write_bytes(b"nothing")
    parking = Parking(tmp_path, max_bytes=1000)
    with pytest.raises(NoRoomError):
        parking.require(BOB, offer(2, 500))
    parking.begin(ADA, offer(1, 600))
    assert parking.bytes == 600  # and once


def test_transfer_that_would_leave_no_room_for_the_database_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parking = Parking(tmp_path, max_bytes=10**12)
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: real._replace(free=SPARE_BYTES + 99))
    parking.require(ADA, offer(1, 99))
    with pytest.raises(NoRoomError):
        parking.require(ADA, offer(1, 100))
