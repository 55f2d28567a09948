"""An update's seal is bound to everything that must not be swapped."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from agent.crypto.sealing import SealKey, open_stream, seal
from agent.errors import SealBrokenError
from agent.federation.sealing import (
    Parcel,
    adapter_info,
    adapter_key,
    adapter_transfer_id,
    join_info,
    joined_info,
    update_info,
    wrap_update,
)

COMMUNITY, HUB, DEVICE, START = bytes(16), "h" * 52, "a" * 52, "c" * 64
KEY = SealKey.generate()
BODY = os.urandom(300_000)


@pytest.fixture(scope="module")
def parcel() -> Parcel:
    return wrap_update(
        BODY, seal_key=KEY.public, community=COMMUNITY, hub=HUB, device=DEVICE, round_number=3, start_sha256=START
    )


def test_hub_opens_what_a_device_sealed(parcel: Parcel) -> None:
    info = update_info(COMMUNITY, HUB, DEVICE, parcel.offer.transfer, round_number=3, start_sha256=START)
    key = KEY.unseal(parcel.offer.sealed_key, info)
    assert open_stream(parcel.chunks, key, parcel.offer.size) == BODY
    assert parcel.offer.plan.chunk_count == len(parcel.chunks)
    announced = [parcel.offer.plan.chunk_size(index) for index in range(len(parcel.chunks))]
    assert [len(chunk) for chunk in parcel.chunks] == announced


@pytest.mark.parametrize(
    "other",
    [
        {"community": bytes(15) + b"\1"},
        {"hub": "i" * 52},
        {"device": "b" * 52},
        {"transfer": bytes(16)},
        {"round_number": 4},
        {"start_sha256": "d" * 64},
    ],
)
def test_update_moved_to_another_place_does_not_open(parcel: Parcel, other: dict[str, object]) -> None:
    where: dict[str, object] = {
        "community": COMMUNITY,
        "hub": HUB,
        "device": DEVICE,
        "transfer": parcel.offer.transfer,
        "round_number": 3,
        "start_sha256": START,
    }
    with pytest.raises(SealBrokenError):
        KEY.unseal(parcel.offer.sealed_key, update_info(**{**where, **other}))  # type: ignore[arg-type]


WHERE: dict[str, object] = {"community": COMMUNITY, "hub": HUB, "device": DEVICE}
OTHERS: dict[str, object] = {"community": bytes(15) + b"\1", "hub": "i" * 52, "device": "b" * 52}


@pytest.mark.parametrize(
    ("info", "bound", "others"),
    [
        (
            adapter_info,
            {**WHERE, "transfer": bytes(16), "adapter_sha256": START},
            {**OTHERS, "transfer": b"\1" * 16, "adapter_sha256": "d" * 64},
        ),
        (join_info, {**WHERE, "invite": bytes(8)}, {**OTHERS, "invite": b"\1" * 8}),
        (joined_info, {**WHERE, "invite": bytes(8)}, {**OTHERS, "invite": b"\1" * 8}),
    ],
    ids=["adapter", "join", "joined"],
)
def test_nothing_that_a_seal_is_bound_to_can_be_another(
    info: Callable[..., bytes], bound: dict[str, object], others: dict[str, object]
) -> None:
    sealed = seal(KEY.public, b"a key", info(**bound))
    assert KEY.unseal(sealed, info(**bound)) == b"a key"
    for name, other in others.items():
        with pytest.raises(SealBrokenError):
            KEY.unseal(sealed, info(**{**bound, name: other}))


def test_seal_of_one_kind_or_direction_is_none_of_another() -> None:
    invite = {**WHERE, "invite": bytes(8)}
    sealed = seal(KEY.public, b"a request", join_info(**invite))  # type: ignore[arg-type]
    with pytest.raises(SealBrokenError):
        KEY.unseal(sealed, joined_info(**invite))  # type: ignore[arg-type]


def test_same_text_sealed_twice_has_nothing_in_common() -> None:
    first, second = (
        wrap_update(
            BODY, seal_key=KEY.public, community=COMMUNITY, hub=HUB, device=DEVICE, round_number=3, start_sha256=START
        )
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
