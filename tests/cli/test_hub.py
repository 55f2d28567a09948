"""`bramble hub status`, `round` and `rollback`, on the database of a hub that does not run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import segno
from click.testing import CliRunner

from agent.cli.hub import hub
from agent.cli.hub_members import QR_BORDER
from agent.crypto.identity import Identity
from agent.errors import SettingsError, StateError
from agent.federation.invite import parse_invite
from agent.hub.setup import make_invite
from agent.paths import exclusive
from tests.hub.desk import Desk, make_desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A hub with a promoted round, a rejected one with a late update, and one that collects."""
    made = make_desk(tmp_path / "hub")
    a, b, c, d = made.names
    slow = made.make(c)
    assert slow is not None
    assert made.round(a, b) == 1
    assert made.deliver(slow).state == "done"
    assert made.round(a, b, after=9.0) == 1
    made.send(d)
    assert made.send(d).reason == "already-counted"
    made.advance()
    yield made
    made.close()


def said(desk: Desk, *words: str) -> str:
    done = CliRunner().invoke(hub, [*words, "--home", str(desk.home.root)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def told(desk: Desk, *words: str) -> Any:
    return json.loads(said(desk, *words, "--json"))


def test_status_says_where_the_rounds_are(desk: Desk) -> None:
    found = told(desk, "status")
    assert (found["round"], found["phase"], found["release"]) == (3, "collecting", 1)
    assert found["now"] | {"fresh": 1, "late": 0, "waiting": 1} == found["now"]
    assert [row["outcome"] for row in found["rounds"]] == ["promoted", "rejected", "running"]
    assert not found["running"]
    text = said(desk, "status")
    assert "the hub does not run" in text
    assert "round 3: collecting, 1 updates" in text
    assert "1 already-counted" in text
    assert "release   1" in text


def test_status_tells_a_hub_that_runs(desk: Desk) -> None:
    with exclusive(desk.home):
        assert told(desk, "status")["running"]
        assert "does not run" not in said(desk, "status")
    assert not told(desk, "status")["running"]


def test_round_says_who_took_part_and_what_became_of_it(desk: Desk) -> None:
    found = told(desk, "round", "2")
    assert (found["outcome"], found["rule"], found["start_release"]) == ("rejected", "stack", 1)
    late = next(row for row in found["updates"] if row["late"])
    assert (late["device"], late["round"], late["staleness"]) == (desk.names[2], 1, 1)
    assert sum(row["weight"] for row in found["updates"]) == pytest.approx(1.0)
    assert all(row["change_norm"] > 0 and row["wire_bytes"] > 0 for row in found["updates"])
    assert sum(found["energy"].values()) == pytest.approx(1.0)
    assert found["gate"] == {"promote": False, "median_change": 3.5, "worst_change": 3.5, "group": 1, "harmed": 2}
    assert [row["change"] for row in found["verdicts"]] == [3.5, 3.5]
    first = told(desk, "round", "1")
    assert [(row["device"], row["merge"]) for row in first["elsewhere"]] == [(desk.names[2], 2)]
    text = said(desk, "round", "2")
    assert f"{desk.names[2][:10]} device" in text
    assert "discarded" in text
    assert "already-counted" in said(desk, "round", "3")
    with pytest.raises(StateError, match="no round 9"):
        said(desk, "round", "9")


def test_round_that_drew_devices_says_which(tmp_path: Path) -> None:
    desk = make_desk(tmp_path / "hub", members=5, wanted=2)
    found = told(desk, "round", "1")
    assert len(found["drawn"]) == 2
    assert set(found["drawn"]) < set(desk.names)
    assert "2 devices were drawn" in said(desk, "round", "1")
    desk.close()


def test_rollback_goes_back_and_the_status_tells_of_it(desk: Desk) -> None:
    done = told(desk, "rollback", "0")
    assert (done["release"], done["withdrawn"], done["round"], done["phase"]) == (0, [1], 3, "collecting")
    assert done["next_round"] == 4
    desk.reopen()
    desk.advance()
    found = told(desk, "status")
    assert (found["release"], found["withdrawn"], found["round"]) == (0, [1], 4)
    assert found["rounds"][2]["reason"] == "the hub went back to release 0"
    text = said(desk, "status")
    assert "went back from release 1 to 0" in text
    assert "withdrawn: 1\n" in text
    with pytest.raises(StateError, match="stands"):
        said(desk, "rollback", "0")


def test_rollback_of_a_community_that_ends_does_not_promise_another_round(tmp_path: Path) -> None:
    desk = make_desk(tmp_path / "hub", last_round=2)
    a, b, *_ = desk.names
    assert desk.round(a, b) == 1
    assert "Round 2 (open) ends. It was the last: devices go back, and no round follows." in said(desk, "rollback", "0")
    desk.advance()
    assert desk.state.phase == "closed"
    desk.close()


def test_rollback_of_a_closed_community_says_that_devices_go_back_and_no_round_follows(tmp_path: Path) -> None:
    desk = make_desk(tmp_path / "hub", last_round=2)
    a, b, *_ = desk.names
    assert [desk.round(a, b) for _ in range(2)] == [1, 2]
    assert "The community is closed: devices go back to it, and no round follows." in said(desk, "rollback", "1")
    done = told(desk, "rollback", "0")
    assert (done["phase"], done["next_round"]) == ("closed", None)
    desk.close()


def test_credentials_of_the_broker_are_not_printed(tmp_path: Path) -> None:
    home = ("--home", str(tmp_path / "hub"))
    broker = "mqtt://hub:hunter2@127.0.0.1:1883,wss://hub:hunter3@broker.example/mqtt?token=hunter4"
    made = CliRunner().invoke(hub, ["init", *home, "--broker", broker, "--json"], catch_exceptions=False)
    assert json.loads(made.output)["broker"] == "mqtt://127.0.0.1:1883,wss://broker.example/mqtt"
    given = CliRunner().invoke(hub, ["invite", *home, "--json"], catch_exceptions=False)
    assert json.loads(given.output)["broker"] == "mqtt://127.0.0.1:1883,wss://broker.example/mqtt"
    assert "hunter" not in made.output + given.output


def test_a_draw_in_asynchronous_mode_is_refused(tmp_path: Path) -> None:
    words = ["init", "--home", str(tmp_path / "hub"), "--mode", "asynchronous", "--wanted", "3"]
    with pytest.raises(SettingsError, match="wanted"):
        CliRunner().invoke(hub, words, catch_exceptions=False)
    assert not (tmp_path / "hub").exists()


def test_closed_community_is_said_to_be_closed_also_after_going_back(tmp_path: Path) -> None:
    desk = make_desk(tmp_path / "hub", last_round=1)
    assert desk.round(*desk.names[:2]) == 1
    assert "round 1: closed, it was the last; release 1 stands" in said(desk, "status")
    text = said(desk, "rollback", "0")
    assert "no round follows" in text
    assert "next one starts" not in text
    assert "release 0 stands" in said(desk, "status")
    desk.close()


def test_invites_are_listed_and_taken_back(desk: Desk) -> None:
    made = told(desk, "invite", "--uses", "3", "--group", "pis")
    assert parse_invite(made["invite"]).invite.hex() == made["id"]
    listed = told(desk, "invites")[-1]
    assert (listed["state"], listed["used"], listed["uses"], listed["group"]) == ("open", 0, 3, "pis")
    text = said(desk, "invite", "revoke", made["id"][:6])
    assert "0 of 3 uses" in text
    assert told(desk, "invites")[-1]["state"] == "taken-back"
    assert "taken-back" in said(desk, "invites")
    with pytest.raises(StateError, match="no invite begins"):
        said(desk, "invite", "revoke", "ffff-nothing")


def test_invite_is_one_line_on_standard_output_without_a_terminal(desk: Desk) -> None:
    done = CliRunner().invoke(hub, ["invite", "--home", str(desk.home.root)], catch_exceptions=False)
    (line,) = done.stdout.splitlines()
    assert parse_invite(line)
    assert "Pass it on privately" in done.stderr
    assert "\N{FULL BLOCK}" not in done.output


def test_qr_code_of_an_invite_fits_a_terminal_of_80_columns(desk: Desk) -> None:
    long_broker = "mqtts://devices:a-long-password-of-theirs@broker.example.org:8883"
    line = replace(make_invite(desk.home, uses=1, expires_seconds=60), broker=long_broker, broker_password="p" * 43)
    width, _ = segno.make(line.encode(), error="l", micro=False).symbol_size(border=QR_BORDER)
    assert width <= 80


def test_stewards_see_who_waits_and_decide(desk: Desk) -> None:
    waits = Identity.generate().public
    desk.store.add_invite("a", bytes(32), uses=1, expires=2**40)
    desk.store.admit(waits, nickname="new", invite="a", now=5, approval=True)
    assert told(desk, "admission") == {"admission": "automatic"}
    assert told(desk, "admission", "approval") == {"admission": "approval"}
    assert told(desk, "members")["devices"][0]["standing"] == "pending"
    text = said(desk, "members")
    assert "bramble hub approve" in text
    assert waits.id[:10] in text
    assert "1 more wait for approval" in said(desk, "status")
    assert "is a member now" in said(desk, "approve", waits.id[:8])
    text = said(desk, "revoke", waits.id[:8], "--reason", "it was stolen")
    assert "no release from now on is sealed for it" in text
    assert "it was stolen" in said(desk, "members")
    assert f"did revoke {waits.id[:10]} new (it was stolen)" in said(desk, "status")
    with pytest.raises(StateError, match="is revoked"):
        said(desk, "approve", waits.id)
