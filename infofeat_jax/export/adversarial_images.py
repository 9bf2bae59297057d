"""The adversarial images that AutoAttack found for a run, in the form in which RobustBench takes them.

That is a tensor [n, 3, 32, 32] in [0, 1] in the order of the test split's official file, which prepared TFDS data do
not keep. The official images also tell whether the perturbations are within the threat model.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8
from ml_collections import ConfigDict

from infofeat_jax import config as configs
from infofeat_jax import experiment as experiments
from infofeat_jax import installation, threat
from infofeat_jax.attacks.autoattack import ROBUST
from infofeat_jax.data import to_unit
from infofeat_jax.evaluation import attack_names
from infofeat_jax.types import InvalidInput

Pixels = UInt8[np.ndarray, "n h w c"]
LABEL_BYTES = {"cifar10": 1, "cifar100": 2}  # before each image in the official binary files
SHAPE = (32, 32, 3)
ROUNDING = 1e-6  # by which a distance in float32 may exceed epsilon


class Found(NamedTuple):
    """The images that an attack returned, in the order of the run's data: where `robust`, it found none."""

    images: Float[np.ndarray, "n h w c"]
    robust: Bool[np.ndarray, " n"]


def read(run: pathlib.Path, results: Mapping[str, Any], attack: str = "autoattack") -> Found:
    """The images of `attack`, AutoAttack or one of its stages, that belong to `results`. Raises InvalidInput."""
    spec = attack_names.parse(attack)
    if not spec.is_cascade:
        raise InvalidInput(f"attack {attack!r}: only AutoAttack and its stages keep their images")
    latest = results["config"]["eval"]["checkpoint"] == "latest"
    suffix = "_latest" if latest else ""
    path = run / f"{spec.file_name}{suffix}.npz"
    again = f"evaluate it, with main.py --mode=evaluate --config.eval.attacks=\"('clean','{spec.name}')\""
    saved, outcomes = (_read(file, again) for file in (path, run / f"outcomes{suffix}.npz"))
    try:
        setting = json.loads(str(saved["setting"]))[0]
        images, robust = saved["adversarial"], saved["broken_by"] == ROBUST
        same = setting == str(outcomes["setting"]) and np.array_equal(outcomes[spec.name], robust)
    except (KeyError, ValueError, TypeError, IndexError):
        raise InvalidInput(f"{path}: damaged, or of another version: remove it, and {again}") from None
    if not same or results.get(spec.name) != float(robust.mean()):
        raise InvalidInput(f"{path}: not the images of this results.json: {again}")
    if images.shape[1:] != SHAPE or images.dtype != np.float32 or not ((images >= 0) & (images <= 1)).all():
        raise InvalidInput(f"{path}: images of shape {images.shape[1:]}: expected {SHAPE}, float32, within [0, 1]")
    return Found(images, robust)


def _read(path: pathlib.Path, again: str) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        raise InvalidInput(f"{path}: no such file: {again}") from None
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for damaged files
        raise InvalidInput(f"{path}: damaged ({type(error).__name__}): remove it, and {again}") from None


def read_official(path: pathlib.Path, dataset: str, count: int) -> Pixels:
    """The test images in their official order: of test_batch.bin or test.bin, or of an .npz with `image_test`.

    Raises InvalidInput unless it has `count` images.
    """
    if not path.is_file():
        raise InvalidInput(f"{path}: no such file: expected the test split as published, test_batch.bin, or an .npz")
    if path.suffix == ".npz":
        images = _read(path, "give another file").get("image_test", np.zeros(0))
    else:
        content, size = np.fromfile(path, np.uint8), LABEL_BYTES[dataset] + 3072
        whole = content if len(content) == count * size else np.zeros((0, size), np.uint8)
        images = whole.reshape(-1, size)[:, -3072:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    if images.shape != (count, *SHAPE) or images.dtype != np.uint8:
        raise InvalidInput(f"{path}: expected {dataset}'s {count} test images, uint8 {SHAPE}")
    return images


def official_order(run_images: Pixels, official: Pixels, where: object) -> np.ndarray:
    """For each official image, its index among the run's. Raises InvalidInput unless they are the same images."""
    places: dict[bytes, list[int]] = {}
    for index, image in enumerate(run_images):
        places.setdefault(image.tobytes(), []).append(index)
    rows = [found.pop(0) if (found := places.get(image.tobytes())) else -1 for image in official]
    if (missing := rows.count(-1)) or len(rows) != len(run_images):
        raise InvalidInput(f"{where}: {missing} of its {len(rows)} images are not in the data that was evaluated")
    return np.asarray(rows)


def check_within(found: Float[np.ndarray, "n h w c"], official: Pixels, norm: str, epsilon: float) -> float:
    """The largest distance from the official images. Raises InvalidInput if it exceeds epsilon."""
    chunks = (slice(start, start + 1000) for start in range(0, len(found), 1000))
    distances = (threat.size(norm, jnp.asarray(found[rows] - to_unit(official[rows]))) for rows in chunks)
    furthest = max(float(chunk.max()) for chunk in distances)
    if not furthest <= epsilon + ROUNDING * max(1.0, epsilon):
        raise InvalidInput(f"{norm} distance {furthest:.6g} of an adversarial image: expected at most {epsilon:.6g}")
    return furthest


def collect(
    run: pathlib.Path, results: Mapping[str, Any], official_path: pathlib.Path, dataset: str, attack: str = "autoattack"
) -> Found:
    """The run's adversarial images in the official order, within the threat model. Raises InvalidInput."""
    found = read(run, results, attack)
    official = read_official(official_path, dataset, len(found.robust))
    config = ConfigDict(configs.complete(results["config"]))
    rows = official_order(experiments.load_data(config).test.images, official, official_path)
    ordered = Found(found.images[rows], found.robust[rows])
    check_within(ordered.images, official, config.attack.norm, config.attack.epsilon / configs.LEVELS)
    return ordered


def write(path: pathlib.Path, images: Float[np.ndarray, "n h w c"]) -> None:
    """Writes the tensor [n, c, h, w], as `torch.load(path, weights_only=True)` reads it. Raises InvalidInput."""
    try:
        import torch
    except ImportError as error:
        raise InvalidInput(f"{path} needs torch ({error}): {installation.command('torch')}") from None
    part = path.with_name(f".partial{path.suffix}")
    try:
        torch.save(torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1))), part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
