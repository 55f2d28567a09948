"""Words on the command line that mean something: an amount of memory, a list of names."""

from __future__ import annotations

import re
from typing import Any

import click

_MIB = 1024 * 1024
_UNITS = {"": _MIB, "mib": _MIB, "gib": 1024 * _MIB, "mb": 10**6, "gb": 10**9, "m": 10**6, "g": 10**9}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Memory(click.ParamType[int]):
    """MiB, or a number with a unit: 900MB, 1.5GB, 900MiB."""

    name = "memory"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Give whole MiB."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(value).strip().lower())
        mib = int(float(found[1]) * _UNITS[found[2]] / _MIB) if found and found[2] in _UNITS else 0
        if mib < 1:
            self.fail(f"{value!r} is no amount of memory; write 900MB, 1.5GB or 900MiB", param, ctx)
        return mib


class Duration(click.ParamType[float]):
    """Seconds, or a number with a unit: 90s, 15m, 12h, 7d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Give seconds."""
        if isinstance(value, (int, float)):
            return float(value)
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value))
        if found is None or float(found[1]) <= 0:
            self.fail(f"{value!r} is no duration; write 90s, 15m, 12h or 7d", param, ctx)
        return float(found[1]) * _SECONDS[found[2] or "s"]


class Names(click.ParamType[tuple[str, ...]]):
    """Names with commas between them."""

    name = "NAME,NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Give each name once, in the order in which they stand."""
        if isinstance(value, tuple):
            return value
        names = tuple(dict.fromkeys(name for word in str(value).split(",") if (name := word.strip())))
        if not names:
            self.fail(f"{value!r} names nothing; write q_proj,v_proj", param, ctx)
        return names


class Group(click.ParamType[str]):
    """A short word for some of the members."""

    name = "GROUP"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Give it as it is."""
        if value and not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", str(value)):
            self.fail(f"{value!r} is no group: small letters, digits and hyphens, 32 at most", param, ctx)
        return str(value)


DURATION, GROUP, MEMORY, NAMES = Duration(), Group(), Memory(), Names()


def spoken(seconds: float) -> str:
    """Say a duration as people do."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
