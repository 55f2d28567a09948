from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.data.decoding import NotTextError
from agent.data.documents import Document, ReadLimits, Skipped
from agent.data.jsonl import JsonlSource
from agent.data.sources import FileSource, load_sources, read_documents
from agent.errors import NoTextError
from agent.testing import check_source

PATH = Path("a.jsonl")


def read(*records: Any) -> list[Document | Skipped]:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    return list(JsonlSource().read(PATH, "\n".join(lines).encode()))


def turns(*records: Any) -> list[list[tuple[str, str]]]:
    return [
        [(turn.role, turn.content) for turn in found.turns] for found in read(*records) if isinstance(found, Document)
    ]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"question": "Two?", "answer": "2"}, [("user", "Two?"), ("assistant", "2")]),
        ({"prompt": " Two?\r\n", "completion": " 2 ", "id": 7}, [("user", "Two?"), ("assistant", "2")]),
        (
            {"system": "Count.", "prompt": "Two?", "completion": "2"},
            [("system", "Count."), ("user", "Two?"), ("assistant", "2")],
        ),
        (
            {"instruction": "Add.", "input": "1 and 1", "output": "2"},
            [("user", "Add.\n\n1 and 1"), ("assistant", "2")],
        ),
        ({"instruction": "Say 2.", "input": "", "output": "2"}, [("user", "Say 2."), ("assistant", "2")]),
        (
            {"messages": [{"role": "developer", "content": "Count."}, {"role": "user", "content": "Two?"},
                          {"role": "assistant", "content": "2"}, {"role": "user", "content": "Three?"}]},
            [("system", "Count."), ("user", "Two?"), ("assistant", "2")],
        ),
        (
            {"messages": [{"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Two"},
                          {"role": "user", "content": [{"type": "text", "text": "now?"}, {"type": "image_url"}]},
                          {"role": "assistant", "content": "2"}, {"role": "assistant", "content": None}]},
            [("user", "Two\n\nnow?"), ("assistant", "2")],
        ),
        (
            {"conversations": [{"from": "human", "value": "Two?"}, {"from": "gpt", "value": "2"}]},
            [("user", "Two?"), ("assistant", "2")],
        ),
    ],
)  # fmt: skip
def test_each_kind_of_line_is_a_conversation(record: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert turns(record) == [expected]


def test_kinds_may_be_mixed_and_text_stays_text() -> None:
    found = read({"text": "Once upon a time."}, "", {"question": "q", "answer": "a"})
    assert [document.text for document in found if isinstance(document, Document)] == ["Once upon a time.", "q\n\na"]
    assert [bool(document.turns) for document in found if isinstance(document, Document)] == [False, True]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is not a JSON object"),
        ({"title": "x"}, "has none of the known keys"),
        ({"prompt": "x"}, "has none of the known keys"),
        ({"messages": "x"}, "has no list of messages"),
        ({"messages": ["x"]}, "has a message without 'role'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "has the role 'tool'"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "has the role"),
        ({"messages": [{"role": "user", "content": "x"}]}, "has no answer"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "has an answer without a question"),
        (
            {"messages": [{"role": "system", "content": "x"}, {"role": "assistant", "content": "x"}]},
            "without a question",
        ),
        ({"question": "x", "answer": 5}, "has a content that is not text"),
        ({"question": "x", "answer": " "}, "has no answer"),
        ({"text": ""}, "has no text"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_with_the_reason(line: Any, reason: str) -> None:
    found = read({"question": "q", "answer": "a"}, line)
    assert len(found) == 2
    assert isinstance(found[1], Skipped)
    assert found[1].reason.startswith("line 2 ")
    assert reason in found[1].reason
    assert len(found[1].reason) < 200


def test_many_broken_lines_are_counted_and_not_all_named() -> None:
    found = read(*["{"] * 1000, {"question": "q", "answer": "a"})
    assert len(found) == 22
    assert isinstance(found[-1], Skipped)
    assert found[-1].reason == "980 more lines cannot be used"


def test_a_file_without_any_known_key_says_which_are_known() -> None:
    with pytest.raises(NotTextError, match=r"line 1 has none of the known keys .*messages, prompt/completion"):
        read({"title": "x"}, {"title": "y"})
    for data in (b"", b"\n\n", b'{"text": "\xff"}'):
        with pytest.raises(NotTextError):
            JsonlSource().read(PATH, data)


KEYS = st.sampled_from(["messages", "role", "content", "question", "answer", "text", "prompt", "completion"])
ATOMS = st.none() | st.text(max_size=5) | st.integers()


@given(st.recursive(ATOMS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner), max_leaves=10))
def test_no_line_is_more_than_left_out(record: Any) -> None:
    found = read(record, {"question": "q", "answer": "\ud800 a"})
    assert any(isinstance(item, Document) for item in found)
    for item in found:
        if isinstance(item, Document):
            item.text.encode()


def test_the_source_keeps_its_promises(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n{broken\n{"text": "t"}\n')
    check_source(JsonlSource(), path)
    assert [source.name for source in load_sources()][-2:] == ["jsonl", "files"]


def test_files_of_records_may_be_larger_than_files_of_writing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": "a"}\n' * 10)
    (tmp_path / "b.txt").write_text("long " * 100)
    limits = ReadLimits(file_bytes=100, records_bytes=1000)
    found = read_documents([tmp_path], limits=limits, sources=(JsonlSource(), FileSource()))
    assert len(found.documents) == 10
    assert [skipped.path.name for skipped in found.skipped] == ["b.txt"]
    with pytest.raises(NoTextError, match="larger"):
        read_documents([tmp_path], limits=ReadLimits(file_bytes=100, records_bytes=100))
