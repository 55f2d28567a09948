"""Which models `bramble chat` and `bramble serve` offer: a device's own, or those of files that are named."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from agent.paths import Home

_FILE = click.Path(dir_okay=False, path_type=Path)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+:-]{0,63}")


class NamedFile(NamedTuple):
    """A model's name, and an adapter that makes it."""

    name: str
    path: Path


class _NamedFileType(click.ParamType[NamedFile]):
    name = "NAME=FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> NamedFile:
        """Split at the first equals sign."""
        if isinstance(value, NamedFile):
            return value
        name, _, path = str(value).partition("=")
        if not _NAME.fullmatch(name) or name == "base" or not path:
            self.fail(f"{value!r} is not of the form NAME=FILE with a name other than base", param, ctx)
        return NamedFile(name, Path(path))


class Offered(NamedTuple):
    """Models to talk to.

    Attributes:
        base: the GGUF they share.
        read: gives the GGUF adapters of each, by name.
        watch: files that change when ``read`` would give something else.
    """

    base: Path
    read: Callable[[], Mapping[str, Sequence[Path]]]
    watch: Sequence[Path]


def fixed_models(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that name a base and adapters, for use without a community."""
    adapter = click.option(
        "--adapter",
        "adapters",
        type=_NamedFileType(),
        multiple=True,
        help="With --base: a GGUF adapter, and the name of the model that it makes. May be repeated.",
    )
    base = click.option("--base", type=_FILE, help="A GGUF, or a name on the shelf, to use without a community.")
    return base(adapter(command))


def offered(home: Home, base: Path | None, adapters: Sequence[NamedFile]) -> Offered:
    """Give the models of a device, or with a base those of the files that were named.

    Raises:
        NotInitialisedError, NotJoinedError: there is no device, or it has no community.
    """
    from agent.service import adapters_of, named_base

    if base is not None:
        named: dict[str, list[Path]] = {"base": []}
        for name, path in adapters:
            named.setdefault(name, []).append(path)
        return Offered(named_base(home, str(base)), lambda: named, [path for _, path in adapters])
    if adapters:
        raise click.UsageError("--adapter needs the --base that it was trained on.")
    membership, _ = adapters_of(home)
    log = home.database.with_name(f"{home.database.name}-wal")
    return Offered(
        membership.base, lambda: adapters_of(home)[1], [home.database, log, home.work / "adapters" / "personal.gguf"]
    )
