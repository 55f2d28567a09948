"""Fetching GGUF files from a model repository (Hugging Face, or whatever HF_ENDPOINT names) through huggingface_hub.

The library finds files, revisions, tokens and mirrors, and streams. Its own ``hf_hub_download`` keeps nothing of a
download that was interrupted, so the bytes go into a file here that is named after what they will be.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import filelock
from httpx2 import HTTPError, InvalidURL, TimeoutException
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, get_token
from huggingface_hub.utils.logging import set_verbosity_error

from agent import __version__
from agent.errors import AlreadyRunningError, DownloadError
from agent.llm.choosing import RepositoryFile
from agent.llm.gguf_file import sha256_file
from agent.llm.shelf import check_room
from agent.paths import explained_disk

OnProgress = Callable[[int, int], None]
"""Called with the bytes that are here, and of all."""

PIECE_BYTES = 256 * 1024
"""What a broken connection loses at most; the library's own is 10 MB, more than a bad line may ever bring at once."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ACCOUNT = "Set HF_TOKEN to a token of an account that may read it; if its terms must be accepted, do that on its page."

_REASONS: tuple[tuple[type[Exception], str, str], ...] = (
    (
        OfflineModeIsEnabled,
        "{what} was not asked for, because HF_HUB_OFFLINE forbids the network",
        "Unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE), or fetch the file elsewhere and `bramble model import` it.",
    ),
    (HFValidationError, "{name!r} is no name of a repository", "Write OWNER/NAME, or OWNER/NAME:FILE.gguf."),
    (RevisionNotFoundError, "{name} has no revision {revision!r}", "Give a branch, tag or commit of it."),
    (RemoteEntryNotFoundError, "{what} is not there", "List the files with `bramble model pull REPO`."),
    (GatedRepoError, "{name} is open only to those who accepted its terms", _ACCOUNT),
    (
        RepositoryNotFoundError,
        "{endpoint} has no repository {name}, or does not show it to you",
        f"Check the spelling. {_ACCOUNT}",
    ),
    (TimeoutException, "{endpoint} did not answer in time about {what}", "Check the network and try again."),
)
"""What the library raises, in this order, and what that means to a person."""

set_verbosity_error()  # its warnings would name signed addresses, and every error is explained here


@dataclass(frozen=True, slots=True)
class Pulled:
    """A file that has come and was checked.

    Attributes:
        path: where it lies now; the caller moves it.
        sha256: of what came.
        declared: whether anybody said beforehand what it should be.
        origin: the repository, file and commit.
    """

    path: Path
    sha256: str
    declared: bool
    origin: str


class Repository:
    """One model repository at one revision.

    Args:
        name: ``owner/name``.
        revision: a branch, tag or commit; the main branch if None.
        endpoint: address of the server; HF_ENDPOINT, or Hugging Face, if None.
    """

    def __init__(self, name: str, *, revision: str | None = None, endpoint: str | None = None) -> None:
        constants.HF_HUB_DISABLE_TELEMETRY = True  # an owner's machine tells nobody what runs on it
        constants.DOWNLOAD_CHUNK_SIZE = PIECE_BYTES
        self.name = name
        self.revision = revision
        self._commit = ""  # what the revision meant when the files were listed
        endpoint = endpoint or os.environ.get("HF_ENDPOINT")
        self._api = HfApi(endpoint=endpoint, library_name="bramble", library_version=__version__)

    @property
    def endpoint(self) -> str:
        """The server's address."""
        return str(self._api.endpoint).rstrip("/")

    def files(self) -> list[RepositoryFile]:
        """Give every GGUF in it, by path.

        Raises:
            DownloadError: the repository cannot be read; the message says why.
        """
        with self._explained(self.name):
            found = self._api.model_info(
                self.name, revision=self.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
        self._commit = str(found.sha or self.revision or "main")
        files = [
            RepositoryFile(row.rfilename, row.size or 0, str(row.lfs.sha256) if row.lfs else "")
            for row in found.siblings or ()
            if row.rfilename.lower().endswith(".gguf")
        ]
        return sorted(files, key=lambda file: file.path)

    def pull(
        self,
        file: RepositoryFile,
        directory: Path,
        *,
        sha256: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Pulled:
        """Fetch a file, going on where an earlier call was interrupted.

        Args:
            file: which.
            directory: where it lies until it is whole, and after that for the caller to move.
            sha256: what it must be, whatever the repository says.
            on_progress: hears of bytes.

        Raises:
            DownloadError: it did not come, or is not what was declared; a wrong file is removed.
            DiskFullError: there is no room for it.
            AlreadyRunningError: another process is fetching it.
        """
        expected = _agreed(file, sha256)
        commit = self._commit or self.revision or "main"
        url = hf_hub_url(self.name, file.path, revision=commit, endpoint=self.endpoint)
        with self._explained(f"{self.name}:{file.path}"):
            metadata = get_hf_file_metadata(url, token=get_token(), library_name="bramble", endpoint=self.endpoint)
        etag = metadata.etag or ""
        size = file.size if metadata.size is None else metadata.size
        key = hashlib.sha256(f"{self.endpoint}\0{self.name}\0{file.path}\0{etag}\0{size}".encode()).hexdigest()[:32]
        part = directory / f"{key}.part"
        with _alone(part, file.path):
            here = _here(part, size)
            check_room(directory, size - here, what=f"the rest of {file.path}" if here else file.path)
            headers = _headers_for(url, metadata.location)
            with explained_disk(part), self._explained(f"{self.name}:{file.path}", part=part, size=size):
                _stream(metadata.location, part, headers, here=here, size=size, on_progress=on_progress)
            found = sha256_file(part)
            if expected and found != expected:
                with explained_disk(part):
                    part.unlink()
                raise DownloadError(
                    f"{file.path} from {self.name} has SHA-256 {found[:16]}…, and should have {expected[:16]}…;"
                    " it was removed",
                    advice="Try again. If it comes out the same, do not trust this source, or check your --sha256.",
                )
        origin = f"{self.endpoint}/{self.name}:{file.path}@{commit[:12]}"
        return Pulled(part, found, declared=bool(expected), origin=origin)

    @contextlib.contextmanager
    def _explained(self, what: str, *, part: Path | None = None, size: int = 0) -> Iterator[None]:
        """Turn everything that can go wrong on the way into an error with advice."""
        kept = ""
        try:
            yield
        except (HTTPError, InvalidURL, OfflineModeIsEnabled, ConnectionError, ValueError, KeyError) as cause:
            have = part.stat().st_size if part is not None and part.exists() else 0
            if have:
                kept = f" after {have / 1e6:,.1f} of {size / 1e6:,.1f} MB"
            message, advice = self._why(cause, what)
            advice = f"{advice} The same command goes on from there." if have else advice
            raise DownloadError(message + kept, advice=advice) from cause

    def _why(self, cause: Exception, what: str) -> tuple[str, str]:
        """Say what happened, and what to do."""
        for kind, message, advice in _REASONS:
            if isinstance(cause, kind):
                facts = {"what": what, "name": self.name, "revision": self.revision, "endpoint": self.endpoint}
                return message.format(**facts), advice
        if isinstance(cause, HfHubHTTPError):
            return _status(cause.response.status_code, what, self.endpoint)
        if isinstance(cause, (ValueError, KeyError)):
            return (
                f"{self.endpoint} does not answer as a model repository does ({cause!r})",
                "Check HF_ENDPOINT if you set it; a proxy or a log-in page of the network may answer in its place.",
            )
        return (
            f"the connection to {self.endpoint} for {what} broke ({str(cause) or type(cause).__name__})",
            "Check the network, and HF_ENDPOINT if you set it; then try again.",
        )


def _agreed(file: RepositoryFile, sha256: str | None) -> str:
    """Give the hash that the file must have; empty where nobody says."""
    given = (sha256 or "").lower()
    if given and not _SHA256.fullmatch(given):
        raise DownloadError(f"{sha256!r} is no SHA-256", advice="Give its 64 hexadecimal digits.")
    if given and file.sha256 and given != file.sha256:
        raise DownloadError(
            f"the repository declares SHA-256 {file.sha256[:16]}… for {file.path}, you asked for {given[:16]}…",
            advice="It is another file, or another revision of it: check --sha256 and --revision. Nothing was fetched.",
        )
    return given or file.sha256


def _here(part: Path, size: int) -> int:
    """Give how much has come; what is longer than the file begins anew."""
    with explained_disk(part):
        here = part.stat().st_size if part.exists() else 0
        if here > size:
            part.unlink()
            return 0
    return here


def _headers_for(url: str, location: str) -> dict[str, str]:
    """Give the headers for the bytes: the token goes to the repository's own server and nowhere else."""
    own = url.split("/")[:3] == location.split("/")[:3]
    headers: dict[str, str] = build_hf_headers(token=get_token() if own else False, library_name="bramble")
    return {**headers, "Accept-Encoding": "identity"}


def _stream(
    location: str, part: Path, headers: dict[str, str], *, here: int, size: int, on_progress: OnProgress | None
) -> None:
    """Append what is missing to ``part``."""
    with part.open("ab") as file:
        try:
            http_get(
                location,
                file,
                resume_size=here,
                headers=headers,
                expected_size=size,
                displayed_filename=part.name,
                tqdm_class=_bar(on_progress),
            )
        except OSError as cause:
            if cause.errno is None and not isinstance(cause, HTTPError):  # its word for a wrong number of bytes
                raise HTTPError(f"{file.tell()} bytes came instead of {size}") from cause
            raise
        finally:
            file.flush()
            os.fsync(file.fileno())


def _bar(on_progress: OnProgress | None) -> Any:
    """Give a class that looks to huggingface_hub like tqdm and passes the numbers on."""

    class Bar:
        def __init__(self, *_arguments: object, total: int | None = None, initial: int = 0, **_options: object) -> None:
            self._here, self._total = initial, total or 0
            self.update(0)

        def update(self, more: int) -> None:
            self._here += more
            if on_progress is not None:
                on_progress(self._here, self._total)

        def __enter__(self) -> Self:
            return self

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None:
            pass

    return Bar


@contextlib.contextmanager
def _alone(part: Path, what: str) -> Iterator[None]:
    """Let one process at a time write to a part.

    Raises:
        AlreadyRunningError: another one does.
    """
    lock = filelock.FileLock(part.with_suffix(".lock"), timeout=0)
    with explained_disk(part):
        try:
            lock.acquire()
        except filelock.Timeout as cause:
            raise AlreadyRunningError(
                f"another process is fetching {what} already", advice="Wait for it, or stop it; then try again."
            ) from cause
    try:
        yield
    finally:
        lock.release()


def _status(status: int, what: str, endpoint: str) -> tuple[str, str]:
    """Explain an HTTP status that has no error class of its own."""
    if status in {401, 403}:
        return f"{endpoint} does not let you read {what} (HTTP {status})", _ACCOUNT
    if status == 404:
        return f"{endpoint} has no {what}", "Check the spelling and the --revision."
    if status == 429:
        return f"{endpoint} wants fewer requests (HTTP 429)", "Wait some minutes and try again; HF_TOKEN raises limits."
    return f"{endpoint} failed with HTTP {status} at {what}", "Try again later."
