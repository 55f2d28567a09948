"""Profiles: what each kind of machine should spend on training, and how it is recognised.

A profile is a TOML file in ``firmware_profiles/``, checked by the schema below. Every rule that it names must hold for
it to fit; of those that fit, the one with the most telling rules wins. Owners and communities add folders of their own,
whose profiles take the place of built-in ones of the same name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.device.hardware import Hardware
from agent.errors import SettingsError

GENERIC = "generic"
_PACKAGED = Path(__file__).parent / "firmware_profiles"
_CHECKOUT = Path(__file__).parents[2] / "firmware_profiles"
_WEIGHTS = {"board": 16, "product": 8, "cpu_model": 8, "vendor": 4, "chassis": 2, "features": 2}


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class MatchRules(_Table):
    """How a machine is recognised. A rule that is not given holds for all.

    Attributes:
        system: one of these systems.
        machine: one of these instruction sets.
        board: the device tree's model contains one of these.
        vendor: the maker's name contains one of these.
        product: the machine's name contains one of these.
        cpu_model: the processor's name contains one of these.
        chassis: one of these kinds.
        features: all of these instruction sets.
        memory_mb_min: at least so much memory.
        memory_mb_max: at most so much memory.
    """

    system: list[str] = []
    machine: list[str] = []
    board: list[str] = []
    vendor: list[str] = []
    product: list[str] = []
    cpu_model: list[str] = []
    chassis: list[str] = []
    features: list[str] = []
    memory_mb_min: int | None = Field(default=None, ge=0)
    memory_mb_max: int | None = Field(default=None, ge=0)


class TrainingLimits(_Table):
    """What training may spend and how large its steps are.

    Attributes:
        cores: ``physical``, ``logical``, or a number; never more than the process may use.
        spare_cores: how many of them stay free for the owner; one is always used.
        memory_share: share of the memory that training may take.
        nice: niceness of the worker.
        rank: rank of the device's adapter; never above the charter's.
        window: tokens of a window.
        batch: windows of a step.
    """

    cores: Literal["physical", "logical"] | int = "physical"
    spare_cores: int = Field(default=0, ge=0)
    memory_share: float = Field(default=0.5, gt=0, le=0.9)
    nice: int = Field(default=19, ge=0, le=19)
    rank: int = Field(default=8, ge=1, le=256)
    window: int = Field(default=256, ge=16, le=8192)
    batch: int = Field(default=4, ge=1, le=64)

    def threads_for(self, hardware: Hardware) -> int:
        """Give how many threads training uses on this machine."""
        counts = {"physical": hardware.physical_cores, "logical": hardware.logical_cores}
        wanted = self.cores if isinstance(self.cores, int) else counts[self.cores]
        return max(1, min(wanted, hardware.usable_cores) - self.spare_cores)


class RuntimeLimits(_Table):
    """How llama.cpp runs the model for its owner.

    Attributes:
        context: tokens of context.
        batch: tokens evaluated at once.
    """

    context: int = Field(default=2048, ge=128)
    batch: int = Field(default=256, ge=1)


class Profile(_Table):
    """One kind of machine.

    Attributes:
        name: the file's name without its suffix.
        title: what people call the machine.
        match: how it is recognised.
        training: what training may spend.
        runtime: how the model is run.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    title: str = Field(min_length=1, max_length=100)
    match: MatchRules = MatchRules()
    training: TrainingLimits = TrainingLimits()
    runtime: RuntimeLimits = RuntimeLimits()

    def budget_for(self, hardware: Hardware) -> Budget:
        """Give what training may spend on this machine."""
        return Budget(
            threads=self.training.threads_for(hardware),
            nice=self.training.nice,
            memory_mb=int(hardware.memory_mb * self.training.memory_share),
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """What a worker may spend.

    Attributes:
        threads: threads it computes with.
        nice: its niceness.
        memory_mb: resident memory, MiB.
    """

    threads: int
    nice: int
    memory_mb: int


@dataclass(frozen=True, slots=True)
class Recognised:
    """Which profile fits a machine, and why.

    Attributes:
        profile: the one that fits best.
        reasons: phrases for a person, one for each rule that held.
    """

    profile: Profile
    reasons: tuple[str, ...]


def load_profiles(*, extra: Sequence[Path] = ()) -> tuple[Profile, ...]:
    """Give all profiles, sorted by name: the built-in ones, and those of further folders.

    Args:
        extra: folders whose profiles replace those of the same name that came before.

    Raises:
        SettingsError: a profile does not fit the schema, or there are none.
    """
    found: dict[str, Profile] = {}
    for folder in (_PACKAGED if _PACKAGED.is_dir() else _CHECKOUT, *extra):
        for path in sorted(folder.glob("*.toml")):
            profile = read_profile(path)
            found[profile.name] = profile
    if GENERIC not in found:
        raise SettingsError(
            f"the profile {GENERIC} is missing from {_CHECKOUT}", advice="Reinstall Bramble; its files are incomplete."
        )
    return tuple(found[name] for name in sorted(found))


def read_profile(path: Path) -> Profile:
    """Read one profile.

    Raises:
        SettingsError: it cannot be read or does not fit the schema.
    """
    advice = f"Correct {path}; the other profiles show what one may say."
    try:
        profile = Profile.model_validate(tomllib.loads(path.read_text("utf-8")))
    except ValidationError as cause:
        first = cause.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise SettingsError(f"profile {path.name}: {where}: {first['msg']}", advice=advice) from cause
    except (OSError, ValueError, RecursionError) as cause:
        raise SettingsError(f"profile {path.name} cannot be read: {cause}", advice=advice) from cause
    if profile.name != path.stem:
        raise SettingsError(f"profile {path.name} calls itself {profile.name}", advice=advice)
    return profile


def recognise(hardware: Hardware, profiles: Sequence[Profile]) -> Recognised:
    """Give the profile that fits a machine best, and why.

    Raises:
        SettingsError: none fits; the generic one fits everything.
    """
    best: tuple[int, Recognised] | None = None
    for profile in sorted(profiles, key=lambda profile: profile.name):
        held = fit(profile.match, hardware)
        if held is None:
            continue
        score = sum(_WEIGHTS.get(rule, 1) for rule in held)
        if best is None or score > best[0]:
            best = (score, Recognised(profile=profile, reasons=tuple(held.values())))
    if best is None:
        raise SettingsError("no profile fits this machine", advice="Keep the generic profile, which fits all.")
    found = best[1]
    return found if found.reasons else Recognised(profile=found.profile, reasons=("no more specific profile fits",))


def fit(rules: MatchRules, hardware: Hardware) -> dict[str, str] | None:
    """Give the reason for each rule by its name, or None where one does not hold."""
    memory = hardware.memory_mb
    low, high = rules.memory_mb_min, rules.memory_mb_max
    checks = (
        _one_of("system", rules.system, hardware.system, "the system is {}"),
        _one_of("machine", rules.machine, hardware.machine, "the instruction set is {}"),
        _one_of("chassis", rules.chassis, hardware.chassis, "the chassis is that of a {}"),
        _contains("board", rules.board, hardware.board, "the device tree says “{}”"),
        _contains("vendor", rules.vendor, hardware.vendor, "the maker is “{}”"),
        _contains("product", rules.product, hardware.product, "the machine calls itself “{}”"),
        _contains("cpu_model", rules.cpu_model, hardware.cpu_model, "the processor is “{}”"),
        _Check(
            rule="features",
            given=bool(rules.features),
            holds=hardware.features.issuperset(rules.features),
            reason=f"the processor has {', '.join(rules.features)}",
        ),
        _Check(
            rule="memory",
            given=low is not None or high is not None,
            holds=(low or 0) <= memory and (high is None or memory <= high),
            reason=f"there are {memory:,} MiB of memory",
        ),
    )
    given = [check for check in checks if check.given]
    return {check.rule: check.reason for check in given} if all(check.holds for check in given) else None


@dataclass(frozen=True, slots=True)
class _Check:
    """One rule held against a machine."""

    rule: str
    given: bool
    holds: bool
    reason: str


def _one_of(rule: str, wanted: Sequence[str], value: str, words: str) -> _Check:
    return _Check(rule=rule, given=bool(wanted), holds=value in wanted, reason=words.format(value))


def _contains(rule: str, wanted: Sequence[str], value: str, words: str) -> _Check:
    holds = any(part.casefold() in value.casefold() for part in wanted)
    return _Check(rule=rule, given=bool(wanted), holds=holds, reason=words.format(value))
