"""The device memory of a training step: plain, rematerialised, with accumulated gradients, in bfloat16.

  python benchmarks/memory.py --config=configs/cifar10_resnet18.py
  pip install '.[tpu]'
  JAX_PLATFORMS=cpu python benchmarks/memory.py --config=configs/cifar10_resnet18.py --topology=v5e:2x2

Compiles the step for one device without running it, and prints what XLA allocates besides the state: for this machine,
or for a TPU, which need not be present.
"""

import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import config_flags

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from infofeat_jax import config as configs
from infofeat_jax import data
from infofeat_jax import experiment as experiments
from infofeat_jax.runtime import devices

CONFIG = config_flags.DEFINE_config_file("config", None, "An experiment of configs/.")
TOPOLOGY = flags.DEFINE_string("topology", "", "A TPU to compile for, such as v5e:2x2; this machine by default.")
SETTINGS = {
    "plain": {},
    "accumulate_steps=4": {"accumulate_steps": 4},
    "remat": {"remat": True},
    "remat, accumulate_steps=4": {"remat": True, "accumulate_steps": 4},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, remat": {"dtype": "bfloat16", "remat": True},
}
ONLY = flags.DEFINE_multi_enum("only", list(SETTINGS), list(SETTINGS), "Which settings to compile; all by default.")


def device() -> jax.Device:
    """What to compile for."""
    if not TOPOLOGY.value:
        return jax.devices()[0]
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}  # no TPU, no cloud
    return topologies.get_topology_desc(TOPOLOGY.value, platform="tpu").devices[0]


def workspace(config) -> int:
    """Bytes of a step's temporaries on a device."""
    size = config.batch_size
    split = data.Split(np.zeros((size, 32, 32, 3), np.uint8), np.zeros(size, np.int32))
    experiment = experiments.create(config, pathlib.Path("."), data.Dataset(split, split, split, 10, "none"))
    experiment = experiment._replace(mesh=Mesh([device()], (devices.AXIS,)))
    step, state = experiments.compile_step(experiment), experiments.describe_state(experiment)
    batch = jax.ShapeDtypeStruct((size, 32, 32, 3), jnp.uint8), jax.ShapeDtypeStruct((size,), jnp.int32)
    compiled = step.lower(state, batch, jax.random.key(0)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def main(_) -> None:
    for name in ONLY.value:
        config = configs.resolve(CONFIG.value)
        config.update(SETTINGS[name])
        print(f"| {name} | {workspace(config) / 2**20:,.0f} MiB |", flush=True)


if __name__ == "__main__":
    app.run(main)
