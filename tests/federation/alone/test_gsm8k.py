"""Fine-tuning the seedling on real conversations: a short form of what docs/gsm8k.png shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.federation.alone.order import Wanted, take_order
from agent.federation.alone.room import OutRoom
from agent.federation.alone.training import train_alone
from agent.llm.seedling import SEEDLING_PATH
from agent.paths import Home
from tests.conftest import SHARED_DATA

GSM8K = SHARED_DATA / "gsm8k-1500.jsonl"


@pytest.mark.slow
@pytest.mark.skipif(not GSM8K.is_file(), reason=f"{GSM8K.name} is not in ../shared/data")
async def test_fine_tuning_the_seedling_on_conversations_lowers_its_held_out_answer_loss(tmp_path: Path) -> None:
    home = Home(tmp_path / "nobody")
    wanted = Wanted(
        sources=(GSM8K,),
        base=SEEDLING_PATH,
        window=256,
        batch_size=4,
        steps=12,
        learning_rate=6e-3,
        threads=1,
        micro_batch=4,
        checkpointing=False,
    )
    order = take_order(home, wanted).model_copy(update={"max_heldout_windows": 16})
    record = await train_alone(home, order, OutRoom(tmp_path / "out"), on_progress=lambda _stage, _progress: None)
    assert record.text["conversations"] == 1500
    assert 3000 > record.heldout.targets > 500, "only answers count"
    assert record.heldout.adapter < record.heldout.base - 0.7
    first, last = record.heldout_curve[0], record.heldout_curve[-1]
    assert (first[0], last[0]) == (0, 12)
    assert first[1] == pytest.approx(record.heldout.base, abs=0.05), "the trainer sees what llama.cpp sees"
    assert last[1] == pytest.approx(record.heldout.adapter, abs=0.05)
