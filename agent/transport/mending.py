"""Keeps a link connected: goes through its brokers in order, and through all of them again after a wait.

After a break, and as long as nobody answers, one pass over the list follows another, each begun after a wait with full
jitter (``agent.transport.backoff``). A pass ends with the first broker that takes us in; it is left only when the
connection breaks, not when a broker earlier in the list is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from agent.errors import BrokerRefusedError, BrokerUnreachableError, NetworkError
from agent.transport.address import BrokerAddress
from agent.transport.backoff import Backoff
from agent.transport.link import LinkState, Presence
from agent.transport.paho_client import Events, PahoClient, Terms, to_the_end
from agent.transport.proxies import Proxy, proxy_for
from agent.transport.refusals import NO_ANSWER, UNSUPPORTED_VERSION, advice, advise, explain, is_final, reason

_UNREACHABLE_ADVICE = "Check that the broker runs, that the address is right, and that no firewall is between."
_TAKEN_OVER = "another process connected as this device: only one may run with one identity"
_SUSPICION = "; if this goes on, look whether two run with one identity, or whether the broker takes packets of 96 KiB"


class Owner(Events, Protocol):
    """The link whose connection is kept."""

    def is_up(self, client: PahoClient) -> None:
        """A broker took us in."""

    def is_down(self, state: LinkState) -> None:
        """The connection broke, or there is still none: why."""

    def has_failed(self, error: Exception) -> None:
        """There will be no connection: what has to be changed first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """Why one broker could not be used."""

    address: BrokerAddress
    code: int | None
    """Of its refusal; None where it was not reached."""
    why: str
    advice: str = ""
    """What can be done about it, where more is known than of most."""

    @property
    def words(self) -> str:
        if self.code is None:
            return f"The broker {self.address.shown} cannot be reached: {self.why}"
        return f"The broker {self.address.shown} refused the connection: {self.why}"


class Mender:
    """Connects one link, and connects it again.

    Args:
        brokers: where to, and as whom; tried in this order.
        versions: of MQTT, the first that a broker speaks.
        terms: how to connect.
        presence: what to say about being there; called before the first connection, and after each break.
        owner: the link.
        backoff: how long to wait between two passes over the list.
        patient: whether to wait for a broker that cannot be reached at first.
    """

    def __init__(
        self,
        *,
        brokers: Sequence[BrokerAddress],
        versions: Sequence[Literal[5, 4]],
        terms: Terms,
        presence: Callable[[], Presence] | None,
        owner: Owner,
        backoff: Backoff,
        patient: bool,
    ) -> None:
        self._brokers = tuple(brokers)
        self._versions = {address: list(versions) for address in self._brokers}
        self._proxies: dict[BrokerAddress, Proxy | None] = {}
        self._terms = terms
        self._make_presence = presence
        self._presence: Presence | None = None
        self._owner = owner
        self._backoff = backoff
        self._patient = patient
        self._client: PahoClient | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Connect for the first time, and keep it up from then on.

        Raises:
            BrokerUnreachableError: no broker could be reached, and this is no patient link.
            BrokerRefusedError: the brokers do not want us.
            SettingsError: the environment names a proxy that cannot be used.
        """
        self._proxies = {address: proxy_for(address) for address in self._brokers}
        self._renew_presence()
        failures = await self._pass()
        if self._client is None and (not self._patient or _are_final(failures)):
            raise _sum_up(failures)
        self._keeping = asyncio.create_task(self._work(failures), name="link-mender")

    async def end(self) -> None:
        """Say goodbye and keep nothing up any more."""
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping
        client, self._client = self._client, None
        if client is not None:
            await client.stop()

    async def _work(self, failures: list[_Failure]) -> None:
        """Keep the link up; should that ever end by an error, the link ends too: nobody may wait for no one."""
        try:
            await self._keep(failures)
        except Exception as error:  # noqa: BLE001 (whatever it is, the owner hears of it)
            self._owner.has_failed(error)

    async def _keep(self, failures: list[_Failure]) -> None:
        """Wait for breaks, and mend them, until cancelled or refused for good."""
        was_up = self._client is not None
        while True:
            if self._client is not None:
                await self._watch(self._client)
            else:
                self._owner.is_down(LinkState(connected=False, reason=_waiting(failures)))
            await asyncio.sleep(self._backoff.wait())
            failures = await self._pass()
            was_up = was_up or self._client is not None
            if not was_up and _are_final(failures):
                self._owner.has_failed(_sum_up(failures))
                return

    async def _watch(self, client: PahoClient) -> None:
        """Wait until a connection breaks, and tell."""
        began = time.monotonic()
        end = await client.over
        self._client = None
        self._backoff.broke(after=time.monotonic() - began, taken_over=end.taken_over)
        why = _TAKEN_OVER if end.taken_over else end.why + (_SUSPICION if self._backoff.suspicious else "")
        self._renew_presence()
        self._owner.is_down(LinkState(connected=False, reason=why, broker=client.address.shown))
        await to_the_end(asyncio.create_task(client.stop()))

    async def _pass(self) -> list[_Failure]:
        """Try each broker in order, until one takes us in; gives why those before it did not."""
        failures: list[_Failure] = []
        for address in self._brokers:
            failure = await self._try(address)
            if failure is None:
                break
            failures.append(failure)
        return failures

    async def _try(self, address: BrokerAddress) -> _Failure | None:
        """Try one broker, with each version of MQTT; the version it speaks is the first the next time."""
        code = NO_ANSWER
        for version in tuple(self._versions[address]):
            client = PahoClient(
                address=address,
                proxy=self._proxies[address],
                terms=self._terms,
                version=version,
                presence=self._presence,
                events=self._owner,
            )
            try:
                code = await client.open()
            except (OSError, ValueError, RuntimeError) as error:  # the last where the system gives no more threads
                return _unreached(address, error)
            if code == 0:
                self._versions[address].sort(key=lambda spoken: spoken != version)
                self._client = client
                self._owner.is_up(client)
                return None
            if client.alert is not None:
                return _unreached(address, client.alert)
            if code not in (UNSUPPORTED_VERSION, NO_ANSWER):
                break
        return _Failure(address=address, code=code, why=reason(code))

    def _renew_presence(self) -> None:
        if self._make_presence is not None:
            self._presence = self._make_presence()


def _unreached(address: BrokerAddress, error: OSError | ValueError | RuntimeError) -> _Failure:
    return _Failure(address=address, code=None, why=explain(error), advice=advise(error))


def _are_final(failures: list[_Failure]) -> bool:
    """Whether every broker has said no in a way that waiting does not change."""
    return bool(failures) and all(failure.code is not None and is_final(failure.code) for failure in failures)


def _sum_up(failures: list[_Failure]) -> NetworkError:
    """Make one error of why no broker could be used: a refusal, if there is one, says most about what to change."""
    words = "; ".join(failure.words for failure in failures) + "."
    refusals = [failure.code for failure in failures if failure.code is not None]
    if refusals:
        return BrokerRefusedError(words, advice=advice(next(filter(is_final, refusals), refusals[0])))
    known = " ".join(dict.fromkeys(failure.advice for failure in failures if failure.advice))
    return BrokerUnreachableError(words, advice=known or _UNREACHABLE_ADVICE)


def _waiting(failures: list[_Failure]) -> str:
    words = "; ".join(f"{failure.address.shown}: {failure.why}" for failure in failures)
    known = "".join(f" {text}" for text in dict.fromkeys(failure.advice for failure in failures if failure.advice))
    return f"waiting for the broker ({words}){'.' + known if known else ''}"
