"""How a community's rules look to an owner, before anything is agreed to."""

from __future__ import annotations

import click

from agent.federation.enrol import Door
from agent.governance.charter import WHAT_IS_NOT_SENT, WHAT_IS_SENT, WHAT_THE_OPERATOR_SEES


def show_charter(door: Door) -> None:
    """Show base, licence, what is sent and what is not, who runs the hub and what that person can see."""
    charter = door.charter
    merging = f"{charter.merge_rule} with {charter.robust.name}"
    rows: list[tuple[str, tuple[str, ...]]] = [
        ("Community", (charter.name,)),
        ("Hub", (f"{door.hub_name}, fingerprint {door.hub.fingerprint()[:20]}… (the one in your invite)",)),
        ("Run by", (door.operator or "its operator did not say; whoever gave you the invite knows",)),
        ("Admission", (_ADMISSION[door.admission],)),
        (
            "Base",
            (f"{charter.base_name} ({charter.base_bytes / 1e6:.1f} MB, SHA-256 {charter.base_sha256[:16]}…)",),
        ),
        ("Licence", (f"{charter.licence} for the community's adapter",)),
        (
            "Merging",
            (f"{merging}, rank {charter.rank}, at least {charter.rounds.quorum} devices a round",),
        ),
        ("Is sent", WHAT_IS_SENT),
        ("Never sent", WHAT_IS_NOT_SENT),
        ("Hub sees", WHAT_THE_OPERATOR_SEES),
        ("Leaving", ("any time (`bramble leave`); what was merged by then cannot be taken out again",)),
    ]
    for name, lines in rows:
        for index, line in enumerate(lines):
            click.echo(f"{name if index == 0 else '':<13}{line}", err=True)


_ADMISSION = {
    "automatic": "whoever holds a good invite is let in at once",
    "approval": "a steward approves each newcomer",
}
