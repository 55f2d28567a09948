"""The governor's rules in their order: what each looks at, what it forbids, and how it says so to an owner.

The first rule that holds gives the reason that is shown. Whoever reads it sits in front of the machine, so that the
owner is here is the least news of all and comes last; first come the rules that only a person or the calendar can end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from agent.device.latch import Signal
from agent.device.readings import Readings
from agent.hours import WeekHours
from agent.thresholds import GovernorSettings, Switch, Threshold


class Effect(StrEnum):
    """What a rule that holds forbids."""

    PAUSE = "pause"
    """Training: the worker is stopped and stays in memory."""
    LEAVE = "leave"
    """Training, and keeping its memory: the worker keeps a checkpoint and ends."""
    TRANSFERS = "transfers"
    """Sending updates and fetching adapters, but not training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule, with its thresholds filled in.

    Attributes:
        code: its name in the settings, and for programs.
        effect: what it forbids.
        switch: its times.
        reading: the reading that it looks at; empty for the clock.
        judge: what readings mean to it at a time of the local clock.
        bad: what is so while it is bad, for a person.
        resume: when that ends, for a person; goes after "training resumes".
        well: what is so once it is well again and only the minimum time runs.
    """

    code: str
    effect: Effect
    switch: Switch
    reading: str
    judge: Callable[[Readings, datetime], Signal]
    bad: Callable[[Readings], str]
    resume: Callable[[datetime], str]
    well: Callable[[Readings], str]

    @property
    def stop_after(self) -> float:
        """How long it must be bad before it holds, seconds."""
        return self.switch.stop_after if isinstance(self.switch, Threshold) else 0.0

    def signal(self, readings: Readings, wall: datetime) -> Signal:
        """Say what readings mean to it."""
        if self.reading and getattr(readings, self.reading) is None:
            return Signal.ABSENT if self.reading in readings.absent else Signal.UNKNOWN
        return self.judge(readings, wall)


def rules_of(settings: GovernorSettings) -> tuple[Rule, ...]:
    """Give the rules that are switched on, in the order in which their reasons are shown."""
    s = settings
    rules = (
        _level(
            "disk",
            s.disk,
            "disk_free_mb",
            lambda r: f"{_mb(r.disk_free_mb)} free on the disk",
            resume=f"with {_mb(s.disk.resume)} free",
        ),
        _disk_limit(s.limits.disk_mb),
        _hours(s),
        _flag("battery", s.battery, "on_battery", _on_battery, resume="on mains", well="on mains again"),
        _level(
            "charge",
            s.charge,
            "charge_percent",
            lambda r: f"battery at {_number(r.charge_percent)} %",
            resume=f"at {s.charge.resume:g} %",
        ),
        _flag(
            "undervoltage",
            s.undervoltage,
            "undervoltage",
            lambda _: "the power supply is too weak",
            resume="when the voltage is right; a stronger supply or cable helps",
            well="the voltage is right again",
        ),
        _flag(
            "throttled",
            s.throttled,
            "throttled",
            lambda _: "the processor holds itself back",
            resume="at full speed; cooling or a stronger supply helps",
            well="the processor is at full speed again",
        ),
        _level(
            "temperature",
            s.temperature,
            "temperature_c",
            lambda r: (
                f"the processor is at {_number(r.temperature_c)} °C"
                + (f" ({r.temperature_zone})" if r.temperature_zone else "")
            ),
            resume=f"at {s.temperature.resume:g} °C",
        ),
        _level(
            "pressure",
            s.pressure,
            "memory_pressure_percent",
            lambda r: f"programs wait for memory {_number(r.memory_pressure_percent)} % of the time",
            resume=f"at {s.pressure.resume:g} %",
            effect=Effect.LEAVE,
        ),
        _level(
            "memory",
            s.memory,
            "memory_available_percent",
            lambda r: f"{_number(r.memory_available_percent)} % of the memory is left",
            resume=f"with {s.memory.resume:g} % left",
            effect=Effect.LEAVE,
        ),
        _level(
            "busy",
            s.busy,
            "others_cpu_percent",
            lambda r: f"other programs use {_number(r.others_cpu_percent)} % of the processor",
            resume=f"at {s.busy.resume:g} %",
        ),
        _flag(
            "metered",
            s.metered,
            "metered",
            lambda _: "the network is metered",
            resume="on another network",
            well="the network is not metered any more",
            effect=Effect.PAUSE if s.metered.forbids == "training" else Effect.TRANSFERS,
        ),
        _bytes_limit(s.limits.bytes_a_day),
        _level(
            "owner",
            s.owner,
            "idle_seconds",
            lambda _: "you are using this machine",
            resume=f"{spoken(s.owner.resume + s.owner.resume_after)} after your last input",
            well=lambda _: "you are away",
        ),
    )
    return tuple(rule for rule in rules if rule is not None and rule.switch.enabled)


def spoken(seconds: float) -> str:
    """Say a duration as people do, rounded up."""
    whole = int(seconds) + (seconds > int(seconds))
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 10:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{-(-whole // 60)} min" if whole < 2 * 3600 else f"{seconds / 3600:.1f} h"


def _level(
    code: str,
    threshold: Threshold,
    reading: str,
    now: Callable[[Readings], str],
    *,
    resume: str,
    well: Callable[[Readings], str] | None = None,
    effect: Effect = Effect.PAUSE,
) -> Rule:
    """Make a rule about a number."""

    def judge(readings: Readings, _wall: datetime) -> Signal:
        return judge_level(threshold, getattr(readings, reading))

    return Rule(
        code=code,
        effect=effect,
        switch=threshold,
        reading=reading,
        judge=judge,
        bad=now,
        resume=lambda _: resume,
        well=well or now,
    )


def judge_level(threshold: Threshold, value: float) -> Signal:
    """Say on which side of its levels a number is; a number at a level counts as beyond it."""
    sign = 1 if threshold.rising else -1
    if sign * value >= sign * threshold.stop:
        return Signal.STOP
    return Signal.WELL if sign * value <= sign * threshold.resume else Signal.BETWEEN


def _flag(
    code: str,
    switch: Switch,
    reading: str,
    bad: Callable[[Readings], str],
    *,
    resume: str,
    well: str,
    effect: Effect = Effect.PAUSE,
) -> Rule:
    """Make a rule about something that is so or is not."""

    def judge(readings: Readings, _wall: datetime) -> Signal:
        return Signal.STOP if getattr(readings, reading) else Signal.WELL

    return Rule(
        code=code,
        effect=effect,
        switch=switch,
        reading=reading,
        judge=judge,
        bad=bad,
        resume=lambda _: resume,
        well=lambda _: well,
    )


def _hours(settings: GovernorSettings) -> Rule | None:
    """Make the rule of the calendar; none where training may always run."""
    week = settings.hours.week
    if not week.edges:
        return None
    return Rule(
        code="hours",
        effect=Effect.PAUSE,
        switch=settings.hours,
        reading="",
        judge=lambda _, wall: Signal.WELL if week.at(wall).open else Signal.STOP,
        bad=lambda _: "outside the hours for training",
        resume=lambda wall: _opening(week, wall),
        well=lambda _: "the hours for training have begun",
    )


def _disk_limit(limit: float | None) -> Rule | None:
    """Make the rule about Bramble's own space; it lets go a twentieth below its limit."""
    if limit is None:
        return None
    threshold = _Limit(stop=limit, resume=0.95 * limit)
    return _level(
        "disk-limit",
        threshold,
        "disk_used_mb",
        lambda r: f"Bramble takes {_mb(r.disk_used_mb)} of the {_mb(limit)} that it may",
        resume=f"at {_mb(threshold.resume)}; `bramble model remove` makes room",
    )


def _bytes_limit(limit: int | None) -> Rule | None:
    """Make the rule about the bytes of a day, which go back to none at midnight."""
    if limit is None:
        return None
    return _level(
        "bytes-a-day",
        _Limit(stop=limit, resume=limit - 1),
        "bytes_today",
        lambda r: f"{(r.bytes_today or 0) / 1e6:,.1f} of {limit / 1e6:,.1f} MB a day have travelled",
        resume="after midnight",
        effect=Effect.TRANSFERS,
    )


class _Limit(Threshold):
    """A threshold that follows from a limit."""


def _on_battery(readings: Readings) -> str:
    charge = readings.charge_percent
    return "on battery" if charge is None else f"on battery, {_number(charge)} %"


def _opening(week: WeekHours, wall: datetime) -> str:
    until = week.at(wall).until
    assert until is not None
    return f"at {until:%H:%M}" if until.date() == wall.date() else f"on {until:%A at %H:%M}"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}"


def _mb(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value / 1000:.1f} GB" if value >= 1000 else f"{value:.0f} MB"
