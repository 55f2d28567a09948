from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import pytest

from agent.errors import MergeError
from agent.running import run_until_signalled

WAITS = """
import asyncio
from agent.running import run_until_signalled

async def work():
    print("running", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print("tidied", flush=True)

run_until_signalled(work(), with_parent=True)
"""


def _waiting() -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", WAITS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"running\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_work_in_order(number: signal.Signals) -> None:
    with _waiting() as process:
        process.send_signal(number)
        assert process.wait(20) == 0
        assert process.stdout is not None
        assert process.stdout.read() == b"tidied\n"


def test_the_end_of_standard_input_ends_the_work_in_order() -> None:
    with _waiting() as process:
        out, _ = process.communicate(timeout=20)
    assert out == b"tidied\n"
    assert process.returncode == 0


def test_the_result_is_given_back() -> None:
    async def work() -> int:
        return 7

    assert run_until_signalled(work()) == 7


def test_an_error_of_several_tasks_is_raised_as_itself() -> None:
    async def fails() -> None:
        raise MergeError("no updates", advice="wait")

    async def work() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fails())

    with pytest.raises(MergeError, match="no updates"):
        run_until_signalled(work())
