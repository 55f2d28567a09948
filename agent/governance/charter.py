"""The charter: the rules of a community, signed by its hub and shown to an owner before joining."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from agent.settings import printable

Sha256Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(printable)]

WHAT_IS_SENT = (
    "the change that training on your text made to the adapter (clipped, compressed, sealed for this hub)",
    "how many tokens and steps it was trained on",
    "the mean loss of a candidate on the text you held back: two numbers",
)
WHAT_THE_OPERATOR_SEES = (
    "your device's id, its nickname, its group, and when it joined and sent something",
    "each update of your device by itself, before it is merged with others'",
    "the address that you connect from, where the operator runs the broker too",
)
WHAT_IS_NOT_SENT = ("your text, or any part of it", "file names or paths", "your personal adapter")


class _Rule(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TrainingPlan(_Rule):
    """What every device does in one round."""

    steps: int = Field(default=40, ge=1, le=100_000)
    batch_size: int = Field(default=8, ge=1, le=256)
    window: int = Field(default=256, ge=16, le=8192, description="tokens in one training window")
    learning_rate: float = Field(default=2e-3, gt=0, le=1)
    warmup_steps: int = Field(default=4, ge=0, description="none where a device goes on with its moments")
    schedule: Literal["cosine", "constant"] = Field(
        default="constant", description="of the learning rate in a round: `cosine` takes it down to a tenth"
    )
    moments: Literal["kept", "fresh"] = Field(
        default="kept", description="whether a device's optimiser goes on where its last round ended"
    )
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    grad_clip: float = Field(default=1.0, gt=0)


class RoundRules(_Rule):
    """When a round merges, what becomes of late updates, and when a candidate is promoted."""

    mode: Literal["synchronous", "asynchronous"] = Field(
        default="synchronous",
        description="asynchronous merges each `buffer` updates, from whatever release",
    )
    buffer: int = Field(default=10, ge=1, description="updates that an asynchronous merge takes")
    wanted: int | None = Field(default=None, ge=1, description="devices drawn for a round when there are more")
    max_staleness: int = Field(default=2, ge=0, description="rounds an update may be late; older is refused")
    staleness_power: float = Field(default=0.5, ge=0, le=10, description="a late update weighs (1 + lateness) ^ -this")

    quorum: int = Field(default=2, ge=1, description="no merge with fewer updates than this")
    target: int = Field(default=3, ge=1, description="merge at once when so many are in")
    collect_seconds: float = Field(default=3600.0, gt=0)
    trial_quorum: int = Field(default=1, ge=1, description="no decision with fewer verdicts than this")
    trial_seconds: float = Field(default=600.0, gt=0)
    tolerance: float = Field(default=0.0, ge=0, description="relative loss by which the weighted median may get worse")
    harm_limit: float = Field(
        default=0.05, ge=0, description="relative loss by which no group of devices may get worse"
    )

    @model_validator(mode="after")
    def _target_reaches_quorum(self) -> RoundRules:
        if self.target < self.quorum:
            message = f"target ({self.target}) is below quorum ({self.quorum}): no round could ever merge at its target"
            raise ValueError(message)
        return self


class OuterOptimiser(_Rule):
    """What the hub makes of the merged change before it becomes the next release (Reddi et al. 2021, algorithm 2)."""

    name: Literal["none", "nesterov", "fedadam"] = "none"
    learning_rate: float = Field(default=1.0, gt=0, le=100, description="what the merged change is multiplied by")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of Nesterov; beta 1 of FedAdam")
    beta2: float = Field(default=0.99, ge=0, lt=1)
    epsilon: float = Field(default=1e-3, gt=0, description="FedAdam's tau: how adaptive it is")


class RobustRules(_Rule):
    """What keeps single devices from steering a merge, in which the hub sees each update.

    Norms and weights never count for more than the median ones of the merge. ``hostile``, the share of the updates that
    may be anything at all, and ``mixing`` are for the rules beyond that (:mod:`agent.hub.merge.robust`).
    """

    name: Literal["clipping", "geometric-median", "multi-krum", "trimmed-mean", "median"] = "clipping"
    hostile: float = Field(default=0.2, ge=0, lt=0.5, description="share of a merge that may be hostile")
    mixing: bool = Field(default=False, description="average each update with its nearest neighbours first")
    norm_bound: float = Field(default=1.0, gt=0, le=100, description="of an update, in median norms of its merge")


class Charter(_Rule):
    """The rules of one community.

    Attributes:
        base_sha256: hex SHA-256 of the GGUF file that every device trains.
        target_modules: last names of the layers that are changed. The default is for bases that are built like llama;
            `bramble hub init` takes all linear layers that the base has.
        max_update_norm: L2 norm above which a device clips its update and the hub refuses it.
    """

    name: ShortText
    base_name: ShortText
    base_sha256: Sha256Hex
    base_bytes: int = Field(gt=0)
    licence: ShortText = "CC-BY-SA-4.0"
    rank: int = Field(default=8, ge=1, le=256)
    alpha: float = Field(default=16.0, gt=0)
    target_modules: tuple[ShortText, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        max_length=32,
    )
    merge_rule: ShortText = "fedavg"
    robust: RobustRules = RobustRules()
    outer: OuterOptimiser = OuterOptimiser()
    compression: Literal["int8", "int4", "topk", "none"] = "int4"
    density: float = Field(default=0.25, gt=0, le=1, description="share of the numbers that `topk` sends")
    max_update_norm: float = Field(default=100.0, gt=0)
    training: TrainingPlan = TrainingPlan()
    rounds: RoundRules = RoundRules()

    @model_validator(mode="before")
    @classmethod
    def _older_charters_mean_what_they_meant(cls, given: Any) -> Any:
        """Read a charter from before devices could keep moments: in those, every round began anew."""
        training = given.get("training") if isinstance(given, dict) else None
        if not isinstance(training, dict) or "moments" in training:
            return given
        return {**given, "training": {"schedule": "cosine", "moments": "fresh", **training}}
