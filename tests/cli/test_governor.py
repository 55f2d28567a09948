from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agent.cli.governor import governor
from agent.errors import SettingsError

LINES = [
    {"at": "2026-03-02T08:00:00", "on_battery": False, "idle_seconds": 900},
    {"at": "2026-03-02T08:01:00", "on_battery": True, "charge_percent": 61, "idle_seconds": 960},
    {"at": "2026-03-02T08:05:00", "on_battery": True, "charge_percent": 58, "idle_seconds": 1200},
]


def run(*arguments: object) -> str:
    result = CliRunner().invoke(governor, [str(word) for word in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    path = tmp_path / "tape.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)))
    return path


def test_a_replay_prints_each_stretch_with_its_reason_and_draws_it(tape: Path, tmp_path: Path) -> None:
    shown = run("replay", tape, "--home", tmp_path / "none", "--plot", tmp_path / "tape.png")
    assert "Mon 02 Mar 08:01:00   4 minutes  waiting: on battery, 61 %; training resumes on mains" in shown
    assert "run           20.0 %" in shown
    assert "temperature_c was not known 100 % of the time" in shown
    assert (tmp_path / "tape.png").stat().st_size > 1000


def test_a_replay_follows_the_settings_of_the_device(tape: Path, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text("[governor.battery]\nenabled = false\n")
    found: dict[str, Any] = json.loads(run("replay", tape, "--home", tmp_path, "--json"))
    assert found["seconds_by_action"] == {"run": 300}
    (tmp_path / "settings.toml").write_text("[governor.charge]\nresume = 110\n")
    with pytest.raises(SettingsError, match="110 %"):
        run("replay", tape, "--home", tmp_path)


def test_explain_shows_every_rule_and_every_sensor_of_this_machine(tmp_path: Path) -> None:
    shown = run("explain", "--home", tmp_path)
    for word in ("owner", "battery", "metered", "others-cpu", "disk_free_mb", "forbids nothing"):
        assert word in shown
    found: dict[str, Any] = json.loads(run("explain", "--home", tmp_path, "--json"))
    assert found["decision"]["action"] in {"run", "pause", "leave"}
    assert found["readings"]["others_cpu_percent"] is not None
    assert {rule["code"] for rule in found["rules"]} >= {"owner", "busy", "disk"}


def test_what_is_recorded_can_be_replayed(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    run("record", path, "--home", tmp_path, "--every", "0.2", "--for", "0.5")
    run("record", path, "--home", tmp_path, "--every", "1", "--for", "0.5")
    assert len(path.read_text().splitlines()) >= 2  # one of each run at least
    assert "disk_free_mb" in path.read_text()
    assert "Training began or went on" in run("replay", path, "--home", tmp_path)
