"""Flower's side of `bench/merge.py`; runs in an environment of its own, and imports nothing of this project."""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
from flwr.server.strategy.aggregate import aggregate, aggregate_inplace


def main() -> None:
    """Average as often as asked, and print what it took.

    ``arrays``: ``aggregate`` on NumPy arrays that are there already. ``messages``: ``aggregate_inplace``, which
    ``FedAvg.aggregate_fit`` calls, on the serialised parameters that a server receives.
    """
    mode, updates, repeats = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    shapes = [tuple(shape) for shape in json.loads(sys.argv[4])]
    rng = np.random.default_rng(0)
    arrays = [[rng.standard_normal(shape, dtype=np.float32) for shape in shapes] for _ in range(updates)]
    if mode == "arrays":
        results = [(each, 1000 + number) for number, each in enumerate(arrays)]
        average = aggregate
    else:
        status = Status(Code.OK, "")
        results = [
            (None, FitRes(status, ndarrays_to_parameters(each), num_examples=1000 + number, metrics={}))
            for number, each in enumerate(arrays)
        ]
        average = aggregate_inplace
    del arrays
    seconds, cpu = [], []
    for _ in range(repeats):
        began, began_cpu = time.perf_counter(), time.process_time()
        average(results)
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak}))


if __name__ == "__main__":
    main()
