"""What a profile may say: how a kind of machine is recognised, and what suits it. The schema of `firmware_profiles/`.

Files are read in :mod:`agent.device.profile_files`; which one fits a machine is decided in
:mod:`agent.device.recognition`. Every number has its reason beside it in the files, and its source in docs/devices.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from agent.device.hardware import Hardware
from agent.settings import printable
from agent.thresholds import GovernorSettings

GENERIC = "generic"
ALL_LAYERS = 1 << 16
"""More layers than any model has."""

Cores = Literal["physical", "logical"] | Annotated[int, Field(ge=1, le=1024)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
Text = Annotated[str, Field(min_length=1, max_length=400), AfterValidator(printable)]
_Title = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(printable)]
_Part = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(printable)]
_Parts = Annotated[list[_Part], Field(max_length=64)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class MatchRules(_Table):
    """How a machine is recognised. Every rule that is given must hold; one that is not given holds for all."""

    system: _Parts = Field(default=[], description="one of these systems: linux, darwin, windows")
    machine: _Parts = Field(default=[], description="one of these instruction sets: x86_64, aarch64, …")
    compatible: _Parts = Field(
        default=[], description="the device tree's `compatible` contains one of these, such as nvidia,p3767-0003"
    )
    board: _Parts = Field(default=[], description="the device tree's `model` contains one of these")
    vendor: _Parts = Field(default=[], description="the maker's name (DMI sys_vendor) contains one of these")
    product: _Parts = Field(default=[], description="the machine's name (DMI product_name) contains one of these")
    cpu_model: _Parts = Field(default=[], description="the processor's name contains one of these")
    chassis: list[Literal["desktop", "laptop", "server", "tablet", "embedded"]] = Field(
        default=[], description="one of these kinds of chassis (DMI chassis_type)"
    )
    gpus: _Parts = Field(default=[], description="a graphics processor of one of these makers: nvidia, amd, intel, …")
    features: _Parts = Field(
        default=[], description="all of these instruction sets, in Linux's names: avx2, asimddp, …"
    )
    memory_mb_min: int | None = Field(default=None, ge=0, description="at least so much memory, MiB")
    memory_mb_max: int | None = Field(default=None, ge=0, description="at most so much memory, MiB")

    @model_validator(mode="after")
    def _can_hold(self) -> MatchRules:
        low, high = self.memory_mb_min, self.memory_mb_max
        if low is not None and high is not None and low > high:
            message = f"memory_mb_min ({low}) is above memory_mb_max ({high}): no machine could ever fit"
            raise ValueError(message)
        return self


class TrainingPlan(_Table):
    """What training may spend here, and how it is cut up.

    A community's charter decides the rank, window and batch of a round; here is what a training alone takes where
    nobody says, and what a round never exceeds.
    """

    cores: Cores = Field(default="physical", description="threads: physical or logical cores, or a number")
    spare_cores: int = Field(default=0, ge=0, le=1024, description="of them kept free; one is always used")
    memory_share: float = Field(default=0.4, gt=0, le=0.9, description="share of the memory that training may take")
    compute: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="arithmetic of the frozen layers; auto measures once"
    )
    rank: int = Field(default=8, ge=1, le=256, description="LoRA rank of a training alone where nobody says")
    max_rank: int = Field(default=64, ge=1, le=256, description="no round trains more than this, whatever the charter")
    window: int = Field(default=256, ge=16, le=8192, description="tokens of a window alone where nobody says")
    batch: int = Field(default=8, ge=1, le=256, description="windows of a step alone where nobody says")
    micro_batch: int = Field(
        default=8, ge=1, le=256, description="most windows that one pass takes, alone and in rounds"
    )

    @model_validator(mode="after")
    def _agrees(self) -> TrainingPlan:
        if self.rank > self.max_rank:
            message = f"rank ({self.rank}) is above max_rank ({self.max_rank})"
            raise ValueError(message)
        return self

    def threads_for(self, hardware: Hardware) -> int:
        """Give how many threads training uses on this machine."""
        return _threads(self.cores, self.spare_cores, hardware)


class RuntimePlan(_Table):
    """How llama.cpp answers for the owner."""

    cores: Cores = Field(default="physical", description="threads: physical or logical cores, or a number")
    context: int = Field(default=2048, ge=128, le=1 << 20, description="tokens of a conversation that are held")
    batch: int = Field(default=256, ge=16, le=8192, description="tokens that one pass of the model takes")
    gpu_layers: Literal["all"] | Annotated[int, Field(ge=0, le=512)] = Field(
        default=0, description="layers on the graphics processor: a number, or all; needs a llama.cpp built for it"
    )

    def threads_for(self, hardware: Hardware) -> int:
        """Give how many threads an answer is computed on."""
        return _threads(self.cores, 0, hardware)

    @property
    def offloaded(self) -> int:
        """Layers to put on a graphics processor, as llama.cpp counts them."""
        return ALL_LAYERS if self.gpu_layers == "all" else self.gpu_layers


class LlamaBuild(_Table):
    """How llama-cpp-python is installed, so that it uses what this processor has."""

    cmake: list[Annotated[str, Field(pattern=r"^-D[A-Za-z0-9_]+=[A-Za-z0-9_.+;-]+$")]] = Field(
        default=[], max_length=32, description="CMake options for compiling it here, such as -DGGML_NATIVE=ON"
    )
    jobs: int | None = Field(default=None, ge=1, le=1024, description="files compiled at once; for little memory")
    wheels: Annotated[str, Field(pattern=r"^https://[^\s\"'`$\\]+$")] | None = Field(
        default=None, description="an index of wheels that are built already, instead of compiling"
    )
    note: Text | None = Field(default=None, description="what else one should know before installing")


class SuitedBase(_Table):
    """A base model that suits such a machine. A community shares one base: the weakest of its devices decides."""

    model: Text = Field(description="a model of this size that can be trained here, by the name its makers gave it")
    parameters: Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?[MB]$")] = Field(description="such as 135M or 1.7B")
    quantisation: Annotated[str, Field(pattern=r"^[A-Z0-9_]+$")] = Field(description="of the GGUF: Q8_0, Q4_K_M, …")
    memory_mb_min: int = Field(ge=0, description="memory that the machine must have, MiB")
    file_mb: int = Field(ge=1, description="size of the GGUF, MiB")
    training_mb: int = Field(
        ge=1, description="peak of a training at this profile's max_rank, window and micro_batch, MiB"
    )
    why: Text = Field(description="why this one")


class Sensors(_Table):
    """Which sensors tell how this machine is."""

    temperature: _Parts = Field(
        default=[],
        description="zones and chips whose temperature counts, with * for any letters; none for every processor's",
    )
    expected: _Parts = Field(
        default=[],
        description="sensors that such a machine has, so that a silent one is noticed: heat, pi-firmware, supply, …",
    )


class Profile(_Table):
    """One kind of machine."""

    name: Name = Field(description="the file's name without .toml")
    extends: Name | None = Field(default=None, description="the profile that says everything that this one does not")
    title: _Title = Field(description="what people call the machine")
    match: MatchRules = MatchRules()
    training: TrainingPlan = TrainingPlan()
    runtime: RuntimePlan = RuntimePlan()
    llama: LlamaBuild = LlamaBuild()
    bases: Annotated[list[SuitedBase], Field(max_length=32)] = Field(
        default=[], description="bases that suit, the smallest first"
    )
    governor: GovernorSettings = Field(default=GovernorSettings(), description="when training stops and goes on")
    sensors: Sensors = Sensors()

    def budget_for(self, hardware: Hardware) -> Budget:
        """Give what training may spend on this machine."""
        return Budget(
            threads=self.training.threads_for(hardware),
            memory_mb=max(1, int(hardware.memory_mb * self.training.memory_share)),
        )

    def governor_layer(self) -> dict[str, Any]:
        """Give what this profile says about the governor, and nothing that it leaves to the defaults.

        The zones that the sensors table names are those whose temperature counts.
        """
        said: dict[str, Any] = self.governor.model_dump(exclude_unset=True)
        if self.sensors.temperature:
            said["temperature"] = {"zones": list(self.sensors.temperature), **said.get("temperature", {})}
        return said

    def base_for(self, hardware: Hardware) -> SuitedBase | None:
        """Give the largest base that suits this machine; None where it has too little memory for any."""
        fitting = [base for base in self.bases if base.memory_mb_min <= hardware.memory_mb]
        return max(fitting, key=lambda base: base.training_mb, default=None)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a worker may spend.

    Attributes:
        threads: threads it computes with.
        memory_mb: resident memory, MiB.
    """

    threads: int
    memory_mb: int


def _threads(cores: Cores, spare: int, hardware: Hardware) -> int:
    """Give a number of threads that the process may really use, and at least one."""
    counts = {"physical": hardware.physical_cores, "logical": hardware.logical_cores}
    wanted = cores if isinstance(cores, int) else counts[cores]
    return max(1, min(wanted, hardware.usable_cores) - spare)
