"""Tables on standard output."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

LEAST_WIDTH = 120
"""Columns that a table gets even where the terminal has fewer, or there is none: a cut hash is of no use."""


def show_table(table: Table) -> None:
    """Print a table, without cutting it to a narrow terminal."""
    from rich.console import Console

    Console(width=max(LEAST_WIDTH, shutil.get_terminal_size().columns)).print(table)
