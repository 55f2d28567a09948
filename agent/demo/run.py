"""The demo from beginning to end: a broker, a hub and devices as processes, rounds, then what they were worth."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.demo.measuring import (
    DeviceText,
    Losses,
    all_alone,
    gather_devices,
    measure_all,
    peft_difference,
    release_files,
)
from agent.demo.processes import Running, bramble
from agent.demo.show import Stage
from agent.demo.text import device_topics, write_topic
from agent.errors import DemoError
from agent.llm.conversation import Conversation
from agent.paths import BlobStore, Home
from agent.settings import DeviceSettings
from agent.training.job import Progress

ROUND_PATIENCE = 900.0
"""Seconds without any event of the hub after which the demo gives up."""


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What `bramble demo` was asked for.

    Attributes:
        text: a folder a device; empty for the standard library's docstrings and comments by topic.
        broker: URL of a broker of your own; none for the embedded one.
        directory: where everything is written.
        measure: whether to train each device alone and measure every release afterwards.
    """

    devices: int
    rounds: int
    text: tuple[Path, ...]
    broker: str | None
    directory: Path
    steps: int
    batch_size: int
    window: int
    rank: int
    learning_rate: float
    measure: bool = True


class Demo:
    """One run of the demo.

    Args:
        plan: what to do.
        stage: where to show it.
    """

    def __init__(self, *, plan: DemoPlan, stage: Stage) -> None:
        self._plan = plan
        self._stage = stage
        self._hub_home = Home(plan.directory / "hub")
        self._log = plan.directory / "demo.log"
        self._homes: dict[str, Home] = {}
        self._topics: dict[str, str] = {}
        self._closed = asyncio.Event()
        self._ready = asyncio.Event()
        self._heard = time.monotonic()
        self._adopted: dict[str, int] = {}
        self._peaks: dict[str, float] = {}
        self._settings = DeviceSettings(threads=1, checkpoint_seconds=10.0)

    async def run(self) -> dict[str, Any]:
        """Run it and give the report (see the issue's `--json`)."""
        began = time.monotonic()
        with self._stage.showing():
            await self._set_up()
            await self._grow()
            report = await self._report()
        report["wall_s"] = round(time.monotonic() - began, 1)
        report["peak_rss_mb"] = {name: round(size, 1) for name, size in sorted(self._peaks.items())}
        return report

    # --- setting up --------------------------------------------------------------------------------------------

    async def _set_up(self) -> None:
        plan = self._plan
        self._stage.headline(f"Setting up a hub and {plan.devices} devices in {plan.directory}")
        folders = self._write_text()
        options = ["--rounds", plan.rounds, "--target", plan.devices, "--quorum", max(1, plan.devices // 2)]
        options += [
            "--steps",
            plan.steps,
            "--batch-size",
            plan.batch_size,
            "--window",
            plan.window,
            "--rank",
            plan.rank,
        ]
        options += ["--learning-rate", plan.learning_rate, "--collect", "15m", "--trial", "5m", "--heartbeat", "10s"]
        options += ["--name", "The demo's community", *(["--broker", plan.broker] if plan.broker else [])]
        await self._bramble("hub", "init", "--home", str(self._hub_home.root), *map(str, options))
        await asyncio.gather(*(self._make_device(name) for name in folders))
        for name, folder in folders.items():
            await self._bramble("data", "add", str(folder), "--yes", "--home", str(self._homes[name].root))

    def _write_text(self) -> dict[str, Path]:
        """Give each device a folder of text."""
        plan = self._plan
        if plan.text:
            names = [f"device-{index + 1}" for index in range(plan.devices)]
            chosen = {name: plan.text[index % len(plan.text)] for index, name in enumerate(names)}
            self._topics = {name: folder.name for name, folder in chosen.items()}
        else:
            chosen = {}
            for index, (topic, part, parts) in enumerate(device_topics(plan.devices)):
                name = f"device-{index + 1}"
                chosen[name] = plan.directory / "text" / (f"{topic}-{part + 1}" if parts > 1 else topic)
                characters = write_topic(chosen[name], topic, part=part, parts=parts)
                self._topics[name] = topic
                self._stage.hear(name, "text", {"text": f"has {characters:,} characters about {topic}"})
        self._homes = {name: Home(plan.directory / name) for name in chosen}
        return chosen

    async def _make_device(self, name: str) -> None:
        await self._bramble("init", "--home", str(self._homes[name].root), "--nickname", f"{name} {self._topics[name]}")

    async def _bramble(self, *arguments: str) -> str:
        return await bramble(*arguments, log=self._log)

    # --- the rounds --------------------------------------------------------------------------------------------

    async def _grow(self) -> None:
        """Run hub and devices until the last round is over and everybody has the last release."""
        async with contextlib.AsyncExitStack() as stack:
            hub = await stack.enter_async_context(
                self._process("hub", "hub", "run", "--home", str(self._hub_home.root), "--events-json")
            )
            await self._until(self._ready, [hub])
            line = json.loads(
                await self._bramble(
                    "hub", "invite", "--uses", str(len(self._homes)), "--home", str(self._hub_home.root), "--json"
                )
            )["invite"]
            await asyncio.gather(
                *(self._bramble("join", line, "--yes", "--home", str(home.root)) for home in self._homes.values())
            )
            self._stage.headline(f"{len(self._homes)} devices joined; {self._plan.rounds} rounds begin")
            processes = [hub]
            for name, home in self._homes.items():
                arguments = ("run", "--home", str(home.root), "--threads", "1", "--events-json")
                processes.append(await stack.enter_async_context(self._process(name, *arguments)))
            await self._until(self._closed, processes)

    @contextlib.asynccontextmanager
    async def _process(self, name: str, *arguments: str) -> AsyncIterator[Running]:
        running = Running(name=name, arguments=arguments, log=self._log, hear=lambda *event: self._hear(name, *event))
        await running.start()
        try:
            yield running
        finally:
            await running.stop()
            for who, size in running.peak_mb.items():
                self._peaks[who] = max(size, self._peaks.get(who, 0.0))

    def _hear(self, name: str, event: str, fields: dict[str, Any]) -> None:
        self._heard = time.monotonic()
        self._stage.hear(name, event, fields)
        if event == "hub-ready":
            self._ready.set()
        if event in {"adopted", "declined"}:
            self._adopted[name] = int(fields.get("release", 0))
        if name == "hub" and event == "closed":
            self._last_release = int(fields["release"])
        last = getattr(self, "_last_release", None)
        if last is not None and all(self._adopted.get(device, -1) >= last for device in self._homes):
            self._closed.set()

    async def _until(self, event: asyncio.Event, processes: list[Running]) -> None:
        """Wait for an event while all processes are well.

        Raises:
            DemoError: one ended, or nothing was heard for too long.
        """
        while not event.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await event.wait()
            for process in processes:
                error = process.ended()
                if error is not None:
                    raise error
            if time.monotonic() - self._heard > ROUND_PATIENCE:
                raise DemoError(f"nothing happened for {ROUND_PATIENCE:.0f} seconds", advice=f"Look into {self._log}.")

    # --- what it was worth -------------------------------------------------------------------------------------

    async def _report(self) -> dict[str, Any]:
        plan = self._plan
        status = json.loads(await self._bramble("hub", "status", "--json", "--home", str(self._hub_home.root)))
        updates, releases = status["updates"], status["releases"]
        report: dict[str, Any] = {
            "devices": plan.devices,
            "rounds": plan.rounds,
            "topics": self._topics,
            "bytes_per_update": _mean([row["wire_bytes"] for row in updates]),
            "fp32_bytes_per_update": int(_mean([row["fp32_bytes"] for row in updates])),
            "updates_accepted": len(updates),
            "updates_refused": len(status["refusals"]),
            "log": {
                "updates": updates,
                "releases": releases,
                "rounds": status["rounds"],
                "refusals": status["refusals"],
            },
        }
        if plan.measure:
            report.update(await self._measure(releases))
        return report

    async def _measure(self, releases: list[dict[str, Any]]) -> dict[str, Any]:
        plan, work = self._plan, self._plan.directory / "measured"
        self._stage.clear()
        self._stage.headline("The same devices alone: as many steps, without the community")
        devices = await gather_devices(self._homes, self._settings)
        blobs = BlobStore(self._hub_home.blobs)
        first, last = blobs.get(releases[0]["sha256"]), blobs.get(releases[-1]["sha256"])
        alone = await all_alone(
            devices, self._settings, steps=plan.steps * plan.rounds, start=first, directory=work, tell=self._tell
        )
        self._stage.headline("Measuring every release and every device alone on everybody's held-out text")
        names = {f"release-{row['number']}": row["sha256"] for row in releases}
        files = release_files(self._hub_home, names, devices[0].membership.base, work / "releases")
        variants: dict[str, Path | None] = {"base": None}
        variants.update({name: path for name, path in files.items() if name != "release-0"})  # which changes nothing
        variants.update({f"{name} alone": path for name, path in alone.items()})
        losses = await measure_all(devices, variants, self._settings, tell=self._tell)
        final = f"release-{releases[-1]['number']}"
        here = losses.by_variant[final][devices[0].name]
        difference = await peft_difference(devices[0], last, here, self._settings, directory=work)
        prompt = "Return a new"
        return {
            **_losses(losses, devices, final, ["base", *list(names)[1:]]),
            "peft_vs_llamacpp_loss_diff": difference,
            "community_adapter": {"gguf": str(files[final]), "sha256": releases[-1]["sha256"]},
            "prompt": prompt,
            "answers": _answers(devices[0].membership.base, files[final], prompt),
        }

    def _tell(self, name: str, progress: Progress) -> None:
        self._stage.hear(name, "progress", progress.model_dump())


def _losses(losses: Losses, devices: list[DeviceText], final: str, releases: list[str]) -> dict[str, Any]:
    """Arrange the losses for the report."""
    alone = {device.name: losses.mean(f"{device.name} alone") for device in devices}
    own = {device.name: losses.by_variant[f"{device.name} alone"][device.name] for device in devices}
    return {
        "base_loss": losses.mean("base"),
        "community_loss": losses.mean(final),
        "community_by_round": [losses.mean(name) for name in releases],
        "alone_loss": list(alone.values()),
        "alone_by_device": alone,
        "alone_mean": _mean(list(alone.values())),
        "alone_on_own_text": own,
        "community_on_own_text": dict(losses.by_variant[final]),
        "best": final,
        "losses_by_device": {name: {**row, "all": losses.mean(name)} for name, row in losses.by_variant.items()},
        "heldout_tokens": losses.targets,
    }


def _answers(base: Path, community: Path, prompt: str) -> dict[str, str]:
    """Let the base and the community model go on from the same words."""
    adapters: dict[str, list[Path]] = {"base": [], "community": [community]}
    with Conversation(base=base, adapters=adapters, max_tokens=40, temperature=0.6, seed=1, threads=2) as talk:
        answers = {}
        for name in adapters:
            talk.swap(name)
            answers[name] = "".join(talk.complete(prompt)).strip()
        return answers


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
