from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import SettingsError
from agent.settings import load_settings, mqtt_protocol


def test_the_command_line_wins_over_the_owners_file_and_that_over_the_profile(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("threads = 2\nrank = 4\n")
    found = load_settings(path, over={"threads": 1, "nickname": "pi"}, command_line={"rank": 2, "compute": None})
    assert (found.threads, found.rank, found.nickname, found.compute) == (2, 2, "pi", "auto")


@pytest.mark.parametrize(
    ("text", "named"), [("thread = 2", "thread"), ("threads = 0", "threads"), ('compute = "fast"', "compute")]
)
def test_a_setting_that_cannot_be_used_is_named_with_its_file(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    assert named in str(caught.value)
    assert str(path) in str(caught.value)
    assert "threads" in caught.value.advice


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("threads = = 2")
    with pytest.raises(SettingsError, match="not valid TOML"):
        load_settings(path)


def test_an_unknown_mqtt_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAMBLE_MQTT_PROTOCOL", "3.1.1")
    assert mqtt_protocol() == 4
    monkeypatch.setenv("BRAMBLE_MQTT_PROTOCOL", "6")
    with pytest.raises(SettingsError, match="'6'"):
        mqtt_protocol()
