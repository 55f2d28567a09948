from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.llm.adapter_gguf import write_gguf_adapter
from agent.llm.gguf_file import open_gguf
from agent.llm.seedling import SEEDLING_PATH
from tests.models import Shape, random_adapter, write_model

CHAT = (sys.executable, "-m", "agent.cli", "chat", "--threads", "1", "--temperature", "0")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = open_gguf(SEEDLING_PATH)
    path = tmp_path_factory.mktemp("adapters") / "a.gguf"
    write_gguf_adapter(random_adapter(base, rank=4, alpha=8.0, names=["q_proj", "down_proj"], size=0.1), base, path)
    return path


def run(*arguments: str | Path, lines: str = "") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*CHAT, *map(str, arguments)], input=lines.encode(), capture_output=True, check=False, timeout=60
    )


def test_base_without_a_community_answers_and_adapters_are_swapped(adapter: Path) -> None:
    options = ("--base", SEEDLING_PATH, "--adapter", f"mine={adapter}", "--max-tokens", "8", "--stats")
    alone = [run(*options, "--with", name, "--prompt", "the").stdout for name in ("base", "mine")]
    assert alone[0] != alone[1]
    done = run(*options, lines="the\n/new\n/base\nthe\n/nothing\n/help\n")
    assert done.returncode == 0
    assert done.stdout == alone[1] + alone[0]
    words = done.stderr.decode()
    assert words.count("tokens/s") == 2
    assert "now: base" in words
    assert "there is no /nothing" in words
    assert words.count("Ctrl-C stops an answer") == 2


def test_lines_between_quotes_are_one_question(tiny_q8: Path) -> None:
    done = run("--base", tiny_q8, "--max-tokens", "2", "--stats", lines='"""\none\ntwo\n"""\n')
    assert done.stderr.decode().count("tokens/s") == 1


def test_adapter_that_was_not_named_is_explained(tiny_q8: Path) -> None:
    done = run("--base", tiny_q8, "--with", "mine", "--prompt", "the")
    assert done.returncode == 24
    assert b"--adapter mine=FILE" in done.stderr
    assert run("--base", tiny_q8, "--adapter", "mine", "--prompt", "the").returncode == 2
    assert run("--adapter", "mine=a.gguf", "--prompt", "the").returncode == 2


class Terminal:
    """A person at a terminal."""

    def __init__(self, *arguments: str | Path) -> None:
        import pty  # noqa: PLC0415 (POSIX alone)

        self.screen, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "dumb"}
        self.process = subprocess.Popen(
            [*CHAT, *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)
        self.seen = b""
        self.news = threading.Condition()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()

    def _look(self) -> None:
        with contextlib.suppress(OSError):  # how Linux tells that the other side has gone
            while part := os.read(self.screen, 4096):
                with self.news:
                    self.seen += part
                    self.news.notify_all()

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def wait_for(self, words: bytes, within: float = 20.0) -> None:
        with self.news:
            assert self.news.wait_for(lambda: words in self.seen, within), self.seen

    def interrupt(self, words: bytes) -> None:
        """Press Ctrl-C until the program says so: just after a prompt it is not heard before the next key."""
        for _ in range(40):
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(AssertionError):
                self.wait_for(words, 0.5)
                return
        pytest.fail(f"{words!r} was never said: {self.seen!r}")

    def leave(self) -> int:
        """Press Ctrl-D until the program ends: between prompts it is not heard."""
        try:
            for _ in range(40):
                self.type("\x04")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return self.process.wait(0.5)
            pytest.fail("it did not leave")
        finally:
            self.process.kill()
            self.process.wait()
            self.thread.join()
            os.close(self.screen)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(
        tmp_path_factory.mktemp("slow") / "slow.gguf", Shape(layers=4, hidden=512, ffn=1024, context=4096)
    )


@pytest.fixture
def terminal(slow: Path) -> Iterator[Terminal]:
    if os.name != "posix":
        pytest.skip("there are no pseudo-terminals here")
    terminal = Terminal("--base", slow, "--max-tokens", "3000", "--stats")
    yield terminal
    assert terminal.leave() == 0


def test_pasted_lines_are_one_question_and_ctrl_c_stops_the_answer_alone(terminal: Terminal) -> None:
    terminal.wait_for(b"\n> ")
    terminal.interrupt(b"(Ctrl-D leaves)")
    terminal.type("one\ntwo\nthree\n")
    terminal.wait_for(b"three\r\n")
    before = len(terminal.seen)
    with terminal.news:
        assert terminal.news.wait_for(lambda: len(terminal.seen) > before + 20, 30)
    terminal.interrupt(b"(stopped)")
    terminal.wait_for(b"tokens/s")
    terminal.type("/help\n")
    terminal.wait_for(b"Ctrl-C stops an answer")
    assert terminal.seen.count(b"tokens/s") == 1
    count = int(terminal.seen.split(b" tokens, ")[0].split()[-1])
    assert 0 < count < 3000
