"""Windows of the owner's text: made by a real worker, kept, and made anew when the text changes."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.crypto.identity import Identity
from agent.errors import NoTextError
from agent.federation.store import DeviceStore, Membership, open_device_store
from agent.federation.text import PreparedText, prepare_text
from agent.governance.charter import Charter, TrainingPlan
from agent.hub.setup import describe_base
from agent.paths import Home
from agent.settings import DeviceSettings


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DeviceStore]:
    home = Home(tmp_path / "device")
    home.create()
    with open_device_store(home, create=True) as made:
        yield made


@pytest.fixture
def membership(tiny_q8: Path) -> Membership:
    return Membership(
        community="00" * 16,
        broker="mqtt://127.0.0.1",
        hub=Identity.generate().public.encode(),
        username="",
        password="",
        base=tiny_q8,
        charter=Charter(name="c", training=TrainingPlan(window=32), **describe_base(tiny_q8)),
        joined=0,
    )


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    source = Path(sysconfig.get_paths()["stdlib"]) / "textwrap.py"
    (folder / "textwrap.py").write_text(source.read_text())
    return folder


async def prepared(store: DeviceStore, membership: Membership, *paths: Path) -> PreparedText:
    return await prepare_text(store, membership, DeviceSettings(), paths)


async def test_windows_are_made_once_and_again_only_when_the_text_has_changed(
    store: DeviceStore, membership: Membership, text: Path
) -> None:
    first = await prepared(store, membership, text)
    assert first.train_windows > 0
    assert first.heldout_windows > 0
    windows = np.load(first.train)["tokens"]
    assert windows.shape == (first.train_windows, 32)
    made = first.train.stat().st_mtime_ns
    again = await prepared(store, membership, text)
    assert again == first
    assert again.train.stat().st_mtime_ns == made
    (text / "more.txt").write_text("Something that was not there before, and is not said twice. " * 40)
    other = await prepared(store, membership, text)
    assert other.train != first.train
    assert not first.train.exists()  # windows hold the owner's text: old ones do not stay around


async def test_switching_the_filter_makes_the_windows_anew(
    store: DeviceStore, membership: Membership, text: Path
) -> None:
    (text / "mail.txt").write_text("\n\n".join(f"Write to person{n}@example.org about part {n}." for n in range(60)))
    filtered = await prepared(store, membership, text)
    plain = await prepare_text(store, membership, DeviceSettings(filter_secrets=False), [text])
    assert plain.train != filtered.train
    assert plain.tokens > filtered.tokens
    assert await prepared(store, membership, text) == filtered


async def test_windows_that_were_lost_are_made_again(store: DeviceStore, membership: Membership, text: Path) -> None:
    first = await prepared(store, membership, text)
    before = np.load(first.heldout)["tokens"]
    first.heldout.unlink()
    again = await prepared(store, membership, text)
    assert np.array_equal(np.load(again.heldout)["tokens"], before)


async def test_no_source_or_too_little_text_says_so(store: DeviceStore, membership: Membership, tmp_path: Path) -> None:
    with pytest.raises(NoTextError):
        await prepared(store, membership)
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "note.txt").write_text("milk, bread")
    with pytest.raises(NoTextError):
        await prepared(store, membership, tmp_path / "short")
