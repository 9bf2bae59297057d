"""Whether a compiled step fits the memory: refused with the estimate before it runs, not by a crash in it."""

import os
from collections.abc import Callable

import jax

from infofeat_jax.types import InvalidInput


def checked(step: Callable, advice: str) -> Callable:
    """The jitted `step`, compiled at its first call for the shapes it gets.

    Raises InvalidInput with the estimate and `advice` if it needs more than a device has.
    """
    compiled = []

    def call(*arguments):
        if not compiled:
            program = step.lower(*arguments).compile()
            need, have = needed(program), available()
            if have and need > have:
                raise InvalidInput(
                    f"a step takes {need / 2**30:.2f} GiB a device, which has {have / 2**30:.2f}: {advice}"
                )
            compiled.append(program)
        return compiled[0](*arguments)

    return call


def needed(program: jax.stages.Compiled) -> int:
    """Bytes on each device while the program runs: arguments, results that are not in their place, and workspace."""
    sizes = program.memory_analysis()
    if sizes is None:  # some backends do not say
        return 0
    own = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return own + sizes.temp_size_in_bytes


def available() -> int:
    """Bytes that a device of this process offers; 0 if it does not say. The CPU's devices share the machine's."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit", 0)
