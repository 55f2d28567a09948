from __future__ import annotations

import pytest

from agent.errors import PlaintextRefusedError, SettingsError
from agent.transport.address import BrokerAddress, without_credentials


def test_a_url_says_where_and_as_whom() -> None:
    address = BrokerAddress.parse("mqtts://us%40er:p%3Aw@broker.example:9999")
    assert (address.host, address.port, address.tls) == ("broker.example", 9999, True)
    assert (address.username, address.password) == ("us@er", "p:w")


def test_ports_follow_from_the_scheme() -> None:
    assert BrokerAddress.parse("mqtt://h").port == 1883
    assert BrokerAddress.parse("mqtts://h").port == 8883


def test_secrets_are_not_shown() -> None:
    address = BrokerAddress.parse("mqtt://user:hunter2@[::1]:1")
    assert address.shown == "mqtt://[::1]:1"
    assert "hunter2" not in repr(address)


@pytest.mark.parametrize("url", ["", "broker", "http://h", "mqtt://", "mqtt://h:0", "mqtt://h:99999", "mqtt://h/path"])
def test_what_is_no_address_is_refused_with_advice(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        BrokerAddress.parse(url)
    assert "mqtts://" in caught.value.advice


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]", "broker.localhost"])
def test_plain_text_within_this_machine_is_fine(host: str) -> None:
    BrokerAddress.parse(f"mqtt://{host}").require_privacy(allow_plaintext=False)


@pytest.mark.parametrize("host", ["example.org", "192.168.0.2", "0.0.0.0", "localhost.example.org", "127.0.0.1.nip.io"])
def test_plain_text_to_another_machine_needs_to_be_allowed(host: str) -> None:
    address = BrokerAddress.parse(f"mqtt://{host}")
    with pytest.raises(PlaintextRefusedError):
        address.require_privacy(allow_plaintext=False)
    address.require_privacy(allow_plaintext=True)
    BrokerAddress.parse(f"mqtts://{host}").require_privacy(allow_plaintext=False)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mqtt://127.0.0.1:0", "mqtt://127.0.0.1:0"),
        ("mqtts://user:secret@broker.example", "mqtts://broker.example"),
        ("mqtt://user:se%40cret@[::1]:1884", "mqtt://[::1]:1884"),
    ],
)
def test_url_is_shown_without_its_credentials(url: str, shown: str) -> None:
    assert without_credentials(url) == shown
