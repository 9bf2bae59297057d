"""What an attack computes once, before its loop: results unchanged, under JAX's transformations and for odd models."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from jax.extend.core import jaxprs_in_params

from infofeat_jax import attacks
from infofeat_jax.attacks.hoisting import hoisted
from infofeat_jax.types import Outputs

IMAGES = small.batch(4)[0]


def equations(jaxpr) -> list:
    """All equations of a program, in loops too."""
    inner = [value for one in jaxpr.eqns for value in jaxprs_in_params(one.params)]
    return [*jaxpr.eqns, *(one for part in inner for one in equations(part))]


def loops(function, *args) -> list:
    """The equations in the loops of a traced function."""
    found = [one for one in equations(jax.make_jaxpr(function)(*args).jaxpr) if one.primitive.name in ("scan", "while")]
    return [one for loop in found for part in jaxprs_in_params(loop.params) for one in equations(part)]


@pytest.mark.parametrize("name", ["resnet10", "wrn_10_1"])
@pytest.mark.parametrize("attack", ["pgd", "apgd"])
def test_no_kernel_is_scaled_or_cast_in_a_loop(name, attack):
    module, variables = small.network(name, width=3)
    module = module.clone(dtype=jnp.dtype(jnp.bfloat16))

    def run(variables, images):
        forward = partial(module.apply, variables)
        return attacks.ATTACKS[attack](forward, jax.random.key(0), images, jnp.zeros(4, int), epsilon=0.1)

    kernels = {leaf.shape for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 4}
    inside = loops(run, variables, IMAGES)
    assert "infofeat_jax_convolve_to_input" in {one.primitive.name for one in inside}
    changed = [one for one in inside if one.primitive.name in ("mul", "convert_element_type")]
    assert not [one for one in changed if one.outvars[0].aval.shape in kernels]


def test_outputs_and_gradients_stay_the_same():
    """Also those to the weights, which the model closes over, and for images of another shape."""
    module, variables = small.network("wrn_10_1")

    @jax.jit
    def both(variables, images):
        def total(wrap, variables, images):
            forward = wrap(partial(module.apply, variables))
            outputs = forward(images)
            return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves((outputs, forward(images[:2])))), outputs

        plain = lambda forward: forward  # noqa: E731
        early = lambda forward: hoisted(forward, images)  # noqa: E731
        return [jax.grad(partial(total, wrap), (0, 1), has_aux=True)(variables, images) for wrap in (plain, early)]

    one, other = both(variables, IMAGES)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), one, other)


def test_what_is_larger_than_its_origin_stays_in_the_loop():
    """Else it would be kept in memory all the while."""
    weights = jnp.arange(3.0)

    def forward(images):
        large = jnp.broadcast_to(jnp.exp(weights), images.shape)
        return (images * large + jnp.ones(images.shape)).sum((1, 2))

    early = hoisted(forward, IMAGES)
    names = [one.primitive.name for one in equations(jax.make_jaxpr(early)(IMAGES).jaxpr)]
    assert "exp" not in names
    assert names.count("broadcast_in_dim") == 2
    np.testing.assert_array_equal(early(IMAGES), forward(IMAGES))


@pytest.mark.parametrize("constant", ["logits", "image", "kernel"])
def test_outputs_that_do_not_depend_on_the_images(constant):
    """Numbers, the images themselves, and weights that the model returns as they are."""
    weights, returned = (
        jnp.ones((3, 5)),
        {"logits": lambda x: jnp.zeros((4, 5)), "image": lambda x: x[:, 0, 0] @ weights},
    )

    def forward(images):
        logits = returned.get(constant, returned["image"])(images)
        return Outputs(logits, maps=images, kernel=2 * weights)

    early = jax.jit(lambda x: hoisted(forward, x)(x))(IMAGES)
    jax.tree.map(np.testing.assert_array_equal, early, forward(IMAGES))


def test_a_model_with_effects_is_left_alone():
    seen = []

    def forward(images):
        jax.debug.callback(lambda: seen.append(1), ordered=True)
        return images.sum((1, 2))

    assert hoisted(forward, IMAGES) is forward
