"""Programs over all devices: how batches are split and states replicated. No other module knows.

"jit" (default): one program over a mesh, the batch split, the state replicated. Whole-batch
semantics on any number of devices: BatchNorm, batch-coupled attacks and random numbers do not change.
"pmap": per-device semantics, as in the PyTorch DataParallel code of related work. BatchNorm and batch-coupled attacks
see only their device's examples; gradients and statistics are averaged. jax.pmap is jit(shard_map) since JAX 0.8,
and in those terms it is written here.
"""

import os
import platform
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from infofeat_jax.types import InvalidInput, PRNGKey

AXIS = "batch"


def mesh(count: int | None = None) -> Mesh:
    """A mesh of all devices of all processes, or of the first `count`, with one axis."""
    if count is None or count == jax.device_count():
        return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))
    return Mesh(np.array(jax.devices()[:count]), (AXIS,), axis_types=(AxisType.Auto,))


def hardware(mesh: Mesh) -> str:
    """The devices in words, for whoever judges a result."""
    device = mesh.devices.flat[0]
    processor = f" ({os.cpu_count()} {platform.machine()} cores)" if device.platform == "cpu" else ""
    return f"{mesh.size} x {device.device_kind}{processor}"


def count_for(size: int, parts: int = 1, name: str = "config.batch_size") -> int:
    """The number of devices for training batches of `size`, each of whose `parts` parts is split evenly over them.

    All; or one for each example of a part, if one process has more devices than that. `name`: of the size, in messages.
    Raises InvalidInput otherwise.
    """
    count, part = jax.device_count(), size // parts
    if size % parts == 0 and part % count == 0:
        return count
    if size % parts == 0 and part < count and jax.process_count() == 1:
        return part
    times = f", times {parts} accumulated steps" if parts > 1 else ""
    raise InvalidInput(
        f"{name} = {size}: expected a multiple of the {count} devices{times},"
        f" such as {-(-size // (count * parts)) * count * parts} (the paper's configurations have 128)"
    )


def replicated(mesh: Mesh, tree: PyTree) -> PyTree:
    """Shapes and types of `tree`, placed on every device: what a restored state is to look like."""
    sharding = NamedSharding(mesh, P())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """The same arrays on every device."""
    sharding = NamedSharding(mesh, P())
    return jax.tree.map(lambda x: _replicate(sharding, x), tree)


def _replicate(sharding: NamedSharding, x) -> jax.Array:
    if jnp.issubdtype(getattr(x, "dtype", np.dtype("O")), jax.dtypes.prng_key):  # keys are no arrays of NumPy
        return jax.random.wrap_key_data(_replicate(sharding, jax.random.key_data(x)), impl=jax.random.key_impl(x))
    return jax.make_array_from_process_local_data(sharding, np.asarray(x))


def local(tree: PyTree) -> PyTree:
    """The leaves of a tree that is on every device, on the first one of this process alone."""
    return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else jnp.asarray(x), tree)


def place(mesh: Mesh, tree: PyTree) -> PyTree:
    """The leaves of `tree`, whatever they are, on every device; of several processes, those of each are the same."""
    return jax.device_put(tree, NamedSharding(mesh, P())) if jax.process_count() == 1 else replicate(mesh, tree)


def shard(mesh: Mesh, tree: PyTree) -> PyTree:
    """Splits global host arrays along the batch; each process transfers only the parts of its devices."""
    sharding = NamedSharding(mesh, P(AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda i: x[i]), tree)


def fetch(tree: PyTree) -> PyTree:
    """Whole arrays on the host; if several processes hold their parts, all of them must call this, and get the same."""
    return jax.tree.map(_fetch, tree)


def _fetch(array: jax.Array) -> np.ndarray:
    split = not (array.is_fully_addressable or array.is_fully_replicated)
    return multihost_utils.process_allgather(array, tiled=True) if split else np.asarray(array)


def parallelize_update(
    update: Callable[..., tuple[PyTree, PyTree]], mesh: Mesh, mode: str
) -> Callable[[PyTree, PyTree, PRNGKey], tuple[PyTree, PyTree]]:
    """Compiles `update(state, batch, key, average=...)` -> (state, metrics) over the mesh, state `donated`.

    `average` is to be applied to whatever a device computes as a mean over its examples.
    """
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))
    if mode == "jit":
        step = lambda state, batch, key: update(state, batch, key, average=lambda tree: tree)  # noqa: E731
    else:
        step = jax.shard_map(
            lambda state, batch, key: update(state, batch, _fold_device(key), average=_mean_over_devices),
            mesh=mesh, in_specs=(P(), P(AXIS), P()), out_specs=P(),
            check_vma=False,  # with it, the mean of replicated parameters' gradients comes out multiplied
        )  # fmt: skip
    taken = donated(mesh.devices.flat[0].platform)
    return jax.jit(step, in_shardings=(whole, split, whole), out_shardings=whole, donate_argnums=taken)


def donated(platform: str) -> tuple[int, ...]:
    """The arguments whose memory a step takes over: its state, but not on GPUs.

    There a kernel that updates several arrays at once can write none of them in place: XLA would copy all of them
    first, and hold the copies as long as a new state would be held.
    """
    return () if platform == "gpu" else (0,)


def parallelize_batch(
    function: Callable[[PyTree, PRNGKey, PyTree], PyTree], mesh: Mesh
) -> Callable[[PyTree, PRNGKey, PyTree], PyTree]:
    """Compiles `function(variables, key, batch)`, the batch split, everything else and the result whole."""
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))
    return jax.jit(function, in_shardings=(whole, whole, split), out_shardings=whole)


def _mean_over_devices(tree: PyTree) -> PyTree:
    return jax.lax.pmean(tree, AXIS)


def _fold_device(key: PRNGKey) -> PRNGKey:
    return jax.random.fold_in(key, jax.lax.axis_index(AXIS))
