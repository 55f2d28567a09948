from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from agent.device.profile import GENERIC
from agent.device.profile_files import (
    SCHEMA_NAME,
    built_in,
    json_schema,
    load_profiles,
    origin_of,
    read_profile,
    schema_text,
)
from agent.errors import SettingsError

BASE = """
[[bases]]
model = "m"
parameters = "1B"
quantisation = "Q8_0"
memory_mb_min = 1
file_mb = 1
training_mb = 1
"""
WRONG: dict[str, tuple[str, str]] = {
    "an unknown key": ('title = "X"\ncolour = "red"\n', "colour: there is no such key; there are: bases, extends,"),
    "a misspelt key": (
        'title = "X"\n[training]\ncore = 2\n',
        r"training.core: .* \(did you mean cores\?\); there are:",
    ),
    "a word that is none": (
        'title = "X"\n[training]\ncores = "all"\n',
        "training.cores is 'all': input should be 'physical' or 'logical' or input should be a valid integer",
    ),
    "too much": (
        'title = "X"\n[training]\nmemory_share = 2.0\n',
        "training.memory_share is 2.0: input should be less than or equal to 0.9",
    ),
    "text for a number": (
        'title = "X"\n[runtime]\ncontext = "4096"\n',
        "runtime.context is '4096': input should be a valid",
    ),
    "a table for a value": ('title = "X"\n[title2]\n', "title2: there is no such key"),
    "a base without a reason": (
        f'title = "X"\n{BASE}',
        "bases.0.why: it is required",
    ),
    "a base of the wrong kind": (
        f'title = "X"\n{BASE}why = "w"\nmodell = "m"\n',
        r"bases.0.modell: .* \(did you mean model\?\)",
    ),
    "a level that is none": (
        'title = "X"\n[governor.temperature]\nstop = 300\n',
        "governor.temperature.stop is 300: input should be less than or equal to 120",
    ),
    "a rule that is none": (
        'title = "X"\n[governor.temprature]\nstop = 60\n',
        r"governor.temprature: .* \(did you mean temperature\?\)",
    ),
    "no title": ("", "title: it is required"),
    "a shell's trick in an option": ('title = "X"\n[llama]\ncmake = ["-DA=$(id)"]\n', "llama.cmake.0 is"),
    "an index without encryption": ('title = "X"\n[llama]\nwheels = "http://example.org"\n', "llama.wheels is"),
}
CONTRADICTIONS = {
    "levels in the wrong order": (
        'title = "X"\n[governor.temperature]\nstop = 60\nresume = 65\n',
        r"governor.temperature: resume \(65 °C\) is not below stop \(60 °C\)",
    ),
    "more rank than may be": (
        'title = "X"\n[training]\nrank = 16\nmax_rank = 8\n',
        r"rank \(16\) is above max_rank \(8\)",
    ),
    "memory that none has": (
        'title = "X"\n[match]\nmemory_mb_min = 9\nmemory_mb_max = 8\n',
        r"match.*: memory_mb_min \(9\) is above memory_mb_max \(8\)",
    ),
    "a terminal's trick": ('title = "\\u001b[2J"\n', "title is .*cannot be printed"),
}


def write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(f'name = "{name}"\n{text}')
    return path


def fits_the_schema(path: Path) -> bool:
    raw: dict[str, Any] = tomllib.loads(path.read_text())
    return jsonschema.Draft202012Validator(json_schema()).is_valid(raw)


def test_every_built_in_file_fits_the_json_schema_and_is_loaded() -> None:
    files = sorted(built_in().glob("*.toml"))
    assert all(fits_the_schema(path) for path in files)
    assert [profile.name for profile in load_profiles()] == sorted(path.stem for path in files)


def test_the_json_schema_beside_the_profiles_is_that_of_the_code() -> None:
    there = (Path(__file__).parents[2] / "firmware_profiles" / SCHEMA_NAME).read_text()
    assert there == schema_text(), (
        "Write it anew: bramble device profile schema > firmware_profiles/profile.schema.json"
    )
    jsonschema.Draft202012Validator.check_schema(json.loads(there))


@pytest.mark.parametrize(("text", "complaint"), WRONG.values(), ids=WRONG)
def test_a_wrong_profile_is_refused_by_its_key_with_what_is_allowed(text: str, complaint: str, tmp_path: Path) -> None:
    path = write(tmp_path, "x", text)
    with pytest.raises(SettingsError, match=complaint) as caught:
        read_profile(path)
    assert caught.value.message.startswith("profile x.toml: ")
    assert str(path) in caught.value.advice
    assert not fits_the_schema(path)


@pytest.mark.parametrize(("text", "complaint"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_a_profile_that_contradicts_itself_is_refused_with_the_contradiction(
    text: str, complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=complaint):
        read_profile(write(tmp_path, "x", text))


def test_every_wrong_key_is_named_and_no_more_than_five(tmp_path: Path) -> None:
    two = write(tmp_path, "two", 'title = "X"\nfoo = 1\n[training]\nspare_cores = -1\n')
    with pytest.raises(SettingsError, match=r"(?=.*foo: )(?=.*training.spare_cores is -1: )"):
        read_profile(two)
    many = write(tmp_path, "many", 'title = "X"\n' + "".join(f"k{n} = 1\n" for n in range(9)))
    with pytest.raises(SettingsError, match=r"; and 4 more$") as caught:
        read_profile(many)
    assert caught.value.message.count("there is no such key") == 5


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"name = ", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"x = 1 #" + b" " * 300_000, "longer than 262,144 bytes"),
        (b'name = "other"\ntitle = "X"\n', "calls itself other"),
        (b'title = "X"\n', "says no name"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(data: bytes, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(data)
    with pytest.raises(SettingsError, match=complaint):
        read_profile(path)
    with pytest.raises(SettingsError, match=complaint):
        load_profiles(extra=[tmp_path])


def test_a_missing_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_profile(tmp_path / "x.toml")


def test_three_lines_change_one_key_of_another_profile(tmp_path: Path) -> None:
    path = write(tmp_path, "shed", 'extends = "raspberry-pi-5"\ntraining.cores = 2\n')
    known = {profile.name: profile for profile in load_profiles(extra=[tmp_path])}
    shed, pi = known["shed"], known["raspberry-pi-5"]
    changed = pi.training.model_copy(update={"cores": 2})
    assert shed == pi.model_copy(update={"name": "shed", "extends": "raspberry-pi-5", "training": changed})
    assert read_profile(path) == shed
    assert fits_the_schema(path)


def test_lists_are_replaced_as_a_whole_and_tables_key_by_key(tmp_path: Path) -> None:
    found = read_profile(
        write(tmp_path, "x", 'extends = "raspberry-pi-5"\nllama.cmake = ["-DA=B"]\ngovernor.temperature.stop = 70\n')
    )
    assert found.llama.cmake == ["-DA=B"]
    assert found.governor_layer()["temperature"] == {"stop": 70, "resume": 67, "zones": ["cpu-thermal"]}


def test_later_folders_win_and_can_build_on_what_they_replace(tmp_path: Path) -> None:
    site, mine = tmp_path / "site", tmp_path / "mine"
    write(site, "generic", 'title = "Ours"\n[training]\ncores = 2\nspare_cores = 1\n')
    write(mine, "generic", 'extends = "generic"\ntraining.cores = 3\n')
    (generic,) = (p for p in load_profiles(extra=[site, mine]) if p.name == GENERIC)
    assert (generic.title, generic.training.cores, generic.training.spare_cores) == ("Ours", 3, 1)
    assert origin_of(GENERIC, extra=[site, mine]) == mine / "generic.toml"
    assert origin_of("jetson-nano", extra=[site, mine]) == built_in() / "jetson-nano.toml"
    assert load_profiles(extra=[tmp_path / "nowhere"]) == load_profiles()


def test_a_profile_that_builds_on_nothing_or_on_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"no profile 'raspberry-pi-6' \(did you mean raspberry-pi-\d\?\); there are"
    ):
        read_profile(write(tmp_path / "a", "x", 'extends = "raspberry-pi-6"\n'))
    with pytest.raises(SettingsError, match="extends: there is no profile 'x'"):
        read_profile(write(tmp_path / "b", "x", 'extends = "x"\n'))
    write(tmp_path / "c", "x", 'extends = "y"\n')
    write(tmp_path / "c", "y", 'extends = "x"\n')
    with pytest.raises(SettingsError, match=r"it extends itself \(x → y → x\)"):
        load_profiles(extra=[tmp_path / "c"])
