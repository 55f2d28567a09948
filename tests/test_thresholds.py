from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from agent.errors import SettingsError
from agent.settings import load_settings
from agent.thresholds import GovernorSettings

CONTRADICTIONS = {
    "[governor.temperature]\nresume = 90": "resume (90 °C) is not below stop (85 °C)",
    "[governor.owner]\nstop = 300": "resume (180 s) is not above stop (300 s)",
    "[governor.busy]\nstop = 20\nresume = 20": "resume (20 %) is not below stop (20 %)",
    "[governor.charge]\nstop = 80\nresume = 120": "resume (120 %) is above 100 %",
    "[governor.hours]\nopen = ['mon 10:00-12:00']\nquiet = ['mon 09:00-17:00']": "no minute of the week is left",
    "[governor.hours]\nopen = ['09:00-09:10']\nresume_after = 900": "(10 min) are over before resume_after (900 s)",
    "[governor.hours]\nopen = ['9-17']": "'9-17' are no hours",
    "[governor.limits]\nbytes_a_day = 0": "bytes_a_day (0) is less than one update takes",
}


@pytest.mark.parametrize(("text", "named"), CONTRADICTIONS.items())
def test_a_contradiction_is_refused_and_named_with_the_table_that_holds_it(
    tmp_path: Path, text: str, named: str
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    assert named in caught.value.message
    assert text[1 : text.index("]")] in caught.value.message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[governor.temprature]\nstop = 80", "governor.temprature"),
        ("[governor.owner]\nresume_after = 0", "governor.owner.resume_after"),
        ("[governor.busy]\nstop = nan", "governor.busy.stop"),
        ("[governor.limits]\ncpu_percent = 0", "governor.limits.cpu_percent"),
    ],
)
def test_what_no_rule_can_use_is_refused_by_its_full_name(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=named.replace(".", r"\.")):
        load_settings(path)


def test_the_owner_changes_one_level_and_keeps_the_profiles_others(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[governor.temperature]\nstop = 75\n")
    profile = {"governor": {"temperature": {"stop": 80, "resume": 65, "zones": ["cpu*"]}, "leave_after": 60}}
    found = load_settings(path, over=profile).governor
    assert (found.temperature.stop, found.temperature.resume, found.temperature.zones) == (75, 65, ["cpu*"])
    assert found.leave_after == 60
    assert found.owner == GovernorSettings().owner


def test_one_value_of_a_table_leaves_the_defaults_of_its_others() -> None:
    found = GovernorSettings.model_validate(tomllib.loads("[undervoltage]\nenabled = false\n"))
    assert found.undervoltage.resume_after == GovernorSettings().undervoltage.resume_after == 300
