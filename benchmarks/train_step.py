"""One training step compared with PyTorch's, and the share of this machine's peak throughput that it reaches.

  python benchmarks/train_step.py --method=infofeature --model=resnet18 --width=64 --batch_size=32
  python benchmarks/train_step.py --method=infofeature --model=resnet18 --width=64 --batch_size=32 --torch=tuned

Without PyTorch (pip install torch==2.13.0 for a CPU) ours alone is measured. Medians of interleaved steps; ratios are
within this run. Synthetic images already on the device: no input pipeline.
"""

import argparse
import importlib.util
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import timing
from accelerator_parts.hardware import matrix_rate

from infofeat_jax import config as configs
from infofeat_jax import data, models
from infofeat_jax import experiment as experiments
from infofeat_jax.runtime import compilation, devices

# Forward passes' worth of arithmetic: a step forward and to the input costs 2, a training step 3.
PASSES = {"standard": 3, "madry": 3 + 7 * 2, "infofeature": 3 + 7 * 2 + 1}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="infofeature", choices=PASSES)
    parser.add_argument("--model", default="resnet18", help="resnet18, or wrn_D_W")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage (wrn: 16)")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--torch", default="both", choices=["research", "tuned", "compiled", "both", "all", "none"])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    compilation.tune_cpu()
    args.steps, args.devices = 7, jax.device_count()
    images, flops, ours = args.batch_size, forward_flops(args.model, args.width), create_ours(args)
    sides = {"infofeat_jax": ours} | create_torch(args)
    medians = timing.medians(sides, args.repeats)
    print(f"{args.method}, {args.model} width {args.width}, batch {images}, {args.dtype}")
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}")
    for name, median in medians.items():
        print(f"{name:>16}: {images / median:.1f} img/s   ours is {median / medians['infofeat_jax']:.2f} x as fast")
    size = 2048 if jax.default_backend() == "cpu" else 16384
    rate, work = matrix_rate(size, args.dtype, "default"), PASSES[args.method] * flops
    reached = work * images / medians["infofeat_jax"] / args.devices
    print(f"arithmetic: {work / 1e9:.2f} GFLOP an image; {reached / 1e9:.0f} GFLOP/s a device reached,")
    print(f"{100 * reached / rate:.0f} % of the {rate / 1e9:.0f} GFLOP/s of a {args.dtype} matrix product here")


def forward_flops(model: str, width: int) -> float:
    """Of one image's forward pass, counted in the program before it is optimized; 0 if it cannot be counted.

    It is the program for the host's CPU: JAX counts nothing in one that a plugin would compile, as a GPU's.
    """
    module = models.create(model, num_classes=10, width=width)
    image = jnp.zeros((1, 32, 32, 3))
    with countable(), jax.default_device(jax.devices("cpu")[0]):
        variables = jax.eval_shape(module.init, jax.random.key(0), image)
        lowered = jax.jit(lambda v, x: module.apply(v, x).logits).lower(variables, image)
    return (lowered.cost_analysis() or {}).get("flops", 0.0)


def countable():
    """While it lasts, programs are compiled with XLA's convolutions: it counts no operations of oneDNN's."""
    return mock.patch.dict(os.environ, INFOFEAT_JAX_ONEDNN="0")


def create_ours(args):
    """One training step on a fixed batch as train.py compiles it; prints how long compiling took."""
    began = time.perf_counter()
    compiled, step = compile_step(args)
    memory = compiled.memory_analysis()
    print(f"compiled in {time.perf_counter() - began:.1f} s; {memory.temp_size_in_bytes / 2**20:.0f} MiB of work space")
    return step


def compile_step(args) -> tuple[jax.stages.Compiled, Callable]:
    """(the compiled update, a function that takes a step) with the fields of `args`: method, model, width, batch_size,
    dtype, steps of the attack, devices."""
    experiment = create_experiment(args)
    state, split = [experiments.create_state(experiment)], experiment.data.train
    batch, key = devices.shard(experiment.mesh, tuple(split)), jax.random.key(0)
    compiled = experiments.compile_step(experiment).lower(state[0], batch, key).compile()

    def step():
        state[0], values = compiled(state[0], batch, key)
        jax.block_until_ready(values)

    return compiled, step


def create_experiment(args) -> experiments.Experiment:
    """Training on one synthetic batch with the fields of `args`."""
    config = configs.default()
    config.method.name, config.dtype, config.batch_size = args.method, args.dtype, args.batch_size
    config.model.name, config.model.width, config.attack.num_steps = args.model, args.width, args.steps
    config.eval.batch_size = args.batch_size
    split = random_split(args.batch_size)
    dataset = data.Dataset(split, split, split, 10, "noise")
    experiment = experiments.create(configs.resolve(config), Path("."), dataset)
    return experiment._replace(mesh=jax.sharding.Mesh(jax.devices()[: args.devices], (devices.AXIS,)))


def create_torch(args) -> dict:
    """{name: step} of the twins asked for, none without PyTorch."""
    several = {"both": ["research", "tuned"], "all": ["research", "tuned", "compiled"], "none": []}
    modes = several.get(args.torch, [args.torch])
    if not modes or not has_torch():
        return {}
    import torch_twin

    make = partial(torch_twin.train_step, args.method, args.model, args.width, args.batch_size)
    return {f"torch {mode}": make(mode, args.dtype) for mode in modes}


def has_torch() -> bool:
    """Whether there is a PyTorch to compare with; says so if not."""
    found = importlib.util.find_spec("torch") is not None
    if not found:
        print("PyTorch is not installed: ours alone")
    return found


def random_split(count: int) -> data.Split:
    """Synthetic images of CIFAR-10's shape."""
    rng = np.random.default_rng(0)
    return data.Split(rng.integers(0, 256, (count, 32, 32, 3), np.uint8), np.arange(count, dtype=np.int32) % 10)


if __name__ == "__main__":
    main()
