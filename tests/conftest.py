from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.models import Shape, quantise, write_model

# Started in the background by a script, this process ignores Ctrl-C, and so would the programs that tests press it in.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no wrong answer. By hand, each run tries other examples; CI repeats the same ones, so that a red run
# there is about the change in hand. `pytest --hypothesis-profile thorough` looks ten times as long.
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.register_profile("bramble", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("bramble")


@pytest.fixture(autouse=True)
def _usual_arithmetic() -> Iterator[None]:
    """Training flushes tiny numbers to zero in its whole process, which other tests' arithmetic would notice."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def tiny_f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama in float32, with tied embeddings."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny-f32.gguf")


@pytest.fixture(scope="session")
def tiny_q8(tiny_f32: Path) -> Path:
    """The same model in Q8_0."""
    return quantise(tiny_f32, tiny_f32.with_name("tiny-q8_0.gguf"), "MOSTLY_Q8_0")


@pytest.fixture(scope="session")
def untied_f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with an output layer of its own, rotary factors, and as many key-value heads as heads."""
    shape = Shape(layers=1, tied=False, rope_factors=True, kv_heads=4)
    return write_model(tmp_path_factory.mktemp("models") / "untied-f32.gguf", shape, seed=1)


@pytest.fixture(scope="session")
def stories() -> Path:
    """A real llama that this project did not make: 260 K parameters, trained on children's stories."""
    path = SHARED_DATA / "stories260K.gguf"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in ../shared/data")
    return path
