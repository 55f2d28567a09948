"""The child of :mod:`agent.llm.quantise`: ``python -m agent.llm.quantise_worker``.

The job is the first line of standard input; when standard input ends before the work does, the child removes what it
wrote and leaves. Standard output carries one :class:`~agent.llm.quantise.QuantiseEvent` a line.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any, TextIO

import llama_cpp

from agent.llm.quantise import QuantiseEvent, QuantiseJob

MAX_JOB_BYTES = 1 << 20
LEFT_STATUS = 75

_ERROR = 4  # ggml_log_level
_TENSOR = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")


def main() -> int:
    """Do the job on standard input, and give the exit status."""
    own: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints goes to standard error
    with open(0, "rb", buffering=0, closefd=False) as parent:
        job = QuantiseJob.model_validate_json(parent.readline(MAX_JOB_BYTES))
    threading.Thread(target=_leave_with_parent, args=(job.target,), daemon=True, name="parent").start()
    complaints: deque[str] = deque(maxlen=5)

    def say(event: QuantiseEvent) -> None:
        own.write(event.model_dump_json() + "\n")
        own.flush()

    def on_log(level: int, text: bytes, _user: Any) -> None:
        words = text.decode("utf-8", "replace").strip()
        found = _TENSOR.match(words)
        if found:
            say(QuantiseEvent(event="progress", tensor=int(found[1]), tensors=int(found[2])))
        elif level == _ERROR:
            complaints.append(words.removeprefix("llama_model_quantize: failed to quantize: "))

    callback = llama_cpp.llama_log_callback(on_log)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = job.file_type
    params.nthread = job.threads
    params.allow_requantize = job.requantise
    failed = llama_cpp.llama_model_quantize(os.fsencode(job.source), os.fsencode(job.target), ctypes.byref(params))
    if failed:
        job.target.unlink(missing_ok=True)
        say(QuantiseEvent(event="failed", complaint="; ".join(complaints) or "no reason given"))
        return 1
    say(QuantiseEvent(event="done"))
    return 0


def _leave_with_parent(target: Path) -> None:
    """Wait for the end of standard input; then undo and leave, in the middle of llama.cpp."""
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass
    target.unlink(missing_ok=True)
    os._exit(LEFT_STATUS)


if __name__ == "__main__":
    sys.exit(main())
