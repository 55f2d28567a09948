"""A warning for whoever has allowed connections without TLS."""

from __future__ import annotations

import click

from agent.transport.address import parse_brokers


def warn_if_unencrypted(urls: str) -> None:
    """Say on standard error which of these brokers are on another machine and are talked to without TLS."""
    for address in parse_brokers(urls):
        if address.exposed:
            click.echo(
                f"Warning: {address.shown} is another machine, and the connection is not encrypted. Whoever is on the"
                " way sees who talks, when and how much, and can take this account over. What is sealed stays closed.",
                err=True,
            )
