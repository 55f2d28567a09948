from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from agent.cli import cli
from agent.errors import BrambleError
from agent.llm.adapter_files import read_any_adapter
from agent.llm.comparison import strength
from agent.paths import Home
from tests.member import Member, make_member
from tests.subprocesses import modules_after

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory, tiny_q8: Path) -> Member:
    return make_member(Home(tmp_path_factory.mktemp("member") / "device"), tiny_q8)


@pytest.fixture
def run(member: Member) -> Run:
    def command(*arguments: str | Path) -> Result:
        return CliRunner().invoke(cli, ["adapter", *map(str, arguments), "--home", str(member.home.root)])

    return command


def test_adapters_are_listed_with_what_they_are(run: Run, member: Member) -> None:
    rows = {row["name"]: row for row in json.loads(run("list", "--json").stdout)}
    assert list(rows) == ["release-0", "community", "trained", "personal"]
    community = rows["community"]
    assert (community["rank"], community["alpha"], community["layers"], community["release"]) == (4, 8.0, 4, 2)
    assert community["parameters"] == member.releases[2].parameter_count
    assert community["norm"] == pytest.approx(strength(member.releases[2]).norm)
    assert rows["personal"]["rank"] == 8
    shown = run("list").stdout
    assert "+2" in shown
    assert community["sha256"][:12] in shown


@pytest.mark.parametrize("form", ["peft", "gguf", "safetensors"])
def test_community_adapter_is_exported_in_every_form(run: Run, member: Member, tmp_path: Path, form: str) -> None:
    done = run("export", "community", "--out", tmp_path / "out", "--format", form)
    assert done.exit_code == 0, done.output
    assert "personal" not in done.stderr
    found = read_any_adapter(tmp_path / "out", member.base)
    assert strength(found) == strength(member.releases[2])
    again = run("export", "community", "--out", tmp_path / "out", "--format", form)
    assert isinstance(again.exception, BrambleError)
    assert "--force" in again.exception.advice
    assert run("export", "release-0", "--out", tmp_path / "out", "--format", form, "--force").exit_code == 0
    assert strength(read_any_adapter(tmp_path / "out", member.base)) == strength(member.releases[0])


def test_personal_adapter_is_exported_with_a_warning(run: Run, tmp_path: Path) -> None:
    done = run("export", "personal", "--out", tmp_path, "--format", "safetensors", "--json")
    assert "your personal adapter" in done.stderr
    assert "on top of the community's adapter" in done.stderr
    assert json.loads(done.stdout)["personal"] is True
    assert (tmp_path / "personal.safetensors").is_file()


def test_two_adapters_are_compared_layer_by_layer(run: Run, member: Member) -> None:
    found = json.loads(run("compare", "community", "personal", "--json").stdout)
    assert list(found["layers"]) == list(member.releases[2].modules)
    assert found["heldout"] is None
    assert found["total"]["b"]["norm"] == pytest.approx(strength(member.personal).norm)
    shown = run("compare", "community", "personal").stdout
    assert "A  community (rank 4, alpha 8)" in shown
    assert "0.mlp.down_proj" in shown.replace("\n", "")


def test_files_are_compared_without_any_device(member: Member, tmp_path: Path) -> None:
    paths = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for path, adapter in zip(paths, member.releases, strict=False):
        path.write_bytes(adapter.to_bytes())
    home = str(tmp_path / "nobody")
    done = CliRunner().invoke(cli, ["adapter", "compare", *map(str, paths), "--home", home, "--json"])
    assert json.loads(done.stdout)["total"]["cosine"] < 0.9
    done = CliRunner().invoke(cli, ["adapter", "compare", *map(str, paths), "--home", home, "--heldout"])
    assert isinstance(done.exception, BrambleError)
    assert done.exception.code == "not-initialised"


def test_different_bases_are_refused(run: Run, untied_f32: Path, tmp_path: Path) -> None:
    other = make_member(Home(tmp_path / "other"), untied_f32)
    path = tmp_path / "other.safetensors"
    path.write_bytes(other.trained.to_bytes())
    done = run("compare", "community", path)
    assert isinstance(done.exception, BrambleError)
    assert "different bases" in done.exception.message


def test_listing_loads_no_model_library() -> None:
    loaded = modules_after("import agent.cli.adapter, agent.cli.model, agent.federation.kept")
    assert loaded.isdisjoint({"torch", "transformers", "peft", "llama_cpp", "huggingface_hub"})
