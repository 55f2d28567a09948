"""A base in llama.cpp's memory, and the adapters loaded onto it: what several contexts compute with at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import llama_cpp

from agent.errors import AdapterError
from agent.llm import llama_library
from agent.llm.chat import ChatMessage, render_chat
from agent.llm.tokenizer import Vocabulary


@dataclass(frozen=True, slots=True, eq=False)
class AdapterHandle:
    """An adapter that one base has loaded.

    Attributes:
        path: where it came from.
        pointer: llama.cpp's ``llama_adapter_lora_p``.
    """

    path: Path
    pointer: Any


class LoadedBase:
    """A memory-mapped base. Use it as a context manager, around every context that computes with it.

    Tokenising and rendering are for any thread; loading and unloading adapters for one at a time.

    Args:
        path: the GGUF.
        gpu_layers: layers to put on a graphics processor, where llama.cpp was built for one.

    Raises (on entering):
        UnreadableModelError, UnsupportedModelError: llama.cpp cannot load it.
    """

    def __init__(self, *, path: Path, gpu_layers: int = 0) -> None:
        self.path = path
        self._gpu_layers = gpu_layers
        self._model: Any = None
        self._vocabulary: Vocabulary | None = None
        self._adapters: list[AdapterHandle] = []

    def __enter__(self) -> Self:
        self._model = llama_library.load_model(self.path, gpu_layers=self._gpu_layers)
        self._vocabulary = Vocabulary(model=self._model)
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the model; adapters go with it. Harmless when repeated."""
        if self._model:
            llama_cpp.llama_model_free(self._model)
        self._model = self._vocabulary = None
        self._adapters.clear()

    @property
    def model(self) -> Any:
        """llama.cpp's ``llama_model_p``, while the base is open."""
        if self._model is None:
            raise RuntimeError("the base is used outside of its with block")
        return self._model

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens of the base, while it is open."""
        if self._vocabulary is None:
            raise RuntimeError("the base is used outside of its with block")
        return self._vocabulary

    def text_prompt(self, text: str) -> list[int]:
        """Give the tokens of a text to go on from: begun by the mark that the base's tokenizer asks for, if any."""
        return self._begun(self.vocabulary.encode(text))

    def chat_prompt(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Give the tokens of a conversation by the base's own template, ready for the assistant's turn."""
        template = llama_cpp.llama_model_chat_template(self.model, None)
        return self._begun(self.vocabulary.encode(render_chat(messages, template), special=template is not None))

    def load_adapter(self, path: Path) -> AdapterHandle:
        """Load a GGUF adapter, without using it yet.

        Raises:
            AdapterError: it is no adapter for this base.
        """
        llama_library.complaints()
        pointer = None
        if path.is_file():
            pointer = llama_cpp.llama_adapter_lora_init(self.model, str(path).encode())
        if not pointer:
            why = llama_library.complaints() if path.is_file() else "there is no such file"
            raise AdapterError(
                f"llama.cpp cannot load the adapter {path} on {self.path.name}: {why}",
                advice="Use an adapter.gguf that was trained on this base.",
            )
        handle = AdapterHandle(path, pointer)
        self._adapters.append(handle)
        return handle

    def has_adapter(self, handle: AdapterHandle) -> bool:
        """Say whether this adapter is loaded here."""
        return handle in self._adapters

    def unload_adapter(self, handle: AdapterHandle) -> None:
        """Let go of an adapter that no context computes with any more."""
        if handle in self._adapters:
            self._adapters.remove(handle)
            llama_cpp.llama_adapter_lora_free(handle.pointer)

    def _begun(self, tokens: list[int]) -> list[int]:
        """Put the beginning mark before tokens where the tokenizer wants it and a template has not put it there."""
        begin = self.vocabulary.begin_id
        return tokens if begin is None or tokens[:1] == [begin] else [begin, *tokens]
