"""Tables on standard output."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LEAST_WIDTH = 120
"""Columns that a table gets even where the terminal has fewer, or there is none: a cut hash is of no use."""


def show_table(table: Table) -> None:
    """Print a table, without cutting it to a narrow terminal."""
    wide_console().print(table)


def wide_console() -> Console:
    """Give a console that is not narrower than tables may be."""
    from rich.console import Console

    return Console(width=max(LEAST_WIDTH, shutil.get_terminal_size().columns))
