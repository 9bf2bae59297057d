"""The conversion of 8-bit pixels to [0, 1]: the one that training, evaluation and examples share."""

from typing import overload

import numpy as np
from jaxtyping import Array, Float32, UInt8

UNIT = np.float32(1 / 255)


@overload
def to_unit(images: UInt8[np.ndarray, "..."] | Float32[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]: ...
@overload
def to_unit(images: UInt8[Array, "..."] | Float32[Array, "..."]) -> Float32[Array, "..."]: ...
def to_unit(
    images: UInt8[Array | np.ndarray, "..."] | Float32[Array | np.ndarray, "..."],
) -> Float32[Array | np.ndarray, "..."]:
    """Images in 0..255 as float32 in [0, 1], bit-identical for NumPy arrays, JAX arrays and under `jax.jit`.

    It multiplies by 1 / 255: XLA compiles a division by 255 to that multiplication, which differs from NumPy's
    division by a rounding error for 126 of the 256 values. 255 becomes exactly 1. Floats are returned as they are.
    """
    if images.dtype == np.float32:
        return images
    return images.astype(np.float32) * UNIT
