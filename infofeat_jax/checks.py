"""Checks before anything expensive starts: a run's directory, its model's size, its data split, its data."""

import json
import math
import os
import pathlib
import tempfile
from functools import lru_cache

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from ml_collections import ConfigDict

from infofeat_jax import config as configs
from infofeat_jax import data, parts, weights
from infofeat_jax.data.files import FileImages
from infofeat_jax.evaluation import aside
from infofeat_jax.evaluation.subject import digest
from infofeat_jax.models.layers import check_channels
from infofeat_jax.runtime import files, memory, processes
from infofeat_jax.training import checkpoint
from infofeat_jax.training.seals import EPOCHS, INTERRUPTED
from infofeat_jax.types import InvalidInput

MAX_COUNT = 2**31 - 1  # steps are counted in 32 bits on the device
SAMPLE = 1000  # images, at least, of a second pool by which it is recognised: it may be larger than memory
COPIES = 3  # of the parameters in training: weights, gradient, momentum
DATA = "data.json"  # {what the run had of its data: digest}, to notice files that change; runs before it have none
RESTORE = "restore them, or give another --workdir"
FILES = ("lock", DATA, "owner", "config.json", "metrics.jsonl", "results.json", "outcomes.npz", "autoattack.npz",
         "cam_images.npz", "probes.npz", "parameters.txt")  # fmt: skip
FOLDERS = (EPOCHS, INTERRUPTED, "damaged", "report", aside.FOLDER)


def check_writable(directory: pathlib.Path) -> None:
    """Raises InvalidInput unless files can be written in `directory`; leaves nothing behind."""
    absolute = directory.absolute()
    existing = next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))
    if not existing.exists():
        raise InvalidInput(f"workdir {directory}: {existing} is a dangling link: remove it, or give another --workdir")
    try:  # permissions alone do not tell: the disk may be full or read-only, the name too long
        with tempfile.TemporaryDirectory(dir=existing) as trial:
            pathlib.Path(trial, absolute.relative_to(existing)).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        brief = f"{type(error).__name__}: {error.strerror}"
        raise InvalidInput(f"workdir {directory} cannot be written ({brief}): give another --workdir") from None
    wrong = [name for name in FILES if (directory / name).is_dir()]
    wrong += [name for name in FOLDERS if os.path.lexists(directory / name) and not (directory / name).is_dir()]
    if wrong:
        kind = "a directory" if wrong[0] in FILES else "not a directory"
        raise InvalidInput(f"{directory / wrong[0]} is {kind}: remove it, or give another --workdir")


def check_only_evaluated(file: str, directory: pathlib.Path, mode: str) -> None:
    """Raises InvalidInput if config.eval.torch_checkpoint is combined with training, or with a trained run."""
    if mode != "evaluate":
        raise InvalidInput(
            f"config.eval.torch_checkpoint = {file!r} is for --mode=evaluate; to train from it, use config.init_from"
        )
    if (directory / "checkpoints").is_dir():
        raise InvalidInput(f"{directory} holds a run of its own: give another --workdir for the results of {file}")


def check_continues(directory: pathlib.Path, config: ConfigDict, mode: str) -> None:
    """Raises InvalidInput if `directory` holds a run that `config` would alter; an evaluation may change the attack."""
    old = weights.read_config(directory)
    if old is None or (mode == "train" and not checkpoint.has_begun(directory) and not weights.is_converted(old)):
        return
    if not weights.is_converted(old):
        configs.check_same(old, config, str(directory), free=("attack.", "eval.") if mode == "evaluate" else ())
    elif mode == "train":
        other = f"to train from them, give --config.init_from={directory} and another --workdir"
        raise InvalidInput(f"{directory} holds converted weights: {other}")


def check_split(config: ConfigDict, source: str = "") -> None:
    """Raises InvalidInput if the run of config.init_from was trained on images that `config` validates on.

    Validation accuracy would be biased upwards. At equal split_seed a smaller validation set is part of a larger one.
    `source`: the run that converted weights come from.
    """
    source = source or config.init_from
    old = weights.read_config(pathlib.Path(source)) if source else None
    if old is not None and weights.is_converted(old) and old["init_from"]:
        return check_split(config, old["init_from"])
    if old is None or weights.is_converted(old):
        return None
    if old["data"]["name"] != config.data.name:
        return check_split(config, old["init_from"]) if old["init_from"] else None
    seed, size = old["data"]["split_seed"], old["data"]["validation_size"]
    start = f"config.init_from = {config.init_from!r} was trained on images that this run would validate on:"
    if config.data.split_seed != seed:
        raise InvalidInput(f"{start} give config.data.split_seed={seed}, as it had, not {config.data.split_seed}")
    if config.data.validation_size > size:
        raise InvalidInput(
            f"{start} give config.data.validation_size={size} or less, as it had, not {config.data.validation_size}"
        )


def check_size(config: ConfigDict) -> None:
    """Raises InvalidInput if the model cannot be built, or if its parameters alone exceed the memory."""
    module = weights.create(config.model.to_dict(), 10)  # with its normalisation, which may need other channels
    if parts.is_own(config.model.name):
        return  # what images it takes is known with the data
    if config.model.mean or config.model.std:
        module = weights.create(config.model.to_dict() | {"mean": (), "std": ()}, 10)
    count = _count_parameters(module)
    need, have = 4 * COPIES * count, memory.available()
    if have and need > have:
        raise InvalidInput(
            f"config.model: {config.model.name} of width {config.model.width or 'its own'} has {count:.3g} parameters,"
            f" which take {need / 2**30:.3g} GiB in training; a device has {have / 2**30:.3g}: lower config.model.width"
        )


@lru_cache
def _count_parameters(module: nn.Module) -> int:
    images = jnp.zeros((1, 32, 32, 3))  # any shape: the number of channels affects only the first kernel
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))


def check_same_data(
    directory: pathlib.Path, dataset: data.Dataset, extra: data.Split | None = None, *, to_train: bool
) -> None:
    """Raises InvalidInput if the images or labels are others than the run in `directory` has been trained or tested on.

    All processes of a run call this. The first time, it is noted what they are; of a second pool, some of its images.
    """
    test = f"the {len(dataset.test.labels)} test images of {dataset.name}"
    name, used = ("the training images", dataset[:2]) if to_train else (test, dataset.test)
    name += " in their files" * isinstance(dataset.train.images, FileImages)  # whose digests are not those of arrays
    first = to_train and not checkpoint.has_begun(directory)
    check_same(directory, name, used, first=first)
    if to_train and extra is not None:
        some = extra.images[:: max(len(extra.labels) // SAMPLE, 1)]
        check_same(directory, "the images of the second pool", (some, extra.labels), first=first)


def check_same(directory: pathlib.Path, name: str, arrays: PyTree, *, first: bool) -> None:
    """Raises InvalidInput if these arrays are others than data.json notes; notes them the first time."""
    refused, same = InvalidInput(f"{directory}: {name} have changed since it last had them: {RESTORE}"), True
    found = digest(arrays)
    if not processes.all_have(found):
        raise InvalidInput(f"{name} are not the same for all processes: give each of them the same files")
    if processes.is_writer():
        try:
            noted = files.read_json(directory / DATA) or {}
            same = first or noted.get(name, found) == found
        except InvalidInput as error:
            same, refused = False, error
        if same:
            files.write_atomically(directory / DATA, json.dumps(noted | {name: found}, indent=2) + "\n")
    if not processes.agreed(same):
        raise refused


def check_data(config: ConfigDict, dataset: data.Dataset) -> None:
    """Raises InvalidInput for fields that do not fit the data: normalisation, crop padding, number of steps."""
    *_, height, width, channels = dataset.train.images.shape
    normalization = {"mean": 0.5, "std": 0.5} | weights.normalization(config.model.to_dict())
    check_channels(**normalization, channels=channels)
    if config.data.augment == "trivial" and channels not in (1, 3):
        raise InvalidInput(f"config.data.augment = 'trivial' with images of {channels} channels: expected 1 or 3")
    if config.data.crop_padding > min(height, width):
        raise InvalidInput(
            f"config.data.crop_padding = {config.data.crop_padding}: expected at most the images' side,"
            f" {min(height, width)}: a crop could miss the image entirely"
        )
    steps = len(dataset.train.labels) // config.batch_size
    if max(config.num_epochs, *config.optimizer.milestones, 0) * steps > MAX_COUNT:
        raise InvalidInput(
            f"config.num_epochs, optimizer.milestones: expected at most {MAX_COUNT // steps} epochs"
            f" of {steps} steps each"
        )
