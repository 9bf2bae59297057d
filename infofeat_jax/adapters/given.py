"""Models as their libraries give them: plain functions, Linen, NNX and Equinox models, in evaluation mode.

Each becomes a `jax.tree_util.Partial`, whose leaves are the weights. How it takes its images is found in `calling`.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from infofeat_jax.attacks.inputs import Randomised, takes_key
from infofeat_jax.models.own import MODES
from infofeat_jax.types import InvalidInput

LINEN = "a Linen module is given as a pair (module, variables)"


class Given(NamedTuple):
    """A model that can be called."""

    call: Partial | Randomised  # images, as the model takes them -> what it returns; its leaves are the weights
    name: str
    notes: tuple[str, ...] = ()  # what was done about it, in words


def read(model: Any) -> Given:
    """The model as a function. Raises InvalidInput for something that is no model."""
    if isinstance(model, tuple | list) and len(model) == 2:
        first, second = model
        if isinstance(first, nn.Module):
            return _linen(first, second)
        if _comes_from(first, "equinox"):
            return _equinox(first, second)
    if isinstance(model, nn.Module):
        if model.scope is not None:
            return _linen(*model.unbind())
        raise InvalidInput(f"{type(model).__name__} has no weights: {LINEN}")
    if "flax.nnx" in sys.modules and isinstance(model, sys.modules["flax.nnx"].Module):
        return _nnx(model)
    if _comes_from(model, "equinox") and not type(model).__module__.startswith("equinox._"):  # filter_jit's function
        return _equinox(model)
    if not callable(model):
        raise InvalidInput(
            f"the model is of type {type(model).__name__}: expected a function images -> logits, an NNX or Equinox"
            f" model; {LINEN}"
        )
    call = _function(model)
    return Given(Randomised(call) if takes_key(model) else call, _name(model))


def _function(function: Callable) -> Partial:
    """A function; the arrays that a functools.partial binds become leaves, as in partial(module.apply, variables)."""
    if isinstance(function, Partial):
        return function
    if isinstance(function, functools.partial) and _are_weights(function.args):
        bound = {name: value for name, value in function.keywords.items() if _are_weights(value)}
        others = {name: value for name, value in function.keywords.items() if name not in bound}
        return Partial(functools.partial(function.func, **others) if others else function.func, *function.args, **bound)
    return Partial(function)


def _are_weights(tree: Any) -> bool:
    return all(map(_is_weight, jax.tree.leaves(tree)))


def _is_weight(leaf: Any) -> bool:
    """Whether a leaf is an array of numbers; random keys are not."""
    return isinstance(leaf, jax.Array | np.ndarray) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _linen(module: nn.Module, variables: Any) -> Given:
    modes = _modes(type(module).__call__)
    notes = _say_modes(modes, type(module).__call__)
    if not isinstance(variables, Mapping):
        raise InvalidInput(f"the variables are of type {type(variables).__name__}: {LINEN}, as init returns them")
    variables = variables if "params" in variables else {"params": variables}
    return Given(Partial(functools.partial(_apply_linen, module, modes), variables), type(module).__name__, notes)


def _apply_linen(module: nn.Module, modes: dict, variables: Any, images):
    return module.apply(variables, images, **modes)


def _nnx(model: Any) -> Given:
    nnx = sys.modules["flax.nnx"]
    definition, random, weights = nnx.split(model, nnx.RngState, ...)
    evaluated = nnx.merge(definition, random, weights)  # another object: the user's stays as it is
    training = any(
        getattr(part, name, value) is not value
        for _, part in nnx.iter_modules(evaluated)
        for name, value in (("use_running_average", True), ("deterministic", True))
        if getattr(part, name, None) is not None
    )
    evaluated.eval()
    modes = _modes(type(model).__call__)
    notes = ["the NNX model is in training mode; it is evaluated as after model.eval()"] if training else []
    notes += _say_modes(modes, type(model).__call__)
    definition, random, weights = nnx.split(evaluated, nnx.RngState, ...)
    call = functools.partial(_apply_nnx, nnx.merge, definition, random, modes)
    return Given(Partial(call, weights), type(model).__name__, tuple(notes))


def _apply_nnx(merge: Callable, definition: Any, random: Any, modes: dict, weights: Any, images):
    return merge(definition, random, weights)(images, **modes)


def _equinox(model: Any, state: Any = None) -> Given:
    eqx = sys.modules["equinox"]
    flags = [getattr(part, "inference", True) for part in jax.tree.leaves(model, is_leaf=_has_inference)]
    training = any(flag is False for flag in flags)
    notes = ("the Equinox model is in training mode; it is evaluated in equinox.nn.inference_mode",) if training else ()
    arrays, static = eqx.partition((eqx.nn.inference_mode(model), state), _is_weight)
    call = functools.partial(_apply_equinox, eqx.combine, static)
    return Given(Partial(call, arrays), type(model).__name__, notes)


def _apply_equinox(combine: Callable, static: Any, arrays: Any, images):
    model, state = combine(arrays, static)
    if state is None:
        return model(images)
    return model(images, state)[0]


def _has_inference(part: Any) -> bool:
    return hasattr(part, "inference")


def _modes(call: Callable) -> dict[str, bool]:
    """The arguments that put a model into evaluation mode, of those that its __call__ has."""
    return {name: MODES[name] for name in inspect.signature(call).parameters if name in MODES}


def _say_modes(modes: dict[str, bool], call: Callable) -> tuple[str, ...]:
    parameters = inspect.signature(call).parameters
    changed = [
        f"{name}={value}"
        for name, value in modes.items()
        if parameters[name].default not in (value, parameters[name].empty, None)
    ]
    return (f"the model is called with {', '.join(changed)}, for evaluation",) if changed else ()


def _comes_from(model: Any, package: str) -> bool:
    return package in sys.modules and any(
        kind.__module__ == package or kind.__module__.startswith(f"{package}.") for kind in type(model).__mro__
    )


def _name(function: Callable) -> str:
    inner = getattr(function, "func", function)
    owner = getattr(inner, "__self__", None)
    return type(owner).__name__ if owner is not None else getattr(inner, "__name__", type(inner).__name__)
