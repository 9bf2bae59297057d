"""Training and evaluation by the library itself: its loop, its checkpoints, its evaluation."""

import pathlib
import tempfile
import time
from functools import cache
from typing import Any

import numpy as np

from accelerator_parts import weights
from accelerator_parts.planning import METHODS, Plan
from accelerator_parts.state import Options
from accelerator_parts.steps import Network
from infofeat_jax import config as configs
from infofeat_jax import data, run
from infofeat_jax import experiment as experiments
from infofeat_jax.experiment import Experiment
from infofeat_jax.training import checkpoint

QUICK = ("clean", "pgd20")


def network(options: Options) -> Network:
    """The network that is trained."""
    return Network("wrn_10_1", 4, 16, 1) if options.tiny else Network("resnet18")


def larger(options: Options) -> Network:
    """The network of which only steps are measured."""
    return Network("wrn_10_2", 4, 16, 1) if options.tiny else Network("wrn_28_10")


@cache
def load_data(options: Options) -> data.Dataset:
    """The images, read once. Raises InvalidInput."""
    return experiments.load_data(configure(options, "madry"))


def configure(options: Options, method: str, plan: Plan | None = None, attacks: tuple[str, ...] = QUICK):
    """The resolved configuration of a run: the paper's Table 1 but for what `options` and `plan` say."""
    config, chosen = configs.default(), network(options)
    config.method.name, config.dtype, config.batch_size = method, options.dtype, chosen.batch_size
    config.model.name, config.model.width = chosen.model, chosen.width
    config.attack.num_steps = chosen.attack_steps
    archive = options.data.lower().endswith(".npz")
    config.data.name, config.data.data_dir = (options.data, "") if archive else ("cifar10", options.data)
    config.eval.attacks, config.eval.cam_images = attacks, 0
    if options.tiny:
        config.data.train_size, config.data.validation_size, config.data.test_size = 64, 16, 16
        config.eval.batch_size, config.eval.validation_attack, config.eval.probe_examples = 16, "fgsm", 0
    if plan is not None:
        config.num_epochs, config.optimizer.milestones = plan.epochs, plan.milestones
        config.eval.autoattack_examples = plan.autoattack_images
    if attacks == QUICK:
        config.eval.probe_examples = 0
    return configs.resolve(config)


def create(options: Options, method: str, plan: Plan, directory: pathlib.Path, attacks=QUICK) -> Experiment:
    """A method's experiment, in the directory of its name."""
    (directory / method).mkdir(exist_ok=True)
    return experiments.create(configure(options, method, plan, attacks), directory / method, load_data(options))


def describe_data(options: Options) -> dict[str, Any]:
    """How many images there are. Raises InvalidInput."""
    found = load_data(options)
    counts = {name: len(getattr(found, name).labels) for name in ("train", "validation", "test")}
    return {"name": options.data, **counts, "classes": found.num_classes}


def epoch_end(options: Options, directory: pathlib.Path, epochs: int = 5) -> dict[str, Any]:
    """Seconds that the end of an epoch takes, validation and checkpoint: the loop with epochs of a single step."""
    dataset, size = load_data(options), network(options).batch_size
    dataset = dataset._replace(train=data.Split(*(array[:size] for array in dataset.train)))

    def seconds(count: int) -> float:
        with tempfile.TemporaryDirectory(dir=directory) as trial:
            config = configure(options, "standard")
            config.num_epochs = count
            experiment = experiments.create(config, pathlib.Path(trial), dataset)
            began = time.perf_counter()
            run.train(experiment)
            return time.perf_counter() - began

    first, few, many = seconds(1), seconds(1), seconds(1 + epochs)
    return {"total": round(max(many - few, 0.0) / epochs, 3), "compile_seconds": round(max(first - few, 0.0), 2)}


def train(options: Options, method: str, plan: Plan, directory: pathlib.Path) -> dict[str, Any]:
    """Trains to the end of the plan, from the newest checkpoint. Raises Stopped, with the state saved."""
    state = run.train(create(options, method, plan, directory))
    return {"steps": int(state.step)}


def evaluate(options: Options, method: str, plan: Plan, directory: pathlib.Path, attacks) -> dict[str, Any]:
    """Evaluates the best checkpoint; what has been measured on it is reused. Raises Stopped."""
    found = run.evaluate_run(create(options, method, plan, directory, attacks))
    kept = (
        *attacks, "examples", "checkpoint_step", "finished", "flags", "autoattack_stages", "worst_case",
        "seconds_per_attack",
    )  # fmt: skip
    return {name: found[name] for name in kept if name in found}


def carry(options: Options, plan: Plan, directory: pathlib.Path, out: pathlib.Path) -> dict[str, Any]:
    """Writes what is to be carried away: the best weights of each method, and all outcomes by image."""
    out.mkdir(parents=True, exist_ok=True)
    outcomes, written = {}, []
    for method in METHODS:
        if checkpoint.latest_step(directory / method):
            state = experiments.restore(create(options, method, plan, directory), "best")
            written += weights.write(out, method, state.evaluated, {"step": int(state.step)})
        path = directory / method / "outcomes.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as found:
                outcomes |= {f"{method}/{name}": found[name] for name in found.files if found[name].ndim}
    if outcomes:
        weights.save(out / "outcomes.npz", outcomes)
    return {"files": written, "outcomes": sorted(outcomes)}
