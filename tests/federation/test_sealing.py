"""An update's seal is bound to everything that must not be swapped."""

from __future__ import annotations

import os

import pytest

from agent.crypto.sealing import SealKey, open_stream
from agent.errors import SealBrokenError
from agent.federation.sealing import Parcel, adapter_key, adapter_transfer_id, update_info, wrap_update

COMMUNITY, DEVICE, START = bytes(16), "a" * 52, "c" * 64
KEY = SealKey.generate()
BODY = os.urandom(300_000)


@pytest.fixture(scope="module")
def parcel() -> Parcel:
    return wrap_update(
        BODY, seal_key=KEY.public, community=COMMUNITY, device=DEVICE, round_number=3, start_sha256=START
    )


def test_hub_opens_what_a_device_sealed(parcel: Parcel) -> None:
    info = update_info(COMMUNITY, DEVICE, parcel.offer.transfer, 3, START)
    key = KEY.unseal(parcel.offer.sealed_key, info)
    assert open_stream(parcel.chunks, key, parcel.offer.size) == BODY
    assert parcel.offer.plan.chunk_count == len(parcel.chunks)
    announced = [parcel.offer.plan.chunk_size(index) for index in range(len(parcel.chunks))]
    assert [len(chunk) for chunk in parcel.chunks] == announced


@pytest.mark.parametrize(
    "other",
    [
        {"community": bytes(15) + b"\1"},
        {"device": "b" * 52},
        {"transfer": bytes(16)},
        {"round_number": 4},
        {"start_sha256": "d" * 64},
    ],
)
def test_update_moved_to_another_place_does_not_open(parcel: Parcel, other: dict[str, object]) -> None:
    where: dict[str, object] = {
        "community": COMMUNITY,
        "device": DEVICE,
        "transfer": parcel.offer.transfer,
        "round_number": 3,
        "start_sha256": START,
    }
    with pytest.raises(SealBrokenError):
        KEY.unseal(parcel.offer.sealed_key, update_info(**{**where, **other}))  # type: ignore[arg-type]


def test_same_text_sealed_twice_has_nothing_in_common() -> None:
    first, second = (
        wrap_update(BODY, seal_key=KEY.public, community=COMMUNITY, device=DEVICE, round_number=3, start_sha256=START)
        for _ in range(2)
    )
    assert first.offer.transfer != second.offer.transfer
    assert first.chunks[0][:64] != second.chunks[0][:64]


def test_a_form_of_an_adapter_has_one_transfer_id_a_device_so_that_it_resumes() -> None:
    form, other = bytes(32), b"\1" * 32
    assert adapter_transfer_id("a" * 64, DEVICE, form) == adapter_transfer_id("a" * 64, DEVICE, form)
    others = {
        adapter_transfer_id("a" * 64, DEVICE, form),
        adapter_transfer_id("a" * 64, "b" * 52, form),
        adapter_transfer_id("b" * 64, DEVICE, form),
        adapter_transfer_id("a" * 64, DEVICE, other),
    }
    assert len(others) == 4


def test_two_forms_or_two_releases_never_share_a_key() -> None:
    keys = {adapter_key(secret, form) for secret in (bytes(32), b"\1" * 32) for form in (bytes(32), b"\2" * 32)}
    assert len(keys) == 4
    assert all(len(key) == 32 for key in keys)
