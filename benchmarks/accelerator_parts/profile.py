"""Where the time of a training step goes: the operations in a trace by JAX's profiler, or XLA's count of the work."""

import pathlib
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from typing import Any

import jax

from accelerator_parts.steps import Network, program

TOP = 12
# Events that are no operations: those that hold others, whose time they are; threads that wait, on a CPU.
OTHERS = ("while", "conditional", "call", "ThunkExecutor", "ThreadpoolListener", "SlinkyThreadPool", "end:")
# {kind: pattern in an operation's name}; the first that is found.
KINDS = {
    "communication": r"all.?reduce|all.?gather|nccl",
    "convolution": r"conv(?!ert)|cudnn|fprop|dgrad|wgrad|implicit_gemm|xmma|onednn",
    "matrix product": r"gemm|dot|matmul|cublas|nvjet|cutlass|ynn",
    "reduction": r"reduce",
    "copy, transpose": r"copy|transpose|memcpy|memset",
    "random numbers": r"rng|threefry",
    "other fusions": r"fusion|loop_|input_|wrapped",
}


def profile(network: Network, method: str, dtype: str, directory: pathlib.Path, steps: int = 3) -> dict[str, Any]:
    """The share of each kind of operation and of the longest single ones, in a trace of `steps` steps.

    If the trace cannot be read, XLA's counts of operations and bytes; "source" says which.
    """
    found = program(network, method, dtype)
    jax.block_until_ready(found.step())
    try:
        with jax.profiler.trace(str(directory)):
            for _ in range(steps):
                last = found.step()
            jax.block_until_ready(last)
        return summarise(operations(directory), steps)
    except Exception as error:  # whatever the profiler's libraries raise: the counts are still there
        return counts(found.compiled) | {"why": f"{type(error).__name__}: {error}"[:300]}
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def operations(directory: pathlib.Path) -> Counter:
    """{operation: nanoseconds} on the first device; on a CPU, those of XLA's threads."""
    path = max(directory.rglob("*.xplane.pb"))
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    on_device = [plane for plane in planes if plane.name.startswith(("/device:GPU", "/device:TPU"))]
    spent = Counter()
    for plane in on_device[:1] or planes:
        lines = list(plane.lines)
        for line in [line for line in lines if line.name == "XLA Ops"] or filter(is_kernels, lines):
            for event in line.events:
                if not event.name.removeprefix("%").startswith(OTHERS):
                    spent[event.name] += event.duration_ns
    return spent


def is_kernels(line) -> bool:
    """Whether a line of a trace holds operations: a GPU's streams, the threads of XLA on a CPU."""
    return line.name.startswith(("Stream", "tf_XLA"))


def summarise(spent: Counter, steps: int) -> dict[str, Any]:
    """Shares by kind and of the longest operations. Raises ValueError if there are none."""
    total = sum(spent.values())
    if not total:
        raise ValueError("the trace has no operations of the device")
    kinds, named = Counter(), Counter()
    for name, nanoseconds in spent.items():
        kinds[kind(name)] += nanoseconds
        named[re.sub(r"[.\d]+$", "", name)] += nanoseconds
    return {
        "source": "a trace by jax.profiler", "steps": steps, "milliseconds_per_step": round(total / steps / 1e6, 3),
        "kinds": shares(kinds.most_common(), total), "operations": shares(named.most_common(TOP), total),
    }  # fmt: skip


def shares(counted: Iterable[tuple[str, int]], total: int) -> dict[str, float]:
    """{name: share of the total}."""
    return {name[:90]: round(count / total, 4) for name, count in counted}


def kind(name: str) -> str:
    """The entry of KINDS that an operation belongs to."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name.lower())), "other")


def counts(compiled: jax.stages.Compiled) -> dict[str, Any]:
    """What XLA counts in the program, loops once."""
    counted = compiled.cost_analysis() or {}
    wanted = {"flops": "flops", "bytes": "bytes accessed", "transcendentals": "transcendentals"}
    return {"source": "XLA's cost analysis (loops counted once)"} | {
        name: counted[key] for name, key in wanted.items() if key in counted
    }
