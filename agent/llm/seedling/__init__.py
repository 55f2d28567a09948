"""The seedling: the small language model that ships with Bramble, so that everything works without a download.

What it is, what it was trained on and how well it does is written in ``MODEL_CARD.md`` beside this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["SEEDLING_PATH", "SEEDLING_SHA256"]

SEEDLING_PATH: Final = Path(__file__).with_name("seedling-q8_0.gguf")
"""The model: GGUF, Q8_0, 4.5 M parameters, under 5 MB."""

SEEDLING_SHA256: Final = "95629c5e8fb1366a0ea20b9aedb2b47f1b8cf91dfa775d138e389ff71d4ae27b"
"""SHA-256 of the file at :data:`SEEDLING_PATH`, in hexadecimal."""
