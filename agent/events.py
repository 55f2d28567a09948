"""What a running hub or device says: one event a line, for people or as JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import IO, TypeAlias

Value: TypeAlias = "str | int | float | bool | list[Value] | dict[str, Value] | None"
Listener: TypeAlias = Callable[[str, dict[str, Value]], None]


@dataclass(slots=True)
class Events:
    """Writes events to a stream, and tells whoever else listens.

    Attributes:
        stream: where lines go; standard error unless told otherwise.
        as_json: one JSON object a line (``event``, ``at``, and the fields), instead of words.
        listeners: called with each event's name and fields.
        context: fields that every event has unless it says otherwise, such as the round.
    """

    stream: IO[str] = field(default_factory=lambda: sys.stderr)
    as_json: bool = False
    quiet: bool = False
    listeners: list[Listener] = field(default_factory=list)
    context: dict[str, Value] = field(default_factory=dict)

    def about(self, **context: Value) -> Events:
        """Give a voice of the same stream and listeners that says this with every event."""
        return replace(self, context={**self.context, **context})

    def say(self, event: str, text: str = "", **fields: Value) -> None:
        """Tell of one event.

        Args:
            event: a stable name, such as ``update-accepted``.
            text: the same for people; nothing is printed for people where it is empty.
            fields: the facts.
        """
        fields = {**self.context, **fields}
        for listener in self.listeners:
            listener(event, fields)
        if self.quiet:
            return
        if self.as_json:
            line = json.dumps({"event": event, "at": round(time.time(), 3), "text": text, **fields}, sort_keys=True)
        elif text:
            line = f"{time.strftime('%H:%M:%S')}  {text}"
        else:
            return
        try:
            print(line, file=self.stream, flush=True)
        except BrokenPipeError:
            self.quiet = True
