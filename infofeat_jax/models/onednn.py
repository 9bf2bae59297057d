"""oneDNN's convolution on x86 CPUs, which is faster than XLA's: a custom call that jaxlib contains but never makes.

The stock x86 wheels of jaxlib are built with oneDNN and with the code that runs `__onednn$convolution`; the compiler
pass that would insert it is not. The call is no public interface: it is made only with the versions of jaxlib in
`VERSIONS`, which the tests were run with, because a wrong encoding ends the process instead of raising. A program with
the call cannot be kept in JAX's persistent compilation cache, nor exported.

`INFOFEAT_JAX_ONEDNN=0` in the environment turns it off.
"""

import json
import math
import os
import platform

import jax
import jaxlib
from jaxtyping import Array, Float

VERSIONS = ("0.10.2", "0.11.2", "0.12.0.1")
DTYPES = ("float32", "bfloat16")
MIN_WORK, MIN_OUTPUTS = 1e8, 5e5  # operations, numbers: below, compiling anew at every start costs more than it saves
Padding = tuple[tuple[int, int], tuple[int, int]]  # (low, high) of rows, of columns


def available() -> bool:
    """Whether this process may make the call: by machine, jaxlib's version and the environment."""
    known = platform.machine() in ("x86_64", "AMD64") and jaxlib.__version__ in VERSIONS
    return known and os.environ.get("INFOFEAT_JAX_ONEDNN", "1") != "0"


def worthwhile(outputs: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """Whether a convolution to `outputs` [b, h, w, o] by `kernel` [p, q, i, o] is large enough."""
    numbers = math.prod(outputs)
    return 2 * numbers * math.prod(kernel[:3]) >= MIN_WORK or numbers >= MIN_OUTPUTS


def convolve(
    x: Float[Array, "b h w i"], kernel: Float[Array, "p q i o"], stride: int, padding: Padding
) -> Float[Array, "b _ _ o"]:
    """The convolution of non-empty arrays of one type of `DTYPES`, summed in float32; it has no derivatives."""
    output = jax.ShapeDtypeStruct(output_shape(x.shape, kernel.shape, stride, padding), x.dtype)
    config = encoding(kernel.shape[:2], stride, padding)
    call = jax.ffi.ffi_call(
        "__onednn$convolution", output, custom_call_api_version=2, legacy_backend_config=config, vmap_method=None
    )
    return call(x, kernel)


def output_shape(x: tuple[int, ...], kernel: tuple[int, ...], stride: int, padding: Padding) -> tuple[int, ...]:
    """[b, h, w, o] of images [b, h, w, i] convolved with a kernel [p, q, i, o]."""
    spans = zip(x[1:3], kernel[:2], padding, strict=True)
    return (x[0], *((length + sum(pad) - size) // stride + 1 for length, size, pad in spans), kernel[3])


def encoding(size: tuple[int, ...], stride: int, padding: Padding) -> str:
    """The call's configuration for images NHWC and a kernel HWIO of `size` rows and columns."""
    image = {"dims": "4", "data": {"batch_dim": "0", "feature_dim": "3", "spatial_dims": ["1", "2"]}}
    taps = {"input_feature_dim": "2", "output_feature_dim": "3", "spatial_dims": ["0", "1"]}
    low, high = zip(*padding, strict=True)
    window = {"size": size, "pad_left": low, "pad_right": high, "strides": (stride, stride), "window_dilations": (1, 1)}
    config = {
        "dims": "4",
        "input": image,
        "kernel": {"dims": "4", "filter": taps},
        "output": image,
        "window": {name: [str(value) for value in values] for name, values in window.items()},
        "feature_groups": "1",
    }
    return json.dumps({"onednn_conv_config": config})
