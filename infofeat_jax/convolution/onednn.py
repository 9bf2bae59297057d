"""oneDNN's convolution on x86 CPUs, which is faster than XLA's: a custom call that jaxlib contains but never makes.

The stock x86 wheels of jaxlib are built with oneDNN and with the code that runs `__onednn$convolution`; the compiler
pass that would insert it is not. The call is no public interface: it is made only with the versions of jaxlib in
`VERSIONS`, which the tests were run with, because a wrong encoding ends the process instead of raising. A program with
the call cannot be exported, nor kept in JAX's persistent compilation cache: JAX's warning of that is silenced here.

`INFOFEAT_JAX_ONEDNN=0` in the environment turns it off.
"""

import json
import math
import os
import platform
import re
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
from jaxtyping import Array, Float

VERSIONS = ("0.10.2", "0.11.2", "0.12.0.1")
DTYPES = ("float32", "bfloat16")
CPU_FLAGS = Path("/proc/cpuinfo")
# Operations and numbers of one call: below, what a few hundred passes save is less than compiling at every start costs.
MIN_WORK, MIN_OUTPUTS = 2e8, 5e5
warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry .* MemoryError")
Padding = tuple[tuple[int, int], tuple[int, int]]  # (low, high) of rows, of columns


def available() -> bool:
    """Whether this process may make the call: by machine, jaxlib's version and the environment."""
    known = platform.machine() in ("x86_64", "AMD64") and jaxlib.__version__ in VERSIONS
    return known and os.environ.get("INFOFEAT_JAX_ONEDNN", "1") != "0"


@cache
def has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16, by Linux's list of its flags; without such a list it has none.

    Without them oneDNN is slower in bfloat16 than in float32, and some of its convolutions (through products of
    matrices) wait for each other for ever in jaxlib's pool of threads.
    """
    found = CPU_FLAGS.exists() and re.search(r"^flags\s*:.*", CPU_FLAGS.read_text(), re.MULTILINE)
    return bool(found) and bool({"avx512_bf16", "amx_bf16"} & set(found.group().split()))


def worthwhile(outputs: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """Whether a convolution to `outputs` [b, h, w, o] by `kernel` [p, q, i, o] is large enough."""
    numbers = math.prod(outputs)
    return 2 * numbers * math.prod(kernel[:3]) >= MIN_WORK or numbers >= MIN_OUTPUTS


def convolve(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "p q i o"] | Float[Array, "p q o i"],
    padding: Padding,
    stride: int = 1,
    dilation: tuple[int, int] = (1, 1),
    transposed: bool = False,
    added: tuple[Float[Array, "..."], ...] = (),
    relu: bool = False,
) -> Float[Array, "b _ _ o"]:
    """The convolution of non-empty arrays of one type of `DTYPES`, summed in float32; it has no derivatives.

    `dilation` are the distances between the kernel's rows and columns; a `transposed` kernel has the outputs before the
    inputs. `added` are biases [o] and arrays of the result's shape, then comes ReLU.
    """
    dtype = x.dtype
    if dtype == jnp.bfloat16 and not has_bfloat16():
        x, kernel, *added = (operand.astype(jnp.float32) for operand in (x, kernel, *added))
    shape = output_shape(x.shape, kernel.shape, padding, stride, dilation, transposed)
    output = jax.ShapeDtypeStruct(shape, x.dtype)
    followed = ["BIAS" if term.ndim == 1 else "BINARY_ADD" for term in added] + ["RELU"] * relu
    config = encoding(kernel.shape[:2], padding, stride, dilation, transposed, followed)
    call = jax.ffi.ffi_call(
        "__onednn$convolution", output, custom_call_api_version=2, legacy_backend_config=config, vmap_method=None
    )
    return call(x, kernel, *added).astype(dtype)


def output_shape(
    x: tuple[int, ...],
    kernel: tuple[int, ...],
    padding: Padding,
    stride: int = 1,
    dilation: tuple[int, int] = (1, 1),
    transposed: bool = False,
) -> tuple[int, ...]:
    """[b, h, w, o] of images [b, h, w, i] convolved with a kernel [p, q, i, o]."""
    spans = zip(x[1:3], kernel[:2], padding, dilation, strict=True)
    sides = ((length + sum(pad) - (size - 1) * apart - 1) // stride + 1 for length, size, pad, apart in spans)
    return (x[0], *sides, kernel[2 if transposed else 3])


def encoding(
    size: tuple[int, ...],
    padding: Padding,
    stride: int = 1,
    dilation: tuple[int, int] = (1, 1),
    transposed: bool = False,
    followed: Sequence[str] = (),
) -> str:
    """The call's configuration for images NHWC and a kernel HWIO (transposed: HWOI) of `size` rows and columns.

    `followed` names what oneDNN does to the result, in this order; each of BIAS and BINARY_ADD has an operand.
    """
    image = {"dims": "4", "data": {"batch_dim": "0", "feature_dim": "3", "spatial_dims": ["1", "2"]}}
    inputs, outputs = ("3", "2") if transposed else ("2", "3")
    taps = {"input_feature_dim": inputs, "output_feature_dim": outputs, "spatial_dims": ["0", "1"]}
    low, high = zip(*padding, strict=True)
    window = {"size": size, "pad_left": low, "pad_right": high}
    window |= {"strides": (stride, stride), "window_dilations": dilation}
    config = {
        "dims": "4",
        "input": image,
        "kernel": {"dims": "4", "filter": taps},
        "output": image,
        "window": {name: [str(value) for value in values] for name, values in window.items()},
        "feature_groups": "1",
        "fusions": {"ops": list(followed)},
    }
    return json.dumps({"onednn_conv_config": config})
