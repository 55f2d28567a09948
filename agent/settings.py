"""What an owner can set: defaults, then the machine's profile, then `settings.toml`, then the command line."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from agent.errors import SettingsError
from agent.thresholds import GovernorSettings


def printable(text: str) -> str:
    """Refuse what could play tricks on a terminal; for models.

    Raises:
        ValueError: it holds characters that cannot be printed.
    """
    if not text.isprintable():
        raise ValueError("it holds characters that cannot be printed")
    return text


Seconds = Annotated[float, Field(gt=0, le=7 * 86_400)]


class DeviceSettings(BaseModel):
    """The settings of one device.

    Attributes:
        nickname: what the hub's operator sees beside the device's id.
        threads: cores that training and judging may use.
        rank: LoRA rank trained here; none for the community's, as far as the profile lets it.
        compute: arithmetic of training; ``auto`` measures once.
        memory_mb: memory that training may take, MiB; none for the profile's share of the machine's, of which trainings
            alone take no more than is free.
        micro_batch: windows that one pass of a training takes at most; none for what the profile says.
        holdout_fraction: share of the text that is never trained on, and that candidates are judged by.
        filter_secrets: take keys, passwords and personal data out of the text before it is learned.
        max_heldout_windows: windows of held-out text that a candidate is judged on.
        checkpoint_seconds: how much training a power cut may cost.
        personal_adapter: keep what this device learned beyond the community, for its owner alone.
        resend_seconds: how long to wait for the hub's receipt before asking again.
        governor: when training pauses and what it may spend (`docs/governor.md`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    nickname: Annotated[str, Field(max_length=64), AfterValidator(printable)] = ""
    threads: int = Field(default=1, ge=1, le=1024)
    rank: int | None = Field(default=None, ge=1, le=256)
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    memory_mb: int | None = Field(default=None, ge=1)
    micro_batch: int | None = Field(default=None, ge=1, le=256)
    holdout_fraction: float = Field(default=0.1, gt=0, le=0.5)
    filter_secrets: bool = True
    max_heldout_windows: int = Field(default=32, ge=1)
    checkpoint_seconds: Seconds = 30.0
    personal_adapter: bool = True
    resend_seconds: Seconds = 15.0
    governor: GovernorSettings = GovernorSettings()


def load_settings(
    path: Path, *, over: Mapping[str, object] | None = None, command_line: Mapping[str, object] | None = None
) -> DeviceSettings:
    """Put the layers on top of one another; a table such as `[governor]` value by value, not as a whole.

    Args:
        path: the owner's TOML file; absent is fine.
        over: what the machine's profile says, above the defaults and below the owner's file.
        command_line: what was given there; None means not given.

    Raises:
        SettingsError: a name is unknown or a value cannot be used; the file and the name are in the message.
    """
    layers: dict[str, object] = dict(over or {})
    if path.is_file():
        try:
            layers = _laid_over(layers, tomllib.loads(path.read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as cause:
            raise SettingsError(f"{path} is not valid TOML: {cause}", advice="Correct the line it names.") from cause
    layers = _laid_over(layers, {key: value for key, value in (command_line or {}).items() if value is not None})
    try:
        return DeviceSettings.model_validate(layers)
    except ValidationError as cause:
        first = cause.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        known = ", ".join(sorted(DeviceSettings.model_fields))
        raise SettingsError(
            f"the setting {name!r} in {path} (or on the command line) cannot be used: {first['msg']}",
            advice=f"Correct or remove it. Settings there are: {known}.",
        ) from cause


def _laid_over(below: Mapping[str, object], above: Mapping[str, object]) -> dict[str, object]:
    """Give one layer over another; what both have as a table is laid over in the same way."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _laid_over(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return merged


PROTOCOL_VARIABLE = "BRAMBLE_MQTT_PROTOCOL"
_PROTOCOLS: dict[str, Literal["auto", 5, 4]] = {"": "auto", "auto": "auto", "5": 5, "3.1.1": 4}


def mqtt_protocol() -> Literal["auto", 5, 4]:
    """Which MQTT to speak (4 is 3.1.1): 5 where the broker does, unless BRAMBLE_MQTT_PROTOCOL decides.

    Raises:
        SettingsError: the variable holds something else.
    """
    wanted = os.environ.get(PROTOCOL_VARIABLE, "")
    if wanted not in _PROTOCOLS:
        raise SettingsError(f"{PROTOCOL_VARIABLE} is {wanted!r}", advice="Set it to 5 or 3.1.1, or leave it out.")
    return _PROTOCOLS[wanted]
