"""What a harness takes for a finding, on targets that misbehave on purpose. Atheris comes with `make fuzz`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="atheris is not installed: make fuzz installs it")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys, time
from pathlib import Path
from tests.fuzz import targets
from tests.fuzz.target import Target

def wrong(data):
    raise KeyError("no refusal")

def slow(data):
    end = time.process_time() + 1.2
    while time.process_time() < end:
        pass

def hungry(data, kept=[]):
    kept.append(bytearray(b"1" * (300 << 20)))

def fine(data):
    raise ValueError("a refusal")

def run(data):
    if data.startswith(b"x"):
        globals()[sys.argv[1]](data)

targets.find = lambda name: Target(name=name, run=run, seeds=list, refusals=(ValueError,))
from tests.fuzz import harness
harness.FINDINGS = Path("findings")
harness.main()
"""


def harness(kind: str, room: Path) -> tuple[int, str]:
    """Let a target misbehave on inputs that begin with x; give the status and what was said."""
    (room / "input").write_bytes(b"x")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind, "input"],
        cwd=room,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("kind", "words"),
    [("wrong", "KeyError"), ("slow", "s of processor time"), ("hungry", "out-of-memory")],
)
def test_an_error_a_slow_input_and_too_much_memory_are_findings(kind: str, words: str, tmp_path: Path) -> None:
    from tests.fuzz.__main__ import _finding  # noqa: PLC0415 - loads every decoder

    status, said = harness(kind, tmp_path)
    assert status != 0
    assert words in said
    found = _finding(kind, said)
    assert words in found.what
    if kind != "hungry":
        assert [path.read_bytes() for path in (tmp_path / "findings").iterdir()] == [b"x"]


def test_a_refusal_is_no_finding(tmp_path: Path) -> None:
    assert harness("fine", tmp_path)[0] == 0
