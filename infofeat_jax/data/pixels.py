"""8-bit pixels as the models take them: the one conversion that training, evaluation and examples share."""

from typing import overload

import numpy as np
from jaxtyping import Array, Float32, UInt8

UNIT = np.float32(1 / 255)


@overload
def to_unit(images: UInt8[np.ndarray, "..."]) -> Float32[np.ndarray, "..."]: ...
@overload
def to_unit(images: UInt8[Array, "..."]) -> Float32[Array, "..."]: ...
def to_unit(images: UInt8[Array | np.ndarray, "..."]) -> Float32[Array | np.ndarray, "..."]:
    """Images in 0..255 as float32 in [0, 1], the same bits for NumPy's arrays, JAX's and under `jax.jit`.

    A multiplication: XLA compiles the division by 255 to one, which differs from NumPy's division by a rounding in
    126 of the 256 values. 255 becomes exactly 1.
    """
    return images.astype(np.float32) * UNIT
