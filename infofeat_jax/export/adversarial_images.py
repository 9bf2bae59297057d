"""The adversarial images that AutoAttack found, in the form in which RobustBench takes them.

That is a tensor [n, 3, 32, 32] in [0, 1] in the order of the test split's official file, which prepared TFDS data do
not keep. Which image belongs to which is told by the distance: it is within the threat model. So the data that were
evaluated are not needed, and a directory of `infofeat_jax.evaluate` does as well as a run's.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.sparse import csgraph, csr_array

from infofeat_jax import installation
from infofeat_jax.attacks.autoattack import ROBUST
from infofeat_jax.data.pixels import to_unit
from infofeat_jax.evaluation import attack_names
from infofeat_jax.export import command
from infofeat_jax.types import LEVELS, InvalidInput

Pixels = UInt8[np.ndarray, "n h w c"]
LABEL_BYTES = {"cifar10": 1, "cifar100": 2}  # before each image in the official binary files
SHAPE = (32, 32, 3)
ROUNDING = 1e-6  # by which a distance in float32 may exceed epsilon
CANCELLED = 1e-6  # rounding of a squared distance, per pixel
CHUNK = 500  # images at a time
ORDERS = {"linf": np.inf, "l2": 2}  # of the leaderboards' norms, as NumPy has them


class Found(NamedTuple):
    """The images that an attack returned, in the order of the run's data: where `robust`, it found none."""

    images: Float[np.ndarray, "n h w c"]
    robust: Bool[np.ndarray, " n"]


def read(run: pathlib.Path, results: Mapping[str, Any], attack: str = "autoattack") -> Found:
    """The images of `attack`, AutoAttack or one of its stages, that belong to `results`. Raises InvalidInput."""
    spec = attack_names.parse(attack)
    if not spec.is_cascade:
        raise InvalidInput(f"attack {attack!r}: only AutoAttack and its stages keep their images")
    suffix = "_latest" if results["config"]["eval"].get("checkpoint") == "latest" else ""
    path = run / f"{spec.file_name}{suffix}.npz"
    again = f"evaluate it, with {how_to_evaluate(results, spec.name)}"
    if not path.exists() and (run / f"{spec.file_name}.npz").exists():  # best and latest may be one
        path, suffix = run / f"{spec.file_name}.npz", ""
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


def how_to_evaluate(results: Mapping[str, Any], attack: str) -> str:
    """The command, or the call, that measures clean accuracy and `attack` where these results are."""
    if "given" in results:
        return f"infofeat_jax.evaluate(..., attacks=('clean', '{attack}'), directory=...)"
    every = " --config.eval.autoattack_examples=0" if attack_names.parse(attack).is_cascade else ""
    return f"main.py --mode=evaluate --config.eval.attacks=\"('clean','{attack}')\"{every}"


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


def official_order(
    found: Float[np.ndarray, "n h w c"], official: Pixels, norm: str, epsilon: float, where: object
) -> np.ndarray:
    """For each official image, the index of the one found within epsilon of it; on the whole the nearest ones.

    Raises InvalidInput unless each has one of its own.
    """
    flat, unit = (array.reshape(len(array), -1) for array in (found, to_unit(official)))
    bound, pairs = epsilon + ROUNDING * max(1.0, epsilon), []
    reach = bound * (math.sqrt(flat.shape[1]) if norm == "linf" else 1.0)  # in l2, which takes one matrix product
    limit, squares = reach**2 + CANCELLED * flat.shape[1], (flat**2).sum(1)
    for start in range(0, len(unit), CHUNK):
        rows = unit[start : start + CHUNK]
        squared = (rows**2).sum(1)[:, None] + squares - 2 * rows @ flat.T
        for row, close in enumerate(squared <= limit, start):
            near = np.flatnonzero(close)
            sizes = np.linalg.norm(flat[near] - unit[row], ORDERS[norm], axis=1)
            pairs += [(1 + size, row, column) for size, column in zip(sizes, near, strict=True) if size <= bound]
    weights, rows, columns = np.array(pairs).reshape(-1, 3).T  # of at least 1, as 0 is no edge
    edges = csr_array((weights, (rows.astype(np.int32), columns.astype(np.int32))), (len(unit), len(flat)))
    if missing := int((csgraph.maximum_bipartite_matching(edges, perm_type="column") < 0).sum()):
        raise InvalidInput(
            f"{where}: {missing} of its {len(unit)} images have no adversarial image of their own within {norm} epsilon"
            f" {epsilon:.6g}: other images were evaluated, or with another budget"
        )
    return csgraph.min_weight_full_bipartite_matching(edges)[1]


def collect(
    run: pathlib.Path, results: Mapping[str, Any], official_path: pathlib.Path, dataset: str, attack: str = "autoattack"
) -> Found:
    """The adversarial images in the official order, within the threat model. Raises InvalidInput."""
    found = read(run, results, attack)
    official = read_official(official_path, dataset, len(found.robust))
    budget = results["config"]["attack"]
    rows = official_order(found.images, official, budget["norm"], budget["epsilon"] / LEVELS, official_path)
    return Found(found.images[rows], found.robust[rows])


def write(path: pathlib.Path, images: Float[np.ndarray, "n h w c"]) -> None:
    """Writes the tensor [n, c, h, w], as `torch.load(path, weights_only=True)` reads it. Raises InvalidInput."""
    try:
        import torch
    except ImportError as error:
        raise InvalidInput(f"{path} needs torch ({error}): {installation.command('torch')}") from None
    tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))
    command.whole(path, lambda part: torch.save(tensor, part))
