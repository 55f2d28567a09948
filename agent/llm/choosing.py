"""Which of a repository's GGUF files is meant, and how to say that it is not clear."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from agent.errors import DownloadError

SMALL_CHOICE, NEAR_CHOICE = "Q4_K_M", "Q8_0"
"""What most people want on a small machine, and what is nearest to the original."""

_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


@dataclass(frozen=True, slots=True)
class RepositoryFile:
    """One GGUF in a repository.

    Attributes:
        path: inside the repository.
        size: in bytes.
        sha256: as the repository declares it; empty where it does not.
    """

    path: str
    size: int
    sha256: str

    @property
    def is_part(self) -> bool:
        """Whether it is one file of a model that was split into several."""
        return _PART.search(self.path) is not None

    @property
    def is_model(self) -> bool:
        """Whether it is a whole language model, as far as its name says: no part, and no eye of one that sees."""
        return not self.is_part and not self.path.rsplit("/", 1)[-1].lower().startswith("mmproj")


def choose(files: Sequence[RepositoryFile], wanted: str | None, *, repository: str) -> RepositoryFile:
    """Give the file that was asked for: by its path, its name, or a type in its name such as ``Q4_K_M``.

    Raises:
        DownloadError: there is none, or more than one; the message lists them.
    """
    if wanted is None:
        found = [file for file in files if file.is_model] or list(files)
    else:
        found = [file for file in files if wanted in {file.path, file.path.rsplit("/", 1)[-1]}]
        if not found:
            tag = re.compile(rf"(?<![a-z0-9]){re.escape(wanted.lower())}(?![a-z0-9_])")
            found = [file for file in files if tag.search(file.path.lower())]
    if len(found) == 1 and not found[0].is_part:
        return found[0]
    if not files:
        raise DownloadError(
            f"{repository} holds no GGUF", advice="Look for a repository whose name ends in -GGUF, made from this one."
        )
    if len(found) == 1:
        raise DownloadError(
            f"{found[0].path} is one part of a model that was split",
            advice="Choose a type that comes as one file, or join the parts with `llama-gguf-split --merge`.",
        )
    if wanted is None:
        what, listed = f"{repository} holds {len(files)} GGUF files", files
    elif found:
        what, listed = f"{wanted!r} means {len(found)} files of {repository}", found
    else:
        what, listed = f"{repository} holds no {wanted!r}, but", files
    rows = "".join(
        f"\n  {file.size / 1e6:>10,.1f} MB  {file.path}{' (one part of several)' if file.is_part else ''}"
        for file in listed
    )
    raise DownloadError(f"{what}:{rows}", advice=_suggestion(listed, repository))


def _suggestion(files: Sequence[RepositoryFile], repository: str) -> str:
    """Say how to choose, with a command that works."""
    whole = [file for file in files if file.is_model]
    for kind, why in ((SMALL_CHOICE, "small and good on most machines"), (NEAR_CHOICE, "nearest to the original")):
        for file in whole:
            if kind.lower() in file.path.lower():
                return f"Name one: bramble model pull {repository}:{file.path} ({why})."
    return f"Name one: bramble model pull {repository}:{(whole or files)[0].path}"
