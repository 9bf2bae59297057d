"""How much of the time of training the device waits for the host, with a step of 3 ms, as an accelerator's is.

  python benchmarks/host_overhead.py
  python benchmarks/host_overhead.py --package=DIRECTORY   # of another version, to compare with

The loop, its checkpoints and its records are the real ones, on random images of CIFAR-10's size and the state of a
ResNet-18. The step is a program that sleeps, in XLA's thread, and counts: the host is as free as beside an accelerator.
So is a batch of the validation. Each row adds a part of the host's work to the one above; "idle" is the time between
two programs in which the device has nothing to do.
"""

import argparse
import pathlib
import platform
import sys
import tempfile
import time
from functools import partial
from unittest import mock

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--milliseconds", type=float, default=3.0, help="of a step and of a batch of the validation")
parser.add_argument("--steps", type=int, default=120, help="in an epoch")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch_size", type=int, default=128)
parser.add_argument("--package", default=str(pathlib.Path(__file__).parent.parent))
args = parser.parse_args()
sys.path.insert(0, args.package)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from infofeat_jax import config as configs  # noqa: E402
from infofeat_jax import data, run  # noqa: E402
from infofeat_jax import experiment as experiments  # noqa: E402
from infofeat_jax.evaluation import robustness  # noqa: E402
from infofeat_jax.runtime import devices  # noqa: E402
from infofeat_jax.training import loop  # noqa: E402

sys.setswitchinterval(1e-4)  # the sleep begins and ends in Python: it should not wait for the host's turn to end
busy = []  # (began, ended) of all programs
moments = []  # (time, CPU time of the main thread) at each step
load = loop.load_batch


def moment():
    """Now."""
    return time.perf_counter(), time.thread_time()


def sleep(_):
    """A program's work."""
    began = time.perf_counter()
    time.sleep(max(0.0, args.milliseconds / 1000))
    busy.append((began, time.perf_counter()))
    return np.zeros((), np.float32)


def wait(token):
    """0 after the sleep, which begins when `token` is there."""
    return jax.pure_callback(sleep, jax.ShapeDtypeStruct((), jnp.float32), token)


@jax.jit
def count(step, batch):
    """(the next step's number, metrics), after the sleep."""
    zero = wait((step, batch[1][0]))
    return step + 1 + zero.astype(jnp.int32), {"loss": zero + 1, "accuracy": zero, "parameter_norm": zero + 1}


def step(state, batch, key):
    """Leaves the weights as they are, so that they need no copy: on an accelerator that takes 0.1 ms."""
    number, metrics = count(state.step, batch)
    return state._replace(step=number), metrics


@jax.jit
def one_batch(variables, key, batch):
    """A quarter of the images is correct."""
    return jnp.arange(len(batch[1])) % 4 == wait(batch[1][0]).astype(jnp.int32)


def create(workdir, **changes):
    """The parts of the loop, with that step; `changes` of the configuration."""
    config = configs.default()
    config.method.name, config.log_every = "madry", 10**6
    config.batch_size, config.num_epochs = args.batch_size, args.epochs
    config.update_from_flattened_dict({name: value for name, value in changes.items() if name in known(config)})
    rng = np.random.default_rng(0)
    counts = args.steps * args.batch_size, 1000, 8
    splits = [
        data.Split(rng.integers(0, 256, (count, 32, 32, 3), np.uint8), np.arange(count, dtype=np.int32) % 10)
        for count in counts
    ]
    dataset = data.Dataset(*splits, 10, "noise")
    experiment = experiments.create(configs.resolve(config), workdir, dataset)
    with mock.patch.object(robustness, "compile_attack", return_value=one_batch):
        training = run.create_training(experiment)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), training.like)
    return training._replace(step=step, initial=lambda: devices.replicate(training.mesh, zeros))


def known(config):
    """The names of all fields: an earlier version has fewer."""
    return {name for name, _ in configs.flatten(config.to_dict())}


def only_steps(training, *, same):
    """Steps, four ahead, and nothing else, on the `same` batch or on one each."""
    state, waiting, first = training.initial(), [], load(training, 0)
    for index in range(training.total):
        state, values = step(state, first if same else load(training, index), training.key)
        moments.append(moment())
        waiting.append(values)
        if len(waiting) > 4:
            jax.device_get(waiting.pop(0))
    jax.block_until_ready(state)


def measure(train, training):
    """(share of the time without a program in the median epoch and in the best, CPU ms a step of the main thread).

    The first epoch, in which the programs are compiled, does not count.
    """

    def note(*given):
        moments.append(moment())
        return load(*given)

    busy.clear(), moments.clear()
    with mock.patch.object(loop, "load_batch", note), mock.patch.object(loop, "copy", lambda state: state, create=True):
        train(training)
    shares = []
    for start in range(args.steps, len(moments) - args.steps, args.steps):
        began, ended = moments[start][0], moments[start + args.steps][0]
        shares.append(1 - sum(stop - go for go, stop in busy if began <= go < ended) / (ended - began))
    first, last = moments[args.steps][1], moments[-1][1]
    return float(np.median(shares)), min(shares), 1000 * (last - first) / (len(moments) - args.steps)


NEVER, EACH = {"checkpoint.every_minutes": 1e6}, {"checkpoint.every_minutes": 0.0}
ROWS = {
    "only steps": (partial(only_steps, same=True), {}),
    "+ input": (partial(only_steps, same=False), {}),
    "+ the loop, validation once an epoch": (loop.train, NEVER),
    "+ logging every 20 steps": (loop.train, NEVER | {"log_every": 20}),
    "+ a checkpoint a minute": (loop.train, {"log_every": 20}),
    "a checkpoint after each epoch": (loop.train, EACH | {"log_every": 20}),
}

if __name__ == "__main__":
    print(
        f"{args.epochs} epochs of {args.steps} steps of {args.milliseconds} ms; {jax.devices()[0].device_kind},"
        f" {platform.machine()}, jax {jax.__version__}, {args.package}"
    )
    for name, (train, changes) in ROWS.items():
        with tempfile.TemporaryDirectory() as directory:
            workdir = pathlib.Path(directory) / "run"
            workdir.mkdir()
            median, best, milliseconds = measure(train, create(workdir, **changes))
        print(
            f"{name:>40}: idle {median:6.1%}, at best {best:5.1%}   host {milliseconds:.2f} ms CPU a step", flush=True
        )
