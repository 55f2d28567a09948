"""Why a broker cannot be reached or does not want us, in words."""

from __future__ import annotations

import socket
import ssl

NO_ANSWER = -1
"""In place of a reason code: the broker hung up before CONNACK."""

UNSUPPORTED_VERSION = 132

_REASONS = {
    NO_ANSWER: "it hung up without a word",
    UNSUPPORTED_VERSION: "it does not speak this version of MQTT",
    133: "it does not accept this client id",
    134: "user name or password are wrong",
    135: "this user may not connect",
    136: "it is not available at the moment",
    138: "this client is banned",
    151: "a quota is used up",
}
_ADVICE = {
    UNSUPPORTED_VERSION: "Choose the other version of MQTT with the protocol setting.",
    134: "Check the credentials; a device gets new ones by joining again.",
    135: "Check the credentials; a device gets new ones by joining again.",
    136: "Try again in a while.",
}


def reason(code: int) -> str:
    """Say what a reason code of CONNACK means (MQTT 5 section 3.2.2.2; those of 3.1.1 are mapped to them)."""
    return _REASONS.get(code, f"reason code {code}")


def advice(code: int) -> str:
    """Say what can be done about it."""
    return _ADVICE.get(code, "Look into the broker's log; it says more.")


def explain(error: OSError | ValueError) -> str:
    """Say what an error of the socket, the resolver or TLS means."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not valid here ({error.verify_message})"
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
