"""Whether a compiled step fits the memory: refused with the estimate before it runs, not by a crash in it.

An evaluation, whose batches may be of any size, goes on with smaller ones (`lowering`).
"""

import math
import os
import pathlib
import resource
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
from jax.extend import core as extended

from infofeat_jax.types import InvalidInput

T = TypeVar("T")


COPIES = 2  # of the state that training usually holds beside it: the best since the last checkpoint, the one validated


def checked(step: Callable, advice: str) -> Callable:
    """The jitted `step` of a state and other arguments, compiled at its first call for the shapes it gets.

    Raises InvalidInput with the estimate and `advice` if it needs more than a device has, with COPIES of the state.
    """
    compiled = []

    def call(*arguments):
        if not compiled:
            program = step.lower(*arguments).compile()
            need, have = needed(program) + COPIES * sum(map(size, jax.tree.leaves(arguments[0]))), available()
            if have and need > have:
                raise InvalidInput(
                    f"training takes {need / 2**30:.2f} GiB a device, which has {have / 2**30:.2f}: {advice}"
                )
            compiled.append(program)
        return compiled[0](*arguments)

    return call


def lowering(
    run: Callable[[int], Iterator[T]], size: int, least: int, say: Callable[[str, int], None]
) -> Iterator[T]:  # fmt: skip
    """Yields from `run(size)`; when the devices' memory runs out, from `run` of half the size, down to `least`.

    `run` is to go on where it stopped. `say` gets a line, and the new size. Several processes cannot agree on it in the
    middle of a computation: there the error is raised.
    """
    while True:
        try:
            yield from run(size)
            return
        except (jax.errors.JaxRuntimeError, ValueError) as error:  # the latter from jit's second call on
            if size <= least or not ran_out(error) or jax.process_count() > 1:
                raise
        smaller = max(size // 2, least)  # here: what the failed computation held is freed with the error
        say(f"memory ran out with batches of {size} images: {smaller} at a time from here on", smaller)
        size = smaller


def ran_out(error: Exception) -> bool:
    """Whether an error of JAX says that memory ran out; the CPU's, of which the host refused some, in other words."""
    return any(words in str(error) for words in ("RESOURCE_EXHAUSTED", "Out of memory"))


def needed(program: jax.stages.Compiled) -> int:
    """Bytes on each device while the program runs: arguments, results that are not in their place, and workspace."""
    sizes = program.memory_analysis()
    if sizes is None:  # some backends do not say
        return 0
    own = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return own + sizes.temp_size_in_bytes


def intermediates(jaxpr: extended.Jaxpr) -> int:
    """Bytes of all that a traced program computes on the way: what a gradient could keep at most."""
    total = 0
    for equation in jaxpr.eqns:
        inner = sum(map(intermediates, extended.jaxprs_in_params(equation.params)))
        total += inner * equation.params.get("length", 1)
        total += sum(size(out.aval) for out in equation.outvars)
    return total


def size(array: Any) -> int:
    """The bytes of an array, or of what has its shape and dtype."""
    return math.prod(array.shape) * array.dtype.itemsize


def available() -> int:
    """Bytes that a device of this process offers; 0 if it does not say. The CPU's devices share the machine's."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return min([physical, *cgroup_limits(), *address_limit()]) // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit", 0)


def address_limit() -> list[int]:
    """Bytes that this process may map beyond what it has (ulimit -v); none as a rule."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    mapped = int((_read(pathlib.Path("/proc/self/statm")).split() or ["0"])[0]) * os.sysconf("SC_PAGE_SIZE")
    return [] if limit == resource.RLIM_INFINITY else [max(limit - mapped, 1)]


def cgroup_limits(root: pathlib.Path = pathlib.Path("/")) -> list[int]:
    """Bytes that each control group this process is in may use, as containers and schedulers set them; often none.

    Version 2 of control groups (memory.max) and version 1 (memory.limit_in_bytes), from the group's own directory to
    the uppermost: in a container /proc may tell the host's path, of which only the end is mounted. `root`: for tests.
    """
    limits = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:
            mounts, file = ("sys/fs/cgroup", "sys/fs/cgroup/unified"), "memory.max"
        elif "memory" in controllers.split(","):
            mounts, file = ("sys/fs/cgroup/memory",), "memory.limit_in_bytes"
        else:
            continue
        path = pathlib.PurePosixPath(group.lstrip("/"))
        places = [root / mount / part / file for mount in mounts for part in (path, *path.parents)]
        limits += [int(text) for place in places if (text := _read(place).strip()).isdigit()]  # else "max"
    return limits


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
