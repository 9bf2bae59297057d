"""Export of a model for serving: weights and program in one StableHLO file (jax.export)."""

from pathlib import Path
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import export as jax_export

from infofeat_jax.models.own import Own
from infofeat_jax.models.pytorch.names import Variables
from infofeat_jax.types import InvalidInput

PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    module: nn.Module,
    variables: Variables,
    path: str | Path,
    image_shape: tuple[int, int, int],
    batch: int | Literal["symbolic"] = "symbolic",
    *,
    platforms: tuple[str, ...] = PLATFORMS,
) -> None:
    """Writes the function images [batch, h, w, c] in [0, 1] -> logits [batch, k], float32, to `path`.

    `jax.export.deserialize(open(path, "rb").read()).call(images)` runs it, with JAX alone.

    Args:
      module, variables: from `create`, `from_torch` or training; used in evaluation mode.
      image_shape: (h, w, c).
      batch: the number of images per call; "symbolic": any number of them.
      platforms: the platforms to compile for at load time.

    Raises:
      InvalidInput: the batch is not a positive number, or the images do not fit the model.
    """
    if batch != "symbolic" and not (isinstance(batch, int) and batch >= 1):
        raise InvalidInput(f"batch {batch!r}: expected 1 or more, or 'symbolic' for any number")
    of_package = not isinstance(module, Own)  # the others' layers are unknown
    if of_package and image_shape[-1] != (channels := variables["params"]["conv1"]["kernel"].shape[2]):
        raise InvalidInput(f"images of shape {tuple(image_shape)}: the model takes {channels} channels")
    (size,) = jax_export.symbolic_shape("b") if batch == "symbolic" else (batch,)
    images = jax.ShapeDtypeStruct((size, *image_shape), jnp.float32)
    classify = jax.jit(lambda images: module.apply(variables, images).logits)
    Path(path).write_bytes(jax_export.export(classify, platforms=platforms)(images).serialize())
