"""The demo as it is: everything it promises in its report, and an adapter that others can load."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.llm.adapter import from_bytes, write_peft
from agent.llm.seedling import SEEDLING_PATH
from agent.paths import BlobStore
from tests.integration.processes import bramble

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DEVICES = 2


@dataclass(frozen=True)
class Shown:
    """What a run of the demo left behind."""

    report: dict[str, Any]
    directory: Path
    output: str
    errors: str


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    directory = tmp_path_factory.mktemp("demo")
    size = ("--devices", str(DEVICES), "--rounds", "1", "--steps", "2", "--batch-size", "2", "--window", "64")
    done = bramble("demo", *size, "--json", directory / "out.json", "--keep", directory / "kept", timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    return Shown(json.loads((directory / "out.json").read_text()), directory, done.stdout, done.stderr)


def test_report_has_everything_that_was_promised(shown: Shown) -> None:
    report = shown.report
    assert (report["devices"], report["rounds"]) == (DEVICES, 1)
    assert report["updates_accepted"] == DEVICES
    assert report["updates_refused"] == 0
    assert len(report["community_by_round"]) == 2
    assert report["community_by_round"][0] == pytest.approx(report["base_loss"])  # release 0 changes nothing
    assert report["community_loss"] == report["community_by_round"][-1]
    assert report["community_loss"] < report["base_loss"]
    assert set(report["alone_by_device"]) == {"device-1", "device-2"}
    assert all(0 < loss < 12 for loss in report["alone_loss"])
    assert 0 <= report["peft_vs_llamacpp_loss_diff"] <= 0.02
    assert 0 < report["bytes_per_update"] <= report["fp32_bytes_per_update"] / 3
    assert report["wall_s"] > 0
    assert {"hub", "broker", "device-1", "device-2", "device-1 worker", "device-2 worker"} <= set(report["peak_rss_mb"])
    assert all(size > 10 for size in report["peak_rss_mb"].values())


def test_log_names_every_update_and_release_by_its_hash(shown: Shown) -> None:
    log = shown.report["log"]
    sha256 = re.compile(r"[0-9a-f]{64}")
    assert len({row["update"] for row in log["updates"]}) == DEVICES
    assert [row["number"] for row in log["releases"]] == [0, 1]
    hashes = [row["update"] for row in log["updates"]] + [row["sha256"] for row in log["releases"]]
    assert all(sha256.fullmatch(found) for found in hashes)


def test_picture_is_drawn_and_the_next_steps_are_named(shown: Shown) -> None:
    assert (shown.directory / "kept" / "demo.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert "What to try next" in shown.errors
    assert "bramble chat --home" in shown.errors
    assert "Traceback" not in shown.errors


_WITH_PEFT = """
import sys
import numpy as np, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, adapter, windows = sys.argv[1:]
folder, name = base.rsplit("/", 1)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
model = PeftModel.from_pretrained(model, adapter).eval()
tokens = torch.from_numpy(np.load(windows).astype(np.int64))
with torch.no_grad():
    losses = [model(input_ids=window[None], labels=window[None]).loss.item() for window in tokens]
print(sum(losses) / len(losses))
"""

_WITH_LLAMA_CPP = """
import sys
import numpy as np
from llama_cpp import Llama

base, adapter, windows = sys.argv[1:]
model = Llama(model_path=base, lora_path=adapter, n_ctx=128, n_batch=128, logits_all=True, verbose=False, n_threads=2)
losses = []
for window in np.load(windows):
    model.reset()
    model.eval(window.tolist())
    scores = model.scores[: len(window) - 1].astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    chances = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    losses.append(-chances[np.arange(len(window) - 1), window[1:].astype(np.int64)].mean())
print(sum(losses) / len(losses))
"""


def loss_by(program: str, adapter: Path, windows: Path) -> float:
    """Run a program that knows nothing of Bramble, and give the loss that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program, str(SEEDLING_PATH), str(adapter), str(windows)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return float(done.stdout.split()[-1])


def test_community_adapter_loads_in_plain_peft_and_in_plain_llama_cpp_with_the_same_loss(
    shown: Shown, tmp_path: Path
) -> None:
    release = shown.report["community_adapter"]
    adapter = from_bytes(BlobStore(shown.directory / "kept" / "hub" / "blobs").get(release["sha256"]))
    write_peft(adapter, tmp_path / "peft")
    prepared = next((shown.directory / "kept" / "device-1" / "work" / "windows").glob("*/heldout.npz"))
    windows = tmp_path / "windows.npy"
    np.save(windows, np.load(prepared)["tokens"][:8])

    by_peft = loss_by(_WITH_PEFT, tmp_path / "peft", windows)
    by_llama_cpp = loss_by(_WITH_LLAMA_CPP, Path(release["gguf"]), windows)

    assert by_peft == pytest.approx(by_llama_cpp, abs=0.02)
    assert abs(by_peft - shown.report["community_loss"]) < 1.5  # and it is the loss of a model that works
