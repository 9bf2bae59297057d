"""Timing for the benchmarks: medians of interleaved calls, so that ratios are within one run."""

import statistics
import time
from collections.abc import Callable, Mapping


def medians(calls: Mapping[object, Callable], repeats: int, clock: Callable[[], float] = time.perf_counter) -> dict:
    """{name: median seconds}; each call returns when its work is done. The first round warms up and does not count."""
    seconds = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            began = clock()
            call()
            seconds[name].append(clock() - began)
    return {name: statistics.median(spent[1:]) for name, spent in seconds.items()}
