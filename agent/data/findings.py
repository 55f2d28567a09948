"""What the filter for secrets and personal data finds, and what it says of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["KEY", "TOKEN", "PASSWORD", "IBAN", "CARD", "EMAIL", "PHONE"]
"""A private key; a service's token; a password; an account number; a card number; an address; a phone number."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not for a model to learn.

    Attributes:
        start: index of its first character.
        end: index after its last.
        kind: what it is.
    """

    start: int
    end: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class Removed:
    """What the filter took out.

    Attributes:
        counts: how many of each kind.
        examples: a few of each kind, masked: the first and last two characters, and how many stand between.
    """

    counts: Mapping[Kind, int] = field(default_factory=Counter)
    examples: Mapping[Kind, tuple[str, ...]] = field(default_factory=dict)


def mask(secret: str) -> str:
    """Give the first and the last two characters and the number of those between; less of what is short."""
    line = " ".join(secret.split())
    if len(line) < 8:
        return f"… ({len(line)} characters)"
    return f"{line[:2]}…{line[-2:]} ({len(line)} characters)"
