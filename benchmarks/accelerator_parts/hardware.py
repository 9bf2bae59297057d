"""The device, its software, and the rates that the other figures are shares of."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml_collections", "numpy")
# {name: (dtype, precision)} of the matrix products. A GPU's default for float32 is TF32, a TPU's bfloat16.
PRODUCTS = {
    "bfloat16": ("bfloat16", "default"),
    "float32": ("float32", "default"),
    "float32 highest": ("float32", "highest"),
}


def describe() -> dict[str, Any]:
    """Device, host and versions."""
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    return {
        "devices": jax.device_count(),
        "kind": device.device_kind,
        "platform": device.platform,
        "runtime": " ".join(device.client.platform_version.split())[:200],
        "memory_gib": round(stats.get("bytes_limit", 0) / 2**30, 1),
        "host": f"{os.cpu_count()} {platform.machine()} cores",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def matrix_rates(small: bool = False) -> dict[str, Any]:
    """TFLOP/s of a product of two large matrices of normal numbers on one device, the best of a few.

    `small`: matrices, and in `bandwidth` arrays, that a CPU is done with in a moment.
    """
    size = 256 if small else 16384
    return {"size": size} | {name: round(matrix_rate(size, *kind) / 1e12, 4) for name, kind in PRODUCTS.items()}


def matrix_rate(size: int, dtype: str, precision: str) -> float:
    """Operations a second."""
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(partial(jnp.matmul, precision=precision))
    return 2 * size**3 / best(lambda: product(a, a))


def bandwidth(small: bool = False) -> dict[str, Any]:
    """GB/s between a device and its memory: one large array is read and one written, the best of a few."""
    num_bytes = 2 ** (24 if small else 31)
    x = jnp.zeros(num_bytes // 4, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    return {"mib": num_bytes // 2**20, "gb_per_second": round(2 * num_bytes / best(lambda: add(x)) / 1e9, 2)}


def best(call: Callable[[], Any], rounds: int = 5, calls: int = 4) -> float:
    """Seconds of one call: `calls` are queued, so that the host is not waited for; the best of `rounds`."""
    jax.block_until_ready(call())
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready([call() for _ in range(calls)])
        seconds.append(time.perf_counter() - began)
    return min(seconds) / calls


def memory_peak() -> int:
    """Bytes in use on the first device at the worst moment of this process; 0 if the device does not say."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
