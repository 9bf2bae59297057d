"""The batch size that fits the memory, as estimated from the program that computes a batch's gradient."""

import math

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from infofeat_jax import objectives
from infofeat_jax.attacks.inputs import Randomised, as_forward, at_draw
from infofeat_jax.data import Split
from infofeat_jax.runtime import memory
from infofeat_jax.types import Images, Labels, Outputs

STATE = 16  # copies of a batch that an attack holds: twice APGD's state, and the batch


def fit(forward: Partial | Randomised, split: Split, batch_size: int, num_devices: int) -> int:
    """`batch_size`, at most the number of images, halved until the gradient of a batch fits the devices' memory.

    Nothing is compiled if everything that the model computes on the way would fit twice, as it does for small images.
    """
    size, shape = min(batch_size, len(split.labels)), split.images.shape[1:]

    def arguments(count: int):
        each = -(-count // num_devices)
        return forward, jax.ShapeDtypeStruct((each, *shape), jnp.float32), jax.ShapeDtypeStruct((each,), jnp.int32)

    def needed(count: int) -> int:
        program = jax.jit(_gradient).lower(*arguments(count)).compile()
        return memory.needed(program) + STATE * memory.size(arguments(count)[1])

    bound = 2 * memory.intermediates(jax.make_jaxpr(_logits)(*arguments(size)[:2]).jaxpr)
    have = memory.available()
    if not have or bound + STATE * memory.size(arguments(size)[1]) <= have:
        return size
    while size > 1 and (need := needed(size)) > have:
        size = max(size // 2 ** math.ceil(math.log2(need / have)), 1)  # compiled again, as it may not be proportional
    return size


def notes(size: int, asked: int, count: int) -> list[str]:
    """Whether batches are smaller than asked for."""
    lowered = size < min(asked, count)
    return [f"batches of {size} images, not {asked}: more would not fit the memory"] if lowered else []


def _logits(forward: Partial | Randomised, images: Images):
    return as_forward(at_draw(forward, jax.random.key(0)))(images).logits


def _gradient(forward: Partial | Randomised, images: Images, labels: Labels) -> Images:
    def loss(images: Images):
        outputs = Outputs(_logits(forward, images))
        return objectives.cross_entropy(outputs, outputs, labels).sum()

    return jax.grad(loss)(images)
