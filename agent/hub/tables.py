"""The hub's tables: everything it must not forget, behind SQLAlchemy Core (SQLite, or PostgreSQL where larger)."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_VERSION = 1

metadata = MetaData()

facts = Table(
    "facts",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", LargeBinary, nullable=False),
    comment="One row a fact: schema version, charter, round state, counters.",
)

invites = Table(
    "invites",
    metadata,
    Column("invite", String(16), primary_key=True),
    Column("secret", LargeBinary, nullable=False),
    Column("uses_left", Integer, nullable=False),
    Column("expires", BigInteger, nullable=False, comment="Unix time, seconds"),
    Column("created", BigInteger, nullable=False),
)

devices = Table(
    "devices",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("public", LargeBinary, nullable=False),
    Column("nickname", String(64), nullable=False),
    Column("invite", String(16), nullable=False),
    Column("joined", BigInteger, nullable=False),
    Column("replay", LargeBinary, nullable=False, comment="anti-replay window of the device's counters"),
)

rounds = Table(
    "rounds",
    metadata,
    Column("round", Integer, primary_key=True),
    Column("start_release", Integer, nullable=False),
    Column("seal_seed", LargeBinary, nullable=False, comment="empty once the round is merged: forward secrecy"),
    Column("outcome", String(16), nullable=False, comment="running, promoted or rejected"),
    Column("reason", Text, nullable=False),
    Column("report", Text, nullable=False, comment="JSON: what the merge and the gate found"),
)

updates = Table(
    "updates",
    metadata,
    Column("update_id", String(64), primary_key=True, comment="hex SHA-256 of the update as opened"),
    Column("round", Integer, nullable=False),
    Column("device", String(64), nullable=False),
    Column("transfer", String(32), nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("norm", Float, nullable=False),
    Column("wire_bytes", BigInteger, nullable=False, comment="sealed bytes that travelled"),
    Column("fp32_bytes", BigInteger, nullable=False, comment="what it would be as plain float32"),
    Column("accepted", BigInteger, nullable=False),
    UniqueConstraint("round", "device", name="one_update_a_device_a_round"),
)

refusals = Table(
    "refusals",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("round", Integer, nullable=False),
    Column("device", String(64), nullable=False),
    Column("transfer", String(32), nullable=False),
    Column("reason", String(64), nullable=False),
    Column("message", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
)

verdicts = Table(
    "verdicts",
    metadata,
    Column("candidate", String(64), primary_key=True),
    Column("device", String(64), primary_key=True),
    Column("round", Integer, nullable=False),
    Column("before", Float, nullable=False),
    Column("after", Float, nullable=False),
    Column("targets", BigInteger, nullable=False),
)

releases = Table(
    "releases",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("number", Integer, nullable=False),
    Column("round", Integer, nullable=False),
    Column("parent", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("content_key", LargeBinary, nullable=False, comment="key of its sealed chunks"),
    Column("state", String(16), nullable=False, comment="candidate, promoted or rejected"),
    Column("created", BigInteger, nullable=False),
    Column("updates", Text, nullable=False, comment="JSON list of the update ids in it"),
)
