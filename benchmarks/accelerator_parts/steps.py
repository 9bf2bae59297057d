"""Training steps on synthetic images: compile time, images a second, share of the matrix rate, memory."""

import time
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
from train_step import PASSES, create_experiment, forward_flops

from accelerator_parts.hardware import memory_peak
from infofeat_jax import experiment as experiments
from infofeat_jax.runtime import devices, memory


class Network(NamedTuple):
    """A network as the configuration names it."""

    model: str
    width: int = 0  # 0: the paper's
    batch_size: int = 128
    attack_steps: int = 7


class Program(NamedTuple):
    """A compiled step, ready to be taken."""

    step: Callable[[], Any]  # starts one; returns its metrics
    compiled: jax.stages.Compiled
    seconds: dict[str, float]  # of tracing and compiling


@cache
def program(network: Network, method: str, dtype: str) -> Program:
    """The step as training compiles it, with a state and a batch on the devices; kept for the profile."""
    fields = {"method": method, "model": network.model, "width": network.width, "batch_size": network.batch_size}
    args = SimpleNamespace(**fields, dtype=dtype, steps=network.attack_steps, devices=jax.device_count())
    experiment = create_experiment(args)
    state, key = [experiments.create_state(experiment)], jax.random.key(0)
    batch = devices.shard(experiment.mesh, tuple(experiment.data.train))
    began = time.perf_counter()
    lowered = experiments.compile_step(experiment).lower(state[0], batch, key)
    traced = time.perf_counter()
    compiled = lowered.compile()
    seconds = {"trace_seconds": traced - began, "compile_seconds": time.perf_counter() - traced}

    def step() -> Any:
        state[0], metrics = compiled(state[0], batch, key)
        return metrics

    return Program(step, compiled, {name: round(value, 2) for name, value in seconds.items()})


def measure(network: Network, method: str, dtype: str, matrix: dict, seconds: float = 4.0) -> dict[str, Any]:
    """Steps for about `seconds`, queued as training queues them. `matrix`: TFLOP/s by dtype, {} if unknown."""
    found = program(network, method, dtype)
    took = time_steps(found.step, seconds)
    per_second = network.batch_size / took
    passes = PASSES[method] if network.attack_steps == 7 else 0  # of another attack: not counted
    reached = passes * forward_flops(network.model, network.width) * per_second / 1e12 / jax.device_count()
    return {
        **network._asdict(), "method": method, "dtype": dtype,
        "milliseconds": round(1e3 * took, 3), "images_per_second": round(per_second, 2), **found.seconds,
        "tflops": round(reached, 3), "share": round(reached / matrix[dtype], 3) if dtype in matrix else None,
        "program_mib": round(memory.needed(found.compiled) / 2**20, 1),
        "peak_mib_so_far": round(memory_peak() / 2**20, 1),
    }  # fmt: skip


def time_steps(step: Callable[[], Any], seconds: float) -> float:
    """Seconds a step takes, over as many as fit in about `seconds`; the first two do not count."""
    for _ in range(2):
        began = time.perf_counter()
        jax.block_until_ready(step())
        once = time.perf_counter() - began
    count = max(3, min(1000, int(seconds / once)))
    began = time.perf_counter()
    last = [step() for _ in range(count)][-1]
    jax.block_until_ready(last)
    return (time.perf_counter() - began) / count
