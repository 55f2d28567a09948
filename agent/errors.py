"""Every error that Bramble raises on purpose.

Each says what happened and to what (the message), and what the reader can do about it (``advice``). Each class has a
stable ``code``, which scripts and worker processes pass around, and an ``exit_status`` of its own for the command line.

::

    BrambleError                    1
    ├── StateError                  10
    │   ├── NotInitialisedError     11
    │   ├── AlreadyInitialisedError 12
    │   ├── AlreadyRunningError     13
    │   ├── DiskFullError           14
    │   └── CorruptStateError       15
    ├── SettingsError               16
    ├── LockedKeysError             17
    ├── ModelError                  20
    │   ├── UnreadableModelError    21
    │   ├── UnsupportedModelError   22
    │   ├── BaseMismatchError       23
    │   ├── AdapterError            24
    │   └── DownloadError           25
    ├── DataError                   30
    │   ├── NoTextError             31
    │   └── ConsentMissingError     32
    ├── NetworkError                40
    │   ├── BrokerUnreachableError  41
    │   ├── BrokerRefusedError      42
    │   └── PlaintextRefusedError   43
    ├── InviteError                 50
    │   ├── InvalidInviteError      51
    │   ├── InviteRefusedError      52
    │   ├── NotJoinedError          53
    │   ├── AlreadyMemberError      54
    │   ├── AwaitingApprovalError   55
    │   ├── RevokedError            56
    │   └── LeavingError            57
    ├── ProtocolError               60
    │   ├── MalformedMessageError   61
    │   ├── OversizedMessageError   62
    │   ├── BadSignatureError       63
    │   ├── ReplayedMessageError    64
    │   ├── WrongCommunityError     65
    │   ├── UnknownSenderError      66
    │   ├── SealBrokenError         67
    │   ├── TransferError           68
    │   ├── RevokedSenderError      69
    │   ├── WrongKindError          100
    │   ├── StaleMessageError       101
    │   ├── FutureMessageError      102
    │   ├── RateLimitedError        103
    │   ├── SetAsideError           104
    │   └── NoRoomError             105
    ├── UpdateRefusedError          70
    ├── MergeError                  71
    ├── OutboxFullError             72
    ├── TrainingError               80
    │   ├── TrainingDivergedError   81
    │   ├── TrainingPausedError     82
    │   ├── WorkerCrashedError      83
    │   └── DoesNotFitError         84
    ├── DemoError                   90
    └── ServingError                91
"""

from __future__ import annotations

from typing import ClassVar


class BrambleError(Exception):
    """The root: something that can be explained to a person.

    Args:
        message: what happened, and to what.
        advice: what the reader can do about it.
    """

    code: ClassVar[str] = "bramble"
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, advice: str) -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        return self.message


class StateError(BrambleError):
    """Something about the state directory stands in the way."""

    code = "state"
    exit_status = 10


class NotInitialisedError(StateError):
    """There is no device or hub in this directory yet."""

    code = "not-initialised"
    exit_status = 11


class AlreadyInitialisedError(StateError):
    """There is a device or hub in this directory already, and it is not overwritten."""

    code = "already-initialised"
    exit_status = 12


class AlreadyRunningError(StateError):
    """Another process holds this state directory."""

    code = "already-running"
    exit_status = 13


class DiskFullError(StateError):
    """The disk had no room for something that must be kept."""

    code = "disk-full"
    exit_status = 14


class CorruptStateError(StateError):
    """A state file does not hold what was written to it."""

    code = "corrupt-state"
    exit_status = 15


class SettingsError(BrambleError):
    """A setting has a value that cannot be used."""

    code = "settings"
    exit_status = 16


class LockedKeysError(BrambleError):
    """Keys are under a passphrase or in a keyring, and could not be opened, or not be put there."""

    code = "locked-keys"
    exit_status = 17


class ModelError(BrambleError):
    """A model file cannot be used."""

    code = "model"
    exit_status = 20


class UnreadableModelError(ModelError):
    """The file is missing, cut short, or no GGUF at all."""

    code = "unreadable-model"
    exit_status = 21


class UnsupportedModelError(ModelError):
    """The file is a GGUF that Bramble does not know how to train."""

    code = "unsupported-model"
    exit_status = 22


class BaseMismatchError(ModelError):
    """The base here is another file than the one the community trains."""

    code = "base-mismatch"
    exit_status = 23


class AdapterError(ModelError):
    """An adapter does not fit its base, or cannot be read."""

    code = "adapter"
    exit_status = 24


class DownloadError(ModelError):
    """A model could not be fetched from a model repository, or is not what the repository says."""

    code = "download"
    exit_status = 25


class DataError(BrambleError):
    """The owner's text cannot be used."""

    code = "data"
    exit_status = 30


class NoTextError(DataError):
    """No text, or too little, was found where it was looked for."""

    code = "no-text"
    exit_status = 31


class ConsentMissingError(DataError):
    """The owner has not said yes to the use of this text."""

    code = "consent-missing"
    exit_status = 32


class NetworkError(BrambleError):
    """The broker cannot be used."""

    code = "network"
    exit_status = 40


class BrokerUnreachableError(NetworkError):
    """Nobody answers at the broker's address."""

    code = "broker-unreachable"
    exit_status = 41


class BrokerRefusedError(NetworkError):
    """The broker answered, and said no."""

    code = "broker-refused"
    exit_status = 42


class PlaintextRefusedError(NetworkError):
    """An unencrypted connection to another machine was asked for."""

    code = "plaintext-refused"
    exit_status = 43


class InviteError(BrambleError):
    """Joining a community did not work."""

    code = "invite"
    exit_status = 50


class InvalidInviteError(InviteError):
    """The line is no invite, or is damaged."""

    code = "invalid-invite"
    exit_status = 51


class InviteRefusedError(InviteError):
    """The hub did not accept the invite: used up, expired or unknown."""

    code = "invite-refused"
    exit_status = 52


class NotJoinedError(InviteError):
    """The device belongs to no community yet."""

    code = "not-joined"
    exit_status = 53


class AlreadyMemberError(InviteError):
    """The device belongs to another community already."""

    code = "already-member"
    exit_status = 54


class AwaitingApprovalError(InviteError):
    """The device asked to be let in, and a steward has not said yes or no yet."""

    code = "awaiting-approval"
    exit_status = 55


class RevokedError(InviteError):
    """The hub put this device out of the community, and said so with its signature."""

    code = "put-out"
    exit_status = 56


class LeavingError(InviteError):
    """The device is on its way out of its community, or is changing its keys: that is to be finished first."""

    code = "leaving"
    exit_status = 57


class ProtocolError(BrambleError):
    """A message was refused. Normal life on an open network: it is counted and dropped."""

    code = "protocol"
    exit_status = 60


class MalformedMessageError(ProtocolError):
    """The bytes are not a message of this protocol."""

    code = "malformed"
    exit_status = 61


class OversizedMessageError(ProtocolError):
    """The message is larger than its kind may be."""

    code = "oversized"
    exit_status = 62


class BadSignatureError(ProtocolError):
    """The signature is not the sender's."""

    code = "bad-signature"
    exit_status = 63


class ReplayedMessageError(ProtocolError):
    """The message was seen before, or is older than what is remembered."""

    code = "replayed"
    exit_status = 64


class WrongCommunityError(ProtocolError):
    """The message belongs to another community."""

    code = "wrong-community"
    exit_status = 65


class UnknownSenderError(ProtocolError):
    """The sender is not a member of the community."""

    code = "unknown-sender"
    exit_status = 66


class SealBrokenError(ProtocolError):
    """What was sealed was changed, cut, swapped, or sealed for somebody else."""

    code = "seal-broken"
    exit_status = 67


class TransferError(ProtocolError):
    """A chunked transfer does not add up."""

    code = "transfer"
    exit_status = 68


class RevokedSenderError(ProtocolError):
    """The sender was put out of the community."""

    code = "revoked"
    exit_status = 69


class WrongKindError(ProtocolError):
    """The message came on the topic of another kind, or is of a kind that its receiver does not know."""

    code = "wrong-kind"
    exit_status = 100


class StaleMessageError(ProtocolError):
    """The message is signed as it should be, and a newer one of its kind was seen."""

    code = "stale"
    exit_status = 101


class FutureMessageError(ProtocolError):
    """The message says that it was sent at a time that has not come yet."""

    code = "future"
    exit_status = 102


class RateLimitedError(ProtocolError):
    """Its sender sends more than anybody needs to."""

    code = "rate"
    exit_status = 103


class SetAsideError(ProtocolError):
    """Its sender was set aside for a while, for what it sent before."""

    code = "set-aside"
    exit_status = 104


class NoRoomError(ProtocolError):
    """There is no room for what it begins, at the moment."""

    code = "no-room"
    exit_status = 105


class UpdateRefusedError(BrambleError):
    """An update does not fit the round, or is not a usable update. ``reason`` is stable and machine-readable."""

    code = "update-refused"
    exit_status = 70

    def __init__(self, message: str, *, advice: str, reason: str = "invalid") -> None:
        super().__init__(message, advice=advice)
        self.reason = reason


class MergeError(BrambleError):
    """Updates could not be merged."""

    code = "merge"
    exit_status = 71


class OutboxFullError(BrambleError):
    """The durable outbox has reached its bound."""

    code = "outbox-full"
    exit_status = 72


class TrainingError(BrambleError):
    """Training did not finish."""

    code = "training"
    exit_status = 80


class TrainingDivergedError(TrainingError):
    """The loss or a gradient stopped being a finite number."""

    code = "training-diverged"
    exit_status = 81


class TrainingPausedError(TrainingError):
    """The worker was asked to leave; it kept a checkpoint and will go on from there."""

    code = "training-paused"
    exit_status = 82


class WorkerCrashedError(TrainingError):
    """A worker process ended without a result."""

    code = "worker-crashed"
    exit_status = 83


class DoesNotFitError(TrainingError):
    """A training needs more memory than it may take."""

    code = "does-not-fit"
    exit_status = 84


class DemoError(BrambleError):
    """The demo could not show what it set out to show."""

    code = "demo"
    exit_status = 90


class ServingError(BrambleError):
    """The model cannot be offered to other programs."""

    code = "serving"
    exit_status = 91


def error_classes() -> dict[str, type[BrambleError]]:
    """Give every error class by its code, for rebuilding an error that crossed a process border."""
    found: dict[str, type[BrambleError]] = {}
    queue: list[type[BrambleError]] = [BrambleError]
    while queue:
        cls = queue.pop()
        if cls.__module__ == __name__:  # not a room's private refinement of one of these
            found[cls.code] = cls
        queue.extend(cls.__subclasses__())
    return found
