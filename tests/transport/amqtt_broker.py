"""amqtt's own broker, whose heart the embedded broker replaces, with the community's access rules as its plugin.

A process of its own (``python -m tests.transport.amqtt_broker PORT``), because it leaves sockets open.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, cast

from amqtt.broker import Broker
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin

from agent.transport.access import Action, allowed

COMMUNITY = "0123456789abcdef0123456789abcdef"
PASSWORD = "right"


class Rules(BaseTopicPlugin):  # type: ignore[misc]
    """Who may publish, ask for and receive what."""

    async def topic_filtering(self, *, session: Any = None, topic: str | None = None, action: Any = None) -> bool:
        return allowed(str(session.username), cast("Action", action.value), str(topic), COMMUNITY)


class Everybody(BaseAuthPlugin):  # type: ignore[misc]
    """Lets everybody in who knows the password."""

    async def authenticate(self, *, session: Any) -> bool:
        return bool(session.password == PASSWORD)


async def serve(port: int) -> None:
    """Run amqtt's broker until killed."""
    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
            "plugins": {f"{__spec__.name}.Everybody": {}, f"{__spec__.name}.Rules": {}},
        }
    )
    await broker.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
