"""What a broken promise looks like."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class BrokenPromiseError(AssertionError):
    """An implementation does not do what its protocol promises."""


def promise(kept: bool, what: str) -> None:  # noqa: FBT001
    """Raise unless a promise was kept.

    Raises:
        BrokenPromiseError: it was not.
    """
    if not kept:
        raise BrokenPromiseError(f"broken promise: {what}")


@contextmanager
def expecting(error: type[Exception], what: str) -> Iterator[None]:
    """Check that the body raises this error and no other.

    Raises:
        BrokenPromiseError: it raised none, or another one.
    """
    try:
        yield
    except error:
        return
    except Exception as cause:
        raise BrokenPromiseError(f"broken promise: {what} (raised {type(cause).__name__}: {cause})") from cause
    raise BrokenPromiseError(f"broken promise: {what}")
