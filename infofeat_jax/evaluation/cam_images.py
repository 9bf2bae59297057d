"""A few test images before and after the attack, with their class activation maps, for the report to draw."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from infofeat_jax import attacks
from infofeat_jax.data import Split
from infofeat_jax.evaluation import accuracy
from infofeat_jax.experiment import Run

STEPS = 20


def take(run: Run, variables, key, split: Split) -> dict[str, np.ndarray]:
    """Arrays of the first images of `split` that the report needs.

    images, perturbed [n, h, w, c] in [0, 1]; cam_clean, cam_perturbed [n, h', w'], the map of the label;
    labels, predicted_clean, predicted_perturbed [n]; attack and epsilon (in [0, 1] pixel units).
    """
    budget = accuracy.budget(run.config)
    count = min(run.config.eval.pictures, len(split.labels))
    images, labels = jnp.asarray(split.images[:count] / 255, jnp.float32), jnp.asarray(split.labels[:count])
    attack = partial(attacks.infofeature, **budget, num_steps=STEPS)

    @jax.jit
    def attacked(variables, key, images, labels):
        forward = partial(run.module.apply, variables)
        perturbed = attack(forward, key, images, labels)
        return perturbed, forward(images), forward(perturbed)

    perturbed, before, after = attacked(jax.tree.map(np.asarray, variables), key, images, labels)
    label_map = jnp.arange(count), ..., labels
    arrays = {
        "images": images, "perturbed": perturbed, "labels": labels,
        "cam_clean": before.cam[label_map], "cam_perturbed": after.cam[label_map],
        "predicted_clean": before.logits.argmax(-1), "predicted_perturbed": after.logits.argmax(-1),
    }  # fmt: skip
    named = {"attack": f"infofeature{STEPS}", "epsilon": budget["epsilon"]}
    return {name: np.asarray(value) for name, value in (arrays | named).items()}
