"""The tokenizer that is inside a GGUF, run by llama.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import llama_cpp

from agent.errors import UnsupportedModelError
from agent.llm import llama_library


class Vocabulary:
    """The tokens of a loaded model. Belongs to whoever loaded it, and is unusable once that is closed."""

    def __init__(self, *, model: Any) -> None:
        self._vocab = llama_cpp.llama_model_get_vocab(model)
        self._by_pieces = llama_cpp.llama_vocab_type(self._vocab) == llama_cpp.LLAMA_VOCAB_TYPE_BPE
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.bos_id: int | None = _optional(llama_cpp.llama_vocab_bos(self._vocab))
        self.eos_id: int | None = _optional(llama_cpp.llama_vocab_eos(self._vocab))
        self.begin_id: int | None = self.bos_id if llama_cpp.llama_vocab_get_add_bos(self._vocab) else None

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Give the tokens of a text, without beginning or end marks.

        Args:
            text: any text.
            special: turn the spelling of control tokens into these tokens; never do so with an owner's text.
        """
        data = text.encode("utf-8", "replace")
        size = len(data) + 8
        while True:
            tokens = (llama_cpp.llama_token * size)()
            count = llama_cpp.llama_tokenize(self._vocab, data, len(data), tokens, size, False, special)
            if count >= 0:
                return list(tokens[:count])
            size = -count

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Give the bytes of one token, which may be a part of a character; control tokens give nothing."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def decode(self, tokens: Iterable[int]) -> str:
        """Give the text of tokens; control tokens give nothing, broken characters the replacement character.

        llama.cpp leaves out spaces before punctuation where a vocabulary of byte pairs asks for that; a text is to come
        back as it was, so such tokens are put together here. Other vocabularies may begin with a space of their own.
        """
        ids: Sequence[int] = [int(token) for token in tokens]
        if self._by_pieces:
            return b"".join(map(self.piece, ids)).decode("utf-8", "replace")
        array = (llama_cpp.llama_token * len(ids))(*ids)
        size = 8 * len(ids) + 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = llama_cpp.llama_detokenize(self._vocab, array, len(ids), buffer, size, False, False)
            if count >= 0:
                return buffer.raw[:count].decode("utf-8", "replace")
            size = -count

    def control_spellings(self) -> frozenset[str]:
        """Give the texts that :meth:`encode` with ``special`` turns into control tokens."""
        attributes = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        spelt = (
            llama_cpp.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace")
            for token in range(self.n_vocab)
            if llama_cpp.llama_vocab_get_attr(self._vocab, token) & attributes
        )
        return frozenset(text for text in spelt if text)

    def ends_generation(self, token: int) -> bool:
        """Say whether a model that gives this token has nothing more to say."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))


class LlamaTokenizer:
    """A base's tokenizer alone: its weights are not loaded. Use it as a context manager.

    Args:
        base_path: the GGUF.

    Raises (on entering):
        UnreadableModelError, UnsupportedModelError: llama.cpp cannot load it.
    """

    def __init__(self, *, base_path: Path) -> None:
        self._path = base_path
        self._model: Any = None
        self._vocabulary: Vocabulary | None = None

    def __enter__(self) -> Self:
        self._model = llama_library.load_model(self._path, vocab_only=True)
        self._vocabulary = Vocabulary(model=self._model)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._vocabulary = None
        if self._model is not None:
            llama_cpp.llama_model_free(self._model)
            self._model = None

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens, while the tokenizer is open."""
        if self._vocabulary is None:
            raise RuntimeError("the tokenizer is used outside of its with block")
        return self._vocabulary

    @property
    def n_vocab(self) -> int:
        """How many tokens there are."""
        return self.vocabulary.n_vocab

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, where there is one."""
        return self.vocabulary.bos_id

    @property
    def begin_id(self) -> int | None:
        """The token that this base wants before every text and conversation, where it wants one."""
        return self.vocabulary.begin_id

    @property
    def chat_template(self) -> bytes | None:
        """The base's chat template, where it has one."""
        template: bytes | None = llama_cpp.llama_model_chat_template(self._model, None) if self._model else None
        return template

    @property
    def eos_id(self) -> int:
        """The token that ends a text; where there is none, the one that begins it.

        Raises:
            UnsupportedModelError: the base has neither.
        """
        for token in (self.vocabulary.eos_id, self.vocabulary.bos_id):
            if token is not None:
                return token
        raise UnsupportedModelError(
            f"{self._path} has no token that ends a text", advice="Use a base whose tokenizer has an end token."
        )

    def encode(self, text: str) -> list[int]:
        """Give the tokens of an owner's text: no marks are added, and control tokens spelt in it stay text."""
        return self.vocabulary.encode(text)

    def decode(self, tokens: Iterable[int]) -> str:
        """Give the text of tokens."""
        return self.vocabulary.decode(tokens)


def _optional(token: int) -> int | None:
    return None if token < 0 else token
