"""How the threads of llama.cpp wait for one another. Imports nothing: it has to come before llama.cpp is loaded."""

from __future__ import annotations

import os
from typing import Final

SPINS: Final = 1000
"""Turns that a thread waits for the others before it sleeps: some microseconds, as long as they are all running."""


def wait_politely() -> None:
    """Let llama.cpp's threads sleep soon where others are busy; call this before anything that imports llama_cpp.

    The threads of one pass meet several hundred times. GNU's OpenMP lets those that are there first spin for
    milliseconds, which gains nothing that could be measured on an idle machine; but where something else holds a core,
    each meeting takes a time slice of the scheduler: on 2 cores with other work on both, a first token took 500 to
    1,200 ms that way, and 10 to 40 ms with this. What the owner has set stays.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
