"""Where a passphrase comes from: a file that the service is given, or a person at a terminal. Or the keyring.

A service has nobody to ask. So a passphrase may lie in a file that ``BRAMBLE_PASSPHRASE_FILE`` names, or come from
systemd as the credential ``bramble-passphrase`` (``LoadCredentialEncrypted=``, in ``$CREDENTIALS_DIRECTORY``).
"""

from __future__ import annotations

import base64
import binascii
import getpass
import importlib
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from agent.crypto.locking import SHORTEST_PASSPHRASE
from agent.errors import LockedKeysError
from agent.paths import read_secret

FILE_VARIABLE = "BRAMBLE_PASSPHRASE_FILE"
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"
CREDENTIAL = "bramble-passphrase"
LONGEST_FILE = 4096

_SERVICE = "bramble"
_ADVICE = (
    "Run it in a terminal, which asks for the passphrase; or put it into a file that only you can read and name that"
    f" in {FILE_VARIABLE}; or give the service the systemd credential {CREDENTIAL}."
)


def given_passphrase() -> str | None:
    """Give the passphrase that this process was given in a file; None where it was given none.

    Raises:
        LockedKeysError: the file is named, and cannot be read or holds nothing; or others can read it.
    """
    named = os.environ.get(FILE_VARIABLE)
    if named:
        return _read(Path(named), private=True)
    folder = os.environ.get(CREDENTIALS_VARIABLE)
    path = Path(folder) / CREDENTIAL if folder else None
    return _read(path, private=False) if path is not None and path.is_file() else None


def ask_passphrase(what: str) -> str:
    """Give the passphrase of something: the one in a file, or what a person types.

    Raises:
        LockedKeysError: there is no file and nobody to ask.
    """
    given = given_passphrase()
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise LockedKeysError(f"{what} is under a passphrase, and there is nobody to ask for it", advice=_ADVICE)
    return getpass.getpass(f"Passphrase of {what}: ")


def new_passphrase(what: str) -> str:
    """Let a person choose a passphrase, typed twice; or take the one in a file.

    Raises:
        LockedKeysError: it is too short, the two differ, or there is nobody to ask.
    """
    given = given_passphrase()
    if given is None:
        if not sys.stdin.isatty():
            raise LockedKeysError(f"{what} needs a passphrase, and there is nobody to ask for it", advice=_ADVICE)
        given = getpass.getpass(f"New passphrase of {what}: ")
        if getpass.getpass("The same again: ") != given:
            raise LockedKeysError("the two passphrases differ", advice="Try again. Nothing was changed.")
    if len(given) < SHORTEST_PASSPHRASE:
        raise LockedKeysError(
            f"this passphrase has {len(given)} characters, and {SHORTEST_PASSPHRASE} is the least",
            advice="Take four or five words that do not belong together. Nothing was changed.",
        )
    return given


def _read(path: Path, *, private: bool) -> str:
    try:
        data, mode = read_secret(path, LONGEST_FILE)
        text = data.decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as cause:
        raise LockedKeysError(f"the passphrase in {path} cannot be read: {cause}", advice=_ADVICE) from cause
    if private and mode:
        raise LockedKeysError(
            f"the passphrase in {path} can be read by others on this machine (mode {mode})",
            advice=f"Run: chmod 600 {path}",
        )
    if not text or len(data) > LONGEST_FILE:
        raise LockedKeysError(f"{path} holds no passphrase", advice="Write it there as one line of text.")
    return text


# --- the operating system's keyring --------------------------------------------------------------------------------


def keyring_key(account: str) -> bytes:
    """Give the key that lies in the operating system's keyring for an id.

    Raises:
        LockedKeysError: there is none, or no keyring.
    """
    said = _through_keyring("get_password", _SERVICE, account)
    try:
        key = base64.b64decode(said or "", validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise LockedKeysError(
            f"the keyring of this account holds no key for {account[:10]}",
            advice="Log in as the account that protected the keys, or restore a backup (`bramble key restore`).",
        )
    return key


def new_keyring_key(account: str) -> bytes:
    """Make a key and put it into the operating system's keyring, under an id.

    Raises:
        LockedKeysError: there is no keyring, or it is locked.
    """
    key = secrets.token_bytes(32)
    _through_keyring("set_password", _SERVICE, account, base64.b64encode(key).decode())
    return keyring_key(account)  # what comes back is what will open the keys


def forget_keyring_key(account: str) -> None:
    """Take a key out of the keyring, if it is there."""
    try:
        _through_keyring("delete_password", _SERVICE, account)
    except LockedKeysError:
        return


def _through_keyring(name: str, *arguments: str) -> Any:
    try:
        module = importlib.import_module("keyring")
    except ImportError as cause:
        raise LockedKeysError(
            "the package `keyring` is not installed", advice="Install it: pip install 'bramble-agent[keyring]'"
        ) from cause
    try:
        return getattr(module, name)(*arguments)
    except Exception as cause:  # every backend has its own errors, under one that only the module knows
        raise LockedKeysError(
            f"the keyring of this account cannot be used: {cause}",
            advice="Unlock it (log in to the desktop), or use a passphrase: `bramble key protect --passphrase`.",
        ) from cause
