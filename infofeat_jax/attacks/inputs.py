"""Checks and conversions of an attack's arguments, all in this one place.

Images are float32, or bfloat16 or float16, whose values are all exact in float32: they are converted on entry.
Every attack computes in float32 and returns float32, within the ball and the box around the given images.
float64 is rejected: it would be rounded on the way to the network, and the ball would no longer be the user's.

Shapes and dtypes are always checked. Values are checked where they are concrete, which they are not under jit.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from infofeat_jax import threat as threats
from infofeat_jax.threat import Threat
from infofeat_jax.types import (
    Budget,
    Forward,
    Images,
    InvalidInput,
    Labels,
    Outputs,
    PRNGKey,
)

DTYPES = ("float32", "bfloat16", "float16")
MOST_CHANNELS = 4  # of what is taken for the channels of images with channels first
NEEDS_EOT = (
    "the model is randomised, as it takes (images, key): choose AutoAttack's version rand, or apgd with eot=20, which"
    " attack the average over draws"
)
NO_EOT = "eot and AutoAttack's version rand are for randomised models, functions of (images, key)"


class Inputs(NamedTuple):
    """The arguments of an attack, checked and converted."""

    forward: Forward  # returns Outputs with float32 logits; or Randomised
    images: Images  # float32
    labels: Labels  # int32
    threat: Threat


class Randomised(NamedTuple):
    """A model whose logits are drawn anew for each key: `call(images, key)`. Only attacks with `eot` take it."""

    call: Callable

    def __call__(self, images: Images, *key: PRNGKey) -> Any:
        """The model's outputs. Raises InvalidInput without a key."""
        if not key:
            raise InvalidInput(NEEDS_EOT)
        return self.call(images, *key)


def of_kind(forward: Forward, eot: int) -> Forward:
    """The model for an attack that averages over `eot` draws, or with 0 takes no randomised one.

    Raises InvalidInput for a model of the other kind.
    """
    if eot and not isinstance(forward, Randomised) and takes_key(forward):
        forward = Randomised(Partial(forward))
    check_kind(forward, eot)
    return forward


def check_kind(forward: Forward, eot: int) -> None:
    """Raises InvalidInput for a randomised model without `eot` draws for a gradient, or any other with them."""
    if not eot and takes_key(forward):
        raise InvalidInput(NEEDS_EOT)
    if eot and not isinstance(forward, Randomised):
        raise InvalidInput(NO_EOT)


def takes_key(forward: Callable) -> bool:
    """Whether a model is randomised: a function that takes (images, key), and not images alone."""
    if isinstance(forward, Randomised):
        return True
    try:
        signature = inspect.signature(forward)
        signature.bind(None, None)
    except (TypeError, ValueError):  # it takes images alone, or does not tell
        return False
    try:
        signature.bind(None)
    except TypeError:
        return True
    return False


def at_draw(forward: Forward, key: PRNGKey) -> Forward:
    """A randomised model at one draw, as a function of images; any other as it is."""
    return (lambda images: forward(images, key)) if isinstance(forward, Randomised) else forward


def prepare(
    forward: Forward, images: Any, labels: Any, *, norm: str, epsilon: Budget, bounds: tuple[float, float]
) -> Inputs:
    """Checks and converts the arguments that all attacks share. Raises InvalidInput."""
    forward = forward if isinstance(forward, Randomised) else as_forward(of_kind(forward, 0))
    threat = check(forward, images, labels, norm=norm, epsilon=epsilon, bounds=bounds)
    return Inputs(forward, jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32), threat)


def check(
    forward: Forward, images: Any, labels: Any, *, norm: str, epsilon: Budget, bounds: tuple[float, float]
) -> Threat:
    """Checks the arguments that all attacks share, wherever the arrays are. Raises InvalidInput."""
    _check_types(images, labels)
    threat = threats.threat(norm, epsilon, bounds, batch=len(images))
    if images.size and not isinstance(images, jax.core.Tracer):
        _check_span(images, threat.bounds)
    if labels.size and not isinstance(labels, jax.core.Tracer):
        _check_classes(labels, num_classes(forward, jax.ShapeDtypeStruct(images.shape, jnp.float32)))
    return threat


def as_forward(forward: Forward) -> Forward:
    """Wraps `forward` so that it returns `Outputs` with float32 logits.

    It may return `Outputs`, bare logits, a tuple or list that starts with them, or a dictionary or an object with
    `logits`, whose other entries are used where they are fields of `Outputs`.
    """

    def outputs(images: Images) -> Outputs:
        result = forward(images)
        if not isinstance(result, Outputs):
            result = _outputs(result)
        if not hasattr(result.logits, "shape"):
            raise InvalidInput(
                f"the forward function returned a value of type {type(result.logits).__name__}: expected logits"
                f" [{images.shape[0]}, number of classes], or a tuple, a dictionary or an object with them"
            )
        shape = np.shape(result.logits)
        if len(shape) != 2 or shape[0] != images.shape[0]:
            raise InvalidInput(
                f"the forward function returned logits of shape {list(shape)} for {images.shape[0]} images:"
                f" expected [{images.shape[0]}, number of classes]"
            )
        return result._replace(logits=jnp.asarray(result.logits, jnp.float32))

    return outputs


def num_classes(forward: Forward, images: Images | jax.ShapeDtypeStruct) -> int:
    """The number of classes of `forward`, which is traced."""
    return jax.eval_shape(as_forward(at_draw(forward, jax.random.key(0))), images).logits.shape[-1]


def seem_channels_first(images: Images | np.ndarray) -> bool:
    """Whether four-dimensional images are [b, c, h, w]: the second axis is at most 4 long, the others are longer."""
    return images.shape[1] <= MOST_CHANNELS < min(images.shape[2:])


def check_channels_last(images: Images) -> None:
    """Raises InvalidInput for [b, c, h, w] in an attack that needs to know height and width."""
    if seem_channels_first(images):
        raise InvalidInput(
            f"images of shape {list(images.shape)} seem to be [b, c, h, w]: expected [b, h, w, c], and a model of"
            " them: forward = lambda x: model(x.transpose(0, 3, 1, 2))"
        )


def _outputs(result: Any) -> Outputs:
    if isinstance(result, Mapping) and "logits" in result:
        return Outputs(**{name: result.get(name) for name in Outputs._fields})
    if hasattr(result, "logits"):
        fields: dict[str, Any] = {name: getattr(result, name, None) for name in Outputs._fields}
        return Outputs(**fields)
    return Outputs(logits=result[0] if isinstance(result, (tuple, list)) else result)


def _check_types(images: Any, labels: Any) -> None:
    for name, array in (("images", images), ("labels", labels)):
        if not isinstance(array, (jax.Array, np.ndarray)):
            raise InvalidInput(f"{name} are of type {type(array).__name__}: expected a JAX or NumPy array")
    if images.dtype not in DTYPES:
        advice = "; divide 8-bit images by 255"
        if jnp.issubdtype(images.dtype, jnp.floating):
            advice = ': pass images.astype("float32")'
        raise InvalidInput(f"images are {images.dtype}: expected floats, {', '.join(DTYPES)}{advice}")
    if images.ndim != 4:
        raise InvalidInput(f"images are of shape {list(images.shape)}: expected [b, h, w, c]")
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != images.shape[:1]:
        raise InvalidInput(f"labels are {labels.dtype}{list(labels.shape)}: expected integers [{images.shape[0]}]")


def _check_span(images: Any, bounds: tuple[float, float]) -> None:
    low, high = _span(images)
    if not (bounds[0] <= low and high <= bounds[1]):  # also catches NaN
        advice = ": divide 8-bit images by 255" if 1 < high <= 255 and bounds == (0.0, 1.0) else ""
        raise InvalidInput(f"images span [{low:g}, {high:g}]: expected values within {bounds}{advice}")


def _check_classes(labels: Any, count: int) -> None:
    low, high = _span(labels)
    if low < 0 or high >= count:
        raise InvalidInput(
            f"labels span [{low:g}, {high:g}]: expected 0 to {count - 1}, as the model has {count} classes"
        )


def _span(array: Any) -> tuple[float, float]:
    array = np.asarray(array)  # NumPy: under jit, jnp would trace operations even on constants
    return float(array.min()), float(array.max())
