"""What the hub can say of its rounds: where it is, and what happened in each. Read from its database at any time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from agent.errors import StateError
from agent.federation.draw import lot
from agent.hub.placing import next_merge
from agent.hub.store import HubStore, UpdateRow
from agent.transport.address import without_credentials


def hub_status(store: HubStore) -> dict[str, Any]:
    """Everything about the rounds, for `bramble hub status`."""
    config, state = store.config, store.round_state()
    rules, everybody = config.charter.rounds, store.everybody()
    found: dict[str, Any] = {
        "name": config.name,
        "community": config.community,
        "broker": without_credentials(config.broker),
        "mode": rules.mode,
        "round": state.number if state else 0,
        "phase": state.phase if state else "not started",
        "deadline": round(state.deadline) if state else None,
        "release": store.current().manifest.number,
        "devices": [
            {"device": row.device, "nickname": row.nickname, "joined": row.joined, "group": row.group}
            for row in everybody
            if row.standing == "member"
        ],
        "pending": sum(row.standing == "pending" for row in everybody),
        "releases": [
            {
                "number": row.manifest.number,
                "sha256": row.manifest.sha256,
                "round": row.manifest.round,
                "kept": row.kept,
            }
            for row in store.releases()
        ],
        "withdrawn": [row.manifest.number for row in store.withdrawn()],
        "rounds": store.round_rows(),
        "updates": [_update(row) for row in store.updates()],
        "refusals": store.refusals(),
        "acts": store.acts(),
        "set_aside": _set_aside(store),
    }
    if state is not None:
        candidate = store.candidate(state.number)
        merge = next_merge(state)
        found["now"] = {
            **asdict(store.tally(state, candidate.manifest.sha256 if candidate else "")),
            "waiting": len(store.updates_in(merge, "waiting")),
            "drawn": state.drawn or None,
            "extended": state.extended,
        }
    return found


def _set_aside(store: HubStore) -> list[dict[str, Any]]:
    now = time.time()
    held = (row for row in store.conducts().values() if row.until > now)
    return [{"device": row.device, "until": row.until, "reason": row.reason, "times": row.times} for row in held]


def _update(row: UpdateRow) -> dict[str, Any]:
    return {
        "update": row.update_id,
        "round": row.round,
        "merge": row.merge,
        "state": row.state,
        "device": row.device,
        "tokens": row.tokens,
        "norm": row.norm,
        "wire_bytes": row.wire_bytes,
        "fp32_bytes": row.fp32_bytes,
    }


def round_report(store: HubStore, number: int) -> dict[str, Any]:
    """What happened in a round, for `bramble hub round`.

    Raises:
        StateError: there was no such round.
    """
    rows = store.round_rows(number)
    if not rows:
        state = store.round_state()
        known = f"1 to {state.number}" if state else "none yet"
        raise StateError(f"there is no round {number}", advice=f"Rounds there are: {known}.")
    row = rows[0]
    merged: Mapping[str, Any] = row["report"]
    weighed = {item["update"]: item for item in merged.get("updates", [])}
    names = {device.device: device.nickname for device in store.everybody()}
    verdicts = store.verdicts_of(number)
    here = [update for state in ("waiting", "merged", "spent") for update in store.updates_in(number, state)]
    elsewhere = [update for update in store.updates(number) if update.merge != number or update.state == "superseded"]
    return {
        "round": number,
        "outcome": row["outcome"],
        "reason": row["reason"],
        "start_release": row["start_release"],
        "opened": row["opened"] or None,
        "ended": row["ended"] or None,
        "rule": merged.get("rule"),
        "robust": merged.get("robust"),
        "merge_seconds": merged.get("seconds"),
        "drawn": _drawn(store, row),
        "updates": [
            {
                **_update(update),
                "nickname": names.get(update.device, ""),
                "late": update.late,
                **{
                    key: weighed.get(update.update_id, {}).get(key)
                    for key in ("weight", "staleness", "change_norm", "cosine", "scale")
                },
            }
            for update in here
        ],
        "elsewhere": [{**_update(update), "nickname": names.get(update.device, "")} for update in elsewhere],
        "refused": store.refusals(number),
        "set_aside": _set_aside(store),
        "energy": {
            key: merged.get(f"{key}_energy") for key in ("released", "carried", "discarded") if "seconds" in merged
        },
        "carry_lost": merged.get("carry_lost", ""),
        "gate": merged.get("gate"),
        "verdicts": [
            {**asdict(verdict), "change": verdict.change, "nickname": names.get(device, "")}
            for device, verdict in verdicts.items()
        ],
    }


def _drawn(store: HubStore, row: Mapping[str, Any]) -> list[str] | None:
    """Give the devices that a round drew, of those that are enrolled now; None where nobody was left out."""
    if row["draw"] is None:
        return None
    number, community = row["round"], store.config.community
    both = (*store.releases(), *store.withdrawn())
    start = next(found.manifest.sha256 for found in both if found.manifest.number == row["start_release"])
    lots = {
        device.device: lot(device.device, community=community, round_number=number, release=start)
        for device in store.devices()
    }
    return sorted(device for device, own in lots.items() if own < row["draw"])
