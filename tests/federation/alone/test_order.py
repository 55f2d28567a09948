from __future__ import annotations

from pathlib import Path

import pytest

from agent.device.hardware import detect
from agent.device.machine import this_machine
from agent.errors import AdapterError, ConsentMissingError, NoTextError, NotInitialisedError, SettingsError
from agent.federation.alone.order import Order, Wanted, require_consent, take_order
from agent.llm.seedling import SEEDLING_PATH
from agent.paths import Home
from agent.service import create_device, remove_source
from tests.federation.alone.plans import plan
from tests.member import NAMES, make_member
from tests.models import write_model

LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text("Some words of a person about a garden, and what grew in it. " * 9)
    return path


def nobody(tmp_path: Path) -> Home:
    return Home(tmp_path / "nobody")


def test_with_a_path_and_a_base_no_device_is_needed(tmp_path: Path, tiny_q8: Path, text: Path) -> None:
    order = take_order(nobody(tmp_path), Wanted(sources=(text,), base=tiny_q8))
    assert (order.base_path, order.sources, order.consented) == (tiny_q8, (text,), False)
    assert (order.target_modules, order.rank, order.alpha, order.window) == (LLAMA, 8, 16.0, 256)
    assert order.filter_secrets
    assert order.threads >= 1
    assert take_order(nobody(tmp_path), Wanted(sources=(text,))).base_path == SEEDLING_PATH.resolve()
    assert not (tmp_path / "nobody").exists()


def test_a_member_trains_as_the_charter_says_on_what_was_consented_to(
    tmp_path: Path, tiny_q8: Path, text: Path
) -> None:
    home = make_member(Home(tmp_path / "home"), tiny_q8, text=text).home
    home.settings.write_text("threads = 3\nmemory_mb = 700\n")
    order = take_order(home, Wanted())
    assert (order.base_path, order.sources, order.consented) == (tiny_q8, (text,), True)
    assert (order.target_modules, order.rank, order.alpha, order.window) == (NAMES, 4, 16.0, 32)
    assert (order.threads, order.memory_mb) == (3, 700)
    said = take_order(home, Wanted(rank=2, window=16, memory_mb=90, target_modules=("o_proj",), epochs=1.0))
    assert (said.rank, said.alpha, said.window, said.memory_mb) == (2, 4.0, 16, 90)
    assert said.target_modules == ("o_proj",)


OLD_BOARD = """
title = "Old board"
[training]
cores = 1
compute = "float32"
memory_share = 0.01
rank = 2
max_rank = 2
window = 64
batch = 3
micro_batch = 1
"""


def old_board(home: Home) -> None:
    """Make the owner's own profile the one of this machine."""
    home.profiles.mkdir(parents=True)
    (home.profiles / "old-board.toml").write_text(
        f'name = "old-board"{OLD_BOARD}[match]\nsystem = ["{detect().system}"]\n'
    )


def test_where_nobody_says_the_machine_s_profile_does(tmp_path: Path, tiny_q8: Path, text: Path) -> None:
    home = nobody(tmp_path)
    old_board(home)
    order = take_order(home, Wanted(sources=(text,), base=tiny_q8))
    assert (order.rank, order.alpha, order.window, order.batch_size) == (2, 4.0, 64, 3)
    assert (order.threads, order.compute, order.memory_mb, order.max_micro_batch) == (1, "float32", None, 1)
    asked = order.plan_job(train=text, heldout=text, windows=4)
    assert (asked.max_memory_mb, asked.max_micro_batch) == (order.max_memory_mb, 1)
    assert order.max_memory_mb == this_machine(home).hardware.memory_mb // 100
    said = take_order(home, Wanted(sources=(text,), base=tiny_q8, rank=5, window=32, batch_size=9, threads=2))
    assert (said.rank, said.window, said.batch_size, said.threads) == (5, 32, 9, 2)


def test_a_member_s_charter_is_bounded_by_the_profile_and_its_owner_by_nobody(
    tmp_path: Path, tiny_q8: Path, text: Path
) -> None:
    home = make_member(Home(tmp_path / "home"), tiny_q8, text=text).home
    old_board(home)
    order = take_order(home, Wanted())
    assert (order.rank, order.window, order.max_micro_batch) == (2, 32, 1)
    home.settings.write_text("rank = 9\nmicro_batch = 4\n")
    assert (take_order(home, Wanted()).rank, take_order(home, Wanted()).max_micro_batch) == (9, 4)


def test_a_charter_says_nothing_about_another_base(tmp_path: Path, tiny_q8: Path, text: Path) -> None:
    home = make_member(Home(tmp_path / "home"), tiny_q8, text=text).home
    phi = write_model(tmp_path / "phi.gguf", architecture="phi3")
    order = take_order(home, Wanted(base=phi))
    assert order.target_modules == ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    assert (order.rank, order.window) == (8, 256)


def test_what_cannot_be_trained_is_refused_before_anything_begins(tmp_path: Path, tiny_q8: Path, text: Path) -> None:
    home = nobody(tmp_path)
    with pytest.raises(AdapterError, match="no linear layers named wings") as caught:
        take_order(home, Wanted(sources=(text,), base=tiny_q8, target_modules=("q_proj", "wings")))
    assert "gate_proj" in caught.value.advice
    with pytest.raises(SettingsError, match=r"longer than what .* was trained to read: 512"):
        take_order(home, Wanted(sources=(text,), base=tiny_q8, window=513))
    with pytest.raises(NotInitialisedError):
        take_order(home, Wanted(base=tiny_q8))
    create_device(home)
    with pytest.raises(NoTextError, match="no text was added"):
        take_order(home, Wanted(base=tiny_q8))


def test_consent_is_needed_only_for_text_that_was_not_named(tmp_path: Path, tiny_q8: Path, text: Path) -> None:
    home = make_member(Home(tmp_path / "home"), tiny_q8, text=text).home
    consented, named = take_order(home, Wanted()), take_order(home, Wanted(sources=(text,)))
    require_consent(home, consented)
    remove_source(home, text)
    require_consent(home, named)
    with pytest.raises(ConsentMissingError):
        require_consent(home, consented)


def order_of(tmp_path: Path, base: Path, text: Path, **said: object) -> Order:
    return take_order(nobody(tmp_path), Wanted.model_validate({"sources": (text,), "base": base, **said}))


def test_steps_come_from_epochs_unless_they_are_given(tmp_path: Path, tiny_q8: Path, text: Path) -> None:
    assert order_of(tmp_path, tiny_q8, text, epochs=1.5, batch_size=4).steps_for(10) == 4
    assert order_of(tmp_path, tiny_q8, text, epochs=0.001).steps_for(10) == 1
    assert order_of(tmp_path, tiny_q8, text, steps=7, batch_size=4).steps_for(1000) == 7


def test_training_is_done_as_the_plan_chose(tmp_path: Path, tiny_q8: Path, text: Path) -> None:
    order = order_of(tmp_path, tiny_q8, text, rank=4, rslora=True, last_layers=1, seed=5)
    asked = order.plan_job(train=text, heldout=text, windows=32)
    job = order.train_job(plan(trunk_cache=True), train=text, heldout=text, checkpoint=tmp_path, out=tmp_path)
    assert (asked.micro_batch, asked.checkpointing, asked.trunk_cache, asked.memory_mb) == (None, None, None, None)
    assert (job.micro_batch, job.checkpointing, job.trunk_cache, job.compute) == (2, True, True, "float32")
    assert (job.steps, job.batch_size, job.rank, job.rslora, job.last_layers, job.seed) == (12, 8, 4, True, 1, 5)
    assert job.evaluate_every == asked.evaluate_every == 5
    assert job.heldout_path == asked.heldout_path == text


def test_threads_do_not_make_another_order_and_a_learning_rate_does(tmp_path: Path, tiny_q8: Path, text: Path) -> None:
    order = order_of(tmp_path, tiny_q8, text, threads=1)
    assert order.is_same_as(order_of(tmp_path, tiny_q8, text, threads=2))
    assert order.is_same_as(order.model_copy(update={"max_memory_mb": 1, "max_micro_batch": 1}))
    assert not order.is_same_as(order_of(tmp_path, tiny_q8, text, threads=1, learning_rate=0.5))
