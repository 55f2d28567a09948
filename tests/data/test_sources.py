from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from agent.data import sources as sources_module
from agent.data.decoding import NotTextError
from agent.data.documents import Document, ReadLimits, Turn
from agent.data.sources import FileSource, Source, load_sources, read_documents, survey
from agent.errors import DataError, NoTextError
from agent.testing import BrokenPromiseError, check_source

FILES = (FileSource(),)


def write(root: Path, **files: str | bytes) -> Path:
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def test_a_folder_is_read_files_first_with_all_it_holds(tmp_path: Path) -> None:
    write(
        tmp_path,
        b_dot_md="# Second",
        a__deep__x_dot_py="print('first')\n",
        c_dot_html="<p>Third &amp; last</p>",
        README="no suffix",
    )
    found = read_documents([tmp_path], sources=FILES)
    assert [(document.path.relative_to(tmp_path).as_posix(), document.text) for document in found.documents] == [
        ("README", "no suffix"),
        ("b.md", "# Second"),
        ("c.html", "Third & last"),
        ("a/deep/x.py", "print('first')"),
    ]
    assert found.skipped == ()
    assert found.characters == sum(len(document.text) for document in found.documents)


def test_what_is_left_out_is_named_with_the_reason(tmp_path: Path) -> None:
    write(
        tmp_path,
        good_dot_txt="text",
        photo_dot_png=b"\x89PNG\r\n\0\0",
        empty_dot_txt="",
        large_dot_txt="long " * 100,
        _dot_git__config="hidden",
        node_modules__x_dot_js="tool",
    )
    (tmp_path / "link.txt").symlink_to(tmp_path / "good.txt")
    os.mkfifo(tmp_path / "pipe")
    found = read_documents([tmp_path], limits=ReadLimits(file_bytes=400), sources=FILES)
    assert [document.path.name for document in found.documents] == ["good.txt"]
    assert {skipped.path.name: skipped.reason for skipped in found.skipped} == {
        ".git": "is hidden or kept by a tool",
        "node_modules": "is hidden or kept by a tool",
        "photo.png": "is not text",
        "empty.txt": "is empty",
        "large.txt": "is larger than 400 bytes",
        "link.txt": "is a link",
        "pipe": "is not a regular file",
    }


def test_loops_of_links_and_paths_named_twice_end(tmp_path: Path) -> None:
    write(tmp_path, notes__a_dot_txt="a")
    (tmp_path / "notes" / "loop").symlink_to(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "notes")
    paths = [tmp_path, tmp_path / "notes", link, tmp_path / "notes" / "a.txt"]
    assert len(read_documents(paths, sources=FILES).documents) == 1


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path, private__diary_dot_txt="dear diary", shared__a_dot_txt="a")
    (tmp_path / "shared" / "more").symlink_to(tmp_path / "private")
    found = read_documents([tmp_path / "shared"], sources=FILES)
    assert [document.text for document in found.documents] == ["a"]


def test_limits_on_files_and_bytes_hold(tmp_path: Path) -> None:
    write(tmp_path, **{f"f{i}_dot_txt": "0123456789" for i in range(9)})
    assert len(read_documents([tmp_path], limits=ReadLimits(files=4), sources=FILES).documents) == 4
    found = read_documents([tmp_path], limits=ReadLimits(total_bytes=35), sources=FILES)
    assert len(found.documents) == 3
    assert len(found.skipped) == 6


@pytest.mark.parametrize("content", [None, b"", b"\0\1\2\3"])
def test_a_folder_without_text_is_an_error_that_says_what_was_there(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "file.bin").write_bytes(content)
    for read in (read_documents, survey):
        with pytest.raises(NoTextError, match="found no text in") as caught:
            read([tmp_path], sources=FILES)
        assert ("file.bin" in str(caught.value)) == (content is not None)
        assert caught.value.advice


def test_a_path_that_is_gone_does_not_stop_the_others(tmp_path: Path) -> None:
    write(tmp_path, a_dot_txt="a")
    found = read_documents([tmp_path / "gone", tmp_path], sources=FILES)
    assert [(skipped.path.name, skipped.reason) for skipped in found.skipped] == [("gone", "is not there")]
    with pytest.raises(NoTextError, match="gone is not there"):
        read_documents([tmp_path / "gone"], sources=FILES)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_skipped(tmp_path: Path) -> None:
    write(tmp_path, a_dot_txt="a", b_dot_txt="b")
    (tmp_path / "a.txt").chmod(0)
    found = read_documents([tmp_path], sources=FILES)
    assert [skipped.reason for skipped in found.skipped] == ["cannot be read (Permission denied)"]


def test_a_survey_counts_what_reading_would_give(tmp_path: Path) -> None:
    write(tmp_path, a_dot_md="äb", b_dot_md="cd", c_dot_TXT="efg", d_dot_bin=b"\0")
    found = survey([tmp_path], sources=FILES)
    assert (found.files, found.size, found.characters) == (3, 8, 7)
    assert found.by_suffix == {".md": 2, ".txt": 1}
    assert [skipped.path.name for skipped in found.skipped] == ["d.bin"]


def test_a_survey_of_records_counts_the_file_once_and_names_broken_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n{broken\n{"text": "abc"}\n')
    found = survey([tmp_path])
    assert (found.files, found.size, found.characters) == (1, path.stat().st_size, len("q\n\na") + 3)
    assert [skipped.reason for skipped in found.skipped] == ["line 2 is not JSON"]


class Upper:
    """A plug-in that takes over one suffix."""

    name = "upper"

    def accepts(self, path: Path) -> bool:
        return path.suffix == ".up"

    def read(self, path: Path, data: bytes) -> Sequence[Document]:
        if not data:
            raise NotTextError("is empty")
        return [Document(path=path, text=data.decode().upper(), size=len(data))]


def test_a_plug_in_takes_over_its_kind_of_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entries = [
        EntryPoint(name="files", value="agent.data.sources:FileSource", group="bramble.sources"),
        EntryPoint(name="upper", value="upper_plugin:Upper", group="bramble.sources"),
    ]
    monkeypatch.setattr(sources_module, "entry_points", lambda **_: entries)
    monkeypatch.setattr(EntryPoint, "load", lambda _: Upper)
    assert [source.name for source in load_sources()] == ["upper", "jsonl", "files"]
    write(tmp_path, a_dot_up="shout", b_dot_txt="quiet")
    assert [document.text for document in read_documents([tmp_path]).documents] == ["SHOUT", "quiet"]


def test_a_plug_in_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint(name="broken", value="no.such.module:Source", group="bramble.sources")
    monkeypatch.setattr(sources_module, "entry_points", lambda **_: [entry])
    with pytest.raises(DataError, match="broken"):
        load_sources()


@pytest.mark.parametrize(("source", "name"), [(FileSource(), "a.md"), (FileSource(), "a.html"), (Upper(), "a.up")])
def test_sources_keep_their_promises(source: Source, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text("<p>Some text.</p>\n")
    check_source(source, path)


def test_the_kit_finds_a_source_whose_conversations_cannot_be_learned_from(tmp_path: Path) -> None:
    asked, answered, blank = Turn("user", "q"), Turn("assistant", "a"), Turn("assistant", " ")
    path = tmp_path / "a.up"
    path.write_text("x")
    for document, promise in (
        (Document.conversation(path, [asked]), "ends"),
        (Document.conversation(path, [answered]), "begin"),
        (Document.conversation(path, [asked, blank]), "blank"),
        (Document(path, "q", turns=(asked, answered)), "text is what its turns say"),
    ):

        class Told(Upper):
            made = document

            def read(self, path: Path, data: bytes) -> Sequence[Document]:
                super().read(path, data)
                return [self.made]

        with pytest.raises(BrokenPromiseError, match=promise):
            check_source(Told(), path)


def test_the_kit_finds_a_source_that_makes_blank_documents(tmp_path: Path) -> None:
    class Blank(Upper):
        def read(self, path: Path, data: bytes) -> Sequence[Document]:
            return [Document(path=path, text=" ", size=len(data))]

    path = tmp_path / "a.up"
    path.write_text("x")
    with pytest.raises(BrokenPromiseError, match="never blank"):
        check_source(Blank(), path)
