from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from numpy.typing import NDArray

from agent.errors import AdapterError, ModelError, UnreadableModelError, UnsupportedModelError
from agent.llm.adapter_gguf import write_gguf_adapter
from agent.llm.answering import Sampling
from agent.llm.chat import ChatMessage
from agent.llm.gguf_file import open_gguf
from agent.llm.loaded_base import LoadedBase
from agent.llm.runtime import Runtime
from tests.models import random_adapter


@pytest.fixture(scope="module")
def runtime(tiny_q8: Path) -> Iterator[Runtime]:
    with Runtime(base_path=tiny_q8, n_ctx=256, n_threads=1) as runtime:
        yield runtime


@pytest.fixture(autouse=True)
def _no_adapter(runtime: Runtime) -> None:
    runtime.use([])


@pytest.fixture(scope="module")
def adapter_path(tiny_q8: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = open_gguf(tiny_q8)
    path = tmp_path_factory.mktemp("adapters") / "a.gguf"
    write_gguf_adapter(random_adapter(base, rank=4, alpha=8.0, names=["q_proj", "k_proj", "down_proj"]), base, path)
    return path


@pytest.fixture
def windows() -> NDArray[np.uint32]:
    return np.random.default_rng(0).integers(0, 300, (3, 64)).astype(np.uint32)


def test_each_window_begins_with_a_cleared_memory(runtime: Runtime, windows: NDArray[np.uint32]) -> None:
    together = runtime.losses(windows)
    alone = [runtime.losses(window[None]).nll[0] for window in windows[::-1]][::-1]
    assert together.targets.tolist() == [63, 63, 63]
    np.testing.assert_allclose(together.nll, alone, rtol=1e-6)
    assert together.mean == pytest.approx(together.nll.sum() / 189)


def test_the_size_of_a_batch_changes_nothing(tiny_q8: Path, runtime: Runtime, windows: NDArray[np.uint32]) -> None:
    with Runtime(base_path=tiny_q8, n_ctx=64, n_threads=2, n_batch=20) as small:
        np.testing.assert_allclose(small.losses(windows).nll, runtime.losses(windows).nll, rtol=1e-3)


def test_only_masked_targets_count(runtime: Runtime, windows: NDArray[np.uint32]) -> None:
    masks = np.zeros(windows.shape, dtype=np.bool_)
    masks[:, 0] = True  # nothing predicts the first token
    masks[:, 40:] = True
    late = runtime.losses(windows, masks=masks)
    early = runtime.losses(windows, masks=~masks)
    assert late.targets.tolist() == [24, 24, 24]
    np.testing.assert_allclose(late.nll + early.nll, runtime.losses(windows).nll, rtol=1e-6)


def test_adapters_are_swapped_without_loading_the_base_again(
    runtime: Runtime, adapter_path: Path, windows: NDArray[np.uint32]
) -> None:
    base = runtime.losses(windows).mean
    adapter = runtime.load_adapter(adapter_path)
    assert runtime.losses(windows).mean == base
    runtime.use([(adapter, 1.0)])
    full = runtime.losses(windows).mean
    runtime.use([(adapter, 0.5)])
    half = runtime.losses(windows).mean
    runtime.use([(adapter, 0.0)])
    none = runtime.losses(windows).mean
    runtime.use([])
    assert runtime.losses(windows).mean == base
    assert none == pytest.approx(base, abs=1e-6)
    assert len({round(x, 5) for x in (base, half, full)}) == 3


def test_two_adapters_add_up(runtime: Runtime, adapter_path: Path, windows: NDArray[np.uint32]) -> None:
    first, second = runtime.load_adapter(adapter_path), runtime.load_adapter(adapter_path)
    runtime.use([(first, 1.0)])
    whole = runtime.losses(windows).mean
    runtime.use([(first, 0.5), (second, 0.5)])
    assert runtime.losses(windows).mean == pytest.approx(whole, abs=0.005)  # llama.cpp rounds activations to Q8_0
    runtime.unload_adapter(second)
    with pytest.raises(AdapterError, match="not loaded"):
        runtime.use([(second, 1.0)])


def test_what_is_no_adapter_for_this_base_is_refused(runtime: Runtime, tiny_f32: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.gguf"
    text.write_text("no adapter")
    for path in (text, tiny_f32, tmp_path / "missing.gguf"):
        with pytest.raises(AdapterError, match=path.name) as caught:
            runtime.load_adapter(path)
        assert caught.value.advice


def test_windows_that_do_not_fit_are_refused(runtime: Runtime) -> None:
    with pytest.raises(ModelError, match="context of 256"):
        runtime.losses(np.zeros((1, 300), dtype=np.uint32))
    with pytest.raises(ModelError, match="token 320"):
        runtime.losses(np.full((1, 8), 320, dtype=np.uint32))
    with pytest.raises(ModelError, match="shape"):
        runtime.losses(np.zeros((1, 1), dtype=np.uint32))


def test_greedy_generation_is_the_likeliest_continuation(runtime: Runtime) -> None:
    prompt = runtime.tokenize("the thing")
    answers = {"".join(runtime.generate(prompt, max_tokens=12)) for _ in range(2)}
    assert len(answers) == 1
    tokens = list(prompt)
    continuations = np.array([[*tokens, token] for token in range(320)], dtype=np.uint32)
    likeliest = runtime.vocabulary.piece(int(np.argmin(runtime.losses(continuations).nll)))
    assert answers.pop().encode("utf-8", "replace").startswith(likeliest.decode("utf-8", "replace").encode())


def test_sampling_is_repeated_by_its_seed(runtime: Runtime) -> None:
    prompt = runtime.tokenize("in the")
    first, again, other = (
        "".join(runtime.generate(prompt, max_tokens=24, temperature=1.5, seed=seed)) for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other


def test_pieces_are_whole_characters_and_end_before_a_stop(stories: Path) -> None:
    with Runtime(base_path=stories, n_ctx=128, n_threads=1) as runtime:
        prompt = [1, *runtime.tokenize("Once upon a time")]
        whole = "".join(runtime.generate(prompt, max_tokens=40))
        assert "there was a" in whole
        pieces = list(runtime.generate(prompt, max_tokens=40, stop=["was a"]))
        assert len(pieces) > 1
        assert "".join(pieces) == whole[: whole.index("was a")]


def test_a_conversation_is_rendered_with_control_tokens(runtime: Runtime) -> None:
    tokens = runtime.render_chat([ChatMessage("user", "hello")])
    assert tokens[0] == 318
    assert tokens.count(318) == 2
    assert tokens.count(319) == 1
    assert isinstance("".join(runtime.generate([ChatMessage("user", "hello")], max_tokens=4)), str)


def test_a_prompt_that_fills_the_context_is_refused(runtime: Runtime) -> None:
    with pytest.raises(ModelError, match="context holds 256"):
        runtime.generate([5] * 256)
    assert isinstance("".join(runtime.generate([5] * 255, max_tokens=50)), str)


def test_an_abandoned_answer_leaves_the_runtime_usable(runtime: Runtime, windows: NDArray[np.uint32]) -> None:
    before = runtime.losses(windows).mean
    pieces = runtime.generate(runtime.tokenize("the"), max_tokens=50)
    next(pieces, None)
    del pieces
    assert runtime.losses(windows).mean == before


def test_a_missing_and_a_broken_base_are_told_apart(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(UnreadableModelError, match="missing"), Runtime(base_path=tmp_path / "missing.gguf"):
        pass
    with pytest.raises(UnsupportedModelError, match="broken"), Runtime(base_path=broken):
        pass


def test_loading_is_quiet_and_quick(tiny_q8: Path, capfd: pytest.CaptureFixture[str]) -> None:
    began = time.process_time()  # whoever else uses the machine
    with Runtime(base_path=tiny_q8, n_threads=1) as runtime:
        runtime.losses(np.zeros((1, 8), dtype=np.uint32))
    assert time.process_time() - began < 5
    assert capfd.readouterr() == ("", "")


def test_it_is_of_no_use_once_closed(tiny_q8: Path) -> None:
    with Runtime(base_path=tiny_q8, n_threads=1) as runtime:
        pass
    with pytest.raises(RuntimeError, match="with block"):
        runtime.losses(np.zeros((1, 8), dtype=np.uint32))
    runtime.close()


def _continued(runtime: Runtime, prompt: list[int], **sampling: float) -> tuple[str, int]:
    with runtime.answer(prompt, max_tokens=24, sampling=Sampling(seed=3, **sampling)) as answer:  # type: ignore[arg-type]
        text = ""
        while answer.finish is None:
            text += answer.step()
        return text, answer.reused_tokens


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_beginning_of_a_prompt_is_not_computed_again_and_that_changes_no_bit(tiny_q8: Path, temperature: float) -> None:
    rng = np.random.default_rng(5)
    first = [int(t) for t in rng.integers(0, 300, 300)]
    longer = [*first, *(int(t) for t in rng.integers(0, 300, 90))]
    other = [*first[:200], *longer[260:]]
    with Runtime(base_path=tiny_q8, n_ctx=512, n_threads=1, scoring=False) as runtime:
        alone = {}
        for name, prompt in (("longer", longer), ("other", other), ("first", first)):
            runtime._forget()
            text, _ = _continued(runtime, prompt, temperature=temperature)
            runtime._forget()
            alone[name] = (text, _logits(runtime, prompt))
        runtime._forget()
        assert _continued(runtime, first, temperature=temperature)[1] == 0
        for name, prompt, reused in (("longer", longer, 256), ("other", other, 128), ("first", first, 128)):
            text, known = _continued(runtime, prompt, temperature=temperature)
            assert (text, known) == (alone[name][0], reused)
            np.testing.assert_array_equal(_logits(runtime, prompt), alone[name][1])


def _logits(runtime: Runtime, prompt: list[int]) -> NDArray[np.float32]:
    """The logits after a prompt, with whatever is known of it already."""
    position = runtime.recall(prompt)
    while position < len(prompt):
        position = runtime.read(prompt, position)
    pointer = llama_cpp.llama_get_logits(runtime._context)
    return np.ctypeslib.as_array(pointer, shape=(runtime.vocabulary.n_vocab,)).copy()


def test_nothing_computed_with_one_adapter_is_used_with_another(runtime: Runtime, adapter_path: Path) -> None:
    prompt = [int(t) for t in np.random.default_rng(6).integers(0, 300, 200)]
    adapter = runtime.load_adapter(adapter_path)
    runtime.use([])
    base, _ = _continued(runtime, prompt)
    assert runtime.shares(prompt) == 128
    runtime.use([(adapter, 1.0)])
    assert runtime.shares(prompt) == 0
    changed, reused = _continued(runtime, prompt)
    assert reused == 0
    assert changed != base
    runtime.use([])
    assert _continued(runtime, prompt) == (base, 0)


def test_contexts_share_one_base_and_take_turns_with_adapters_of_their_own(tiny_q8: Path, adapter_path: Path) -> None:
    prompt = [int(t) for t in np.random.default_rng(7).integers(0, 300, 40)]
    with LoadedBase(path=tiny_q8) as base:
        options = {"base_path": tiny_q8, "base": base, "n_threads": 1, "scoring": False}
        with Runtime(**options) as plain, Runtime(**options) as adapted:  # type: ignore[arg-type]
            adapted.use([(base.load_adapter(adapter_path), 1.0)])
            alone = [_continued(context, prompt)[0] for context in (plain, adapted)]
            answers = [context.answer(prompt, max_tokens=24) for context in (plain, adapted)]
            said = ["", ""]
            while any(answer.finish is None for answer in answers):
                for index, answer in enumerate(answers):
                    said[index] += answer.step() if answer.finish is None else ""
            assert said == alone
            assert alone[0] != alone[1]


def test_answer_says_why_it_ended_and_how_long_it_is(runtime: Runtime) -> None:
    prompt = [int(t) for t in np.random.default_rng(8).integers(0, 300, 20)]
    with runtime.answer(prompt, max_tokens=5) as answer:
        text = ""
        while answer.finish is None:
            text += answer.step()
    assert (answer.finish, answer.tokens, answer.prompt_tokens) == ("length", 5, 20)
    with runtime.answer(prompt, max_tokens=5, stop=[text[1:]]) as stopped:
        while stopped.finish is None:
            stopped.step()
    assert stopped.finish == "stop"
    with pytest.raises(RuntimeError, match="over"):
        stopped.step()
