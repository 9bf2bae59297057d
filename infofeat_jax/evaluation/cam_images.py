"""A few test images before and after the attack, with their class activation maps, for the report to draw."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from infofeat_jax import attacks, streams
from infofeat_jax.attacks.inputs import as_forward
from infofeat_jax.data import to_unit
from infofeat_jax.evaluation.subject import Subject
from infofeat_jax.runtime import devices, files, processes

STEPS = 20


def keep(subject: Subject) -> int:
    """Writes cam_images.npz unless it already holds this setting's images; returns how many there are.

    None if the model returns no class activation maps.
    """
    if not subject.cam_images or not _returns_maps(subject):
        return 0
    path = subject.workdir / "cam_images.npz"  # one file for the report, whichever checkpoint
    count = min(subject.cam_images, len(subject.split.labels))
    stored = files.read_arrays(path, subject.setting) or {}
    whole = "class_names" in stored and len(stored.get("images", ())) == count  # files of earlier versions lack names
    if processes.is_writer() and not whole:
        files.write_arrays_atomically(path, create(subject) | {"setting": subject.setting})
    return count


def _returns_maps(subject: Subject) -> bool:
    image = jax.ShapeDtypeStruct((1, *subject.split.images.shape[1:]), jnp.float32)
    return jax.eval_shape(as_forward(subject.forward), image).cam is not None


def create(subject: Subject) -> dict[str, np.ndarray]:
    """The arrays that the report needs, for the first `cam_images` test images.

    images, perturbed [n, h, w, c] in [0, 1]; cam_clean, cam_perturbed [n, h', w'], the map of the label;
    labels, predicted_clean, predicted_perturbed [n]; attack and epsilon (in [0, 1] pixel units); class_names [k], or
    [0] if the data have none.
    """
    count = min(subject.cam_images, len(subject.split.labels))
    images, labels = to_unit(jnp.asarray(subject.split.images[:count])), jnp.asarray(subject.split.labels[:count])
    attack = partial(attacks.infofeature, **subject.budget._asdict(), num_steps=STEPS)

    @jax.jit
    def attacked(forward, key, images, labels):
        perturbed = attack(forward, key, images, labels)
        return perturbed, forward(images), forward(perturbed)

    forward = devices.local(subject.forward)
    perturbed, before, after = attacked(forward, streams.key(subject.seed, "cam_images"), images, labels)
    label_map = jnp.arange(count), ..., labels
    arrays = {
        "images": images, "perturbed": perturbed, "labels": labels,
        "cam_clean": before.cam[label_map], "cam_perturbed": after.cam[label_map],
        "predicted_clean": before.logits.argmax(-1), "predicted_perturbed": after.logits.argmax(-1),
    }  # fmt: skip
    named = {"attack": f"infofeature{STEPS}", "epsilon": subject.budget.epsilon}
    named["class_names"] = np.array(subject.class_names, np.str_)
    return {name: np.asarray(value) for name, value in (arrays | named).items()}
