from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from agent.errors import AdapterError, NotInitialisedError
from agent.federation.kept import choose_adapter, heldout_losses, kept_adapters
from agent.llm.adapter import Adapter
from agent.paths import Home
from tests.member import Member, make_member


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory, tiny_q8: Path) -> Member:
    directory = tmp_path_factory.mktemp("member")
    text = directory / "letters"
    text.mkdir()
    for part in range(8):
        words = " ".join(f"letter {part} line {line}: the bramble in row {line * 7 + part} grows" for line in range(60))
        (text / f"{part}.txt").write_text(words)
    return make_member(Home(directory / "device"), tiny_q8, text=text)


def same(one: Adapter, other: Adapter) -> bool:
    return one.modules.keys() == other.modules.keys() and all(
        np.array_equal(factors.a, other.modules[name].a) and np.array_equal(factors.b, other.modules[name].b)
        for name, factors in one.modules.items()
    )


def test_what_lies_on_the_device_is_listed_with_hashes_of_its_files(member: Member) -> None:
    membership, kept = kept_adapters(member.home)
    assert membership.charter.name == "Hedge"
    assert [(row.name, row.kind, row.release) for row in kept] == [
        ("release-0", "community", 0),
        ("community", "community", 2),
        ("trained", "trained", None),
        ("personal", "personal", 2),
    ]
    for row in kept:
        assert row.sha256 == hashlib.sha256(row.path.read_bytes()).hexdigest()
        assert row.since


@pytest.mark.parametrize(
    ("which", "number"), [("community", 2), ("release-2", 2), ("release-0", 0), ("sha", 2), ("trained", 3)]
)
def test_adapter_is_found_by_name_release_or_hash(member: Member, which: str, number: int) -> None:
    if which == "sha":
        which = hashlib.sha256(member.releases[2].to_bytes()).hexdigest()[:8]
    chosen = choose_adapter(member.home, which)
    assert same(chosen.adapter, (*member.releases, member.trained)[number])
    assert chosen.base == member.base
    assert chosen.beneath == ()


def test_personal_adapter_goes_on_top_of_the_communitys(member: Member) -> None:
    chosen = choose_adapter(member.home, "personal")
    assert same(chosen.adapter, member.personal)
    assert [path.name for path in chosen.beneath] == [hashlib.sha256(member.releases[2].to_bytes()).hexdigest()]


def test_file_is_read_with_and_without_a_device(member: Member, tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    path.write_bytes(member.trained.to_bytes())
    for home in (member.home, Home(tmp_path / "nobody")):
        chosen = choose_adapter(home, str(path))
        assert same(chosen.adapter, member.trained)
        assert (chosen.name, chosen.kept) == ("theirs", None)
    assert not (tmp_path / "nobody").exists()


def test_unknown_word_says_what_there_is(member: Member, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="'release-1' is no adapter") as refused:
        choose_adapter(member.home, "release-1")
    assert "community, trained, personal" in refused.value.advice
    with pytest.raises(NotInitialisedError):
        kept_adapters(Home(tmp_path))


async def test_losses_on_held_out_text_tell_adapters_apart(member: Member, tmp_path: Path) -> None:
    adapters = {name: choose_adapter(member.home, name) for name in ("trained", "personal", "community")}
    result = await heldout_losses(member.home, {"base": None, **adapters}, room=tmp_path)
    assert result.targets > 31
    # community + personal is, by construction, the model that was trained here.
    assert result.losses["personal"] == pytest.approx(result.losses["trained"], abs=1e-3)
    assert abs(result.losses["base"] - result.losses["community"]) > 1e-3


async def test_adapter_of_another_base_is_not_measured(member: Member, untied_f32: Path, tmp_path: Path) -> None:
    other = make_member(Home(tmp_path / "other"), untied_f32)
    path = tmp_path / "other.safetensors"
    path.write_bytes(other.trained.to_bytes())
    with pytest.raises(AdapterError, match="belongs to the base"):
        await heldout_losses(member.home, {"a": choose_adapter(member.home, str(path))}, room=tmp_path)
