"""Runs one target under atheris: ``python -m tests.fuzz.harness TARGET [libFuzzer's arguments]``.

Named inputs (files) are run once each, which replays a finding. Atheris instruments the project's own code as it is
imported, so nothing of it may be imported before :func:`main` says so. Code in C (cbor2, pydantic, zstd, ggml) runs
uninstrumented: its crashes are found, its branches do not guide the search.
"""

from __future__ import annotations

import gc
import hashlib
import resource
import sys
from pathlib import Path

import atheris
import psutil

FINDINGS = Path(__file__).parents[2] / ".fuzz" / "findings"
MEMORY_MB = 256
"""What a decoder may take beyond what the process had after all seeds had been read once."""

STUCK_SECONDS = 10
"""On the wall, after which an input that has not come back is taken for one that never will. One that comes back is
judged by its processor time, against the limit in ``target.py``."""


def main() -> None:
    """Fuzz until libFuzzer's own limits end it; it exits with a status of its own for a finding."""
    name, arguments = sys.argv[1], sys.argv[2:]
    with atheris.instrument_imports(include=["agent"]):
        from tests.fuzz.targets import find  # noqa: PLC0415 - instrumented as it is imported

        target = find(name)
    from random import Random  # noqa: PLC0415

    from tests.fuzz.mutation import mutate  # noqa: PLC0415

    for path in target.kept():
        target.check(path.read_bytes())
    gc.collect()
    limit = _resident_mb() + MEMORY_MB
    print(f"memory limit: {limit} MiB", flush=True)
    options = [
        f"-rss_limit_mb={limit}",
        f"-timeout={STUCK_SECONDS}",
        f"-max_len={target.max_bytes}",
        "-len_control=0",
        "-print_final_stats=1",
        *arguments,
    ]

    def changed(data: bytes, max_bytes: int, seed: int) -> bytes:
        """Change an input in our own way half of the time, in libFuzzer's otherwise."""
        if target.form == "bytes" or seed % 2:
            return bytes(atheris.Mutate(data, max_bytes))
        return mutate(data, target.form, Random(seed), max_bytes)

    def check(data: bytes) -> None:
        """Keep what was found before libFuzzer hears of it, which loses inputs where a target has threads."""
        try:
            target.check(data)
        except BaseException:
            FINDINGS.mkdir(parents=True, exist_ok=True)
            path = FINDINGS / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}"
            path.write_bytes(data)
            print(f"\nTest unit written to {path}", file=sys.stderr, flush=True)
            raise

    atheris.Setup([sys.argv[0], *options], check, custom_mutator=changed)
    atheris.Fuzz()


def _resident_mb() -> int:
    """Give the most memory that this process is known to have had, in MiB: what libFuzzer compares with its limit.

    The kernel's peak may lag behind, so what there is now counts, too.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return max(peak, psutil.Process().memory_info().rss) >> 20


if __name__ == "__main__":
    main()
