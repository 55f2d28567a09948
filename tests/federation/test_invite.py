from __future__ import annotations

import base64
import hashlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.crypto import canonical
from agent.errors import InvalidInviteError
from agent.federation.invite import PREFIX, Invite, parse_invite

invites = st.builds(
    Invite,
    broker=st.sampled_from(["mqtt://127.0.0.1:1883", "mqtts://broker.example:8883"]),
    community=st.binary(min_size=16, max_size=16),
    hub=st.binary(min_size=32, max_size=32).map(lambda data: base64.b32encode(data).decode().lower().rstrip("=")),
    invite=st.binary(min_size=8, max_size=8),
    secret=st.binary(min_size=32, max_size=32),
    broker_password=st.text(string.ascii_letters, max_size=43),
    expires=st.integers(0, 2**40),
    authority=st.just(b"") | st.binary(min_size=33, max_size=33),
)
ONE = Invite(
    broker="mqtt://127.0.0.1:1883",
    community=bytes(range(16)),
    hub="a" * 52,
    invite=bytes(8),
    secret=bytes(range(32)),
    broker_password="password",
    expires=1_900_000_000,
)


@given(invites)
def test_invite_survives_the_line_that_carries_it(invite: Invite) -> None:
    assert parse_invite(invite.encode()) == invite


def test_line_broken_by_a_mail_program_still_works() -> None:
    line = ONE.encode()
    broken = "\n  ".join(line[start : start + 40] for start in range(0, len(line), 40))
    assert parse_invite(f" {broken}\n") == ONE


@pytest.mark.parametrize("place", range(len(ONE.encode())))
def test_any_mistyped_character_is_noticed(place: int) -> None:
    line = ONE.encode()
    other = "A" if line[place] != "A" else "B"
    with pytest.raises(InvalidInviteError):
        parse_invite(line[:place] + other + line[place + 1 :])


@pytest.mark.parametrize("length", range(0, len(ONE.encode()), 7))
def test_any_cut_is_noticed(length: int) -> None:
    with pytest.raises(InvalidInviteError):
        parse_invite(ONE.encode()[:length])


@given(
    st.text(max_size=300) | st.binary(max_size=300).map(lambda data: PREFIX + base64.urlsafe_b64encode(data).decode())
)
def test_any_other_line_is_refused_with_advice(line: str) -> None:
    with pytest.raises(InvalidInviteError) as caught:
        parse_invite(line)
    assert "bramble hub invite" in caught.value.advice


def _line(value: canonical.Value) -> str:
    body = canonical.encode(value)
    return PREFIX + base64.urlsafe_b64encode(body + hashlib.sha256(body).digest()[:4]).decode().rstrip("=")


@pytest.mark.parametrize(
    "value",
    [
        [],
        "invite",
        ["mqtt://h", bytes(16), bytes(32), bytes(8), bytes(32), "", 0],
        ["mqtt://h", bytes(15), bytes(32), bytes(8), bytes(32), "", 0, b""],
        ["mqtt://h", bytes(16), bytes(31), bytes(8), bytes(32), "", 0, b""],
        ["mqtt://h", bytes(16), "a" * 52, bytes(8), bytes(32), "", 0, b""],
        ["mqtt://h", bytes(16), bytes(32), bytes(9), bytes(32), "", 0, b""],
        ["mqtt://h", bytes(16), bytes(32), bytes(8), bytes(31), "", 0, b""],
        ["mqtt://h", bytes(16), bytes(32), bytes(8), bytes(32), "", 0, bytes(32)],
    ],
)
def test_invite_of_the_wrong_form_is_refused_in_spite_of_its_checksum(value: canonical.Value) -> None:
    with pytest.raises(InvalidInviteError):
        parse_invite(_line(value))


def test_proof_depends_on_the_secret_the_community_and_the_device() -> None:
    proofs = {
        ONE.proof(b"device"),
        ONE.proof(b"other device"),
        Invite(**{**_fields(), "secret": bytes(32)}).proof(b"device"),
        Invite(**{**_fields(), "community": bytes(16)}).proof(b"device"),
    }
    assert len(proofs) == 4


def _fields() -> dict[str, object]:
    return {name: getattr(ONE, name) for name in Invite.__dataclass_fields__}
