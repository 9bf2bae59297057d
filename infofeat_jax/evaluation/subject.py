"""What is evaluated: any model, the test images, the threat model, and where results are stored."""

import hashlib
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import PyTree

from infofeat_jax.attacks.inputs import Randomised
from infofeat_jax.data import Split
from infofeat_jax.data.files import FileImages
from infofeat_jax.evaluation.attack_names import Budget

SAVE_EVERY = 30.0  # seconds between two times that an unfinished attack is stored
# (text, fraction done in [0, 1]): reports the progress of one measurement; with `batch_size`, that memory ran out; with
# `seconds_before`, what an interrupted measurement took that is resumed.
Tell = Callable[..., None]


class Source(NamedTuple):
    """The source model of a transfer attack."""

    forward: Partial
    digest: str  # of the weights


class Subject(NamedTuple):
    """A model and how it is evaluated, as plain values.

    A run gives `Partial(module.apply, variables)`; a function that closes over its weights is a Partial without leaves.
    """

    # A frozen model, images [b, h, w, c] in [0, 1] (Randomised: and a key) -> Outputs or logits; leaves are weights.
    forward: Partial | Randomised
    split: Split  # the test images that are evaluated, uint8 in 0..255 or float32 in [0, 1]
    num_classes: int
    mesh: Mesh
    budget: Budget
    workdir: pathlib.Path
    setting: str  # all that outcomes depend on but the attack: outcomes of one setting are comparable
    source: Callable[[str], Source]  # loads the RUN in pgd10@RUN
    seed: int = 0
    batch_size: int = 250
    autoattack_examples: int = 0  # the first n images for AutoAttack and its stages; 0: all
    probe_examples: int = 32  # the first n images for the flags; 0: none
    cam_images: int = 8  # the first n images, whose class activation maps are saved
    class_names: tuple[str, ...] = ()  # for display; () if the data have none
    suffix: str = ""  # of file names, where one run's directory holds the results of two checkpoints
    keep_adversarial: bool = False  # every attack's images are stored in a file of its own, as AutoAttack's are

    def file(self, name: str) -> pathlib.Path:
        """The file of `name`: autoattack.npz, outcomes_latest.npz."""
        return self.workdir / f"{name}{self.suffix}.npz"


def digest(tree: PyTree) -> str:
    """A digest that identifies weights, or other arrays; images in files by the names and sizes of the files."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", np.dtype("O")), jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.array(leaf.identity()) if isinstance(leaf, FileImages) else np.ascontiguousarray(leaf)
        found.update(array.reshape(-1).view(np.uint8))  # no copy of large data
    return found.hexdigest()
