"""Devices and hosts; the only file that knows them.

"jit" (default): one program over a mesh, the batch split, the state replicated. The semantics are those of
the whole batch on any number of devices: BatchNorm, batch-coupled attacks and random numbers do not change.
"pmap": per-device semantics, as PyTorch's DataParallel code of the peers. BatchNorm and batch-coupled attacks
see their device's examples, gradients and statistics are averaged. jax.pmap is jit(shard_map) since JAX 0.8,
and in those terms it is written here.
"""

import os
import platform
import sys
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from infofeat_jax.types import InvalidInput, PRNGKey, RunFailed

AXIS = "batch"
PATIENCE = 60  # seconds
_YNNPACK = "xla_cpu_experimental_ynn_fusion_type"


def start(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the processes of a multi-host run.

    `coordinator` is "host:port" of process 0; "auto" finds everything itself (TPU pods, SLURM); "" is one process.
    A process that is not heard of for PATIENCE seconds ends the others. Raises InvalidInput, RunFailed.
    """
    timeouts = {"heartbeat_timeout_seconds": PATIENCE, "shutdown_timeout_seconds": PATIENCE}
    if coordinator and coordinator != "auto" and not 0 <= process_id < num_processes:
        raise InvalidInput(f"process_id {process_id}: expected 0 to num_processes - 1 = {num_processes - 1}")
    try:
        if coordinator == "auto":
            jax.distributed.initialize(**timeouts)
        elif coordinator:
            jax.distributed.initialize(coordinator, num_processes, process_id, **timeouts)
    except (RuntimeError, ValueError) as error:
        raise RunFailed(f"--coordinator={coordinator}: no connection: {' '.join(str(error).split())[:300]}") from error


def leave(status: int) -> None:
    """Ends this process after an error; of several, without waiting for the others as JAX would, which may hang."""
    if jax.distributed.is_initialized():
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def is_writer() -> bool:
    """Whether this process writes files and prints."""
    return jax.process_index() == 0


def keep_compiled() -> None:
    """Has JAX keep compiled programs in the user's cache directory, unless JAX_COMPILATION_CACHE_DIR says where.

    One directory a host, because programs for the CPU are made for its very model.
    """
    if jax.config.jax_compilation_cache_dir is None:
        root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(root, "infofeat_jax", platform.node() or "host"))


def tune_cpu() -> None:
    """Has XLA:CPU convolve with Eigen instead of YNNPACK, unless XLA_FLAGS choose; before JAX meets its devices.

    YNNPACK leaves all cores but one idle at up to 64 channels (jax 0.10.2) and can be half as fast at 256 and more
    (0.11.2): docs/performance.md. Matrix products stay with it. Accelerators do not notice.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _YNNPACK not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_YNNPACK}=-individual_convolution".strip()


def barrier(name: str) -> None:
    """Waits for all processes of the run."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def mesh() -> Mesh:
    """All devices of all processes, in one axis."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def own_part(mesh: Mesh, tree: PyTree) -> tuple[Mesh, PyTree]:
    """This process's devices, and replicated arrays on them: for what each process computes by itself."""
    if jax.process_count() == 1:
        return mesh, tree
    own = Mesh(np.array(jax.local_devices()), (AXIS,), axis_types=(AxisType.Auto,))
    return own, jax.device_put(jax.tree.map(np.asarray, tree), NamedSharding(own, P()))


def check_divisible(name: str, size: int, parts: int = 1) -> None:
    """Raises InvalidInput unless each of `parts` parts of a batch of `size` splits evenly over the devices."""
    unit = jax.device_count() * parts
    if size % unit:
        times = f", times {parts} accumulated steps" if parts > 1 else ""
        raise InvalidInput(
            f"config.{name} = {size}: expected a multiple of the {jax.device_count()} devices{times},"
            f" such as {-(-size // unit) * unit}"
        )


def replicated(mesh: Mesh, tree: PyTree) -> PyTree:
    """Shapes and types of `tree`, placed on every device: what a restored state is to look like."""
    sharding = NamedSharding(mesh, P())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """The same arrays on every device."""
    sharding = NamedSharding(mesh, P())
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def shard(mesh: Mesh, tree: PyTree) -> PyTree:
    """Splits global host arrays along the batch; each process hands over only the part of its devices."""
    sharding = NamedSharding(mesh, P(AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda i: x[i]), tree)


def place(mesh: Mesh, array: np.ndarray) -> jax.Array:
    """Splits a batch of any size over the devices if they divide it; gives it to all of them otherwise."""
    return shard(mesh, array) if len(array) % mesh.size == 0 else replicate(mesh, array)


def parallelize_update(update: Callable, mesh: Mesh, mode: str) -> Callable:
    """Compiles `update(state, batch, key, average=...)` -> (state, metrics) over the mesh, state donated.

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
    return jax.jit(step, in_shardings=(whole, split, whole), out_shardings=whole, donate_argnums=0)


def parallelize_batch(function: Callable, mesh: Mesh) -> Callable:
    """Compiles `function(variables, key, batch)`, the batch split, everything else and the result whole."""
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))
    return jax.jit(function, in_shardings=(whole, whole, split), out_shardings=whole)


def _mean_over_devices(tree: PyTree) -> PyTree:
    return jax.lax.pmean(tree, AXIS)


def _fold_device(key: PRNGKey) -> PRNGKey:
    return jax.random.fold_in(key, jax.lax.axis_index(AXIS))
