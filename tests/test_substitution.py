"""Other people's convolutions are replaced by ours: same outputs and gradients, and nothing slow stays in a loop."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun
from test_hoisting import equations, loops

from infofeat_jax import attacks
from infofeat_jax.convolution.substitution import substituted

RNG = np.random.default_rng(0)
ORDERS = {"NHWC": ("NHWC", "HWIO", "NHWC"), "NCHW": ("NCHW", "OIHW", "NCHW"), "mixed": ("CNWH", "IHWO", "HNCW")}


def array(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def names(program) -> list[str]:
    return [one.primitive.name for one in equations(program.jaxpr)]


def arranged(spec: str, standard: str, x: jax.Array) -> jax.Array:
    """An array with axes in the order `standard`, in the order of `spec`."""
    return x.transpose([standard.index(axis) for axis in spec])


def check(function, *arguments, replaced: bool = True):
    """Outputs, and gradients to everything, are those of the function as it is."""
    program = jax.make_jaxpr(function)(*arguments)
    changed = substituted(program)
    assert (changed is not program) == replaced
    assert ("conv_general_dilated" in names(changed)) == (not replaced)
    weights = array(*jax.eval_shape(function, *arguments).shape)

    def total(function, *arguments):
        return (weights * jnp.sin(function(*arguments))).sum()

    every = tuple(range(len(arguments)))
    expected = jax.value_and_grad(partial(total, function), every)(*arguments)
    ours = jax.value_and_grad(partial(total, lambda *given: jaxpr_as_fun(changed)(*given)[0]), every)(*arguments)
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("size", "padding"),
    [(1, 0), (2, 0), (3, 0), (3, 1), (4, 0), (4, 1), (5, 1), (5, 2), *((n, "SAME") for n in range(1, 6))],
)
def test_in_any_order_of_the_axes(order, stride, size, padding):
    specs, x, kernel = ORDERS[order], array(2, 8, 7, 3), array(size, size, 3, 4)
    padding = padding if padding == "SAME" else [(padding, padding)] * 2

    def function(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=specs)

    check(function, arranged(specs[0], "NHWC", x), arranged(specs[1], "HWIO", kernel))


OTHERS = {
    "more padding": {"padding": [(2, 2), (2, 2)]},
    "long strides": {"window_strides": (3, 3)},
    "uneven padding": {"padding": [(1, 0), (1, 0)]},
    "unlike strides": {"window_strides": (1, 2)},
    "dilated kernel": {"rhs_dilation": (2, 2), "padding": [(1, 1), (1, 1)]},
    "dilated images": {"lhs_dilation": (2, 2), "padding": [(1, 1), (1, 1)]},
    "groups": {"feature_group_count": 2, "kernel": (3, 3, 2, 4)},
    "precision": {"precision": "highest"},
    "oblong": {"kernel": (1, 3, 4, 4)},
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_ours_does_not_compute_stays(other):
    how = {"window_strides": (1, 1), "padding": "SAME", "kernel": (3, 3, 4, 4)} | OTHERS[other]
    kernel = array(*how.pop("kernel"))

    def function(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=ORDERS["NHWC"], **how)

    check(function, array(2, 6, 6, 4), kernel, replaced=False)


@pytest.mark.parametrize(
    ("given", "result"),
    [("float64", "float64"), ("float32", "float64"), ("float16", "float16"), ("bfloat16", "float32")],
)
def test_other_and_mixed_types_stay(given, result):
    with jax.enable_x64(True):
        x, kernel = (array(*shape).astype(given) for shape in ((2, 6, 6, 4), (3, 3, 4, 4)))
        how = {"dimension_numbers": ORDERS["NHWC"], "preferred_element_type": result}
        program = jax.make_jaxpr(partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", **how))
        assert substituted(traced := program(x, kernel)) is traced


class Net(nn.Module):
    """Of parts that JAX traces as programs within the program, and results that nothing uses."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3))(x))
        x = jax.jit(lambda x, w: (jnp.sort(x, -1), jax.lax.conv(x, w, (1, 1), "SAME"))[1])(
            x.transpose(0, 3, 1, 2), self.param("w", nn.initializers.normal(0.2), (6, 6, 3, 3))
        )
        _, x = jax.lax.optimization_barrier((x + 1, nn.silu(x)))
        x = nn.BatchNorm(use_running_average=True)(x.transpose(0, 2, 3, 1))
        return nn.Dense(5)(nn.avg_pool(x, (2, 2)).reshape(len(x), -1))


def test_a_network_and_its_attacks():
    images, module = jnp.asarray(RNG.random((4, 8, 8, 3)), jnp.float32), Net()
    variables = module.init(jax.random.key(0), images)
    check(partial(module.apply, variables), images)
    check(partial(module.apply, jax.device_get(variables)), images)  # weights as NumPy's arrays
    check(jax.vmap(lambda x: module.apply(variables, x[None])[0]), images)
    for attack in ("pgd", "apgd"):
        run = partial(attacks.ATTACKS[attack], partial(module.apply, variables), jax.random.key(0), epsilon=0.1)
        inside = {one.primitive.name for one in loops(run, images, jnp.zeros(4, int))}
        assert "infofeat_jax_convolve_to_input" in inside
        assert "conv_general_dilated" not in inside


def test_without_convolutions_the_program_is_the_same():
    program = jax.make_jaxpr(lambda x: jnp.tanh(x) @ x.T)(array(3, 4))
    assert substituted(program) is program
