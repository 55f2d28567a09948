"""The hub's tables: everything it must not forget, behind SQLAlchemy Core (SQLite, or PostgreSQL where larger)."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_VERSION = 4
"""Raised with every change of a table; `agent/hub/migrations.py` brings older databases up."""

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
    Column("uses", Integer, nullable=False, server_default="0", comment="devices it lets in, all in all"),
    Column("member_group", String(32), nullable=False, server_default="", comment="of those it lets in"),
    Column(
        "taken_back", BigInteger, nullable=False, server_default="0", comment="Unix time, seconds; 0 where it is not"
    ),
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
    Column("standing", String(16), nullable=False, server_default="member", comment="see agent/hub/members.py"),
    Column("member_group", String(32), nullable=False, server_default=""),
    Column("changed", BigInteger, nullable=False, server_default="0", comment="Unix time of its standing, seconds"),
    Column("reason", Text, nullable=False, server_default="", comment="a steward's words"),
    Column("successor", String(64), nullable=False, server_default="", comment="the id that came after this one"),
)

rounds = Table(
    "rounds",
    metadata,
    Column("round", Integer, primary_key=True),
    Column("start_release", Integer, nullable=False),
    Column("seal_seed", LargeBinary, nullable=False, comment="empty once no update for it can count: forward secrecy"),
    Column("outcome", String(16), nullable=False, comment="waiting, running, promoted, rejected or rolled-back"),
    Column("reason", Text, nullable=False),
    Column("report", Text, nullable=False, comment="JSON: what the merge and the gate found"),
    Column("draw", BigInteger, nullable=True, comment="devices whose lot is below it take part; null for everybody"),
    Column("opened", BigInteger, nullable=False, server_default="0", comment="Unix time, seconds"),
    Column("ended", BigInteger, nullable=False, server_default="0", comment="Unix time, seconds; 0 while it runs"),
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
    Column("start", String(64), nullable=False, server_default="", comment="hex SHA-256 of its start"),
    Column("merge", Integer, nullable=False, server_default="0", comment="the round in whose merge it counts"),
    Column("state", String(16), nullable=False, server_default="merged", comment="see agent/hub/round_book.py"),
    UniqueConstraint("round", "device", name="one_update_a_device_a_round"),
)
Index("updates_of_a_merge", updates.c.merge, updates.c.state)
Index("updates_by_transfer", updates.c.transfer)

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
Index("refusals_by_transfer", refusals.c.transfer)
Index("refusals_of_a_round", refusals.c.round)

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
    Column("state", String(16), nullable=False, comment="candidate, promoted, rejected or withdrawn"),
    Column("created", BigInteger, nullable=False),
    Column("updates", Text, nullable=False, comment="JSON list of the update ids in it"),
    Column("carry", String(64), nullable=False, server_default="", comment="hex SHA-256 of what its merge left over"),
    Column("kept", Integer, nullable=False, server_default="1", comment="0 once its adapter was removed"),
)

acts = Table(
    "acts",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", BigInteger, nullable=False, comment="Unix time, seconds"),
    Column("act", String(32), nullable=False, comment="what an operator did by hand, such as rollback"),
    Column("operator", String(64), nullable=False, comment="the operator's account on the hub's machine"),
    Column("details", Text, nullable=False, comment="JSON"),
)

conduct = Table(
    "conduct",
    metadata,
    Column("device", String(64), primary_key=True),
    Column("strikes", Integer, nullable=False),
    Column("since", BigInteger, nullable=False, comment="Unix time of the first of them, seconds"),
    Column("times", Integer, nullable=False, comment="how often it was set aside"),
    Column("until", BigInteger, nullable=False, comment="Unix time until which it is set aside, seconds"),
    Column("reason", String(64), nullable=False, comment="of the last strike"),
    comment="One row a device that something is held against; see agent/hub/conduct.py.",
)
