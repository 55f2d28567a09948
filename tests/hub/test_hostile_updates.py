"""Hostile updates on their way through a real inbox into a real merge, and what the hub's operator sees of them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agent.cli.hub import hub
from agent.governance.charter import RobustRules
from agent.hub.reporting import round_report
from agent.update import streams
from tests.hub.desk import Desk, make_desk

MakeDesk = Callable[..., Desk]


@pytest.fixture
def desk_of(tmp_path: Path) -> Iterator[MakeDesk]:
    made: list[Desk] = []

    def make(**options: Any) -> Desk:
        made.append(make_desk(tmp_path / str(len(made)), **options))
        return made[-1]

    yield make
    for desk in made:
        desk.close()


def with_number(value: float) -> Callable[[bytes], bytes]:
    """Give what writes a number over the first one of an update in plain float32, with everything else in order."""

    def spoil(data: bytes) -> bytes:
        begin = 4 + int.from_bytes(data[:4], "big")
        frame = memoryview(data)[begin + 4 :]
        body = streams.expand(frame, streams.stated_size(frame))
        return data[:begin] + streams.join([struct.pack("<f", value) + body[4:]])

    return spoil


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_update_with_a_number_that_is_not_finite_is_refused_and_the_others_are_merged(
    desk_of: MakeDesk, value: float
) -> None:
    desk = desk_of(quorum=2, target=2)
    a, b, c, _ = desk.names
    refused = desk.send(c, spoil=with_number(value))
    assert (refused.state, refused.reason) == ("refused", "not-finite")
    assert desk.round(a, b) == 1
    report = round_report(desk.store, 1)
    assert {row["device"] for row in report["updates"]} == {a, b}
    assert [(row["device"], row["reason"]) for row in report["refused"]] == [(c, "not-finite")]


def test_a_number_that_was_written_over_by_a_finite_one_is_no_reason(desk_of: MakeDesk) -> None:
    desk = desk_of()
    assert desk.send(desk.names[0], spoil=with_number(0.25)).state == "done"


def shown(desk: Desk, number: int) -> tuple[dict[str, Any], str]:
    """What `bramble hub round` says, as JSON and to a person."""
    words = ["round", "--home", str(desk.home.root), str(number)]
    as_json = CliRunner().invoke(hub, [*words, "--json"], catch_exceptions=False)
    return json.loads(as_json.output), CliRunner().invoke(hub, words, catch_exceptions=False).output


def test_an_update_fifty_times_as_large_and_with_all_the_text_there_is_counts_as_any_other(desk_of: MakeDesk) -> None:
    desk = desk_of(quorum=4, target=4)
    *honest, loud = desk.names
    for device in honest:
        desk.send(device)
    plan = desk.store.config.charter.training
    most = plan.steps * plan.batch_size * plan.window
    assert desk.send(loud, size=50 * 0.05, tokens=most).state == "done"
    desk.advance()
    found, text = shown(desk, 1)
    rows = {row["device"]: row for row in found["updates"]}
    assert [row["weight"] for row in rows.values()] == pytest.approx([0.25] * 4)
    assert rows[loud]["scale"] < 0.03
    assert min(rows[device]["scale"] for device in honest) > 0.9
    assert found["robust"]["name"] == "clipping"
    line = next(line for line in text.splitlines() if loud[:10] in line)
    assert f"clipped from {rows[loud]['norm']:.3g}" in line


def test_an_update_that_a_robust_rule_leaves_out_is_said_to_be(desk_of: MakeDesk) -> None:
    desk = desk_of(members=6, quorum=6, target=6, robust=RobustRules(name="multi-krum", hostile=0.17))
    for device in desk.names:
        desk.send(device, size=0.001 if device != desk.names[3] else 0.05)
    desk.advance()
    found, text = shown(desk, 1)
    left_out = [row["device"] for row in found["updates"] if row["weight"] == 0]
    assert len(left_out) == 1
    assert "merged by stack behind multi-krum" in text
    assert "left out" in next(line for line in text.splitlines() if left_out[0][:10] in line)


def test_a_merge_leaves_no_temporary_file_behind(desk_of: MakeDesk) -> None:
    desk = desk_of(robust=RobustRules(name="geometric-median", mixing=True))
    before = {path.name for path in desk.home.root.iterdir()}
    assert desk.round(*desk.names[:2]) == 1
    assert {path.name for path in desk.home.root.iterdir()} <= before
