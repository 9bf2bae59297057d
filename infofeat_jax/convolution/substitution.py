"""The convolutions of other people's models, replaced by ours in the traced program."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun
from jax.extend.core.primitives import conv_general_dilated_p, jit_p
from jax.typing import ArrayLike

from infofeat_jax.convolution import convolve, onednn
from infofeat_jax.convolution.forms import geometry

MAX_STRIDE = 2  # the gradient to the input is stride ** 2 convolutions
Places = tuple[int, int, int, int]  # of an array's axes


def substituted(program: ClosedJaxpr) -> ClosedJaxpr:
    """The program with `convolve` wherever that can be used.

    That is in two dimensions, with a square kernel, stride 1 or 2, one group, no dilation, "SAME" or at most
    (s - 1) / 2 pixels of padding, all in float32 or all in bfloat16. The order of the axes does not matter.

    On a CPU XLA's gradient of a convolution to its input takes several times as long inside a loop; that of `convolve`
    does not. Elsewhere convolutions remain what they are. A program without any is returned as it is.
    """
    if not _has_any(program.jaxpr):
        return program
    arguments = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in program.in_avals]
    return jax.make_jaxpr(lambda *values: _evaluate(program, values))(*arguments)


def _has_any(jaxpr: Jaxpr) -> bool:
    return any(
        _padding(one) is not None or (one.primitive is jit_p and _has_any(one.params["jaxpr"].jaxpr))
        for one in jaxpr.eqns
    )


def _evaluate(program: ClosedJaxpr, arguments: Sequence[ArrayLike]) -> list[ArrayLike]:
    """As jaxpr_as_fun(program)(*arguments), equation by equation."""
    jaxpr = program.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*program.consts, *arguments], strict=True))
    used = {variable for one in jaxpr.eqns for variable in one.invars if isinstance(variable, Var)}
    used |= {variable for variable in jaxpr.outvars if isinstance(variable, Var)}

    def read(variable: Var | Literal) -> ArrayLike:
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        results = [variable for variable in equation.outvars if variable in used]
        if (padding := _padding(equation)) is not None:
            images, kernel = map(jnp.asarray, map(read, equation.invars))
            found = [_convolve(images, kernel, equation, padding)]
        elif equation.primitive is jit_p and _has_any(equation.params["jaxpr"].jaxpr):
            results, found = equation.outvars, _evaluate(equation.params["jaxpr"], list(map(read, equation.invars)))
        else:
            reads = {variable for variable in equation.invars if isinstance(variable, Var)} - {*jaxpr.invars}
            alone = jaxpr.replace(eqns=[equation], constvars=[*reads], outvars=results)
            found = jaxpr_as_fun(ClosedJaxpr(alone, list(map(read, reads))))(*arguments)
        values.update(zip(results, found, strict=True))
    return list(map(read, jaxpr.outvars))


def _axes(equation: JaxprEqn) -> tuple[Places, Places, Places]:
    """Where the images have (b, h, w, i), the kernel (h, w, i, o), and the result (b, h, w, o)."""
    numbers = equation.params["dimension_numbers"]
    (b, i, h, w), (o, j, p, q), (c, k, y, x) = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    return (b, h, w, i), (p, q, j, o), (c, y, x, k)


def _padding(equation: JaxprEqn) -> int | str | None:
    """The padding with which `convolve` computes what the equation does; None if it cannot."""
    how = equation.params
    if equation.primitive is not conv_general_dilated_p or len(how["window_strides"]) != 2:
        return None
    types = {variable.aval.dtype for variable in (*equation.invars, *equation.outvars)}
    plain = how["feature_group_count"] == how["batch_group_count"] == 1 and how["precision"] is None
    if (
        not plain
        or len(types) > 1
        or types.pop().name not in onednn.DTYPES
        or {*how["lhs_dilation"], *how["rhs_dilation"]} != {1}
    ):
        return None
    of_images, of_kernel, _ = _axes(equation)
    images, kernel = (
        tuple(variable.aval.shape[axis] for axis in axes)
        for variable, axes in zip(equation.invars, (of_images, of_kernel), strict=True)
    )
    (stride, other), padding = how["window_strides"], tuple(map(tuple, how["padding"]))
    if kernel[0] != kernel[1] or stride != other or stride > MAX_STRIDE:
        return None
    low = padding[0][0]
    choices = ["same", *([low] if 0 <= low <= (kernel[0] - 1) // 2 else [])]
    return next((one for one in choices if geometry(images, kernel, stride, one).padding == padding), None)


def _convolve(images: jax.Array, kernel: jax.Array, equation: JaxprEqn, padding: int | str) -> jax.Array:
    of_images, of_kernel, of_result = _axes(equation)
    stride = equation.params["window_strides"][0]
    y = convolve(images.transpose(of_images), kernel.transpose(of_kernel), stride, padding=padding)
    return y.transpose([of_result.index(axis) for axis in range(4)])
