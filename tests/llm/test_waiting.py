from __future__ import annotations

import os

import pytest

from agent.llm.waiting import wait_politely
from tests.subprocesses import modules_after


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_owner_has_set_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "to be put back")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv(name, "mine")
    before = dict(os.environ)
    wait_politely()
    assert dict(os.environ) == before
    monkeypatch.delenv(name)
    wait_politely()
    assert int(os.environ["GOMP_SPINCOUNT"]) > 0


def test_it_comes_before_llama_cpp() -> None:
    assert "llama_cpp" not in modules_after("import agent.llm.waiting, agent.cli.serve, agent.cli.chat")
    assert "llama_cpp" not in modules_after("import agent.service, agent.cli.offered")
