from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.errors import BrokerUnreachableError
from agent.transport.mqtt import MqttLink, Version
from agent.transport.tls import Tls
from tests.transport.brokers import embedded, mosquitto
from tests.transport.conftest import take


def trusting(certificate: Path) -> Callable[[], Tls]:
    """What has a link trust this certificate alone."""
    return partial(Tls, authority=certificate.read_bytes())


def self_signed(directory: Path, host: str) -> tuple[Path, Path]:
    """A certificate for ``host`` that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = directory / f"{host}.crt", directory / f"{host}.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


@pytest.mark.parametrize("protocol", [5, 4])
async def test_over_tls_only_a_broker_with_a_valid_certificate_is_talked_to(tmp_path: Path, protocol: Version) -> None:
    good, good_key = self_signed(tmp_path, "localhost")
    other, other_key = self_signed(tmp_path, "elsewhere")

    def config(certificate: Path, key: Path) -> list[str]:
        return ["allow_anonymous true", f"certfile {certificate}", f"keyfile {key}", "user root"]

    with mosquitto(tmp_path, config(good, good_key)) as broker:
        url = f"mqtts://localhost:{broker.port}"
        async with MqttLink(url=url, client_id="c", protocol=protocol, tls=trusting(good)) as link:
            await link.subscribe("t")
            await link.publish("t", bytes(90_000))
            assert len((await take(link, 1))[0].payload) == 90_000
        with pytest.raises(BrokerUnreachableError, match="certificate"):
            async with MqttLink(url=url, client_id="c", protocol=protocol):
                pass
    with mosquitto(tmp_path, config(other, other_key)) as broker, pytest.raises(BrokerUnreachableError, match="certif"):
        async with MqttLink(url=f"mqtts://localhost:{broker.port}", client_id="c", tls=trusting(other)):
            pass


async def test_a_broker_without_tls_is_not_talked_to_over_tls() -> None:
    async with embedded() as broker:
        with pytest.raises(BrokerUnreachableError):
            async with MqttLink(url=f"mqtts://localhost:{broker.port}", client_id="c"):
                pass


def no_tls_1_3(directory: Path) -> str:
    """What has OpenSSL, in a process with this environment, speak nothing newer than TLS 1.2."""
    path = directory / "openssl.cnf"
    path.write_text(
        "openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = old\n[old]\nMaxProtocol = TLSv1.2\n"
    )
    return f"OPENSSL_CONF={path}"


async def test_a_broker_that_speaks_nothing_newer_than_tls_1_2_is_refused_and_named(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path, "localhost")
    config = ["allow_anonymous true", f"certfile {certificate}", f"keyfile {key}", "user root"]
    with (
        mosquitto(tmp_path, config, environment=[no_tls_1_3(tmp_path)]) as broker,
        pytest.raises(BrokerUnreachableError, match=r"speaks no TLS 1\.3") as caught,
    ):
        async with MqttLink(url=f"mqtts://localhost:{broker.port}", client_id="c", tls=trusting(certificate)):
            pass
    assert "tls_version tlsv1.3" in caught.value.advice
