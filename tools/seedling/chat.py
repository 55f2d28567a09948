"""Questions and answers cut out of the same documentation, to show the seedling what a conversation looks like.

Nothing is invented: an answer is a sentence or paragraph of the documentation, and a question is one of a few fixed
frames around a name or heading that the documentation gives.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from tools.seedling.chatml import turn
from tools.seedling.exclude import words_of
from tools.seedling.extract import Block, Document

KEPT = 0.55
"""Share of the exchanges that are kept, so that they stay a small part of the corpus."""

_NAME_LINE = re.compile(r"^([\w.+:-]{2,30})(?:, [\w.+:-]+)* [-\u2013\u2014]+ (.{10,200})$")
_QUESTION = re.compile(
    r"^(?:\d[\d.]*\s+)?((?:What|How|Why|When|Where|Who|Which|Can|Could|Do|Does|Is|Are|Should)\b.*\?)$"
)
_NUMBER = re.compile(r"^(?:(?:chapter|section|appendix|part)\s+)?[\dA-Z]?[\d.]*[.:)]\s+|^\d[\d.]*\s+", re.IGNORECASE)
_VAGUE = re.compile(
    r"^(?:introduction|overview|description|examples?|notes?|see also|options|usage|synopsis|name|author|bugs|files|"
    r"summary|general|history|background|details|functions|methods|classes|return|returns|index|preface|"
    r"parameters|arguments|credits|references|related|contents|attributes|properties|"
    r"procedure|to access|activating|default|syntax|conclusion|about|status|other|type|using|warning)\b",
    re.IGNORECASE,
)
_COARSE = re.compile(r"offensive|obscen|vulgar|disparag|derogat|slur\b|sexual|slang|ethnic|insult", re.IGNORECASE)
_LONGEST = 110
"""Words in an answer, at most."""


def exchanges(document: Document, blocks: Sequence[Block], rng: random.Random) -> Iterator[str]:
    """Exchanges that a document offers; ``blocks`` are those of its blocks that may be used."""
    if document.package.startswith("dict-"):
        yield from _entry(document, rng)
        return
    for place, (block, after) in enumerate(zip(blocks, [*blocks[1:], None], strict=False)):
        named = _NAME_LINE.match(block.text) if block.kind == "text" and place <= 2 else None
        if named:
            name, said = named.groups()
            frame = rng.choice(["What is {}?", "What does {} do?", "Tell me about {}.", "What is {} for?"])
            yield turn(frame.format(name), f"{name}: {said[0].lower() + said[1:]}".rstrip(".") + ".")
        elif block.kind == "heading" and after is not None and after.kind == "text":
            yield from _section(block.text, after.text, rng)


def _section(heading: str, text: str, rng: random.Random) -> Iterator[str]:
    answer = first_sentences(text)
    if answer is None:
        return
    asked = _QUESTION.match(heading)
    topic = _NUMBER.sub("", heading).strip(" .:§")
    if asked:
        yield turn(asked.group(1), answer)
    elif 2 <= len(words_of(topic)) <= 7 and re.match(r"^[A-Z][\w' ,/-]+$", topic) and not _VAGUE.match(topic):
        how = re.match(r"^(\w+)ing ", topic)
        frames = ["Tell me about {}.", "What can you tell me about {}?", "Explain {}."]
        if how:
            frames = ["How does one go about {}?", "Tell me about {}.", "I want to know about {}."]
        if topic[1:].islower():
            topic = topic[0].lower() + topic[1:]
        yield turn(rng.choice(frames).format(topic), answer)


def _entry(document: Document, rng: random.Random) -> Iterator[str]:
    word = document.blocks[0].text if document.blocks else ""
    if len(document.blocks) < 2 or not 2 < len(word) < 40 or not re.match(r"^[\w /+.-]+$", word):
        return
    text = document.blocks[1].text
    if _COARSE.search(text):
        return
    if document.package == "dict-wn":
        sense = re.match(r"^(?:n|v|adj|adv) 1?:? ?([^;\[\"]{15,160})", text)
        if sense and rng.random() < 0.06:
            frame = rng.choice(["What does {} mean?", "Define {}.", "What is the meaning of {}?"])
            yield turn(frame.format(word), f"{word}: {sense.group(1).strip()}.")
    elif document.package == "dict-vera":
        if rng.random() < 0.2 and len(text) < 100:
            yield turn(f"What does {word} stand for?", f"{word} stands for {text.split(' (')[0].strip()}.")
    else:
        answer = first_sentences(re.sub(r"^(?:<[^>]*>\s*)+", "", text))
        if answer:
            yield turn(rng.choice(["What is {}?", "What does {} mean?", "Explain {}."]).format(word), answer)


def first_sentences(text: str, longest: int = _LONGEST) -> str | None:
    """As many whole sentences from the beginning as fit ``longest`` words; ``None`` when there are none."""
    kept: list[str] = []
    used = 0
    for sentence in re.findall(r".+?[.!?](?=\s|$)", text):
        used += len(words_of(sentence))
        if used > longest:
            break
        kept.append(sentence.strip())
    answer = " ".join(kept)
    return answer if len(words_of(answer)) >= 6 else None
