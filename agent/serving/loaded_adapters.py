"""Adapters that stay loaded between requests, so that a swap is no load; a bounded number of them."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Final

from agent.errors import AdapterError
from agent.llm.loaded_base import AdapterHandle, LoadedBase
from agent.serving.catalogue import AdapterFile, look_at

KEPT: Final = 8
"""How many adapters stay loaded; more only while more are in use at once."""


class LoadedAdapters:
    """Loaded adapters, the one used last at the end. For one thread.

    Args:
        base: what they are loaded onto.
        let_go: called with a handle before it is unloaded: nothing may compute with it afterwards.
        kept: how many to keep at most.
    """

    def __init__(self, *, base: LoadedBase, let_go: Callable[[AdapterHandle], None], kept: int = KEPT) -> None:
        self._base = base
        self._let_go = let_go
        self._kept = kept
        self._loaded: dict[AdapterFile, AdapterHandle] = {}

    def __len__(self) -> int:
        return len(self._loaded)

    def take(self, file: AdapterFile) -> AdapterHandle:
        """Give a loaded adapter, loading it if needed.

        Raises:
            AdapterError: the file has gone or changed since it was looked at, or is no adapter for the base.
        """
        handle = self._loaded.pop(file, None)
        if handle is None:
            if look_at(file.path) != file:
                raise AdapterError(
                    f"the adapter {file.path.name} has just been replaced",
                    advice="Ask again: then the new one is used.",
                )
            handle = self._base.load_adapter(file.path)
        self._loaded[file] = handle
        return handle

    def tidy(self, busy: Container[AdapterFile]) -> None:
        """Unload what was not used for longest, until no more than the bound is left, except what is busy."""
        for file in [file for file in self._loaded if file not in busy][: max(0, len(self._loaded) - self._kept)]:
            handle = self._loaded.pop(file)
            self._let_go(handle)
            self._base.unload_adapter(handle)
