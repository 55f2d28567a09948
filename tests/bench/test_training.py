from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from agent.llm.gguf_file import open_gguf, target_shapes
from agent.update.start import initial_adapter
from engines.cases import CASES, seconds_a_step
from engines.flops import flops_per_token
from engines.goals import GOALS, Goal, judge_all
from engines.run import ALPHA, RANK, TARGETS, Outcome, Run
from engines.shapes import SHAPES, Shape, write_float16, zipf_windows

TINY = replace(SHAPES["tiny"], layers=3, vocab=512)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_float16(TINY, path)
    return path


def test_models_of_the_bench_are_ones_that_the_engine_opens(tiny: Path) -> None:
    config = open_gguf(tiny).config
    assert (config.n_layers, config.hidden, config.ffn, config.vocab) == (3, TINY.hidden, TINY.ffn, 512)
    assert config.tied


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("last_layers", [None, 2])
def test_counted_operations_are_the_ones_that_torch_counts_in_the_peer(tiny: Path, last_layers: int | None) -> None:
    from engines.peft_engine import unpacked_model, with_adapter  # noqa: PLC0415 - seconds of imports

    seq, batch = 32, 2
    lowest = TINY.layers - (last_layers or TINY.layers)
    base = open_gguf(tiny)
    shapes = {name: size for name, size in target_shapes(base, TARGETS).items() if int(name.split(".")[2]) >= lowest}
    adapter = tiny.with_suffix(".safetensors")
    adapter.write_bytes(initial_adapter(shapes, rank=RANK, alpha=ALPHA, seed=0, base_sha256="0" * 64).to_bytes())
    run = Run(
        shape=TINY.name,
        model=tiny,
        sha256="0" * 64,
        windows=tiny,
        adapter=adapter,
        batch=batch,
        steps=1,
        threads=1,
        compute="float32",
        last_layers=last_layers,
    )
    model = with_adapter(unpacked_model(base, TINY, torch.float32), run).train()
    tokens = torch.arange(batch * seq).reshape(batch, seq)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens).loss.backward()
    forward, backward = TINY.layers, last_layers or TINY.layers
    attention = 2 * (seq + 1) * TINY.heads * TINY.head_dim * (forward + 2 * backward)  # torch leaves it out on a CPU
    counted = counter.get_total_flops() / (batch * seq) + attention
    assert flops_per_token(TINY, seq=seq, rank=RANK, adapted_layers=last_layers) == pytest.approx(counted, rel=1e-9)


def test_keeping_the_trunk_demands_less_by_what_the_trunk_takes_forward() -> None:
    always, third = (flops_per_token(TINY, seq=8, rank=4, adapted_layers=1, trunk_passes=s) for s in (1.0, 1 / 3))
    weights = sum(rows * columns for rows, columns in TINY.linears.values())
    assert always - third == pytest.approx(2 / 3 * 2 * (2 * weights + 2 * 9 * TINY.heads * TINY.head_dim))


def test_the_1b_shape_has_the_parameters_of_llama_3_2_1b() -> None:
    assert _parameters(SHAPES["llama-3.2-1b"]) == 1_235_814_400
    assert _parameters(SHAPES["smollm2-135m"]) == 134_515_008


def test_windows_are_the_same_for_the_same_seed_and_unevenly_frequent() -> None:
    windows = zipf_windows(16, 128, vocab=1000, seed=3)
    assert np.array_equal(windows, zipf_windows(16, 128, vocab=1000, seed=3))
    counts = np.sort(np.bincount(windows.reshape(-1), minlength=1000))
    assert counts[-1] > 20 * counts[500]


def test_a_goal_is_met_on_the_right_side_of_its_bound_and_unknown_without_its_rows() -> None:
    rows: list[dict[str, object]] = [
        {"case": "a", "engine": "bramble", "checkpointing": False, "tok_s": 300, "peak_mb": 900},
        {"case": "a", "engine": "peft-fp32", "checkpointing": False, "tok_s": 100, "peak_mb": 3000},
    ]
    ours, peer = ("a", "bramble", False), ("a", "peft-fp32", False)
    goals = [
        Goal(what="faster", field="tok_s", of=ours, over=peer, bound=3.0),
        Goal(what="faster still", field="tok_s", of=ours, over=peer, bound=3.1),
        Goal(what="smaller", field="peak_mb", of=ours, over=peer, bound=1 / 3, kind="most"),
        Goal(what="small", field="peak_mb", of=ours, bound=800, kind="most"),
        Goal(what="alike", field="tok_s", of=ours, over=peer, bound=0.01, kind="close"),
        Goal(what="elsewhere", field="tok_s", of=("b", "bramble", False), bound=1),
    ]
    judged = judge_all(rows, goals)
    assert [line["met"] for line in judged] == [True, False, True, False, False, None]
    assert judged[0]["reached"] == 3.0


def test_every_goal_is_about_rows_that_the_bench_makes() -> None:
    made = {(case.name, engine.name, engine.checkpointing) for case in CASES for engine in case.engines}
    assert {key for goal in GOALS for key in (goal.of, goal.over) if key is not None} <= made


def test_a_case_with_epochs_is_timed_as_a_whole() -> None:
    outcome = Outcome(
        step_seconds=[1] * 5, whole_seconds=12, losses=[0], peak_mb=1, compute="float32", adapter_type="float32"
    )
    several = next(case for case in CASES if case.epochs > 1)
    once = next(case for case in CASES if case.epochs == 1)
    assert seconds_a_step(several, outcome) == [12 / several.steps]
    assert seconds_a_step(once, outcome) == [1] * 5


def _parameters(shape: Shape) -> int:
    """Count the weights, tied ones once."""
    block = sum(rows * columns for rows, columns in shape.linears.values()) + 2 * shape.hidden
    return shape.vocab * shape.hidden + shape.layers * block + shape.hidden
