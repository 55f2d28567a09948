"""Whatever is signed or sealed: change any one field of it, and it is not believed.

Fields are found in what is encoded, in the models and in the functions that say what a seal is bound to, so a new one
is covered by being there; a new kind of body only needs its sample (``samples.py``).
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agent.crypto import canonical, envelope
from agent.crypto.identity import Identity, PublicIdentity
from agent.crypto.sealing import seal, unseal
from agent.errors import BrambleError, ProtocolError, SealBrokenError, UnknownSenderError
from agent.federation import sealing
from agent.federation.enrol import Newcomer
from agent.federation.invite import invite_proof, parse_invite
from agent.federation.messages import KINDS, Body, Card, Offer
from agent.hub.store import open_store
from agent.transport.memory import MemoryBroker, MemoryLink
from tests.fuzz import samples
from tests.fuzz.mutation import at, other, places, replaced
from tests.fuzz.wire_targets import carried_by, line_of
from tests.hub.test_inbox import DEVICE, Desk
from tests.hub.world import make_world

BODIES = samples.bodies()
ENVELOPE = samples.envelope("verdict", BODIES["verdict"].encode())
_every_kind = pytest.mark.parametrize("kind", BODIES)


def is_believed(data: bytes) -> bool:
    """Say whether a message is taken for one of the hub's."""
    try:
        envelope.verify(envelope.parse(data), samples.hub().public)
    except ProtocolError:
        return False
    return True


def changed(value: Any) -> Iterator[tuple[str, Any]]:
    """Give a value with one thing in it changed, for everything in it, and what that is."""
    for path in places(value):
        yield ".".join(map(str, path)) or "all of it", replaced(value, path, other)


def test_every_kind_of_body_has_a_sample() -> None:
    assert {kind: type(body) for kind, body in BODIES.items()} == KINDS


@pytest.mark.parametrize("place", range(8), ids=[*envelope.Envelope.__dataclass_fields__, "signature"])
def test_envelope_with_one_field_changed_is_not_believed(place: int) -> None:
    fields = samples.fields(ENVELOPE)
    assert isinstance(fields, list)
    assert len(fields) == len(envelope.Envelope.__dataclass_fields__) + 1
    assert is_believed(ENVELOPE)
    assert not is_believed(canonical.encode(replaced(fields, (place,), other)))


@_every_kind
def test_body_with_anything_in_it_changed_is_not_believed(kind: str) -> None:
    fields = samples.fields(samples.envelope(kind, BODIES[kind].encode()))
    assert is_believed(canonical.encode(fields))
    for what, body in changed(samples.fields(BODIES[kind].encode())):
        assert not is_believed(canonical.encode(replaced(fields, (6,), lambda _, body=body: canonical.encode(body)))), (
            what
        )


@_every_kind
def test_every_field_of_a_body_is_in_what_is_signed(kind: str) -> None:
    def check(model: BaseModel, encoded: Any) -> None:
        assert set(encoded) == set(type(model).model_fields)
        for name in type(model).model_fields:
            value = getattr(model, name)
            if isinstance(value, BaseModel):
                check(value, encoded[name])

    check(BODIES[kind], samples.fields(BODIES[kind].encode()))


def test_samples_have_something_in_every_field() -> None:
    """Else a field could be changed into what it was."""
    for kind, body in BODIES.items():
        for name in type(body).model_fields:
            assert getattr(body, name) not in (None, [], b"", ""), f"{kind}.{name}"


@pytest.fixture
def newcomer() -> Newcomer:
    """A device at the door, with an invite of the hub."""
    link = MemoryLink(broker=MemoryBroker(), client_id="newcomer")
    return Newcomer(link=link, invite=samples.invite(), identity=samples.device(), nickname="pi")


def met(newcomer: Newcomer, card: Body, signed_by: Identity) -> PublicIdentity:
    """Show a newcomer a card."""
    assert isinstance(card, Card)
    return newcomer._pinned(card, envelope.parse(samples.envelope("card", card.encode(), signed_by)))


@pytest.mark.parametrize("field", Card.model_fields)
def test_card_with_a_field_changed_and_signed_anew_by_another_is_not_believed(newcomer: Newcomer, field: str) -> None:
    card = BODIES["card"]
    assert met(newcomer, card, samples.hub()) == samples.hub().public
    forged = replaced(card.model_dump(), (field,), other)
    if field == "admission":
        forged["admission"] = "automatic"
    if field == "successions":
        forged["successions"] = []
    with pytest.raises(ProtocolError):
        met(newcomer, Card.model_validate(forged), samples.device())


def test_card_of_keys_that_the_invite_does_not_pin_is_not_believed_though_they_signed_it(newcomer: Newcomer) -> None:
    hub, impostor = samples.hub().public, samples.device()
    for public in (impostor.public, replace(impostor.public, seal_key=hub.seal_key)):
        card = Card(name="Bees of Berlin", public=public.encode())
        with pytest.raises(UnknownSenderError):
            met(newcomer, card, impostor)


BOUND: dict[str, Callable[..., bytes]] = {
    name: made for name, made in vars(sealing).items() if name.endswith("_info") and not name.startswith("_")
}
_ARGUMENTS: dict[type | str, Any] = {"bytes": samples.COMMUNITY, "str": "a" * 52, "int": 4}


def _arguments(bound: Callable[..., bytes]) -> dict[str, Any]:
    return {name: _ARGUMENTS[given.annotation] for name, given in inspect.signature(bound).parameters.items()}


def test_all_that_is_sealed_is_found_here() -> None:
    assert {"join_info", "joined_info", "update_info", "adapter_info"} <= BOUND.keys()


@pytest.mark.parametrize(
    ("name", "argument"), [(name, key) for name, bound in BOUND.items() for key in _arguments(bound)]
)
def test_seal_does_not_open_where_one_thing_that_it_is_bound_to_is_another(name: str, argument: str) -> None:
    bound, arguments = BOUND[name], _arguments(BOUND[name])
    sealed = seal(samples.hub().public.seal_key, b"secret", bound(**arguments))
    assert unseal(samples.hub(), sealed, bound(**arguments)) == b"secret"
    with pytest.raises(SealBrokenError):
        unseal(samples.hub(), sealed, bound(**{**arguments, argument: other(arguments[argument])}))


def test_seal_made_for_one_purpose_does_not_open_for_another() -> None:
    given = [bound(**_arguments(bound)) for bound in BOUND.values()]
    assert len({samples.fields(info)[0] for info in given}) == len(BOUND)  # type: ignore[index,call-overload]


@pytest.mark.parametrize("argument", inspect.signature(invite_proof).parameters)
def test_proof_of_an_invite_is_bound_to_everything_in_it(argument: str) -> None:
    arguments = {"secret": samples.SECRET, "community": samples.COMMUNITY, "device_public": b"keys"}
    assert invite_proof(**arguments) != invite_proof(**{**arguments, argument: other(arguments[argument])})


def test_invite_with_any_part_changed_is_refused_or_another_invite() -> None:
    """Its checksum tells a slip from an invite; with one that fits, no two parts mean the same."""
    good = samples.invite()
    fields = samples.fields(carried_by(good.encode()))
    checksum = hashlib.sha256(canonical.encode(fields)).digest()[:4]
    for what, body in changed(fields):
        encoded = canonical.encode(body)
        with pytest.raises(BrambleError):
            parse_invite(line_of(encoded, checksum))
        try:
            assert parse_invite(line_of(encoded)) != good, what
        except BrambleError:
            continue


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, tiny_q8: Path) -> Iterator[Desk]:
    with open_store(make_world(tmp_path_factory.mktemp("hub"), tiny_q8).home) as store:
        yield Desk(store)


@pytest.mark.parametrize("field", Offer.model_fields)
def test_update_whose_offer_has_one_field_changed_does_not_count(desk: Desk, field: str) -> None:
    """Even where its device signs it: what seal, hash and round hold together cannot be taken apart."""
    parcel = desk.parcel()
    encoded = replaced(samples.fields(parcel.offer.encode()), (field,), other)
    if field == "purpose":
        encoded["purpose"] = "adapter"
    inbox = desk.inbox()
    with contextlib.suppress(ProtocolError):
        inbox.offered(DEVICE, Offer.decode(canonical.encode(encoded)), desk.context)
    for index in range(len(parcel.chunks)):
        chunk = desk.chunk(parcel, index).model_copy(update={"transfer": encoded["transfer"]})
        with contextlib.suppress(ProtocolError):
            assert inbox.arrived(DEVICE, chunk, desk.context).counted is None
    assert DEVICE not in [row.device for row in desk.store.updates(1)]


def test_update_whose_offer_is_as_it_was_made_counts(desk: Desk) -> None:
    parcel, inbox = desk.parcel(device="b" * 52), desk.inbox()
    inbox.offered("b" * 52, parcel.offer, desk.context)
    outcomes = [inbox.arrived("b" * 52, desk.chunk(parcel, index), desk.context) for index in range(len(parcel.chunks))]
    assert outcomes[-1].counted is not None


def test_what_walks_values_misses_none() -> None:
    value = {"a": [1, {"b": b"x"}], "c": None}
    assert [at(value, path) for path in places(value)] == [value, value["a"], 1, {"b": b"x"}, b"x", None]
    assert isinstance(BODIES["card"], Body)
