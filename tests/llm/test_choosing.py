from __future__ import annotations

import pytest

from agent.errors import DownloadError
from agent.llm.choosing import RepositoryFile, choose

REPOSITORY = "grower/berry-GGUF"
FILES = [
    RepositoryFile(path, size, "")
    for path, size in (
        ("berry-F16-00001-of-00002.gguf", 900),
        ("berry-F16-00002-of-00002.gguf", 900),
        ("berry-Q4_K_M.gguf", 300),
        ("berry-Q4_K_S.gguf", 250),
        ("berry-Q8_0.gguf", 600),
        ("more/berry-IQ4_XS.gguf", 240),
    )
]


@pytest.mark.parametrize(
    ("wanted", "path"),
    [
        ("berry-Q8_0.gguf", "berry-Q8_0.gguf"),
        ("more/berry-IQ4_XS.gguf", "more/berry-IQ4_XS.gguf"),
        ("berry-IQ4_XS.gguf", "more/berry-IQ4_XS.gguf"),
        ("Q4_K_M", "berry-Q4_K_M.gguf"),
        ("q8_0", "berry-Q8_0.gguf"),
    ],
)
def test_file_is_found_by_path_name_or_type(wanted: str, path: str) -> None:
    assert choose(FILES, wanted, repository=REPOSITORY).path == path


def test_only_file_needs_no_name() -> None:
    assert choose(FILES[2:3], None, repository=REPOSITORY) is FILES[2]


def test_parts_and_what_is_no_language_model_do_not_make_the_choice_hard() -> None:
    beside = [RepositoryFile("mmproj-berry-F16.gguf", 5, ""), *FILES[:2]]
    assert choose([*beside, FILES[4]], None, repository=REPOSITORY) is FILES[4]


def test_several_files_are_listed_with_sizes_and_a_suggestion_that_works() -> None:
    with pytest.raises(DownloadError, match="holds 6 GGUF files") as refused:
        choose(FILES, None, repository=REPOSITORY)
    assert "MB  berry-Q4_K_S.gguf" in refused.value.message
    assert "00001-of-00002.gguf (one part of several)" in refused.value.message
    suggested = refused.value.advice.split(f"{REPOSITORY}:")[1].split(" ")[0]
    assert choose(FILES, suggested, repository=REPOSITORY).path == "berry-Q4_K_M.gguf"


@pytest.mark.parametrize(
    ("wanted", "words"),
    [("Q2_K", "holds no 'Q2_K'"), ("Q4_K", "holds no"), ("berry", "means 6"), ("00001-of-00002", "one part")],
)
def test_word_that_means_no_single_file_is_explained(wanted: str, words: str) -> None:
    with pytest.raises(DownloadError, match=words):
        choose(FILES, wanted, repository=REPOSITORY)


def test_repository_without_gguf_says_so() -> None:
    with pytest.raises(DownloadError, match="holds no GGUF"):
        choose([], None, repository=REPOSITORY)
