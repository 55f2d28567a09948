from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import AlreadyRunningError, DiskFullError, StateError
from agent.paths import BlobStore, Home, exclusive, explained_disk, write_atomically


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.create()
    return made


def test_a_home_is_readable_by_its_owner_alone(home: Home) -> None:
    assert {oct(path.stat().st_mode & 0o777) for path in (home.root, home.keys, home.blobs)} == {"0o700"}


def test_two_processes_cannot_hold_one_state_directory(home: Home) -> None:
    hold = "import sys; from pathlib import Path; from agent.paths import Home, exclusive\n"
    hold += "with exclusive(Home(Path(sys.argv[1]))): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(home.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyRunningError) as caught, exclusive(home):
            pass
        assert "--home" in caught.value.advice
        process.kill()
    with exclusive(home):
        pass


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_had_begun_to_write_is_removed_and_nothing_else(home: Home) -> None:
    kill = "import os, signal, sys; from pathlib import Path; from agent.paths import write_atomically\n"
    kill += "os.fsync = lambda _file: os.kill(os.getpid(), signal.SIGKILL)\n"
    kill += "write_atomically(Path(sys.argv[1]), b'begun')"
    for directory in (home.blobs, home.inbox):
        assert subprocess.run([sys.executable, "-c", kill, str(directory / "name")], check=False).returncode == -9
        assert [path.name[:6] for path in directory.iterdir()] == [".name."]
    kept = BlobStore(home.blobs).put(b"whole")
    home.remove_unfinished()
    assert [path.name for path in home.blobs.iterdir()] == [kept]
    assert list(home.inbox.iterdir()) == []


def test_other_disk_errors_name_the_path() -> None:
    with pytest.raises(StateError, match="/no/such"), explained_disk(Path("/no/such")):
        Path("/no/such/place").read_bytes()


def test_a_blob_is_checked_against_its_name(home: Home) -> None:
    blobs = BlobStore(home.blobs)
    name = blobs.put(b"adapter")
    assert blobs.put(b"adapter") == name
    assert blobs.get(name) == b"adapter"
    blobs.path(name).write_bytes(b"adaptor")
    with pytest.raises(StateError, match="damaged"):
        blobs.get(name)
    assert not blobs.has(name)


def test_only_wanted_blobs_are_kept(home: Home) -> None:
    blobs = BlobStore(home.blobs)
    names = [blobs.put(data) for data in (b"a", b"b", b"c")]
    blobs.keep_only({names[1]})
    assert [blobs.has(name) for name in names] == [False, True, False]
