"""What `bramble hub broker-config` writes: access files that say what our access rules say, and closed keys."""

from __future__ import annotations

import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from agent.crypto.certificates import Certificate
from agent.errors import SettingsError
from agent.federation.invite import parse_invite
from agent.hub.broker_files import BrokerPlan, Kind, fill_in, template, write_broker_files
from agent.hub.setup import make_invite
from agent.hub.store import HubConfig
from agent.paths import Home
from agent.transport.access import HUB_USER, NEWCOMER_USER, Action, allowed, covers
from agent.transport.address import parse_brokers, without_credentials
from tests.hub.world import make_world
from tests.transport.test_access import ALICE, BOB, COMMUNITY, EVERYTHING

NOW = 1_900_000_000.0
ACTIONS: tuple[Action, ...] = ("publish", "subscribe", "receive")
FILTERS = (
    *EVERYTHING.values(),
    "#",
    f"bramble/{COMMUNITY}/#",
    f"bramble/{COMMUNITY}/to/{ALICE}/+",
    f"bramble/{COMMUNITY}/to/{BOB}/+",
    f"bramble/{COMMUNITY}/hub/+",
    f"bramble/{COMMUNITY}/from/+/+",
    f"bramble/{COMMUNITY}/joined/+/{ALICE}",
    f"bramble/{COMMUNITY}/joined/+/+",
)
WHO = [(HUB_USER, "h"), (ALICE, "a"), (BOB, "b"), (NEWCOMER_USER, ALICE), (NEWCOMER_USER, BOB)]


def by_mosquitto(text: str, user: str, client: str, action: Action, topic: str) -> bool:
    """What mosquitto makes of an ACL file, for a subscription that asks for what its rules name."""
    wanted = ("write", "readwrite") if action == "publish" else ("read", "readwrite")
    of: str | None = None
    for line in text.splitlines():
        match line.split():
            case ["user", name]:
                of = name
            case ["topic", access, rule] if of == user and access in wanted and covers(rule, topic):
                return True
            case ["pattern", access, rule] if access in wanted:
                if covers(rule.replace("%u", user).replace("%c", client), topic):
                    return True
    return False


def by_emqx(text: str, user: str, client: str, action: Action, topic: str) -> bool:
    """What EMQX makes of an ACL file: the first line that fits decides."""
    wanted = ("publish", "all") if action == "publish" else ("subscribe", "all")
    lines = re.findall(r'^\{(allow|deny), (all|\{user, "(\w+)"\})(?:, (\w+), \[(.*)\])?\}\.$', text, re.MULTILINE)
    assert len(lines) == len([line for line in text.splitlines() if line.startswith("{")])
    for verdict, _who, name, for_what, topics in lines:
        if name not in {"", user}:
            continue
        if not for_what:
            return bool(verdict == "allow")
        rules = (
            rule.replace("${username}", user).replace("${clientid}", client) for rule in re.findall(r'"(.*?)"', topics)
        )
        if for_what in wanted and any(covers(rule, topic) for rule in rules):
            return bool(verdict == "allow")
    raise AssertionError("the last line decides for all")


@pytest.mark.parametrize(("user", "client"), WHO)
@pytest.mark.parametrize("kind", ["mosquitto", "emqx"])
def test_access_files_say_what_the_rules_say_for_every_user_action_and_topic(
    kind: Kind, user: str, client: str
) -> None:
    def text(name: str) -> str:
        return fill_in(template(kind, name), {"COMMUNITY": COMMUNITY})

    for action in ACTIONS:
        for topic in FILTERS:
            if kind == "emqx":
                found = by_emqx(text("acl.conf"), user, client, action, topic)
            else:
                name = "newcomers.acl" if user == NEWCOMER_USER else "members.acl"
                found = by_mosquitto(text(name), user, client, action, topic)
            assert found == allowed(user, action, topic, COMMUNITY, client=client), (user, action, topic)


def write(tmp_path: Path, base: Path, **options: object) -> tuple[Path, HubConfig]:
    home = make_world(tmp_path / "hub", base).home
    plan = BrokerPlan(hosts=("broker.example", "127.0.0.1"), directory=tmp_path / "broker")
    config = write_broker_files(home, replace(plan, **options), now=NOW)  # type: ignore[arg-type]
    return tmp_path / "broker", config


@pytest.mark.parametrize("kind", ["mosquitto", "emqx"])
def test_everything_is_filled_in_and_closed_to_others(tmp_path: Path, tiny_q8: Path, kind: Kind) -> None:
    directory, config = write(tmp_path, tiny_q8, kind=kind)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for path in directory.iterdir():
        if path.is_file():
            assert not re.search(r"@[A-Z_]+@", path.read_text()), path
            assert path.name == "crl.pem" or stat.S_IMODE(path.stat().st_mode) == 0o600
    server = x509.load_pem_x509_certificate((directory / "server.crt").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["broker.example"]
    assert config.broker == config.member_broker == "mqtts://broker.example:8883"
    assert without_credentials(config.device_broker) == "mqtts://broker.example:8884"
    assert "PRIVATE" not in (directory / "authority.crt").read_text()


def test_invite_leads_to_the_listener_for_newcomers_pins_the_authority_and_fits_a_qr_code(
    tmp_path: Path, tiny_q8: Path
) -> None:
    directory, config = write(tmp_path, tiny_q8)
    line = make_invite(Home(tmp_path / "hub"), uses=1, expires_seconds=60).encode()
    invite = parse_invite(line)
    assert len(line) < 400
    assert invite.broker == config.device_broker
    assert invite.authority == Certificate.decode((directory / "authority.crt").read_bytes()).public
    (address,) = parse_brokers(invite.broker)
    assert (address.username, address.port, address.tls) == ("newcomer", 8884, True)


def test_writing_again_keeps_the_brokers_key_the_authority_and_the_account_of_newcomers(
    tmp_path: Path, tiny_q8: Path
) -> None:
    directory, before = write(tmp_path, tiny_q8)
    kept = {name: (directory / name).read_bytes() for name in ("server.key", "authority.crt", "newcomers.passwd")}
    plan = BrokerPlan(hosts=("other.example",), directory=directory)
    after = write_broker_files(Home(tmp_path / "hub"), plan, now=NOW + 1)
    assert {name: (directory / name).read_bytes() for name in kept} == kept
    assert after.device_broker == before.device_broker.replace("broker.example", "other.example")


@pytest.mark.parametrize(
    "options",
    [
        {"hosts": ("broker.example:8883",)},
        {"hosts": ("mqtts://broker.example",)},
        {"hosts": ("a b",)},
        {"hosts": ("",)},
        {"hosts": ("ok.example", "x\nallow_anonymous true")},
        {"listen": "0.0.0.0\nallow_anonymous true"},
        {"port": 8884},
        {"installed_in": Path("relative")},
        {"installed_in": Path("/etc/x\nallow_anonymous true")},
    ],
)
def test_what_does_not_belong_into_a_configuration_is_refused_and_nothing_is_written(
    tmp_path: Path, tiny_q8: Path, options: dict[str, object]
) -> None:
    with pytest.raises(SettingsError):
        write(tmp_path, tiny_q8, **options)
    assert not (tmp_path / "broker").exists()
