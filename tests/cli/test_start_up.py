from __future__ import annotations

import subprocess
import sys

import pytest

from agent.cli import COMMANDS
from agent.cli.lazy import LazyGroup

HEAVY = ("numpy", "torch", "transformers", "llama_cpp", "pydantic", "sqlalchemy", "rich", "matplotlib", "cryptography")


def _loaded_after(code: str) -> set[str]:
    code += "\nimport sys; print(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_nothing_heavy() -> None:
    loaded = _loaded_after("from agent.cli import cli\ncli.main(['--help'], standalone_mode=False)")
    assert loaded.isdisjoint(HEAVY)


def test_the_daemon_imports_no_model_library() -> None:
    loaded = _loaded_after("import agent.service, agent.federation.device, agent.hub.process")
    assert loaded.isdisjoint({"torch", "transformers", "peft", "llama_cpp", "textual", "matplotlib"})


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_where_the_table_says_and_explains_itself(name: str) -> None:
    group = LazyGroup(commands_by_name=COMMANDS)
    command = group.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    assert command.help


def test_an_unknown_command_is_refused_with_status_2() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agent.cli", "grow"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert "grow" in done.stderr
