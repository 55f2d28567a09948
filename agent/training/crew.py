"""Threads that each compute alone, for work that falls into independent parts.

Many small operations, each shared by all cores, wait for one another many times; whole parts, each on one core, wait
once. What a part gives does not depend on which thread does it, or on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch


class Crew:
    """Some threads.

    Args:
        threads: how many; with one, the caller does all the work.
    """

    def __init__(self, threads: int) -> None:
        self.threads = max(1, threads)
        self._pool: ThreadPoolExecutor | None = None
        if self.threads > 1:
            shared = torch.get_num_threads()  # settles this thread's own number, which the crew's must not change
            self._pool = ThreadPoolExecutor(self.threads, "crew", initializer=_alone)
            list(self._pool.map(lambda _: None, range(self.threads)))
            torch.set_num_threads(shared)

    def do(self, parts: Sequence[Callable[[], None]]) -> None:
        """Do all parts and wait for them; what one of them raises is raised here, once all have ended."""
        if self._pool is None or len(parts) < 2:
            for part in parts:
                part()
            return
        waiting = [self._pool.submit(part) for part in parts]
        errors = [error for each in waiting if (error := each.exception()) is not None]
        if errors:
            raise errors[0]

    def divided(self, costs: Sequence[float]) -> list[list[int]]:
        """Give the indices that each thread should do, so that no thread has much more than another."""
        loads = [0.0] * self.threads
        shares: list[list[int]] = [[] for _ in range(self.threads)]
        for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
            least = loads.index(min(loads))
            loads[least] += costs[index]
            shares[least].append(index)
        return [share for share in shares if share]


def _alone() -> None:
    """Make operations of this thread use no other."""
    torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.set_grad_enabled(False)  # a setting of the thread: parts are the inside of steps that know their gradient
