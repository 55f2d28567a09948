"""`bramble hub broker-config` and `revocation-list`, and what is said of connections without TLS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509

from agent.cli.device import join
from agent.cli.hub import hub
from agent.errors import BrambleError, PlaintextRefusedError
from agent.federation.invite import Invite
from agent.paths import Home, exclusive
from agent.service import create_device
from tests.hub.desk import Desk, make_desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = make_desk(tmp_path / "hub")
    made.store.save_config(made.config.model_copy(update={"broker_secret": "ab" * 32}))
    yield made
    made.close()


def said(desk: Desk, *words: str | Path) -> Result:
    return CliRunner().invoke(hub, [*map(str, words), "--home", str(desk.home.root)], catch_exceptions=False)


def test_broker_config_writes_files_and_says_what_comes_next(desk: Desk, tmp_path: Path) -> None:
    done = said(desk, "broker-config", "--host", "broker.example", "--out", tmp_path / "broker")
    assert done.exit_code == 0
    assert f"mosquitto -c {tmp_path}/broker/mosquitto.conf" in done.output
    assert "4 device(s) joined over mqtt://127.0.0.1:1: they must join again" in done.output
    assert "stop it and start it again" not in done.output
    again = said(desk, "broker-config", "--host", "broker.example", "--out", tmp_path / "broker", "--json")
    found = json.loads(again.output)
    assert found == {
        "broker": "mqtts://broker.example:8883",
        "directory": str(tmp_path / "broker"),
        "newcomers": "mqtts://broker.example:8884",
    }


def test_broker_config_beside_a_running_hub_asks_for_its_restart(desk: Desk, tmp_path: Path) -> None:
    with exclusive(desk.home):
        done = said(desk, "broker-config", "--host", "broker.example", "--out", tmp_path / "broker")
    assert "stop it and start it again" in done.output


def test_revocation_list_can_be_had_for_a_broker_elsewhere(desk: Desk, tmp_path: Path) -> None:
    printed = said(desk, "revocation-list").output
    assert list(x509.load_pem_x509_crl(printed.encode())) == []
    done = said(desk, "revocation-list", "--out", tmp_path / "crl.pem")
    assert "SIGHUP" in done.output
    numbers = [
        x509.load_pem_x509_crl(data).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        for data in (printed.encode(), (tmp_path / "crl.pem").read_bytes())
    ]
    assert numbers[0] < numbers[1]


def test_making_a_hub_on_an_unencrypted_broker_elsewhere_takes_a_flag_and_warns(tmp_path: Path) -> None:
    words = ["init", "--broker", "mqtt://broker.example", "--home", str(tmp_path / "hub")]
    with pytest.raises(PlaintextRefusedError):
        CliRunner().invoke(hub, words, catch_exceptions=False)
    done = CliRunner().invoke(hub, [*words, "--allow-plaintext"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "Warning: mqtt://broker.example:1883 is another machine" in done.stderr


def test_joining_over_an_unencrypted_broker_elsewhere_takes_a_flag_and_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path / "device")
    create_device(home)
    line = Invite(
        broker="mqtt://192.0.2.1:9",  # of a network that is nowhere (RFC 5737)
        community=bytes(16),
        hub="a" * 52,
        invite=bytes(8),
        secret=bytes(32),
        broker_password="",
        expires=2**40,
    ).encode()
    words = [line, "--home", str(home.root), "--yes"]
    with pytest.raises(PlaintextRefusedError):
        CliRunner().invoke(join, words, catch_exceptions=False)
    monkeypatch.setattr("agent.transport.paho_client.CONNECT_SECONDS", 0.1)
    done = CliRunner().invoke(join, [*words, "--allow-plaintext"])
    assert isinstance(done.exception, BrambleError)
    assert "Warning: mqtt://192.0.2.1:9 is another machine" in done.stderr


def test_making_a_hub_with_the_embedded_broker_warns_of_nothing(tmp_path: Path) -> None:
    done = CliRunner().invoke(hub, ["init", "--home", str(tmp_path / "hub")], catch_exceptions=False)
    assert (done.exit_code, done.stderr) == (0, "")
