"""Trying adapters on the text a device held back, by llama.cpp, and keeping what is better for its owner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.federation.store import DeviceStore, Membership
from agent.federation.text import PreparedText
from agent.llm.adapter import Adapter, LoraFactors, from_bytes
from agent.llm.adapter_gguf import write_gguf_adapter
from agent.llm.gguf_file import open_gguf
from agent.paths import BlobStore
from agent.settings import DeviceSettings
from agent.training.job import EvaluateJob, EvaluateResult, Progress, ScaledAdapter, Variant
from agent.training.process import Workers, run_worker


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """Adapters as llama.cpp loads them, made from blobs when first needed.

    Args:
        store: whose blobs and working directory.
        base: the GGUF they belong to.
    """

    store: DeviceStore
    base: Path

    def gguf(self, sha256: str) -> Path:
        """Give the GGUF form of the adapter with this hash."""
        path = self.store.home.work / "adapters" / f"{sha256}.gguf"
        if not path.is_file():
            adapter = from_bytes(BlobStore(self.store.home.blobs).get(sha256))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_gguf_adapter(adapter, open_gguf(self.base), path)
        return path

    def keep_only(self, wanted: Container[str]) -> None:
        """Forget the GGUF form of every adapter that is not wanted; it can be made again from its blob."""
        for path in self.personal.parent.glob("*.gguf"):
            if path.stem not in wanted and path != self.personal:
                path.unlink(missing_ok=True)

    @property
    def personal(self) -> Path:
        """What this device learned beyond the community; it never leaves."""
        return self.store.home.work / "adapters" / "personal.gguf"


async def measure(
    membership: Membership,
    settings: DeviceSettings,
    text: PreparedText,
    variants: Mapping[str, tuple[Path, ...]],
    *,
    workers: Workers = run_worker,
    on_progress: Callable[[Progress], None] | None = None,
    on_start: Callable[[int], None] | None = None,
) -> EvaluateResult:
    """Give the mean held-out loss (nats a token) of the base with each set of GGUF adapters."""
    job = EvaluateJob(
        base_path=membership.base,
        threads=settings.threads,
        windows_path=text.heldout,
        variants=tuple(
            Variant(name=name, adapters=tuple(ScaledAdapter(path=path) for path in paths))
            for name, paths in variants.items()
        ),
        max_windows=settings.max_heldout_windows,
    )
    return await workers(job, on_progress=on_progress, on_start=on_start)


def personal_adapter(trained: Adapter, community: Adapter) -> Adapter:
    """Give what, on top of the community adapter, makes exactly the model that this device trained.

    Its product is ``s_t B_t A_t - s_c B_c A_c``, kept as stacked factors of rank ``r_t + r_c``, with scaling 1.
    """
    modules = {}
    for name, mine in trained.modules.items():
        theirs = community.modules[name]
        modules[name] = LoraFactors(
            a=np.vstack([mine.a, theirs.a]),
            b=np.hstack([trained.scaling * mine.b, -community.scaling * theirs.b]).astype(np.float32),
        )
    rank = trained.rank + community.rank
    return Adapter(rank=rank, alpha=float(rank), modules=modules, base_sha256=community.base_sha256)


async def keep_personal(
    store: DeviceStore,
    membership: Membership,
    settings: DeviceSettings,
    text: PreparedText,
    *,
    release: str,
    trained: str,
    community_loss: float | None,
    workers: Workers = run_worker,
    on_start: Callable[[int], None] | None = None,
) -> tuple[float, float]:
    """Make the personal adapter anew for a release, and keep it if it helps on held-out text.

    ``release`` and ``trained`` are hashes of the adopted adapter and of what this device trained last;
    ``community_loss`` is the release's on the same text, where it was measured already.

    Returns:
        Mean held-out loss with the community adapter alone, and with the personal one on top.
    """
    blobs = BlobStore(store.home.blobs)
    files = AdapterFiles(store=store, base=membership.base)
    made = personal_adapter(from_bytes(blobs.get(trained)), from_bytes(blobs.get(release)))
    fresh = files.personal.with_suffix(".new.gguf")
    community = await asyncio.to_thread(files.gguf, release)
    await asyncio.to_thread(write_gguf_adapter, made, open_gguf(membership.base), fresh)
    variants: dict[str, tuple[Path, ...]] = {"personal": (community, fresh)}
    if community_loss is None:
        variants["community"] = (community,)
    losses = {"community": community_loss or 0.0}
    result = await measure(membership, settings, text, variants, workers=workers, on_start=on_start)
    losses.update(result.losses)
    if losses["personal"] < losses["community"]:
        fresh.replace(files.personal)
    else:
        fresh.unlink(missing_ok=True)
        files.personal.unlink(missing_ok=True)
    return losses["community"], losses["personal"]
