"""The files of a community's own broker: configuration, access rules, certificates, and what to do with them.

They are templates in ``packaging/``, with names between at signs, filled in for one hub. The broker's key is made here
and stays with the broker; the authority's key stays with the hub.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from agent.crypto.certificates import TlsKey
from agent.crypto.passwords import derive_password
from agent.errors import SettingsError
from agent.hub.issuing import BROKER_CERTIFICATE_FILE, LIST_FILE, authority_of, published
from agent.hub.store import HubConfig, open_store
from agent.paths import Home, explained_disk, write_atomically
from agent.transport.access import NEWCOMER_USER

Kind: TypeAlias = Literal["mosquitto", "emqx"]

PORT, NEWCOMERS_PORT = 8883, 8884

_PACKAGED = Path(__file__).parent / "packaging"
_CHECKOUT = Path(__file__).parents[2] / "packaging"
_HOLE = re.compile(r"@([A-Z_]+)@")
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", re.ASCII)
_DIRECTORY = re.compile(r"/[\w./+@ -]*", re.ASCII)
_ITERATIONS = 101  # mosquitto's own; the password has 256 random bits, which no iterations add to


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerPlan:
    """What `bramble hub broker-config` was asked for.

    Attributes:
        kind: of broker.
        hosts: names and addresses at which clients reach it; URLs have the first.
        directory: where to write.
        installed_in: where the files will lie on the broker's machine.
        listen: the address that it listens on; empty for all.
        port: for members.
        newcomers_port: for newcomers.
        certificate_seconds: how long a device's certificate is good for.
    """

    hosts: tuple[str, ...]
    directory: Path
    kind: Kind = "mosquitto"
    installed_in: Path | None = None
    listen: str = ""
    port: int = PORT
    newcomers_port: int = NEWCOMERS_PORT
    certificate_seconds: float = 30 * 86_400.0


def template(kind: Kind, name: str) -> str:
    """Give one of the templates."""
    where = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT
    return (where / kind / name).read_text(encoding="utf-8")


def fill_in(text: str, values: Mapping[str, str]) -> str:
    """Put values in the place of names between at signs; one that is not known is an error of ours."""
    return _HOLE.sub(lambda found: values[found[1]], text)


def write_broker_files(home: Home, plan: BrokerPlan, *, now: float) -> HubConfig:
    """Write the files of a broker, and have the hub and its devices use it from now on; gives the hub's new settings.

    What is there already is replaced, but for the broker's key.

    Raises:
        SettingsError: a host is none, or both listeners have one port.
        DiskFullError: there is no room.
    """
    _check(plan)
    directory = plan.directory.absolute()
    with open_store(home) as store:
        config = store.config
        with explained_disk(directory):
            for made in (directory, *([directory / "data"] if plan.kind == "mosquitto" else [])):
                made.mkdir(mode=0o700, parents=True, exist_ok=True)
        password = derive_password(bytes.fromhex(config.broker_secret), NEWCOMER_USER)
        authority = authority_of(home, config.community, now=now)
        key = TlsKey.load_or_make(directory, "server.key")
        certificate = authority.certify_broker(plan.hosts, key.request(plan.hosts[0]), now=now)
        values = {
            "COMMUNITY": config.community,
            "HOST": plan.hosts[0],
            "DIRECTORY": str(plan.installed_in or directory),
            "PORT": str(plan.port),
            "NEWCOMERS_PORT": str(plan.newcomers_port),
            "ADDRESS": plan.listen,
            # a broker is for other machines
            "ADDRESS_OR_ALL": _bracketed(plan.listen or "0.0.0.0"),  # noqa: S104 # nosec B104
            "ENDS": time.strftime("%Y-%m-%d", time.gmtime(certificate.ends)),
            **_hashes(password, salt=hashlib.sha256(config.broker_secret.encode()).digest()[:12]),
        }
        written = {"authority.crt": authority.pem(), BROKER_CERTIFICATE_FILE: certificate.pem()}
        for name in _names(plan.kind):
            text = "\n".join(line.rstrip() for line in fill_in(template(plan.kind, name), values).splitlines())
            written[name] = f"{text}\n".encode()
        for name, data in written.items():
            write_atomically(directory / name, data)
        (directory / LIST_FILE).touch(mode=0o600)
        host = _bracketed(plan.hosts[0])
        config = config.model_copy(
            update={
                "embedded": False,
                "broker": f"mqtts://{host}:{plan.port}",
                "member_broker": f"mqtts://{host}:{plan.port}",
                "device_broker": f"mqtts://{NEWCOMER_USER}:{password}@{host}:{plan.newcomers_port}",
                "certificates": True,
                "certificate_seconds": plan.certificate_seconds,
                "broker_directory": str(directory),
            }
        )
        store.save_config(config)
        published(store, now=now)
    return config


def _names(kind: Kind) -> tuple[str, ...]:
    if kind == "emqx":
        return ("base.hocon", "acl.conf", "newcomers.csv", "README.md")
    return ("mosquitto.conf", "members.acl", "newcomers.acl", "newcomers.passwd", "README.md")


def _check(plan: BrokerPlan) -> None:
    for host in (*plan.hosts, *filter(None, [plan.listen])):
        if not _is_address(host) and (host == plan.listen or not _HOST.fullmatch(host.lower())):
            raise SettingsError(
                f"{host!r} is no host's name or address",
                advice="Give the name at which devices reach it, without a port, such as --host broker.example.",
            )
    if plan.port == plan.newcomers_port:
        raise SettingsError(
            f"members and newcomers cannot both have port {plan.port}", advice="Give --newcomers-port another one."
        )
    where = str(plan.installed_in or plan.directory.absolute())
    if not _DIRECTORY.fullmatch(where):
        raise SettingsError(
            f"{where!r} cannot be written into a broker's configuration",
            advice="Choose one whose path is absolute and has only plain letters, with --out or --installed-in.",
        )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _hashes(password: str, *, salt: bytes) -> dict[str, str]:
    """Give the newcomers' password as mosquitto (PBKDF2-SHA-512, as mosquitto_passwd writes it) and EMQX keep it."""
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    mosquitto = f"$7${_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"
    emqx = hashlib.sha256(password.encode() + salt.hex().encode()).hexdigest()
    return {"MOSQUITTO_HASH": mosquitto, "EMQX_HASH": emqx, "EMQX_SALT": salt.hex()}
