"""Which profile fits a machine, and why: pure, from what is known of the machine to a winner with every rule's reason.

Every rule of a profile must hold for it to fit. Of those that fit, the one whose rules tell most wins; of two that tell
as much, the one that extends the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.device.hardware import Hardware
from agent.device.profile import MatchRules, Profile
from agent.errors import SettingsError

_WEIGHTS = {"compatible": 32, "board": 16, "product": 8, "cpu_model": 8, "gpus": 4, "vendor": 4, "chassis": 2}
"""How much a rule tells; those that are not here tell 1, but for features: 2."""
_FEATURES_WEIGHT = 2


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a profile, held against a machine.

    Attributes:
        name: of the rule.
        held: whether it holds.
        reason: a sentence for a person, which is true either way.
    """

    name: str
    held: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """One profile, held against a machine.

    Attributes:
        profile: that one.
        rules: each of its rules.
        score: how much its rules tell.
        depth: how many profiles it is built on.
    """

    profile: Profile
    rules: tuple[Rule, ...]
    score: int
    depth: int

    @property
    def fits(self) -> bool:
        """Whether every rule holds."""
        return all(rule.held for rule in self.rules)


@dataclass(frozen=True, slots=True)
class Recognised:
    """Which profile fits a machine, and why.

    Attributes:
        profile: the one that fits best.
        reasons: phrases for a person, one for each of its rules.
        verdicts: every profile, the winner first, then those that fit too, then the rest, the most telling first.
    """

    profile: Profile
    reasons: tuple[str, ...]
    verdicts: tuple[Verdict, ...]


def recognise(hardware: Hardware, profiles: Sequence[Profile]) -> Recognised:
    """Give the profile that fits a machine best, and why.

    Raises:
        SettingsError: none fits; the generic one fits everything.
    """
    verdicts = sorted(
        (judge(profile, hardware, profiles) for profile in profiles),
        key=lambda verdict: (not verdict.fits, -verdict.score, -verdict.depth, verdict.profile.name),
    )
    if not verdicts or not verdicts[0].fits:
        raise SettingsError("no profile fits this machine", advice="Keep the generic profile, which fits all.")
    best = verdicts[0]
    reasons = tuple(rule.reason for rule in best.rules) or ("no more specific profile fits",)
    return Recognised(profile=best.profile, reasons=reasons, verdicts=tuple(verdicts))


def judge(profile: Profile, hardware: Hardware, profiles: Sequence[Profile]) -> Verdict:
    """Hold one profile against a machine; ``profiles`` are those that it may be built on."""
    rules = tuple(hold(profile.match, hardware))
    return Verdict(profile=profile, rules=rules, score=sum(map(_weight, rules)), depth=_depth(profile, profiles))


def hold(match: MatchRules, hardware: Hardware) -> list[Rule]:
    """Hold every rule that is given against a machine."""
    return [
        rule
        for rule in (
            _one_of("system", match.system, hardware.system, "the system is {}"),
            _one_of("machine", match.machine, hardware.machine, "the instruction set is {}"),
            _compatible(match, hardware),
            _contains("board", match.board, hardware.board, "the device tree says “{}”"),
            _contains("vendor", match.vendor, hardware.vendor, "the maker is “{}”"),
            _contains("product", match.product, hardware.product, "the machine calls itself “{}”"),
            _contains("cpu_model", match.cpu_model, hardware.cpu_model, "the processor is “{}”"),
            _one_of("chassis", match.chassis, hardware.chassis.replace("unknown", ""), "the chassis is that of a {}"),
            _gpus(match, hardware),
            _features(match, hardware),
            _memory(match, hardware),
        )
        if rule is not None
    ]


def _weight(rule: Rule) -> int:
    return _FEATURES_WEIGHT if rule.name == "features" else _WEIGHTS.get(rule.name, 1)


def _depth(profile: Profile, profiles: Sequence[Profile]) -> int:
    """Count the profiles that this one is built on; one that stands in the place of its own namesake counts it once."""
    known = {other.name: other for other in profiles}
    seen = [profile.name]
    while profile.extends is not None:
        if profile.extends in seen:
            return len(seen)
        seen.append(profile.extends)
        if profile.extends not in known:
            break
        profile = known[profile.extends]
    return len(seen) - 1


def _one_of(name: str, wanted: Sequence[str], value: str, words: str) -> Rule | None:
    return _rule(name, wanted, value, words, lambda part: part == value)


def _contains(name: str, wanted: Sequence[str], value: str, words: str) -> Rule | None:
    return _rule(name, wanted, value, words, lambda part: part.casefold() in value.casefold())


def _rule(name: str, wanted: Sequence[str], value: str, words: str, holds: Callable[[str], bool]) -> Rule | None:
    if not wanted:
        return None
    seen = words.format(value) if value else f"nothing says the {name.replace('_', ' ')}"
    if any(map(holds, wanted)):
        return Rule(name, held=True, reason=seen)
    return Rule(name, held=False, reason=f"{seen}; wanted: {_listed(wanted)}")


def _compatible(match: MatchRules, hardware: Hardware) -> Rule | None:
    if not match.compatible:
        return None
    found = [entry for entry in hardware.compatible if any(part in entry for part in match.compatible)]
    if found:
        return Rule("compatible", held=True, reason=f"the device tree is compatible with {found[0]}")
    said = ", ".join(hardware.compatible)
    seen = f"the device tree is compatible with {said}" if said else "there is no device tree"
    return Rule("compatible", held=False, reason=f"{seen}; wanted: {_listed(match.compatible)}")


def _gpus(match: MatchRules, hardware: Hardware) -> Rule | None:
    if not match.gpus:
        return None
    found = [maker for maker in match.gpus if maker in hardware.gpus]
    if found:
        return Rule("gpus", held=True, reason=f"there is a graphics processor by {found[0]}")
    makers = ", ".join(hardware.gpus)
    seen = f"the graphics processor is by {makers}" if makers else "no graphics processor is seen"
    return Rule("gpus", held=False, reason=f"{seen}; wanted: {_listed(match.gpus)}")


def _features(match: MatchRules, hardware: Hardware) -> Rule | None:
    if not match.features:
        return None
    missing = [feature for feature in match.features if feature not in hardware.features]
    if missing:
        return Rule("features", held=False, reason=f"the processor lacks {', '.join(missing)}")
    return Rule("features", held=True, reason=f"the processor has {', '.join(match.features)}")


def _memory(match: MatchRules, hardware: Hardware) -> Rule | None:
    low, high, memory = match.memory_mb_min, match.memory_mb_max, hardware.memory_mb
    if low is None and high is None:
        return None
    there = f"there are {memory:,} MiB of memory"
    if low is not None and memory < low:
        return Rule("memory", held=False, reason=f"{there}; wanted: {low:,} or more")
    if high is not None and memory > high:
        return Rule("memory", held=False, reason=f"{there}; wanted: {high:,} or fewer")
    return Rule("memory", held=True, reason=there)


def _listed(values: Sequence[str]) -> str:
    return " or ".join(values)
