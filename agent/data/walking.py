"""Which files lie under the paths that an owner named.

Inside a folder, links are not followed: what a link points to inside the folder is found where it really lies, and what
it points to outside was not consented to. So no loop of links can trap the walk either.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.data.documents import Skipped

_TOOL_FOLDERS = frozenset({"__pycache__", "node_modules", "CVS", "venv", "site-packages", "dist-packages"})


def walk(paths: Sequence[Path]) -> Iterator[Path | Skipped]:
    """Give every regular file under the paths once, and what was passed over.

    Paths come in the order given; in a folder, its files in order of name come before its folders in order of name.

    A path that the owner named is read even where its name is hidden or it is a link; below it, hidden names, version
    control, and folders that tools fill are passed over.
    """
    seen: set[tuple[int, int]] = set()
    for path in paths:
        root = path.expanduser()
        try:
            mode = root.stat().st_mode
        except FileNotFoundError:
            yield Skipped(path, "is not there")
        except OSError as cause:
            yield Skipped(path, f"cannot be read ({cause.strerror})")
        else:
            if stat.S_ISDIR(mode):
                yield from _below(root.resolve(), seen)
            else:
                yield from _file(root.resolve(), seen)


def _below(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path | Skipped]:
    """Go down one folder without recursion, so that depth costs no stack."""
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            about = here.stat()
            with os.scandir(here) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as cause:
            yield Skipped(here, f"cannot be read ({cause.strerror})")
            continue
        if (about.st_dev, about.st_ino) in seen:
            continue
        seen.add((about.st_dev, about.st_ino))
        folders = []
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith(".") or (entry.name in _TOOL_FOLDERS and entry.is_dir(follow_symlinks=False)):
                yield Skipped(path, "is hidden or kept by a tool")
            elif entry.is_symlink():
                yield Skipped(path, "is a link")
            elif entry.is_dir(follow_symlinks=False):
                folders.append(path)
            else:
                yield from _file(path, seen)
        waiting.extend(reversed(folders))


def _file(path: Path, seen: set[tuple[int, int]]) -> Iterator[Path | Skipped]:
    """Give one regular file unless it was given before; pipes and devices would block or never end."""
    try:
        about = path.lstat()
    except OSError as cause:
        yield Skipped(path, f"cannot be read ({cause.strerror})")
        return
    if not stat.S_ISREG(about.st_mode):
        yield Skipped(path, "is not a regular file")
    elif (about.st_dev, about.st_ino) not in seen:
        seen.add((about.st_dev, about.st_ino))
        yield path
