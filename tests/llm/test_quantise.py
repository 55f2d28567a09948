from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import pytest

from agent.errors import DiskFullError, ModelError, StateError, UnsupportedModelError, WorkerCrashedError
from agent.llm import quantise as room
from agent.llm.description import describe_model
from agent.llm.quantise import name_in, quantise, smallest_size
from tests.models import Shape, write_model
from tests.models import quantise as quantise_here


def test_every_tensor_is_heard_of_and_the_file_is_what_was_asked_for(tiny_f32: Path, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    target = tmp_path / "small.gguf"
    quantise(tiny_f32, target, "Q4_K_M", threads=1, on_progress=lambda done, total: heard.append((done, total)))
    tensors = len(gguf.GGUFReader(tiny_f32).tensors)
    assert heard == [(number, tensors) for number in range(1, tensors + 1)]
    assert describe_model(target).recipe == "Q4_K_M"
    assert target.stat().st_size < tiny_f32.stat().st_size / 4
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q3_K_L", "IQ4_NL"])
def test_recipe_is_made_under_its_own_name(tmp_path: Path, kind: str) -> None:
    source = write_model(tmp_path / "one.gguf", Shape(layers=1, ffn=256, heads=1, kv_heads=1))
    quantise(source, tmp_path / "made.gguf", kind, threads=1)
    assert describe_model(tmp_path / "made.gguf").recipe == kind


def test_size_is_never_thought_larger_than_it_becomes(tiny_f32: Path, tmp_path: Path) -> None:
    for kind in ("Q2_K", "Q4_K_S", "Q8_0"):
        made = quantise_here(tiny_f32, tmp_path / f"{kind}.gguf", f"MOSTLY_{kind}")
        assert made.stat().st_size / 2 < smallest_size(tiny_f32, kind) < made.stat().st_size


@pytest.mark.parametrize("name", ["berry", "berry-Q8_0", "berry.f16", "berry-Q4_K_S"])
def test_type_in_a_name_gives_way_to_the_new_one(name: str) -> None:
    assert name_in("Q4_K_M", name) == "berry-Q4_K_M"


@pytest.mark.parametrize("kind", ["Q9_K", "", "q4_0", "IQ1_S"])
def test_unknown_type_names_the_known_ones(tiny_f32: Path, tmp_path: Path, kind: str) -> None:
    with pytest.raises(ModelError) as refused:
        quantise(tiny_f32, tmp_path / "x.gguf", kind)
    assert "Q4_K_M" in refused.value.advice


def test_quantised_source_is_refused_unless_that_is_wanted(tiny_q8: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.gguf"
    with pytest.raises(UnsupportedModelError, match=r"berry is quantised already \(Q8_0\)") as refused:
        quantise(tiny_q8, target, "Q4_0", called="berry")
    assert "--requantize" in refused.value.advice
    quantise(tiny_q8, target, "Q4_0", threads=1, requantise=True)
    assert describe_model(target).recipe == "Q4_0"


def test_adapter_is_no_source(tmp_path: Path) -> None:
    path = tmp_path / "adapter.gguf"
    writer = gguf.GGUFWriter(path, arch="llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match="of type adapter"):
        quantise(path, tmp_path / "x.gguf", "Q8_0")


def test_what_llama_cpp_refuses_is_told_in_its_words_and_leaves_nothing(tiny_f32: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_f32.read_bytes()[:-100_000])
    with pytest.raises(UnsupportedModelError, match="within the file bounds"):
        quantise(cut, tmp_path / "x.gguf", "Q8_0", threads=1)
    assert list(tmp_path.iterdir()) == [cut]


def test_file_that_is_there_is_kept_unless_overwritten(tiny_f32: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine.gguf"
    target.write_bytes(b"mine")
    with pytest.raises(StateError, match="exists already"):
        quantise(tiny_f32, target, "Q8_0")
    with pytest.raises(StateError, match="no directory"):
        quantise(tiny_f32, tmp_path / "no" / "x.gguf", "Q8_0")
    assert target.read_bytes() == b"mine"


def test_disk_that_is_too_small_is_known_before(
    tiny_f32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.llm.shelf.shutil.disk_usage", lambda _path: type("Usage", (), {"free": 200_000}))
    with pytest.raises(DiskFullError, match="Q8_0"):
        quantise(tiny_f32, tmp_path / "x.gguf", "Q8_0")


@pytest.fixture(scope="module")
def slow_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes seconds to quantise to a format with a search in it."""
    return write_model(tmp_path_factory.mktemp("slow") / "slow.gguf", Shape(layers=8, hidden=512, ffn=2048, heads=8))


def test_child_that_is_killed_leaves_nothing_and_says_so(
    slow_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children: list[subprocess.Popen[bytes]] = []
    real = room._child

    @contextmanager
    def watched(words: int) -> Iterator[subprocess.Popen[bytes]]:
        with real(words) as child:
            children.append(child)
            yield child

    monkeypatch.setattr(room, "_child", watched)
    with pytest.raises(WorkerCrashedError, match="killed by signal 9"):
        quantise(
            slow_source, tmp_path / "x.gguf", "IQ4_XS", threads=1, on_progress=lambda _done, _all: children[0].kill()
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the child in /proc")
def test_parent_that_is_killed_takes_the_child_and_its_file_along(slow_source: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from agent.llm.quantise import quantise;"
        "quantise(Path(sys.argv[1]), Path(sys.argv[2]), 'IQ4_XS', threads=1,"
        " on_progress=lambda done, total: print(done, flush=True))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(slow_source), str(tmp_path / "x.gguf")], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline()
        children = _children_of(parent.pid)
        assert children
        parent.kill()
    ends = time.monotonic() + 20
    while (any(_lives(pid) for pid in children) or list(tmp_path.iterdir())) and time.monotonic() < ends:
        time.sleep(0.02)  # another process's end cannot be waited for
    assert not any(_lives(pid) for pid in children)
    assert list(tmp_path.iterdir()) == []


def _children_of(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in found for child in path.read_text().split()]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
