"""What the demo measures after the rounds: every release, and each device alone, on everybody's held-out text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.crypto.identity import Identity
from agent.data.consent import ConsentBook
from agent.federation.learning import round_seed, training_job
from agent.federation.store import Membership, open_device_store
from agent.federation.text import PreparedText, prepare_text
from agent.llm.adapter import from_bytes
from agent.llm.adapter_gguf import write_gguf_adapter
from agent.llm.gguf_file import open_gguf
from agent.paths import BlobStore, Home
from agent.settings import DeviceSettings
from agent.training.job import (
    EvaluateJob,
    MeasureJob,
    MeasureVariant,
    Progress,
    ScaledAdapter,
    TrainResult,
    Variant,
)
from agent.training.process import run_worker

SLOTS = 3
"""Workers at a time."""

Tell = Callable[[str, Progress], None]


@dataclass(frozen=True, slots=True)
class DeviceText:
    """One device of the demo, ready to be measured."""

    name: str
    home: Home
    identity: str
    membership: Membership
    text: PreparedText


@dataclass(frozen=True, slots=True)
class Losses:
    """Mean held-out losses, nats a token, by llama.cpp.

    Attributes:
        by_variant: for each variant, the loss on each device's held-out text.
        targets: tokens predicted, by device.
    """

    by_variant: dict[str, dict[str, float]]
    targets: dict[str, int]

    def mean(self, variant: str) -> float:
        """Mean over all held-out text of all devices: each token counts the same."""
        total = sum(self.targets.values())
        return sum(loss * self.targets[device] for device, loss in self.by_variant[variant].items()) / total


async def gather_devices(homes: Mapping[str, Home], settings: DeviceSettings) -> list[DeviceText]:
    """Read what the devices left behind: their windows are prepared already."""
    found = []
    for name, home in homes.items():
        with open_device_store(home) as store:
            sources = [row.path for row in ConsentBook(store.connection).sources()]
            text = await prepare_text(store, store.membership, settings, sources)
            found.append(DeviceText(name, home, Identity.load(home.keys).id, store.membership, text))
    return found


async def train_alone(
    device: DeviceText, settings: DeviceSettings, *, steps: int, start: bytes, directory: Path, tell: Tell
) -> tuple[TrainResult, Path]:
    """Train one device by itself, for as many steps as it did in all rounds, from the same first adapter.

    Returns:
        What training said, and the adapter as GGUF.
    """
    start_path = _write_start(directory, start)
    job = training_job(
        device.membership,
        settings,
        device.text,
        start=start_path,
        adapter=from_bytes(start),
        seed=round_seed(device.identity, 0),
        directory=directory,
        steps=steps,
    )
    result = await run_worker(job, on_progress=lambda progress: tell(device.name, progress))
    return result, result.gguf_path


def _write_start(directory: Path, start: bytes) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "start.safetensors"
    path.write_bytes(start)
    return path


async def all_alone(
    devices: Sequence[DeviceText], settings: DeviceSettings, *, steps: int, start: bytes, directory: Path, tell: Tell
) -> dict[str, Path]:
    """Train every device by itself, some at a time."""
    slots = asyncio.Semaphore(SLOTS)

    async def one(device: DeviceText) -> Path:
        async with slots:
            _result, path = await train_alone(
                device, settings, steps=steps, start=start, directory=directory / device.name, tell=tell
            )
            return path

    paths = await asyncio.gather(*(one(device) for device in devices))
    return dict(zip((device.name for device in devices), paths, strict=True))


async def measure_all(
    devices: Sequence[DeviceText], variants: Mapping[str, Path | None], settings: DeviceSettings, *, tell: Tell
) -> Losses:
    """Measure variants of the base (none or one GGUF adapter) on every device's held-out text."""
    slots = asyncio.Semaphore(SLOTS)
    wanted = tuple(
        Variant(name=name, adapters=(ScaledAdapter(path=path),) if path else ()) for name, path in variants.items()
    )

    async def one(device: DeviceText) -> tuple[dict[str, float], int]:
        job = EvaluateJob(
            base_path=device.membership.base,
            threads=settings.threads,
            windows_path=device.text.heldout,
            variants=wanted,
            max_windows=settings.max_heldout_windows,
        )
        async with slots:
            result = await run_worker(job, on_progress=lambda progress: tell(device.name, progress))
        return result.losses, result.targets

    results = await asyncio.gather(*(one(device) for device in devices))
    named = list(zip((device.name for device in devices), results, strict=True))
    return Losses(
        by_variant={name: {device: losses[name] for device, (losses, _count) in named} for name in variants},
        targets={device: count for device, (_losses, count) in named},
    )


async def peft_difference(
    device: DeviceText, release: bytes, llamacpp_loss: float, settings: DeviceSettings, *, directory: Path
) -> float:
    """Give how far the loss in torch and PEFT is from llama.cpp's, same adapter and tokens, in nats a token."""
    adapter = directory / "community.safetensors"
    adapter.write_bytes(release)
    job = MeasureJob(
        base_path=device.membership.base,
        threads=settings.threads,
        windows_path=device.text.heldout,
        variants=(MeasureVariant(name="community", adapter=adapter),),
        max_windows=settings.max_heldout_windows,
    )
    result = await run_worker(job)
    return abs(result.losses["community"] - llamacpp_loss)


def release_files(hub: Home, shas: Mapping[str, str], base: Path, directory: Path) -> dict[str, Path]:
    """Write the hub's releases as GGUF adapters."""
    directory.mkdir(parents=True, exist_ok=True)
    model, blobs = open_gguf(base), BlobStore(hub.blobs)
    paths = {}
    for name, sha256 in shas.items():
        paths[name] = directory / f"{name}.gguf"
        write_gguf_adapter(from_bytes(blobs.get(sha256)), model, paths[name])
    return paths
