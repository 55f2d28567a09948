"""The embedded broker in a thread of the test, open to everybody, so that a proxy can stand before it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from tests.transport.brokers import embedded


@contextlib.contextmanager
def local_broker() -> Iterator[int]:
    """Run it while the context lasts; gives its port."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    context = embedded()
    try:
        running = asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(20)
        try:
            yield running.port
        finally:
            asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()
