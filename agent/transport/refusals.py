"""Why a broker cannot be reached or does not want us, in words."""

from __future__ import annotations

import socket
import ssl
import time

NO_ANSWER = -1
"""In place of a reason code: the broker hung up before CONNACK."""

UNSUPPORTED_VERSION = 132

PACKETS_TOO_SMALL = 149
"""What a broker is answered that takes no packets as large as ours (MQTT 5 section 4.13.1: packet too large)."""

TAKEN_OVER = 142
"""The reason of a DISCONNECT: another connection has our client id now (MQTT 5 section 3.14.2.1)."""

_PASSING = frozenset({NO_ANSWER, 128, 131, 136, 137, 151, 159})
"""What may be otherwise in a while: no words, unspecified, a fault of the broker's, busy, a quota or rate used up."""

_REASONS = {
    NO_ANSWER: "it hung up without a word",
    UNSUPPORTED_VERSION: "it does not speak this version of MQTT",
    133: "it does not accept this client id",
    134: "user name or password are wrong",
    135: "this user may not connect",
    136: "it is not available at the moment",
    137: "it is busy",
    138: "this client is banned",
    PACKETS_TOO_SMALL: "it takes no packets of 96 KiB, and those that carry updates and adapters are as large",
    151: "a quota is used up",
    159: "too many connect at the same time",
}
_ADVICE = {
    UNSUPPORTED_VERSION: "Choose the other version of MQTT with the protocol setting.",
    134: "Check the credentials; a device gets new ones by joining again.",
    135: "Check the credentials; a device gets new ones by joining again.",
    136: "Try again in a while.",
    137: "Try again in a while.",
    PACKETS_TOO_SMALL: "Raise the broker's limit on packets to 98,304 bytes or more (mosquitto: max_packet_size).",
    159: "Try again in a while.",
}


def reason(code: int) -> str:
    """Say what a reason code of CONNACK means (MQTT 5 section 3.2.2.2; those of 3.1.1 are mapped to them)."""
    return _REASONS.get(code, f"reason code {code}")


def advice(code: int) -> str:
    """Say what can be done about it."""
    return _ADVICE.get(code, "Look into the broker's log; it says more.")


def is_final(code: int) -> bool:
    """Whether trying again, without anything changed here, is of no use."""
    return code not in _PASSING


def explain(error: OSError | ValueError | RuntimeError) -> str:
    """Say what an error of the socket, the resolver or TLS means."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not valid here ({error.verify_message}{_by_the_clock(error)})"
        case ssl.SSLError():
            return "it does not speak TLS as we do"
        case socket.gaierror():
            return "its name is not known"
        case TimeoutError():
            return "it says nothing"
        case OSError(strerror=str(text)):
            return text.lower()
        case _:
            return str(error)


def _by_the_clock(error: ssl.SSLCertVerificationError) -> str:
    """Name this machine's date where the certificate is too young or too old: a board without a battery wakes in 1970.

    The codes are OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED.
    """
    return f"; the clock here says {time.strftime('%Y-%m-%d')}" if error.verify_code in (9, 10) else ""
