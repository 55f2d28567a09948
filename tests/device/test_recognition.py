from __future__ import annotations

from typing import Any

import pytest

from agent.device.hardware import Hardware
from agent.device.profile import Profile
from agent.device.profile_files import load_profiles
from agent.device.recognition import recognise
from agent.errors import SettingsError

PI = Hardware(
    system="linux",
    machine="aarch64",
    board="Raspberry Pi 5 Model B Rev 1.0",
    compatible=("raspberrypi,5-model-b", "brcm,bcm2712"),
    features=frozenset({"asimd", "asimddp"}),
    memory_bytes=8 << 30,
)


def profile(name: str, **tables: Any) -> Profile:
    return Profile.model_validate({"name": name, "title": name, **tables})


def test_the_reasons_say_what_was_seen() -> None:
    assert recognise(PI, load_profiles()).reasons == (
        "the instruction set is aarch64",
        "the device tree says “Raspberry Pi 5 Model B Rev 1.0”",
    )


def test_every_profile_is_heard_and_says_which_rule_did_not_hold() -> None:
    verdicts = recognise(PI, load_profiles()).verdicts
    assert {verdict.profile.name for verdict in verdicts} == {known.name for known in load_profiles()}
    assert [verdict.profile.name for verdict in verdicts if verdict.fits] == [
        "raspberry-pi-5",
        "generic-arm64",
        "generic",
    ]
    jetson = next(verdict for verdict in verdicts if verdict.profile.name == "jetson-orin")
    assert [(rule.name, rule.held) for rule in jetson.rules] == [("machine", True), ("compatible", False)]
    assert jetson.rules[1].reason == (
        "the device tree is compatible with raspberrypi,5-model-b, brcm,bcm2712; wanted: nvidia,tegra234"
    )


@pytest.mark.parametrize(
    ("match", "hardware", "reason"),
    [
        (
            {"compatible": ["p3767"]},
            PI,
            "the device tree is compatible with raspberrypi,5-model-b, brcm,bcm2712; wanted: p3767",
        ),
        ({"compatible": ["p3767"]}, Hardware("linux", "x86_64"), "there is no device tree; wanted: p3767"),
        ({"board": ["Pi 4", "Pi 3"]}, Hardware("linux", "x86_64"), "nothing says the board; wanted: Pi 4 or Pi 3"),
        (
            {"cpu_model": ["EPYC"]},
            Hardware("linux", "x86_64", cpu_model="Xeon"),
            "the processor is “Xeon”; wanted: EPYC",
        ),
        ({"gpus": ["nvidia"]}, Hardware("linux", "x86_64"), "no graphics processor is seen; wanted: nvidia"),
        (
            {"gpus": ["nvidia"]},
            Hardware("linux", "x86_64", gpus=("amd",)),
            "the graphics processor is by amd; wanted: nvidia",
        ),
        ({"features": ["asimd", "sve"]}, PI, "the processor lacks sve"),
        ({"memory_mb_min": 9000}, PI, "there are 8,192 MiB of memory; wanted: 9,000 or more"),
        ({"memory_mb_max": 700}, PI, "there are 8,192 MiB of memory; wanted: 700 or fewer"),
        ({"system": ["darwin"]}, PI, "the system is linux; wanted: darwin"),
        ({"chassis": ["laptop"]}, PI, "nothing says the chassis; wanted: laptop"),
    ],
)
def test_a_rule_that_does_not_hold_says_why(match: dict[str, Any], hardware: Hardware, reason: str) -> None:
    (verdict, *_) = (
        verdict
        for verdict in recognise(hardware, [profile("generic"), profile("x", match=match)]).verdicts
        if verdict.profile.name == "x"
    )
    assert not verdict.fits
    assert [rule.reason for rule in verdict.rules if not rule.held] == [reason]


def test_rules_on_features_and_memory_must_hold() -> None:
    big = profile("big", match={"features": ["avx512_bf16"], "memory_mb_min": 8000})
    there = Hardware(system="linux", machine="x86_64", features=frozenset({"avx512_bf16"}), memory_bytes=16 << 30)
    assert recognise(there, [big]).reasons == ("the processor has avx512_bf16", "there are 16,384 MiB of memory")
    for other in (
        Hardware(system="linux", machine="x86_64", memory_bytes=16 << 30),
        Hardware(system="linux", machine="x86_64", features=there.features, memory_bytes=1 << 30),
    ):
        with pytest.raises(SettingsError, match="no profile"):
            recognise(other, [big])


def test_of_two_that_tell_as_much_the_one_that_is_built_on_the_other_wins() -> None:
    base = profile("raspberry", match={"board": ["Raspberry Pi 5"]})
    mine = profile("my-pi", match={"board": ["Raspberry Pi 5"]}, extends="raspberry")
    older = profile("a-first-by-name", match={"board": ["Raspberry Pi 5"]})
    assert recognise(PI, [base, mine, older]).profile.name == "my-pi"
    assert recognise(PI, [base, older]).profile.name == "a-first-by-name"
    circle = [profile("a", extends="b"), profile("b", extends="a"), profile("c", extends="c")]
    assert {verdict.depth for verdict in recognise(PI, circle).verdicts} == {2, 1}


def test_a_module_s_number_tells_more_than_the_name_of_its_carrier() -> None:
    by_name = profile("by-name", match={"board": ["Raspberry Pi 5"], "features": ["asimd"]})
    by_number = profile("by-number", match={"compatible": ["bcm2712"]})
    assert recognise(PI, [by_name, by_number]).profile.name == "by-number"
