"""Signals that request a stop.

SIGTERM (preemption, a scheduler's time limit) or Ctrl-C requests a stop. It is recorded, and acted on between two
steps, where the state can be saved. A second signal ends the process immediately. `stop_at` requests one by the clock.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from jax.experimental import multihost_utils

from infofeat_jax.runtime import processes
from infofeat_jax.types import Stopped

LISTENING = 1.0  # seconds between two times that JAX looks whether a signal came
_asked = {"stop": False, "agreed": False, "looks": 0, "moment": math.inf}  # of the process, as signals are


def listen() -> None:
    """Records signals from now on. In a run of several processes JAX itself records SIGTERM, to agree on one step."""
    several = not processes.is_alone()

    def note(number, frame) -> None:
        _asked["stop"] = True
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        os.write(2, b"\nstopping at the next step; once more to stop at once\n")  # print may be what was interrupted
        if several:
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGINT, note)
    if not several:
        signal.signal(signal.SIGTERM, note)


@contextmanager
def listening() -> Iterator[None]:
    """Records signals until the end of the block, then as before: for code that goes on after it, as in a notebook.

    Outside the main thread, where Python allows no handlers, nothing is recorded.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    listen()
    try:
        yield
    finally:
        _asked["stop"] = False
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_at(moment: float = math.inf) -> None:
    """Requests a stop at a moment of time.monotonic(), not at an earlier one; by default never. In single processes."""
    _asked["moment"] = moment


def requested() -> bool:
    """Whether to stop here. All processes of a run must call this equally often; they get the same answers."""
    if processes.is_alone():
        return _asked["stop"] or time.monotonic() >= _asked["moment"]
    _asked["looks"] += 1
    if multihost_utils.reached_preemption_sync_point(_asked["looks"]):  # once, at the look that they agreed on
        _asked["agreed"] = True
    return _asked["agreed"]


def finish() -> None:
    """Waits for all processes, and until none of them is about to agree on a stop, before JAX shuts down.

    In jaxlib 0.10.2 the shutdown takes a lock that the thread of such an agreement needs, and waits for that thread: a
    signal in the last second of a run could hang it. All processes of a run call this, at its end.
    """
    if processes.is_alone():
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # there is nothing left to stop
    processes.barrier("the run has ended")
    time.sleep(1.5 * LISTENING)
    processes.barrier("no signal is left")
    requested()  # returns when an agreement that has begun is over


def check() -> None:
    """Raises Stopped, between two batches of an evaluation, if a stop was requested."""
    if requested():
        raise Stopped("stopped during the evaluation; what was measured is saved: the same command resumes from there")
