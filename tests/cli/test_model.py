from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import pytest
from click.testing import CliRunner, Result
from huggingface_hub import constants

from agent.cli import cli
from agent.errors import BrambleError
from agent.federation.store import open_device_store
from agent.llm.description import describe_model
from agent.llm.gguf_file import sha256_file
from agent.llm.pull import PIECE_BYTES
from agent.paths import Home
from agent.service import find_base, named_base, shelf_of
from tests.llm.model_repository import ModelRepository
from tests.member import make_member

Run = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "device")


@pytest.fixture
def run(home: Home) -> Run:
    def command(*arguments: str | Path) -> Result:
        return CliRunner().invoke(cli, [*map(str, arguments), "--home", str(home.root)])

    return command


def refused(result: Result, words: str) -> BrambleError:
    assert isinstance(result.exception, BrambleError), result.output
    assert words in result.exception.message
    return result.exception


def test_model_is_imported_listed_and_removed_before_there_is_a_device(run: Run, tiny_q8: Path, home: Home) -> None:
    made = json.loads(run("model", "import", tiny_q8, "--name", "berry", "--json").stdout)
    assert (made["name"], made["new"], made["sha256"]) == ("berry", True, sha256_file(tiny_q8))
    assert json.loads(run("model", "import", tiny_q8, "--json").stdout) == {**made, "new": False}
    (row,) = json.loads(run("model", "list", "--json").stdout)
    assert (row["name"], row["architecture"], row["trainable"]) == ("berry", "llama", True)
    assert row["quantisation"].startswith("Q8_0")
    assert (row["parameters"], row["size"]) == (describe_model(tiny_q8).parameters, tiny_q8.stat().st_size)
    shown = run("model", "list").stdout
    assert "berry" in shown
    assert row["sha256"][:12] in shown
    assert json.loads(run("model", "remove", "berry", "--json").stdout)["sha256"] == row["sha256"]
    assert json.loads(run("model", "list", "--json").stdout) == []
    assert tiny_q8.is_file()
    assert not home.database.exists()


def test_file_that_is_no_model_does_not_come_on_the_shelf(run: Run, tmp_path: Path, home: Home) -> None:
    (tmp_path / "notes.gguf").write_text("these are notes")
    assert refused(run("model", "import", tmp_path / "notes.gguf"), "notes.gguf").exit_status == 21
    assert not home.models.exists()


def test_model_that_cannot_be_trained_comes_with_a_word_about_it(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, arch="mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "cannot be trained here: it has the architecture 'mamba'" in run("model", "import", path).stderr
    assert "other cannot be trained here" in run("model", "list").stdout


def test_damaged_model_does_not_hide_the_others(run: Run, tiny_q8: Path, tiny_f32: Path, home: Home) -> None:
    run("model", "import", tiny_q8)
    copied = shelf_of(home).put(tiny_f32)[0].path
    copied.unlink()
    copied.write_bytes(b"GGUF")
    rows = {row["name"]: row for row in json.loads(run("model", "list", "--json").stdout)}
    assert rows["tiny-q8_0"]["trainable"]
    assert "header" in rows["tiny-f32"]["why_not"]


def test_base_of_the_community_stays(run: Run, tiny_q8: Path, tiny_f32: Path, home: Home) -> None:
    base, _new = shelf_of(home).put(tiny_q8)
    make_member(home, base.path)
    shelf_of(home).put(tiny_f32)
    assert refused(run("model", "remove", base.name), "is the base of 'Hedge'").exit_status == 20
    assert base.path.is_file()
    assert run("model", "remove", "tiny-f32").exit_code == 0


def test_shelf_name_stands_for_a_base_elsewhere(run: Run, tiny_q8: Path, tmp_path: Path, home: Home) -> None:
    run("model", "import", tiny_q8, "--name", "berry")
    model = shelf_of(home).find("berry")
    assert named_base(home, "berry") == model.path
    assert named_base(home, str(tiny_q8)) == tiny_q8
    assert named_base(home, "nowhere.gguf") == Path("nowhere.gguf")
    member = make_member(Home(tmp_path / "member"), tiny_q8)
    with open_device_store(member.home) as store:
        assert find_base(store.membership.charter, named_base(home, "berry")) == model.path


def test_quantised_model_goes_on_the_shelf_or_into_a_file(run: Run, tiny_f32: Path, tmp_path: Path, home: Home) -> None:
    run("model", "import", tiny_f32, "--name", "berry")
    made = json.loads(run("model", "quantize", "berry", "--type", "q4_k_m", "--threads", "1", "--json").stdout)
    assert made["name"] == "berry-Q4_K_M"
    assert describe_model(Path(made["path"])).recipe == "Q4_K_M"
    out = tmp_path / "small.gguf"
    out.write_text("mine")
    refused(run("model", "quantize", tiny_f32, "--type", "Q8_0", "--out", out), "exists already")
    done = run("model", "quantize", tiny_f32, "--type", "Q8_0", "--out", out, "--force", "--threads", "1")
    assert done.exit_code == 0, done.output
    assert describe_model(out).recipe == "Q8_0"
    words = refused(run("model", "quantize", "berry-Q4_K_M", "--type", "Q2_K"), "berry-Q4_K_M is quantised already")
    assert "--requantize" in words.advice
    assert sorted(path.suffix for path in home.models.iterdir()) == ["", ".gguf", ".gguf", ".json", ".json"]


@pytest.fixture
def served(tmp_path: Path, tiny_q8: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelRepository]:
    """A repository that HF_ENDPOINT names."""
    files = {"berry-Q8_0.gguf": tiny_q8.read_bytes(), "berry-F16.gguf": b"GGUF of another kind"}
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # read once, when somebody first imported it
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with ModelRepository(files=files).serving() as repository:
        monkeypatch.setenv("HF_ENDPOINT", repository.url)
        yield repository


def test_model_is_pulled_by_the_command_alone_and_nobody_else_is_asked(
    served: ModelRepository, tiny_q8: Path, home: Home, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agent.cli", "model", "pull", f"{served.name}:Q8_0", "--home", home.root, "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert (made["name"], made["new"]) == ("berry-Q8_0", True)
    assert Path(made["path"]).read_bytes() == tiny_q8.read_bytes()
    assert {one.path.split("/")[1] for one in served.asked} == {"api", "grower", "bytes"}
    assert "/api/agent" not in "".join(one.path for one in served.asked)
    assert not list((home.models / ".unfinished").glob("*.part"))
    assert not list((tmp_path / "hf").rglob("*agent*"))


def test_pull_that_is_killed_goes_on_where_it_was(served: ModelRepository, run: Run, home: Home, tiny_q8: Path) -> None:
    served.cut_after, served.stall = 2 * PIECE_BYTES, True
    arguments = ["model", "pull", f"{served.name}:Q8_0", "--home", str(home.root)]
    with subprocess.Popen([sys.executable, "-m", "agent.cli", *arguments]) as process:
        assert served.stalled.wait(60)
        ends = time.monotonic() + 20
        while _arrived(home) < 2 * PIECE_BYTES and time.monotonic() < ends:
            time.sleep(0.01)  # the last piece is sent, and on its way to the disk of another process
        process.kill()
    served.cut_after = None
    made = json.loads(run("model", "pull", f"{served.name}:Q8_0", "--json").stdout)
    assert Path(made["path"]).read_bytes() == tiny_q8.read_bytes()
    assert [one.headers.get("range") for one in served.bodies()] == [None, f"bytes={2 * PIECE_BYTES}-"]


def _arrived(home: Home) -> int:
    return sum(path.stat().st_size for path in (home.models / ".unfinished").glob("*.part"))


def test_model_that_is_on_the_shelf_is_not_fetched_again(
    served: ModelRepository, run: Run, home: Home, tiny_q8: Path
) -> None:
    shelf_of(home).put(tiny_q8, name="mine")
    made = json.loads(run("model", "pull", f"{served.name}:Q8_0", "--json").stdout)
    assert (made["name"], made["new"]) == ("mine", False)
    assert not served.bodies()


def test_choice_between_several_files_is_left_to_the_owner(served: ModelRepository, run: Run) -> None:
    words = refused(run("model", "pull", served.name), "berry-F16.gguf")
    assert words.exit_status == 25
    assert f"bramble model pull {served.name}:berry-Q8_0.gguf" in words.advice


def test_pulled_file_that_is_no_model_is_removed(served: ModelRepository, run: Run, home: Home) -> None:
    assert refused(run("model", "pull", f"{served.name}:F16"), "GGUF").exit_status in {21, 22}
    assert not [path for path in home.models.rglob("*") if path.suffix in {".part", ".gguf"}]
