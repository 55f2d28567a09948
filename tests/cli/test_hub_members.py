"""`bramble hub members` and `pardon`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agent.cli.hub import hub
from agent.errors import StateError
from agent.hub.conduct import FIRST_SECONDS, STRIKES
from tests.hub.desk import Desk, make_desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A hub with an update of one device, and another device that was set aside."""
    made = make_desk(tmp_path / "hub")
    made.send(made.names[0])
    for _ in range(STRIKES):
        made.store.add_strike(made.names[1], "norm", int(time.time()))
    yield made
    made.close()


def said(desk: Desk, *words: str) -> str:
    done = CliRunner().invoke(hub, [*words, "--home", str(desk.home.root)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def told(desk: Desk, *words: str) -> Any:
    return json.loads(said(desk, *words, "--json"))


def test_members_says_what_each_handed_in_and_what_is_held_against_it(desk: Desk) -> None:
    rows = {row["device"]: row for row in told(desk, "members")["devices"]}
    assert sorted(rows) == desk.names
    assert rows[desk.names[0]]["updates"] == 1
    bad = rows[desk.names[1]]
    assert (bad["times_set_aside"], bad["held_against"]) == (1, "norm")
    assert time.time() < bad["set_aside_until"] <= time.time() + FIRST_SECONDS
    text = said(desk, "members")
    assert desk.names[1][:10] in text
    assert "norm" in text


def test_status_and_round_report_who_is_set_aside_and_pardon_lets_it_back_in(desk: Desk) -> None:
    device = desk.names[1]
    for command in (("status",), ("round", "1")):
        assert [row["device"] for row in told(desk, *command)["set_aside"]] == [device]
        assert f"{device[:10]} (norm)" in said(desk, *command)
    assert told(desk, "pardon", device[:10]) == {"device": device}
    assert told(desk, "status")["set_aside"] == []
    assert f"pardoned {device[:10]} (norm)" in said(desk, "status")


def test_pardon_of_nobody_or_of_who_did_nothing_is_explained(desk: Desk) -> None:
    for words, message in (("zzzz", "no device begins"), ("", "no device begins"), (desk.names[0], "nothing is held")):
        with pytest.raises(StateError, match=message):
            said(desk, "pardon", words)
