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
            return f"its certificate is not valid here ({_found_wrong(error)[0]})"
        case ssl.SSLError():
            return _alert(error)[0]
        case socket.gaierror():
            return "its name is not known"
        case TimeoutError():
            return "it says nothing"
        case OSError(strerror=str(text)):
            return text.lower()
        case _:
            return str(error)


def advise(error: OSError | ValueError | RuntimeError) -> str:
    """Say what can be done about it; empty where no more is known than of any broker that cannot be reached."""
    match error:
        case ssl.SSLCertVerificationError():
            return _found_wrong(error)[1]
        case ssl.SSLError():
            return _alert(error)[1]
        case _:
            return ""


def _found_wrong(error: ssl.SSLCertVerificationError) -> tuple[str, str]:
    """Say what is wrong with a broker's certificate, and what to do; by OpenSSL's codes (``X509_V_ERR_…``).

    A date that is wrong is more often this machine's: a board without a battery wakes in 1970.
    """
    today = time.strftime("%Y-%m-%d")
    clock = f"the clock here says {today}: set it if that is wrong; else"
    match error.verify_code:
        case 9:
            return f"it is not valid yet; {today} here", f"First {clock} the broker's clock was ahead when it was made."
        case 10:
            return f"it has expired; {today} here", f"First {clock} ask the broker's operator to renew it."
        case 18 | 19 | 20 | 21:
            return f"nobody that is trusted here vouches for it: {error.verify_message}", (
                "If the broker is right, ask the hub's operator for a new invite: its certificate authority may have "
                "changed. If others reach the broker, somebody may stand between it and you."
            )
        case 62 | 64:
            return f"it is for another host: {error.verify_message}", (
                "Use the host's name that the certificate is for, or have the operator make one for this name "
                "(`bramble hub broker-config --host`)."
            )
        case _:
            return error.verify_message, "Ask the broker's operator to look at its certificate."


_ALERTS = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": (
        "it lets nobody in without a certificate, and we have none to show",
        "A device gets one by joining; on the listener for newcomers none is needed.",
    ),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": (
        "our certificate has expired",
        "A device renews it while it runs. If both clocks are right, join again with an invite, the old one too.",
    ),
    "SSLV3_ALERT_CERTIFICATE_REVOKED": (
        "our certificate was revoked",
        "The hub's operator took this device's right to connect back; ask them why.",
    ),
    "TLSV1_ALERT_UNKNOWN_CA": (
        "it does not know who issued our certificate",
        "It may be the broker of another community; ask its operator for an invite.",
    ),
    "TLSV1_ALERT_PROTOCOL_VERSION": (
        "it speaks no TLS 1.3",
        "Have its operator bring it up to date, or allow TLS 1.3 there (mosquitto: tls_version tlsv1.3).",
    ),
}
_NOT_OURS = ("it does not like our certificate", "Look into the broker's log; it says more.")
_UNLIKED = ("SSLV3_ALERT_BAD_CERTIFICATE", "SSLV3_ALERT_CERTIFICATE_UNKNOWN", "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE")


def _alert(error: ssl.SSLError) -> tuple[str, str]:
    """Say what an alert means (RFC 8446 section 6.2), and what to do."""
    reason = error.reason or ""
    if reason in _UNLIKED:
        return _NOT_OURS
    return _ALERTS.get(reason, ("it does not speak TLS as we do", ""))
