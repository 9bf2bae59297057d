"""How far the perturbations of other attacks lie from PGD's: Table 2 of the paper."""

import re
from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from infofeat_jax import threat
from infofeat_jax.data import Split
from infofeat_jax.evaluation import accuracy
from infofeat_jax.experiment import Run
from infofeat_jax.runtime import devices


def to_pgd(run: Run, name: str, variables, key, split: Split) -> Float[np.ndarray, " n"]:
    """Euclidean distance, in [0, 1] pixel units, between the perturbations of the iterated attack `name` and of PGD.

    Both take the same number and size of steps from the same random start within the box. The paper's Table 2
    does not state its normalisation; this is the plain norm over all pixels and channels of an example.
    """
    budget = accuracy.budget(run.config)
    attack = partial(accuracy.create_attack(name, **budget), clip_start=True)
    pgd = accuracy.create_attack("pgd" + re.search(r"\d+$", name)[0], **budget)

    def one_batch(variables, key, batch):
        images, labels = batch[0].astype(jnp.float32) / 255, batch[1]
        forward = partial(run.module.apply, variables)
        return threat.size("l2", attack(forward, key, images, labels) - pgd(forward, key, images, labels))

    one_batch = devices.parallelize_batch(one_batch, run.mesh)
    parts = accuracy.correct(one_batch, run.mesh, variables, key, split, run.config.eval.batch_size)
    return np.concatenate(list(parts))
