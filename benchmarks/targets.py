"""Accelerators that a program can be compiled for on a machine that has none, and this machine's own processor.

Peak rates are the vendors', of dense products: bfloat16, and what "float32" is multiplied in by default (one pass of
bfloat16 on a TPU, TF32 on an H100). Clocks of TPUs are what their peak implies: 1.5 GHz for v5e, 1.75 GHz for others.
Collectives are assumed at the links' rate, 10 microseconds each at least on H100s and 1 on TPUs.
"""

import importlib.util
import os
import pathlib
import sys
from typing import NamedTuple

import jax
import numpy as np
from hlo_cost import Rates
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from infofeat_jax.runtime import devices
from infofeat_jax.types import InvalidInput

CHIPS = (1, 8, 32, 256)
H100 = pathlib.Path(__file__).parent / "h100.txtpb"  # what XLA asks of a device, as `target_config` of a topology


class Target(NamedTuple):
    """A kind of device: the package that compiles for it, and the topology of each number of chips."""

    package: str
    install: str
    topologies: dict[int, str]
    rates: Rates | None


def _tpu(version: str, grids: tuple[str, ...], flops: float, bandwidth: float, clock: float, link: float) -> Target:
    names = {count: f"{version}:{grid}" for count, grid in zip(CHIPS, grids, strict=True)}
    rates = Rates({"bf16": flops, "f32": flops}, bandwidth, clock=clock, link=link, latency=1e-6)
    return Target("libtpu", "libtpu", names, rates)


FLAT = ("2x2", "2x4", "4x8", "16x16")
TARGETS = {
    "cpu": Target("jaxlib", "jaxlib", {}, None),  # this machine: any number of virtual devices, and no estimates
    "v5e": _tpu("v5e", FLAT, 197e12, 819e9, 1.5e9, 45e9),
    "v5p": _tpu("v5p", ("2x2x1", "2x2x2", "2x4x4", "4x8x8"), 459e12, 2765e9, 1.75e9, 90e9),
    "v6e": _tpu("v6e", FLAT, 918e12, 1640e9, 1.75e9, 90e9),
    "h100": Target(
        "jax_plugins.xla_cuda13", f"'jax[cuda13]=={jax.__version__}'",
        {1: "1x1x1", 8: "1x1x8", 32: "1x4x8", 256: "1x32x8"},
        Rates({"bf16": 989e12, "f32": 495e12}, 3.35e12, launch=2e-6, link=450e9, latency=10e-6),
    ),
}  # fmt: skip


def prepare(name: str, chips: int) -> None:
    """Sets what XLA reads once, before its first use. Raises InvalidInput if the target's compiler is not installed."""
    target = TARGETS[name]
    if not installed(name):
        raise InvalidInput(
            f"--target={name}: compiling for it needs {target.package}, no device (pip install {target.install});"
            " without it, --target=cpu says what this machine's processor would do: memory, collectives, convolutions"
        )
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    if name == "h100":  # algorithms cannot be timed without the device
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"
    jax.config.update("jax_platforms", "cpu")
    if name == "cpu":
        jax.config.update("jax_num_cpu_devices", chips)


def mesh(name: str, chips: int) -> Mesh:
    """The first `chips` devices of the target."""
    if name == "cpu":
        return devices.mesh(chips)
    known = TARGETS[name].topologies
    if name == "h100":
        found = topologies.get_topology_desc("", "cuda", target_config=H100.read_text(), topology=known[chips])
    else:
        found = topologies.get_topology_desc(known[chips], platform="tpu")
    return Mesh(np.array(found.devices[:chips]), (devices.AXIS,), axis_types=(AxisType.Auto,))


def installed(name: str) -> bool:
    """Whether the package that compiles for a target is there."""
    try:
        return importlib.util.find_spec(TARGETS[name].package) is not None
    except ModuleNotFoundError:
        return False
