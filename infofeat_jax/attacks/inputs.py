"""Checks of what a user passes to an attack, and the adapter that accepts her forward function.

Shapes and types are always checked. Values are checked where they are concrete: under jit they are not.
"""

import jax
import jax.numpy as jnp
import numpy as np

from infofeat_jax.types import Forward, Images, InvalidInput, Labels, Outputs


def as_forward(forward: Forward) -> Forward:
    """Accepts forwards that return `Outputs`, bare logits, or a tuple that starts with them."""

    def outputs(images: Images) -> Outputs:
        result = forward(images)
        return result if isinstance(result, Outputs) else Outputs(logits=jnp.asarray(result))

    return outputs


def check_budget(*, step_size: float = 0.0, num_steps: int = 0, restarts: int = 1) -> None:
    """Raises InvalidInput for a negative step size or number of steps, or fewer than one restart."""
    if isinstance(step_size, (int, float)) and not (np.isfinite(step_size) and step_size >= 0):
        raise InvalidInput(f"step_size {step_size}: expected a finite number >= 0, in the images' own units")
    if num_steps < 0:
        raise InvalidInput(f"num_steps {num_steps}: expected 0 or more")
    if restarts < 1:
        raise InvalidInput(f"restarts {restarts}: expected 1 or more")


def check_inputs(forward: Forward, images: Images, labels: Labels, bounds: tuple[float, float]) -> None:
    """Raises InvalidInput for images that are not floats within `bounds`, or labels out of range."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise InvalidInput(f"images are {images.dtype}: expected floats within {bounds}; divide 8-bit images by 255")
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != images.shape[:1]:
        raise InvalidInput(f"labels are {labels.dtype}{list(labels.shape)}: expected integers [{images.shape[0]}]")
    if isinstance(images, jax.core.Tracer) or isinstance(labels, jax.core.Tracer) or not images.size:
        return
    low, high = _span(images)  # by NumPy: inside a jit even operations on constants are traced
    if not (bounds[0] <= low and high <= bounds[1]):  # also catches NaN
        raise InvalidInput(f"images span [{low:g}, {high:g}]: expected values within {bounds}")
    num_classes = jax.eval_shape(forward, images).logits.shape[-1]
    low, high = _span(labels)
    if low < 0 or high >= num_classes:
        raise InvalidInput(
            f"labels span [{low:g}, {high:g}]: expected 0 to {num_classes - 1}, as the model has {num_classes} classes"
        )


def _span(array: jax.Array | np.ndarray) -> tuple[float, float]:
    return float(np.asarray(array).min()), float(np.asarray(array).max())
