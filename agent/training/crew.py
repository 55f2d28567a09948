"""Threads that share work which falls into independent parts; the caller is one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor


class Crew:
    """Some threads.

    Args:
        threads: how many, the caller included.
    """

    def __init__(self, threads: int) -> None:
        self._helpers = max(0, threads - 1)
        self._pool = ThreadPoolExecutor(self._helpers, "crew") if self._helpers else None

    def do(self, parts: Sequence[Callable[[], None]]) -> None:
        """Do all parts; what one of them raises is raised here, once no other is being done.

        Whoever is free takes the next part, so a helper that wakes late makes nobody wait.
        """
        left = iter(parts)  # taking from the iterator of a sequence is one step that no thread can break into
        helpers = []
        if self._pool is not None:
            helpers = [self._pool.submit(_take, left) for _ in range(min(self._helpers, len(parts) - 1))]
        try:
            _take(left)
        finally:
            errors = [error for helper in helpers if not helper.cancel() and (error := helper.exception()) is not None]
        if errors:
            raise errors[0]


def _take(left: Iterator[Callable[[], None]]) -> None:
    for part in left:
        part()
