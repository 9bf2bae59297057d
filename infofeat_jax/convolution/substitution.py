"""The convolutions of other people's models, replaced by ours in the traced program."""

from collections.abc import Sequence

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun
from jax.extend.core.primitives import conv_general_dilated_p, jit_p

from infofeat_jax.convolution import convolve
from infofeat_jax.convolution.forms import Geometry

Places = tuple[int, int, int, int]  # of an array's axes


def substituted(program: ClosedJaxpr) -> ClosedJaxpr:
    """The program with `convolve` wherever that can be used: in two dimensions, with a square kernel, one group, no
    dilation, padding as PyTorch's or "SAME", and one type. The order of the axes does not matter.

    On a CPU XLA's gradient of a convolution to its input takes several times as long inside a loop; that of `convolve`
    does not. Elsewhere convolutions remain what they are. A program without any is returned as it is.
    """
    if not _has_any(program.jaxpr):
        return program
    arguments = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in program.in_avals]
    return jax.make_jaxpr(lambda *values: _evaluate(program, values))(*arguments)


def _has_any(jaxpr: Jaxpr) -> bool:
    return any(_geometry(one) or (one.primitive is jit_p and _has_any(one.params["jaxpr"].jaxpr)) for one in jaxpr.eqns)


def _evaluate(program: ClosedJaxpr, arguments: Sequence[jax.Array]) -> list[jax.Array]:
    """As jaxpr_as_fun(program)(*arguments), equation by equation."""
    jaxpr = program.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*program.consts, *arguments], strict=True))
    used = {variable for one in jaxpr.eqns for variable in one.invars if isinstance(variable, Var)}
    used |= {variable for variable in jaxpr.outvars if isinstance(variable, Var)}

    def read(variable: Var | Literal) -> jax.Array:
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        results = [variable for variable in equation.outvars if variable in used]
        if geometry := _geometry(equation):
            found = [_convolve(*map(read, equation.invars), equation, geometry)]
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


def _geometry(equation: JaxprEqn) -> Geometry | None:
    """What `convolve` computes for the equation; None if it is none, or one that `convolve` cannot compute."""
    how = equation.params
    if equation.primitive is not conv_general_dilated_p or len(how["window_strides"]) != 2:
        return None
    types = {variable.aval.dtype for variable in (*equation.invars, *equation.outvars)}
    plain = how["feature_group_count"] == how["batch_group_count"] == 1 and how["precision"] is None
    if not plain or len(types) > 1 or {*how["lhs_dilation"], *how["rhs_dilation"]} != {1}:
        return None
    of_images, of_kernel, _ = _axes(equation)
    images, kernel = (
        tuple(variable.aval.shape[axis] for axis in axes)
        for variable, axes in zip(equation.invars, (of_images, of_kernel), strict=True)
    )
    (stride, other), padding = how["window_strides"], tuple(map(tuple, how["padding"]))
    if kernel[0] != kernel[1] or stride != other:
        return None
    choices = (Geometry(images, kernel, stride, same) for same in (False, True))
    return next((one for one in choices if one.padding == padding), None)


def _convolve(images: jax.Array, kernel: jax.Array, equation: JaxprEqn, geometry: Geometry) -> jax.Array:
    of_images, of_kernel, of_result = _axes(equation)
    y = convolve(
        images.transpose(of_images), kernel.transpose(of_kernel), geometry.stride, same=geometry.same
    )  # fmt: skip
    return y.transpose([of_result.index(axis) for axis in range(4)])
