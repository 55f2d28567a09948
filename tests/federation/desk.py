"""A device that learns for rounds, with training made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agent.crypto.identity import Identity
from agent.crypto.sealing import SealKey, open_stream
from agent.data.consent import ConsentBook
from agent.data.sources import survey
from agent.federation.learning import Learned, learn
from agent.federation.messages import Chunk, Manifest, Offer
from agent.federation.sealing import update_info
from agent.federation.store import Membership, open_device_store
from agent.federation.text import PreparedText
from agent.governance.charter import Charter, TrainingPlan
from agent.llm.adapter import Adapter, from_bytes, read_adapter
from agent.paths import BlobStore, Home
from agent.settings import DeviceSettings
from agent.testing import SMALL_SHAPES
from agent.training.job import TrainJob, TrainResult
from agent.transport.outbox import Outbox
from agent.update.delta import Delta, Factors, apply
from agent.update.wire import decode_update

KEY = SealKey.generate()
HUB = Identity.generate().public
COMMUNITY = "c" * 32
DEVICE = "a" * 52


class Trainer:
    """A worker that learns what it is told to learn; its moments say what they come from."""

    def __init__(self, delta: Delta) -> None:
        self._delta = delta

    async def __call__(self, job: Any, **_options: Any) -> Any:
        assert isinstance(job, TrainJob)
        assert job.start_adapter is not None
        trained = apply(read_adapter(job.start_adapter), self._delta)
        path = job.out_dir / "adapter.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(trained.to_bytes())
        moments = path.with_name("moments")
        if job.keep_moments:
            before = b"" if job.start_moments is None else job.start_moments.read_bytes()
            moments.write_bytes(before + job.factors.encode() + b"+")
        return TrainResult(
            steps=1,
            resumed_from=0,
            tokens=100,
            first_loss=2.0,
            last_loss=1.0,
            seconds=1.0,
            tok_s=1.0,
            compute="float32",
            peak_rss_mb=1.0,
            adapter_path=path,
            gguf_path=path,
            peft_path=path,
            adapter_sha256="00" * 32,
            moments_path=moments if job.keep_moments else None,
        )


class Desk:
    """A device of a community that sends the largest tenth of each update."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root / "home")
        self.home.create()
        self.source = root / "notes.txt"
        self.source.write_text("a line of the owner's\n")
        self.store = open_device_store(self.home, create=True)
        self.blobs = BlobStore(self.home.blobs)
        self.join()
        with self.store.transaction() as connection:
            ConsentBook(connection).grant(self.source, survey([self.source]), granted_by="ada")

    def join(self, **rules: Any) -> None:
        charter = Charter(
            name="Hedge",
            base_name="tiny",
            base_sha256="ab" * 32,
            base_bytes=1,
            rank=4,
            **{"compression": "topk", "density": 0.1, "training": TrainingPlan(window=32, moments="fresh"), **rules},
        )
        self.store.save_membership(
            Membership(
                community=COMMUNITY,
                broker="mqtt://127.0.0.1:1",
                hub=HUB.encode(),
                username="",
                password="",
                base=self.home.root / "tiny.gguf",
                charter=charter,
                joined=0,
            )
        )

    async def learn(
        self, number: int, *, start: Adapter, release: int = 1, delta: Delta, factors: Factors = "both"
    ) -> Learned:
        data = start.to_bytes()
        manifest = Manifest(number=release, sha256=self.blobs.put(data), parent="", size=len(data), round=release)
        text = PreparedText(train=self.source, heldout=self.source, train_windows=1, heldout_windows=1, tokens=100)
        return await learn(
            self.store,
            self.store.membership,
            DeviceSettings(),
            text,
            sources=[self.source],
            device=DEVICE,
            round_number=number,
            release=manifest,
            seal_key=KEY.public,
            factors=factors,
            workers=Trainer(delta),
        )

    def sent(self, number: int) -> Delta:
        """Give what the hub reads of a round's update in the outbox."""
        (record,) = [row for row in self.store.rounds() if row.round == number]
        offer = Offer.decode(
            next(i.body for i in Outbox(self.store.connection).openings() if i.transfer == record.transfer)
        )
        parts = [Outbox(self.store.connection).part(record.transfer, index) for index in range(offer.plan.chunk_count)]
        chunks = [Chunk.decode(part.body).data for part in parts if part is not None]
        where = (bytes.fromhex(COMMUNITY), HUB.fingerprint(), DEVICE, offer.transfer)
        info = update_info(*where, round_number=number, start_sha256=offer.adapter)
        body = open_stream(chunks, KEY.unseal(offer.sealed_key, info), offer.size)
        return decode_update(body, expected=SMALL_SHAPES, max_rank=4, max_bytes=len(body))[1]

    def left_over(self, factors: Factors = "both") -> Adapter:
        kept = self.store.residual(factors)
        assert kept is not None
        return from_bytes(self.blobs.get(kept.sha256))

    def settle(self, number: int, state: Any) -> None:
        (record,) = [row for row in self.store.rounds() if row.round == number]
        with self.store.transaction():
            Outbox(self.store.connection).done_transfer(record.transfer)
            self.store.settle(bytes.fromhex(record.transfer), state=state)
