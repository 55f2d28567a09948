"""Writes the seeds that are committed: ``python -m tests.fuzz.make_corpus``.

The corpus is written from scratch, so a target or a format that is gone leaves none of its seeds behind.
"""

from __future__ import annotations

import shutil

from agent.crypto.sealing import seal
from tests.fuzz.model_targets import _small_models
from tests.fuzz.samples import hub
from tests.fuzz.target import CORPUS
from tests.fuzz.targets import all_targets


def main() -> None:
    """Write every target's seeds under its name."""
    shutil.rmtree(CORPUS, ignore_errors=True)
    bases = CORPUS / "base-gguf"
    bases.mkdir(parents=True)
    for name, data in _small_models():
        (bases / name).write_bytes(data)
    for target in all_targets().values():
        folder = CORPUS / target.name
        if folder == bases:
            continue
        folder.mkdir()
        for number, data in enumerate(target.seeds()):
            (folder / f"{number:02}").write_bytes(data)
    (CORPUS / "sealed-value" / "00").write_bytes(seal(hub().public.seal_key, b"secret", b"info"))
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    print(f"{len(files)} seeds, {sum(path.stat().st_size for path in files):,} bytes, under {CORPUS}")


if __name__ == "__main__":
    main()
