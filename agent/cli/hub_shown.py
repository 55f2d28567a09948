"""How `bramble hub status` and `bramble hub round` look to a person."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from agent.cli.tables import show_table

if TYPE_CHECKING:
    from rich.table import Table

LAST_ROUNDS = 10
"""Rounds and releases that the status lists; `--json` has all of them."""


def show_status(found: Mapping[str, Any]) -> None:
    """Say where the rounds are, who takes part, and what was released."""
    running = "" if found["running"] else "; the hub does not run: start it with `bramble hub run`"
    click.echo(f"{found['name']} at {found['broker']} ({found['mode']}){running}")
    click.echo(f"round {found['round']}: {_where(found)}")
    refused = Counter(row["reason"] for row in found["refusals"])
    words = ", ".join(f"{count} {reason}" for reason, count in refused.most_common()) or "none"
    waiting = f" ({found['pending']} more wait for approval)" if found["pending"] else ""
    click.echo(f"{len(found['devices'])} devices{waiting}, {len(found['updates'])} updates counted; refused: {words}")
    merged = Counter(update["merge"] for update in found["updates"] if update["state"] in {"waiting", "merged"})
    _skipped("rounds", found["rounds"])
    for row in found["rounds"][-LAST_ROUNDS:]:
        outcome = row["outcome"]
        click.echo(f"  round {row['round']:>3}  {merged[row['round']]:>4} updates  {outcome:<11} {row['reason']}")
    _skipped("releases", found["releases"])
    for row in found["releases"][-LAST_ROUNDS:]:
        note = "" if row["kept"] else "  (not kept)"
        click.echo(f"  release {row['number']:>3}  {row['sha256'][:16]}  from round {row['round']}{note}")
    if found["withdrawn"]:
        click.echo(f"  withdrawn: {', '.join(map(str, found['withdrawn']))}")
    for act in found["acts"]:
        click.echo(f"  {moment(act['at'])}  {act['operator']} {_deed(act['act'], act['details'])}")
    for row in found["set_aside"]:
        until = f"until {moment(row['until'])}"
        click.echo(f"  set aside {until}: {row['device'][:10]} ({row['reason']}); `bramble hub pardon` lets it back in")


def _deed(act: str, details: Mapping[str, Any]) -> str:
    """Say what an operator did."""
    if act == "rollback":
        return f"went back from release {details['from']} to {details['to']}"
    if act == "pardon":
        return f"pardoned {details['device'][:10]} ({details['reason']})"
    why = f" ({details['reason']})" if details["reason"] else ""
    return f"did {act} {details['device'][:10]} {details['nickname']}".rstrip() + why


def _skipped(what: str, rows: Sequence[object]) -> None:
    if len(rows) > LAST_ROUNDS:
        click.echo(f"  … {len(rows) - LAST_ROUNDS} earlier {what}")


def _where(found: Mapping[str, Any]) -> str:
    now = found.get("now")
    if found["phase"] == "closed":
        return f"closed, it was the last; release {found['release']} stands"
    if now is None:
        return str(found["phase"])
    until = f", until {moment(found['deadline'])} at first" if found["phase"] in {"open", "collecting", "trial"} else ""
    if found["phase"] == "trial":
        return f"trial, {now['verdicts']} verdicts, {now['unheard']} devices not heard yet{until}"
    drawn = f", {now['drawn']} devices drawn" if now["drawn"] else ""
    late = f" and {now['late']} late" if now["late"] else ""
    if found["phase"] in {"open", "collecting"}:
        return f"{found['phase']}, {now['fresh']} updates{late}{drawn}{until}"
    return f"{found['phase']}, {now['waiting']} updates wait for the next merge"


def show_round(found: Mapping[str, Any]) -> None:
    """Say who took part in a round, what they sent, and what became of it."""
    start = f"from release {found['start_release']}"
    times = f"{moment(found['opened'])} to {moment(found['ended']) or 'now'}"
    click.echo(f"round {found['round']} {start}: {found['outcome']} ({times})")
    if found["reason"]:
        click.echo(f"  {found['reason']}")
    if found["drawn"] is not None:
        click.echo(f"  {len(found['drawn'])} devices were drawn")
    energy = found["energy"]
    if energy:
        shares = ", ".join(f"{share:.2%} {what}" for what, share in energy.items())
        behind = (
            f"{robust['name']}{', mixed' if robust['mixing'] else ''}" if (robust := found["robust"]) else "nothing"
        )
        click.echo(f"  merged by {found['rule']} behind {behind} in {found['merge_seconds']} s; energy {shares}")
    if found["carry_lost"]:
        click.echo(f"  merged without what earlier merges left over: {found['carry_lost']}")
    if found["updates"]:
        show_table(_updates(found["updates"]))
    if found["verdicts"]:
        show_table(_verdicts(found["verdicts"]))
    for row in found["elsewhere"]:
        fate = f"counted in round {row['merge']}" if row["state"] in {"waiting", "merged"} else row["state"]
        click.echo(f"  made for this round by {_name(row)}: {fate}")
    for row in found["set_aside"]:
        click.echo(f"  set aside until {moment(row['until'])}: {row['device'][:10]} ({row['reason']})")
    for row in found["refused"]:
        click.echo(f"  refused from {row['device'][:10]}: {row['reason']} ({row['message']})")


def _updates(rows: Sequence[Mapping[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("device", "late", "tokens", "bytes", "weight", "norm", "cosine", ""):
        table.add_column(name, justify="left" if name in {"device", ""} else "right")
    for row in rows:
        table.add_row(
            _name(row),
            str(row["late"] or ""),
            f"{row['tokens']:,}",
            f"{row['wire_bytes']:,}",
            _number(row["weight"], ".3f"),
            _number(row["change_norm"] or row["norm"], ".3g"),
            _number(row["cosine"], "+.3f"),
            _fate(row),
        )
    return table


def _fate(row: Mapping[str, Any]) -> str:
    """Say what is out of the ordinary about an update."""
    words = [row["state"]] if row["state"] != "merged" else []
    if row["scale"] is not None and row["scale"] < 1:
        words.append(f"clipped from {row['norm']:.3g}")
    if row["weight"] == 0:
        words.append("left out")
    return ", ".join(words)


def _verdicts(rows: Sequence[Mapping[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("judged by", "before", "after", "change", "tokens"):
        table.add_column(name, justify="left" if name == "judged by" else "right")
    for row in rows:
        table.add_row(
            _name(row), f"{row['before']:.4f}", f"{row['after']:.4f}", f"{row['change']:+.2%}", f"{row['targets']:,}"
        )
    return table


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['device'][:10]} {row['nickname']}".strip()


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def moment(seconds: float | None) -> str:
    """Give a time as the operator's clock shows it; nothing for none."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else ""
