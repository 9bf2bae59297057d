"""The time of each convolution of a ResNet18 step: forward, gradient to its input and to its kernel, timed alone.

  python benchmarks/convolutions.py --width=64 --batch_size=32

Prints the best of a few runs of each and the lower bound that they set: a step cannot be faster than its convolutions.
"""

import argparse
import platform
import time

import jax
from jax import numpy as jnp
from rich.console import Console
from rich.table import Table

from infofeat_jax import convolution
from infofeat_jax.runtime import compilation

# A 7-step attack with the clean maps and one update: how often each kind runs.
TIMES = {"forward": 9, "to the input": 8, "to the kernel": 1}


def shapes(width: int) -> list[tuple]:
    """(name, size, input channels, output channels, kernel, stride, how many) of ResNet18's convolutions."""
    found = [("stem", 32, 3, width, 3, 1, 1), ("stage 1", 32, width, width, 3, 1, 4)]
    for stage, size in enumerate((32, 16, 8), 2):
        channels = width * 2 ** (stage - 2)
        found += [
            (f"stage {stage}, stride 2", size, channels, 2 * channels, 3, 2, 1),
            (f"stage {stage}, shortcut", size, channels, 2 * channels, 1, 2, 1),
            (f"stage {stage}", size // 2, 2 * channels, 2 * channels, 3, 1, 3),
        ]
    return found


def measure(shape: tuple, batch_size: int, dtype: str) -> tuple[float, dict[str, float]]:
    """(operations of one pass, {kind: seconds}) of one convolution."""
    _, size, inputs, outputs, kernel, stride, _ = shape
    x = jax.random.normal(jax.random.key(0), (batch_size, size, size, inputs), dtype)
    k = jax.random.normal(jax.random.key(1), (kernel, kernel, inputs, outputs), dtype)
    convolve = lambda x, k: convolution.convolve(x, k, stride)  # noqa: E731
    y = convolve(x, k)
    kinds = {
        "forward": (jax.jit(convolve), x, k),
        "to the input": (jax.jit(lambda y, k: jax.vjp(lambda x: convolve(x, k), x)[1](y)), y, k),
        "to the kernel": (jax.jit(lambda x, y: jax.vjp(lambda k: convolve(x, k), k)[1](y)), x, y),
    }
    return 2 * y.size * kernel**2 * inputs, {name: best(*call) for name, call in kinds.items()}


def best(function, *arguments, repeats: int = 5) -> float:
    """Seconds of the quickest run."""
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    args = parser.parse_args()
    compilation.tune_cpu()
    table = Table(title=f"ResNet18 width {args.width}, batch {args.batch_size}, {args.dtype}: ms (GFLOP/s)")
    for column in ("convolution", "count", *TIMES):
        table.add_column(column, justify="left" if column == "convolution" else "right")
    total = 0.0
    for shape in shapes(args.width):
        work, seconds = measure(shape, args.batch_size, jnp.dtype(args.dtype))
        cells = [f"{1e3 * seconds[kind]:.2f} ({work / seconds[kind] / 1e9:.0f})" for kind in TIMES]
        table.add_row(shape[0], str(shape[-1]), *cells)
        total += shape[-1] * sum(TIMES[kind] * seconds[kind] for kind in TIMES)
    Console(width=100).print(table)
    print(f"All convolutions of one InfoFeature-7 step: {total:.2f} s, so at most {args.batch_size / total:.1f} img/s")
    print(f"{jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}")


if __name__ == "__main__":
    main()
