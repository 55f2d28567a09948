from __future__ import annotations

from pathlib import Path

import gguf
import llama_cpp
import pytest

from agent.errors import UnreadableModelError
from agent.llm.description import FILE_TYPES, describe_model
from tests.models import quantise


def test_model_is_described_by_what_is_in_it(tiny_f32: Path, tmp_path: Path) -> None:
    mixed = quantise(tiny_f32, tmp_path / "mixed.gguf", "MOSTLY_Q4_K_M")
    found, plain = describe_model(mixed), describe_model(tiny_f32)
    assert (found.architecture, found.recipe, found.trainable, found.why_not) == ("llama", "Q4_K_M", True, "")
    assert found.parameters == plain.parameters == sum(t.n_elements for t in gguf.GGUFReader(mixed).tensors)
    assert found.formats == {
        name: sum(int(t.n_bytes) for t in gguf.GGUFReader(mixed).tensors if t.tensor_type.name == name)
        for name in found.formats
    }
    assert found.size == mixed.stat().st_size
    assert found.mix.startswith("Q4_K_M: Q4_K ")
    assert plain.mix == "F32 100%"


def test_model_that_cannot_be_trained_is_described_and_says_why(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, arch="mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = describe_model(path)
    assert (found.architecture, found.trainable, found.parameters) == ("mamba", False, 0)
    assert found.why_not.startswith("has the architecture 'mamba'")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no model at all"])
def test_file_that_is_no_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(UnreadableModelError, match=r"x\.gguf"):
        describe_model(path)


def test_numbers_of_recipes_are_llama_cpps() -> None:
    theirs = {name: getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}", None) for name in FILE_TYPES}
    assert {**theirs, "F32": llama_cpp.LLAMA_FTYPE_ALL_F32} == dict(FILE_TYPES)
