"""How a model takes its images: their type, layout and range, one by one or in batches.

Found by tracing, as far as shapes tell, and by a look at the logits of a few images. Here images are always float32
[b, h, w, c] in [0, 1].
"""

import functools
import itertools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Integer

from infofeat_jax.adapters.given import Given
from infofeat_jax.attacks.inputs import Randomised, as_forward, at_draw
from infofeat_jax.types import Images, InvalidInput, PRNGKey, summary

DTYPES = ("float32", "bfloat16", "float16")
TRACED = (11, 13, 17, 19)  # sizes of batches, one of which is no side or number of channels
LOOKED_AT = 32  # images
APART = 0.01  # relative difference of logits; rounding, of bfloat16 too, stays below
BETTER, FEW = 0.3, 4  # share and number of images by which a model must do better in 0 to 255 to be taken to expect it


class Calling(NamedTuple):
    """A way to call a model."""

    dtype: str = "float32"
    channels_first: bool = False
    one_by_one: bool = False
    scale: float = 1.0  # of the pixels: 255 for a model that expects 0 to 255

    @property
    def notes(self) -> tuple[str, ...]:
        """What is unusual about it, in words."""
        said = {
            "channels first": self.channels_first, "one by one": self.one_by_one,
            f"as {self.dtype}": self.dtype != "float32", "in 0 to 255": self.scale != 1.0,
        }  # fmt: skip
        parts = [text for text, true in said.items() if true]
        return (f"the model gets its images {', '.join(parts)}",) if parts else ()


def in_way(call: Partial | Randomised, way: Calling) -> Partial | Randomised:
    """The model as a function of images [b, h, w, c] in [0, 1]; its leaves are the weights."""
    if isinstance(call, Randomised):
        return Randomised(Partial(functools.partial(_draw, way), call.call))
    return Partial(functools.partial(_call, way), call)


def find(given: Given, image_shape: tuple[int, ...], channels_first: bool = False) -> Calling:
    """The first way in which the model can be called with images [b, h, w, c]. Raises InvalidInput.

    Where either layout would do, as for a model that flattens its images, it is `channels_first`, that of the caller's.
    """
    layouts = list(itertools.product((False, True), (channels_first, not channels_first)))  # (one by one, which first)
    failures = []
    for one_by_one, first in layouts:
        for dtype in DTYPES:
            way = Calling(dtype, first, one_by_one)
            if (failure := _failure(given, way, image_shape)) is None:
                return way
            failures.append(failure)
    if any(_failure(given, Calling("uint8", first, single), image_shape) is None for single, first in layouts):
        raise InvalidInput(
            f"{given.name} takes integers only, which have no gradient: give a function of floats that rounds nothing"
        )
    sizes = ", ".join(map(str, image_shape))
    raise InvalidInput(f"{given.name} cannot be called with images [b, {sizes}]: {_reason(failures[0])}")


def look(
    given: Given, way: Calling, images: Float[np.ndarray, "n h w c"], labels: Integer[np.ndarray, " n"]
) -> tuple[Calling, Float[np.ndarray, "m k"], tuple[str, ...]]:
    """(the way with the range of pixels that the model expects, the logits of the first m images in [0, 1], notes).

    Raises InvalidInput if the logits of an image depend on the others of its batch, or those of a randomised model not
    on the key.
    """
    spread = np.linspace(0, len(labels) - 1, min(LOOKED_AT, len(labels))).astype(int)  # the first may be of one class
    among, labels = np.asarray(images[spread], np.float32), np.asarray(labels[spread])
    images = np.asarray(images[:LOOKED_AT], np.float32)

    @jax.jit
    def logits(call: Partial | Randomised, images: Images, scale: Float[Array, ""], seed=0):
        return as_forward(at_draw(in_way(call, way), jax.random.key(seed)))(images * scale).logits

    here = np.asarray(logits(given.call, images, np.float32(1)))
    if isinstance(given.call, Randomised):
        elsewhere = (images + 0.5) / 2  # a defence may leave test images alone
        draws = [np.asarray(logits(given.call, elsewhere, np.float32(1), seed)) for seed in (0, 1)]
        if (draws[0] == draws[1]).all():
            raise InvalidInput(f"{given.name}: the logits do not depend on the key: give a function of images alone")
    else:
        rows = np.arange(len(images)) // 2  # other neighbours, another place
        change = difference(here[rows], np.asarray(logits(given.call, images[rows], np.float32(1))))
        if change > APART:
            raise InvalidInput(
                f"{given.name}: the logits of an image change by up to {change:.0%} with the other images of its batch:"
                " put BatchNorm and Dropout into evaluation mode (Linen: train=False, NNX: model.eval()), or, if it is"
                " meant to be random, give a function of (images, key)"
            )
    right, in_levels = (
        (np.asarray(logits(given.call, among, np.float32(scale))).argmax(-1) == labels).sum() for scale in (1, 255)
    )
    needed = max(BETTER * len(labels), FEW)
    better = in_levels >= right + needed and in_levels > np.bincount(labels).max()  # nor by one answer for all
    if not better:
        return way, here, without_number(here)
    return way._replace(scale=255.0), here, without_number(np.asarray(logits(given.call, images, np.float32(255))))


def difference(logits: Float[np.ndarray, "n k"], others: Float[np.ndarray, "n k"]) -> float:
    """The largest difference, relative to the largest of the finite `logits`; infinite where only one is finite."""
    size = np.abs(logits, where=np.isfinite(logits), out=np.zeros_like(logits)).max(initial=1e-6)
    differ = (logits != others) & ~(np.isnan(logits) & np.isnan(others))
    apart = np.abs(np.subtract(logits, others, where=differ, out=np.zeros_like(logits)))
    return float(np.nan_to_num(apart, nan=np.inf, posinf=np.inf).max(initial=0.0) / size)


def without_number(logits: Float[np.ndarray, "n k"]) -> tuple[str, ...]:
    """A line if some of the first images' logits are NaN."""
    count = np.isnan(logits).any(-1).sum()
    text = f"NaN among the logits of {count} of the first {len(logits)} images: such images count as misclassified"
    return (text,) if count else ()


def gradient_failure(given: Given, way: Calling, image_shape: tuple[int, ...]) -> str | None:
    """Why the model has no gradient, which is traced; None if it has one."""
    forward = as_forward(at_draw(in_way(given.call, way), jax.random.key(0)))
    try:
        jax.eval_shape(jax.grad(lambda images: forward(images).logits.sum()), jnp.zeros((1, *image_shape)))
    except Exception as error:  # of any library
        return summary(error)
    return None


def _failure(given: Given, way: Calling, image_shape: tuple[int, ...]) -> Exception | None:
    """Why the model cannot be called in this way, of images [b, h, w, c]; None if it can."""
    count = next(count for count in TRACED if count not in image_shape)
    images = jax.ShapeDtypeStruct((count, *image_shape), jnp.float32)
    try:
        jax.eval_shape(as_forward(at_draw(in_way(given.call, way), jax.random.key(0))), images)
    except Exception as error:  # of any library
        return error
    return None


def _call(way: Calling, call: Partial, images: Images) -> Any:
    images = _as_taken(way, images)
    return jax.vmap(call)(images) if way.one_by_one else call(images)


def _draw(way: Calling, call: Partial, images: Images, key: PRNGKey) -> Any:
    images = _as_taken(way, images)
    return jax.vmap(call)(images, jax.random.split(key, len(images))) if way.one_by_one else call(images, key)


def _as_taken(way: Calling, images: Images) -> Array:
    images = (images if way.scale == 1.0 else images * way.scale).astype(way.dtype)
    if way.channels_first:
        images = images.transpose(0, 3, 1, 2)
    return images


def _reason(error: Exception) -> str:
    text = summary(error)
    if "ModifyScopeVariableError" in text:
        return "it updates its BatchNorm statistics, as in training: give BatchNorm use_running_average=True"
    if "TraceContextError" in text:
        return "it changes its own state, as NNX models do in training: give the model itself, or after model.eval()"
    if "InvalidRngError" in text:
        return "it draws random numbers, as Dropout does in training: give it in evaluation mode"
    if missing := re.search(r"ScopeCollectionNotFound.* from collection \"(\w+)\"", text):
        return f"its variables lack {missing[1]}, or a part of them: give all that init returned"
    if "TracerArrayConversionError" in text:
        return "it computes with NumPy what depends on the images: use jax.numpy"
    return text
