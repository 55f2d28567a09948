"""The fleet's bench in small: twenty real devices with synthetic training, a real broker and a real hub."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import fleet
import pytest

from agent.paths import Home
from engines.broker import find_mosquitto

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]


def test_a_small_fleet_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    fleet.main(["--json", str(tmp_path / "fleet.json"), "--devices", "20", "--rounds", "2", "--within", "240"])
    report = json.loads((tmp_path / "fleet.json").read_text())
    assert (report["rounds_completed"], report["updates"], report["updates_made"]) == (2, 40, 40)
    assert (report["updates_lost"], report["updates_double"], report["updates_refused"]) == (0, 0, {})
    assert report["devices_current"] == 20
    assert 50 < report["hub_peak_mb"] <= 300
    assert report["hub_cpu_s"] > 0
    # every device fetches release 0, a candidate a round, and sends an update a round, through the broker twice
    plain = 20 * (3 * report["adapter_bytes"] + 2 * report["update_bytes"])
    assert 0.6 * plain < report["broker_bytes"] / 2 < 1.5 * plain  # adapters travel compressed


def test_what_is_lost_or_double_is_counted(tmp_path: Path) -> None:
    with fleet.rooms(tmp_path) as (disk, memory):
        options = fleet.parse(["--devices", "3", "--rounds", "1", "--within", "120"])
        bench = fleet.Bench(options, disk=disk, memory=memory)
        assert bench.run()["updates_lost"] == 0
        hub, homes = Home(disk / "hub"), [memory / f"device-{number:04}" for number in range(3)]
        with closing(sqlite3.connect(hub.database)) as connection, connection:
            gone = "SELECT transfer FROM updates LIMIT 1"
            connection.execute(f"DELETE FROM updates WHERE transfer = ({gone})")
            (merged,) = connection.execute("SELECT updates FROM releases WHERE number = 1").fetchone()
            twice = json.dumps([*json.loads(merged), json.loads(merged)[0]])
            connection.execute("UPDATE releases SET updates = ? WHERE number = 1", (twice,))
        counts = fleet.count(hub, homes)
    assert (counts.updates_lost, counts.updates_double) == (1, 1)
