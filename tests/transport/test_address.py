from __future__ import annotations

import pytest

from agent.errors import PlaintextRefusedError, SettingsError
from agent.transport.address import BrokerAddress, parse_brokers, without_credentials


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


WRONG = [
    "",
    "broker",
    "http://h",
    "mqtt://",
    "mqtt://h:0",
    "mqtt://h:99999",
    "mqtt://h/path",
    "mqtt://h?a",
    "ws://h/#a",
]


@pytest.mark.parametrize("url", WRONG)
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


def test_websockets_have_a_path_and_the_ports_of_the_web() -> None:
    plain, encrypted = BrokerAddress.parse("ws://localhost/a/b?key=1"), BrokerAddress.parse("wss://broker.example")
    assert (plain.transport, plain.port, plain.tls, plain.path) == ("websockets", 80, False, "/a/b?key=1")
    assert (encrypted.transport, encrypted.port, encrypted.tls, encrypted.path) == ("websockets", 443, True, "/")
    assert BrokerAddress.parse("mqtt://h").transport == "tcp"


def test_a_websockets_query_may_be_a_key_and_is_not_shown() -> None:
    url = "wss://user:secret@broker.example/mqtt?token=hunter2"
    assert BrokerAddress.parse(url).shown == "wss://broker.example:443/mqtt"
    assert without_credentials(url) == "wss://broker.example/mqtt"


def test_plain_websockets_keep_the_rule_of_plain_mqtt() -> None:
    with pytest.raises(PlaintextRefusedError):
        BrokerAddress.parse("ws://broker.example").require_privacy(allow_plaintext=False)
    BrokerAddress.parse("wss://broker.example").require_privacy(allow_plaintext=False)
    BrokerAddress.parse("ws://127.0.0.1").require_privacy(allow_plaintext=False)


@pytest.mark.parametrize("between", [",", ", ", " , ", " "])
def test_several_brokers_are_one_setting_and_keep_their_order(between: str) -> None:
    urls = between.join(["mqtts://a.example", "wss://u:p@b.example/mqtt", "mqtt://localhost:1884"])
    assert [address.shown for address in parse_brokers(urls)] == [
        "mqtts://a.example:8883",
        "wss://b.example:443/mqtt",
        "mqtt://localhost:1884",
    ]
    assert without_credentials(urls) == "mqtts://a.example,wss://b.example/mqtt,mqtt://localhost:1884"


def test_a_comma_in_a_password_separates_nothing() -> None:
    (address,) = parse_brokers("mqtts://user:a,b@broker.example")
    assert address.password == "a,b"


@pytest.mark.parametrize("urls", ["", ",", "mqtt://a,b", "mqtt://a,,mqtt://b", ",".join(["mqtt://a"] * 17)])
def test_a_list_with_something_else_in_it_is_refused_with_advice(urls: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_brokers(urls)
    assert "comma" in caught.value.advice
