"""Which models can be asked: the base, and the base under each set of adapters. Read again when files change."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.errors import AdapterError, BrambleError
from agent.serving.refusals import RequestRefusedError


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An adapter on disk as it was when it was looked at: other bytes are another one.

    Attributes:
        path: of the GGUF.
        changed: its time of modification, nanoseconds.
        size: bytes.
    """

    path: Path
    changed: int
    size: int


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model.

    Attributes:
        id: what it is asked for by.
        alias: another name that is understood; empty for none.
        adapters: what is put on the base.
        created: when the youngest of its files was written: Unix time, seconds.
        fingerprint: stands for these very files.
    """

    id: str
    alias: str
    adapters: tuple[AdapterFile, ...]
    created: int
    fingerprint: str


def look_at(path: Path) -> AdapterFile:
    """Give a file as it is now.

    Raises:
        AdapterError: it is not there.
    """
    try:
        found = path.stat()
    except OSError as cause:
        raise AdapterError(f"there is no adapter {path}", advice="Check the path.") from cause
    return AdapterFile(path, found.st_mtime_ns, found.st_size)


class Catalogue:
    """The models that are offered at this moment. For any thread.

    Args:
        base: the GGUF they all share.
        read: gives GGUF adapters by the name of the model that they make, in the order to list them; asked again only
            when something that is watched has changed.
        watch: files that change whenever ``read`` would give something else.
        rename: ids for names; the name stays as an alias.
    """

    def __init__(
        self,
        *,
        base: Path,
        read: Callable[[], Mapping[str, Sequence[Path]]],
        watch: Sequence[Path] = (),
        rename: Mapping[str, str] | None = None,
    ) -> None:
        self.base = base
        self._read = read
        self._watch = tuple(watch)
        self._rename = dict(rename or {})
        self._lock = threading.Lock()
        self._seen: object = None
        self._models: tuple[ServedModel, ...] = ()

    def models(self) -> tuple[ServedModel, ...]:
        """Give every model. What cannot be read just now (a release is being exchanged) is offered as it was before.

        Raises:
            BrambleError: it could never be read so far.
        """
        with self._lock:
            now = tuple(_stamp(path) for path in self._watch)
            if not self._models or now != self._seen:
                try:
                    self._models = tuple(self._model(name, paths) for name, paths in self._read().items())
                    self._seen = now
                except BrambleError:
                    if not self._models:
                        raise
            return self._models

    def find(self, name: str) -> ServedModel:
        """Give one model by its id or alias.

        Raises:
            RequestRefusedError: there is none of this name.
        """
        models = self.models()
        found = next((model for model in models if name in {model.id, model.alias} and name), None)
        if found is None:
            raise RequestRefusedError(
                f"the model {name[:80]!r} does not exist here",
                advice=f"Ask for one of these: {', '.join(model.id for model in models)}.",
                status=404,
                reason="model_not_found",
                parameter="model",
            )
        return found

    def _model(self, name: str, paths: Sequence[Path]) -> ServedModel:
        files = tuple(look_at(path) for path in paths)
        whole = (look_at(self.base), *files)
        digest = hashlib.sha256("\0".join(f"{f.path}:{f.changed}:{f.size}" for f in whole).encode())
        return ServedModel(
            id=self._rename.get(name, name),
            alias=name if name in self._rename else "",
            adapters=files,
            created=max(file.changed for file in whole) // 1_000_000_000,
            fingerprint=f"fp_{digest.hexdigest()[:12]}",
        )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
