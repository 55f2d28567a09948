"""llama.cpp as a library: quiet, started once, and with its refusals turned into errors that say something."""

from __future__ import annotations

import ctypes
import functools
from collections import deque
from pathlib import Path
from typing import Any

import llama_cpp

from agent.errors import UnreadableModelError, UnsupportedModelError

_WARN = 3  # ggml_log_level: 1 debug, 2 info, 3 warning, 4 error, 5 continuation
_complaints: deque[str] = deque(maxlen=20)


def _on_log(level: int, text: bytes, _user: Any) -> None:
    """Keep warnings and errors for the message of an exception; drop everything else."""
    if _WARN <= level <= _WARN + 1:
        _complaints.append(text.decode("utf-8", "replace").strip())


_LOG_CALLBACK = llama_cpp.llama_log_callback(_on_log)  # kept: ctypes would free it while llama.cpp still calls it


@functools.cache
def start() -> None:
    """Silence llama.cpp and start its backend, once in a process."""
    llama_cpp.llama_log_set(_LOG_CALLBACK, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


def complaints() -> str:
    """Give the latest warnings and errors of llama.cpp in one line, and forget them."""
    text = "; ".join(line for line in list(_complaints) if line)  # other threads may complain meanwhile
    _complaints.clear()
    return text or "no reason given"


def load_model(path: Path, *, vocab_only: bool = False, gpu_layers: int = 0) -> Any:
    """Load a model, mapped; with ``vocab_only`` just its tokenizer. Give its ``llama_model_p``.

    Args:
        path: the GGUF.
        vocab_only: load its tokenizer alone.
        gpu_layers: so many of its layers go to a graphics processor, where llama.cpp was built for one.

    Raises:
        UnreadableModelError: there is no such file.
        UnsupportedModelError: llama.cpp does not take it.
    """
    start()
    if not path.is_file():
        raise UnreadableModelError(f"there is no model file {path}", advice="Check the path.")
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    params.vocab_only = vocab_only
    params.load_mode = llama_cpp.LLAMA_LOAD_MODE_MMAP
    params.use_extra_bufts = False  # repacked copies would be private memory, where mapped weights are shared
    _complaints.clear()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise UnsupportedModelError(
            f"llama.cpp cannot load {path}: {complaints()}",
            advice="Check that the file is a whole GGUF language model; fetch it again if in doubt."
            + (" If the graphics processor lacks memory: --gpu-layers with fewer, or 0." if gpu_layers else ""),
        )
    return model
