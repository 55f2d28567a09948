"""Conversations as tokens to learn from: the base's own template around them, and only what the assistant says counts.

A conversation is tokenised as a whole, exactly as it is when the base is asked to answer, so that what is learned is
what is asked for later. Where the answers are in it follows from its beginnings: the tokens of the prompt before an
answer, and those of the conversation that ends with it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from agent.llm.chat import ChatMessage, render_chat
from agent.llm.tokenizer import Vocabulary

_BREAK = "\ufdd0"  # no character, so no text holds it
_SEAM = 4
"""How many tokens before an answer its first characters may change, where they grow together with the prompt's last."""


@dataclass(frozen=True, slots=True)
class EncodedChat:
    """A conversation as tokens.

    Attributes:
        tokens: of the whole conversation, up to the end of its last answer.
        counted: for each token, whether it is part of an answer or the mark that ends one. Never the first.
    """

    tokens: list[int]
    counted: list[bool]


class ChatEncoder:
    """Encodes conversations for a base.

    Args:
        vocabulary: the base's tokens.
        template: the base's chat template; None for a base without one.
    """

    def __init__(self, *, vocabulary: Vocabulary, template: bytes | None) -> None:
        self._vocabulary = vocabulary
        self._template = template
        spellings = sorted(vocabulary.control_spellings(), key=len, reverse=True) if template is not None else []
        self._spelt = re.compile("|".join(map(re.escape, spellings))) if spellings else None
        self._known: dict[str, list[int]] = {}  # of the conversation at hand
        self._ends: dict[int, bool] = {}

    def encode(self, messages: Sequence[ChatMessage]) -> EncodedChat:
        """Give the tokens of a conversation that ends with an answer.

        Control tokens spelt in a message stay text. The token that ends an answer counts; where the template has none,
        the end token is put after the last answer.

        Raises:
            UnsupportedModelError: llama.cpp does not know the base's template.
        """
        self._known.clear()
        safe = [ChatMessage(message.role, self._defuse(message.content)) for message in messages]
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
        prompts = [self._render(safe[:index], prompt=True) for index in answers]
        endings = [self._render(safe[: index + 1], prompt=False) for index in answers]
        tokens = self._tokens(endings[-1])
        counted = self._counted_by_exchange(tokens, prompts, endings) or self._counted(tokens, prompts, endings)
        if not any(counted):
            tokens, counted = self._apart(prompts[-1], safe[-1].content)
        last = len(counted) - counted[::-1].index(True)
        tokens, counted = tokens[:last], counted[:last]
        if not self._is_end(tokens[-1]) and self._vocabulary.eos_id is not None:
            tokens, counted = [*tokens, self._vocabulary.eos_id], [*counted, True]
        begin = self._vocabulary.begin_id
        if begin is not None and tokens[:1] != [begin]:
            tokens, counted = [begin, *tokens], [False, *counted]
        return EncodedChat(tokens, [False, *counted[1:]])

    def _render(self, messages: Sequence[ChatMessage], *, prompt: bool) -> str:
        """Give the conversation as text, ready for the assistant's turn or ended by what was said."""
        return render_chat(messages, self._template, prompt=prompt)

    def _counted_by_exchange(
        self, tokens: Sequence[int], prompts: Sequence[str], endings: Sequence[str]
    ) -> list[bool] | None:
        """Find the answers exchange by exchange; None where these are not tokenised together as they are alone."""
        found: list[int] = []
        counted: list[bool] = []
        done = ""
        for prompt, ending in zip(prompts, endings, strict=True):
            if not prompt.startswith(done):
                return None
            exchange = self._tokens(ending[len(done) :])
            found += exchange
            counted += self._counted(exchange, [prompt[len(done) :]], [ending[len(done) :]])
            done = ending
        return counted if found == tokens else None

    def _counted(self, tokens: Sequence[int], prompts: Sequence[str], endings: Sequence[str]) -> list[bool]:
        """Say which tokens count: from where a prompt ends to where its answer does, where that can be told."""
        counted = [False] * len(tokens)
        for before, until in zip(prompts, endings, strict=True):
            prompt = self._tokens(before)
            start, end = _agree(prompt, tokens), _agree(self._tokens(until), tokens)
            if len(prompt) - start <= _SEAM:
                end = self._answer_end(tokens, start, end)
                counted[start:end] = [True] * max(0, end - start)
        return counted

    def _apart(self, prompt: str, answer: str) -> tuple[list[int], list[bool]]:
        """Encode an answer apart from what was said before, where the template changes that afterwards."""
        before, said = self._tokens(prompt), self._tokens(answer)
        return before + said, [False] * len(before) + [True] * len(said)

    def _answer_end(self, tokens: Sequence[int], start: int, end: int) -> int:
        """Give the place after the mark that ends an answer, or after all of it where there is none."""
        ends = (place + 1 for place in range(start, end) if self._is_end(tokens[place]))
        return next(ends, end)

    def _defuse(self, content: str) -> str:
        """Put breaks into what spells a control token."""
        content = content.replace(_BREAK, "")
        if self._spelt is None:
            return content
        return self._spelt.sub(lambda match: match[0][:1] + _BREAK + match[0][1:], content)

    def _tokens(self, text: str) -> list[int]:
        """Tokenise what a template gave: its control tokens are such, what was broken is not."""
        if text not in self._known:
            special = self._template is not None
            parts = (self._vocabulary.encode(part, special=special) for part in text.split(_BREAK))
            self._known[text] = [token for part in parts for token in part]
        return self._known[text]

    def _is_end(self, token: int) -> bool:
        """Say whether a token ends an answer."""
        if token not in self._ends:
            self._ends[token] = self._vocabulary.ends_generation(token)
        return self._ends[token]


def _agree(first: Sequence[int], second: Sequence[int]) -> int:
    """Give how many tokens two sequences share at their beginning."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(place for place in range(shorter) if first[place] != second[place])
