"""The process that computes: does the parts that are due, in order. A part that fails is noted, the next begins.

  python -m accelerator_parts.worker '{"options": [...], "call": [...], "directory": "...", "out": "..."}'

accelerator.py starts it, ends it when the time is up, and starts another one if it dies.
"""

import ctypes
import json
import os
import pathlib
import signal
import sys
import time
import traceback
from collections.abc import Iterable

from absl import logging

from accelerator_parts import state as states
from accelerator_parts.parts import Job, Part, parts
from accelerator_parts.state import Call, Options, State
from infofeat_jax.runtime import signals
from infofeat_jax.types import InvalidInput, Stopped


def main(text: str) -> None:
    """Exit status: 0 if nothing is left to do, 75 if something is, 2 if the user has made a mistake."""
    die_with_parent()
    given = json.loads(text)
    directory, out = pathlib.Path(given["directory"]), pathlib.Path(given["out"])
    options, call = Options(*given["options"]), Call(*given["call"])
    prepare(directory, options.tiny)
    state = states.read(directory)
    try:
        finished = run_parts(parts(Job(options, call, state, directory, out)), state, call)
    except InvalidInput:  # noted
        sys.exit(2)
    sys.exit(0 if finished else os.EX_TEMPFAIL)


def run_parts(wanted: Iterable[Part], state: State, call: Call) -> bool:
    """Does what is due; returns whether nothing is left. Raises InvalidInput if a required part does."""
    names = set()
    for part in wanted:
        names.add(part.name)
        signals.stop_at()
        late = signals.requested() and part.name != "files"
        if state.is_due(part.name, call.number) and not late and time.monotonic() < part.until:
            signals.stop_at(part.until)
            run_part(part, state, call)
    return not any(state.is_due(name, call.number) for name in names)


def run_part(part: Part, state: State, call: Call) -> None:
    """Does one part, and notes how it ended."""
    before, began = state.parts.get(part.name, {}), time.monotonic()
    state.note(part.name, status=states.RUNNING, call=call.number, end=part.end)
    print(f"{part.name} ...", file=sys.stderr, flush=True)
    try:
        ended = {"status": states.DONE, "result": part.act(), "error": None}
    except Stopped as stop:
        ended = {"status": states.STOPPED, "error": str(stop)}
    except Exception as error:  # whatever it is: it is noted, and the next part begins
        traceback.print_exc()
        state.fail(part.name, f"{type(error).__name__}: {' '.join(str(error).split())}"[:500], call.number)
        if part.required and isinstance(error, InvalidInput):
            raise
        ended = {}
    seconds = before.get("seconds", 0.0) + time.monotonic() - began
    state.note(part.name, seconds=round(seconds, 1), **ended)


def prepare(directory: pathlib.Path, tiny: bool) -> None:
    """What main.py does before it computes; compiled programs are kept in `directory`."""
    logging.set_verbosity(logging.FATAL)  # orbax is verbose
    if tiny:  # quicker to compile
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
    import jax

    from infofeat_jax.runtime import compilation

    compilation.tune_cpu()
    jax.config.update("jax_compilation_cache_dir", str((directory / "compiled").absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    signals.listen()


def die_with_parent() -> None:
    """Linux kills this process when the one that started it ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1])
