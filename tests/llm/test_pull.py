from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download

from agent.errors import AlreadyRunningError, DiskFullError, DownloadError
from agent.llm import pull as room
from agent.llm.pull import Pulled, Repository
from tests.llm.model_repository import COMMIT, ModelRepository

DATA = bytes(range(256)) * 8192  # two megabytes, so that a body is more than one piece
FILE = "berry-Q8_0.gguf"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No token of whoever runs the tests, no waiting before a retry, no connection that outlives the test."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(file_download.time, "sleep", lambda _seconds: None)
    yield
    huggingface_hub.close_session()


@pytest.fixture
def served() -> Iterator[ModelRepository]:
    with ModelRepository(files={FILE: DATA, "README.md": b"# Berry"}).serving() as repository:
        yield repository


def fetch(served: ModelRepository, directory: Path, **options: object) -> Pulled:
    repository = Repository(served.name, endpoint=served.url)
    return repository.pull(repository.files()[0], directory, **options)  # type: ignore[arg-type]


def test_file_comes_whole_and_its_progress_ends_with_its_size(served: ModelRepository, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    pulled = fetch(served, tmp_path, on_progress=lambda done, total: seen.append((done, total)))
    assert pulled.path.read_bytes() == DATA
    assert pulled.sha256 == hashlib.sha256(DATA).hexdigest()
    assert pulled.declared
    assert pulled.origin == f"{served.url}/{served.name}:{FILE}@{COMMIT[:12]}"
    assert seen[-1] == (len(DATA), len(DATA))


def test_only_the_gguf_files_are_listed_and_nothing_is_told_to_others(served: ModelRepository) -> None:
    files = Repository(served.name, endpoint=served.url).files()
    assert [(file.path, file.size, file.sha256) for file in files] == [(FILE, len(DATA), served.sha256(FILE))]
    assert [one.path for one in served.asked] == [f"/api/models/{served.name}"]
    assert "torch" not in served.asked[0].headers["user-agent"]


def test_interrupted_download_goes_on_where_it_was(served: ModelRepository, tmp_path: Path) -> None:
    served.cut_after = 700_000
    with pytest.raises(DownloadError, match=r"503.* after 0\.5 of 2\.1 MB") as refused:
        fetch(served, tmp_path)
    assert "goes on from there" in refused.value.advice
    served.cut_after = None
    served.asked.clear()
    assert fetch(served, tmp_path).path.read_bytes() == DATA
    assert [one.headers.get("range") for one in served.bodies()] == [f"bytes={2 * room.PIECE_BYTES}-"]


def test_connection_that_breaks_once_is_mended_in_the_same_call(served: ModelRepository, tmp_path: Path) -> None:
    served.cut_after, served.cuts = 700_000, 1
    assert fetch(served, tmp_path).path.read_bytes() == DATA
    assert len(served.bodies()) == 2


def test_server_that_ignores_ranges_sends_the_whole_again(served: ModelRepository, tmp_path: Path) -> None:
    served.cut_after = 700_000
    with pytest.raises(DownloadError):
        fetch(served, tmp_path)
    served.cut_after, served.ranges = None, False
    assert fetch(served, tmp_path).path.read_bytes() == DATA


def test_file_that_is_not_what_the_repository_declares_is_removed(served: ModelRepository, tmp_path: Path) -> None:
    served.declared[FILE] = "a" * 64
    with pytest.raises(DownloadError, match=r"should have aaaa.*removed"):
        fetch(served, tmp_path)
    assert not list(tmp_path.glob("*.part"))


def test_given_hash_is_checked_where_none_is_declared(served: ModelRepository, tmp_path: Path) -> None:
    served.declared[FILE] = ""
    with pytest.raises(DownloadError, match="should have bbbb"):
        fetch(served, tmp_path, sha256="b" * 64)
    assert fetch(served, tmp_path, sha256=hashlib.sha256(DATA).hexdigest().upper()).declared
    assert not fetch(served, tmp_path).declared


@pytest.mark.parametrize("given", ["b" * 64, "beef"])
def test_hash_that_cannot_be_met_is_refused_before_anything_is_fetched(
    served: ModelRepository, tmp_path: Path, given: str
) -> None:
    with pytest.raises(DownloadError, match=r"declares|no SHA-256"):
        fetch(served, tmp_path, sha256=given)
    assert not served.bodies()


def test_token_goes_to_the_repository_and_not_to_another_host(
    served: ModelRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(served, tmp_path)
    tokens = {one.path: one.headers.get("authorization") for one in served.asked}
    assert len(tokens) == 3
    assert tokens.pop(f"/bytes/{FILE}") is None
    assert set(tokens.values()) == {"Bearer hf_secret"}


@pytest.mark.parametrize(
    ("status", "code", "words", "advice"),
    [
        (401, "", "does not let you read", "HF_TOKEN"),
        (401, "RepoNotFound", "does not show it to you", "HF_TOKEN"),
        (401, "GatedRepo", "accepted its terms", "HF_TOKEN"),
        (403, "GatedRepo", "accepted its terms", "terms"),
        (403, "", "does not let you read", "HF_TOKEN"),
        (404, "RepoNotFound", "no repository", "spelling"),
        (404, "RevisionNotFound", "no revision", "branch"),
        (429, "", "fewer requests", "Wait"),
        (500, "", "HTTP 500", "later"),
    ],
)
def test_refusal_says_what_to_do(served: ModelRepository, status: int, code: str, words: str, advice: str) -> None:
    served.refuse = (status, code)
    with pytest.raises(DownloadError, match=words) as refused:
        Repository(served.name, endpoint=served.url).files()
    assert advice in refused.value.advice
    assert served.name in refused.value.message or served.url in refused.value.message


def test_name_that_is_none_is_refused_without_asking(served: ModelRepository) -> None:
    with pytest.raises(DownloadError, match="no name of a repository"):
        Repository("a/b/c", endpoint=served.url).files()
    assert not served.asked


@pytest.mark.parametrize(("endpoint", "words"), [("page", "does not answer as"), ("http://[", "broke")])
def test_address_of_something_else_is_told_from_a_repository(
    served: ModelRepository, endpoint: str, words: str
) -> None:
    served.page = b"<html>Log in to this network</html>"
    with pytest.raises(DownloadError, match=words) as refused:
        Repository(served.name, endpoint=served.url if endpoint == "page" else endpoint).files()
    assert "HF_ENDPOINT" in refused.value.advice


def test_nobody_answers(served: ModelRepository, tmp_path: Path) -> None:
    file = Repository(served.name, endpoint=served.url).files()[0]
    gone = Repository(served.name, endpoint="http://127.0.0.1:1")
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:1.* broke"):
        gone.pull(file, tmp_path)


def test_server_that_stays_silent_is_given_up(served: ModelRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    served.silent = True
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    with pytest.raises(DownloadError, match="did not answer in time"):
        Repository(served.name, endpoint=served.url).files()


def test_revision_is_pinned_to_the_commit_that_was_listed(served: ModelRepository, tmp_path: Path) -> None:
    repository = Repository(served.name, revision="v1", endpoint=served.url)
    repository.pull(repository.files()[0], tmp_path)
    assert [one.path.split("/")[-2] for one in served.asked[:2]] == ["revision", COMMIT]


def test_offline_mode_asks_nobody(served: ModelRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE") as refused:
        Repository(served.name, endpoint=served.url).files()
    assert "bramble model import" in refused.value.advice
    assert not served.asked


def test_disk_that_is_too_small_is_known_before_the_download(
    served: ModelRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr("agent.llm.shelf.shutil.disk_usage", lambda _path: usage)
    with pytest.raises(DiskFullError, match=r"2\.1 MB"):
        fetch(served, tmp_path)
    assert not served.bodies()


def test_two_downloads_of_one_file_do_not_write_into_each_other(served: ModelRepository, tmp_path: Path) -> None:
    part = fetch(served, tmp_path).path
    with room._alone(part, "it"), pytest.raises(AlreadyRunningError, match=FILE):
        fetch(served, tmp_path)
