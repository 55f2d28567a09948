"""The `[governor]` table: when training pauses, when it goes on, and what it may spend. Contradictions are refused.

Every rule has a level at which it stops training, another at which training may go on, and the time for which things
must have been well before it does, so that nothing flaps. `docs/governor.md` lists all of them with their reasons.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from agent.hours import MINUTES_A_WEEK, WeekHours

Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
MinimumSeconds = Annotated[float, Field(ge=1, le=86_400, allow_inf_nan=False)]
LEAST_BYTES_A_DAY = 1_000_000


def _contradiction(message: str) -> PydanticCustomError:
    # The message is handed over as a value: braces in it are no fields of a template.
    return PydanticCustomError("contradiction", "{what}", {"what": message})


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Switch(_Table):
    """A rule about something that is so or is not.

    Attributes:
        enabled: whether the rule counts.
        resume_after: how long it must not have been so before training goes on, seconds.
    """

    enabled: bool = True
    resume_after: MinimumSeconds = 60.0


class Threshold(Switch):
    """A rule about a number.

    Attributes:
        stop: where training stops.
        resume: from where on it may go on again.
        stop_after: how long the number must have been there before training stops, seconds.
    """

    unit: ClassVar[str] = ""
    rising: ClassVar[bool] = True
    """Whether it is high numbers that stop training."""

    stop: float
    resume: float
    stop_after: Seconds = 0.0

    @model_validator(mode="after")
    def _levels_are_in_order(self) -> Self:
        stop, resume = f"stop ({self.stop:g} {self.unit})", f"resume ({self.resume:g} {self.unit})"
        if self.rising and self.resume >= self.stop:
            raise _contradiction(f"{resume} is not below {stop}: training would stop and go on at the same level")
        if not self.rising and self.resume <= self.stop:
            raise _contradiction(f"{resume} is not above {stop}: training would stop and go on at the same level")
        return self


class Power(Switch):
    """What the firmware says about the power supply and the processor's speed; the reason seldom goes in a minute."""

    resume_after: MinimumSeconds = 300.0


class Owner(Threshold):
    """Seconds since the owner's last key press or movement of the mouse."""

    unit: ClassVar[str] = "s"
    rising: ClassVar[bool] = False

    stop: float = Field(default=15.0, ge=2, le=3600, allow_inf_nan=False)
    resume: float = Field(default=180.0, ge=2, le=86_400, allow_inf_nan=False)
    resume_after: MinimumSeconds = 10.0


class Charge(Threshold):
    """Charge of the battery, whether it is being charged or not."""

    unit: ClassVar[str] = "%"
    rising: ClassVar[bool] = False

    stop: Percent = 25.0
    resume: float = Field(default=40.0, ge=0, allow_inf_nan=False)
    resume_after: MinimumSeconds = 120.0

    @model_validator(mode="after")
    def _can_be_reached(self) -> Self:
        if self.resume > 100:
            raise _contradiction(f"resume ({self.resume:g} %) is above 100 %: no battery is ever that full")
        return self


class Temperature(Threshold):
    """The hottest of the processor's sensors.

    Attributes:
        zones: names of sensors, with `*` for any letters; none for those that are known to be a processor's.
    """

    unit: ClassVar[str] = "°C"

    stop: float = Field(default=85.0, ge=40, le=120, allow_inf_nan=False)
    resume: float = Field(default=70.0, ge=30, le=120, allow_inf_nan=False)
    resume_after: MinimumSeconds = 120.0
    zones: list[str] = []


class Busy(Threshold):
    """What other programs use of all cores together."""

    unit: ClassVar[str] = "%"

    stop: Percent = 50.0
    resume: Percent = 25.0
    stop_after: Seconds = 10.0


class Pressure(Threshold):
    """Share of the last ten seconds in which some program waited for memory (PSI)."""

    unit: ClassVar[str] = "%"

    stop: Percent = 10.0
    resume: Percent = 2.0
    resume_after: MinimumSeconds = 600.0


class Memory(Threshold):
    """Share of the memory that programs can still have."""

    unit: ClassVar[str] = "%"
    rising: ClassVar[bool] = False

    stop: Percent = 8.0
    resume: Percent = 20.0
    stop_after: Seconds = 5.0
    resume_after: MinimumSeconds = 600.0


class Disk(Threshold):
    """Free space where Bramble keeps its state."""

    unit: ClassVar[str] = "MB"
    rising: ClassVar[bool] = False

    stop: float = Field(default=1000.0, ge=0, allow_inf_nan=False)
    resume: float = Field(default=2000.0, ge=0, allow_inf_nan=False)


class Metered(Switch):
    """A network that costs by the byte.

    Attributes:
        forbids: adapters and updates alone, which wait for another network, or training too.
    """

    forbids: Literal["transfers", "training"] = "transfers"


class Hours(Switch):
    """When training may run.

    Attributes:
        open: intervals of the week, such as `mon-fri 22:00-07:00`; none for always.
        quiet: intervals in which it may not, whatever `open` says.
    """

    open: list[str] = []
    quiet: list[str] = []

    @model_validator(mode="after")
    def _leave_some_time(self) -> Self:
        try:
            week = self.week
        except ValueError as cause:
            raise _contradiction(str(cause)) from cause
        if not week.longest:
            raise _contradiction("quiet covers all hours that are open: no minute of the week is left")
        if week.longest < MINUTES_A_WEEK and week.longest * 60 <= self.resume_after:
            raise _contradiction(
                f"the longest hours ({week.longest} min) are over before resume_after ({self.resume_after:g} s) is:"
                " training would never run"
            )
        return self

    @property
    def week(self) -> WeekHours:
        """The minutes of the week in which training may run."""
        return WeekHours.of(self.open, self.quiet)


class Spending(_Table):
    """What Bramble may spend. Cores and memory are `threads` and `memory_mb`, outside this table.

    Attributes:
        cpu_percent: share of the time of its cores that training may use.
        disk_mb: space that its state may take; none for no limit.
        bytes_a_day: bytes that may travel on a day of the local calendar, both ways; none for no limit.
    """

    cpu_percent: float = Field(default=100.0, ge=5, le=100, allow_inf_nan=False)
    disk_mb: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    bytes_a_day: int | None = None

    @model_validator(mode="after")
    def _lets_an_update_pass(self) -> Self:
        if self.bytes_a_day is not None and self.bytes_a_day < LEAST_BYTES_A_DAY:
            raise _contradiction(
                f"bytes_a_day ({self.bytes_a_day:,}) is less than one update takes: training would never be of use;"
                f" give at least {LEAST_BYTES_A_DAY:,}, or leave it out for no limit"
            )
        return self


class GovernorSettings(_Table):
    """All rules and limits.

    Attributes:
        leave_after: how long a pause lasts before the worker keeps a checkpoint and gives its memory back, seconds.
        owner: the owner uses the machine.
        battery: the machine runs on its battery.
        charge: the battery is low.
        temperature: the processor is hot.
        undervoltage: the power supply is too weak (Raspberry Pi).
        throttled: the processor holds itself back (Raspberry Pi).
        busy: other programs compute.
        pressure: programs wait for memory.
        memory: little memory is left.
        disk: little space is left on the disk.
        metered: the network costs by the byte.
        hours: hours and weekdays.
        limits: what may be spent.
    """

    leave_after: float = Field(default=900.0, ge=10, le=7 * 86_400, allow_inf_nan=False)
    owner: Owner = Owner()
    battery: Switch = Switch()
    charge: Charge = Charge()
    temperature: Temperature = Temperature()
    undervoltage: Power = Power()
    throttled: Power = Power()
    busy: Busy = Busy()
    pressure: Pressure = Pressure()
    memory: Memory = Memory()
    disk: Disk = Disk()
    metered: Metered = Metered()
    hours: Hours = Hours()
    limits: Spending = Spending()
