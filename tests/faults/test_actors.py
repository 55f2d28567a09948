"""The processes of fault runs: how their ends are read."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from tests.faults.actors import _status


class Ended:
    """A process whose status takes time to read."""

    def __init__(self) -> None:
        self.read = threading.Semaphore(0)
        self.go_on = threading.Event()

    @property
    def exitcode(self) -> int:
        self.read.release()
        self.go_on.wait(20)
        return 7


def test_statuses_are_read_one_at_a_time() -> None:
    process = Ended()
    with ThreadPoolExecutor(2) as pool:
        readings = [pool.submit(_status, cast("Any", process)) for _ in range(2)]
        assert process.read.acquire(timeout=20)
        both = process.read.acquire(timeout=0.2)
        process.go_on.set()
        assert [reading.result() for reading in readings] == [7, 7]
    assert not both
