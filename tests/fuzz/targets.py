"""The table of all fuzz targets: what the replay, hypothesis and atheris all use."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module

from tests.fuzz.target import Target

_ROOMS = ("wire_targets", "update_targets", "model_targets", "owner_targets")
"""In the order of what they import: a harness goes no further than it must, because importing is most of its start."""


def find(name: str) -> Target:
    """Give one target.

    Raises:
        KeyError: there is none of this name.
    """
    for room in _ROOMS:
        if name in (targets := _targets(room)):
            return targets[name]
    raise KeyError(name)


def all_targets() -> dict[str, Target]:
    """Give every target by its name."""
    return {name: target for room in _ROOMS for name, target in _targets(room).items()}


@cache
def _targets(room: str) -> Mapping[str, Target]:
    return {target.name: target for target in import_module(f"tests.fuzz.{room}").targets()}
