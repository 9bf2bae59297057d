"""Which examples an attack, named as in config.eval.attacks, leaves correctly classified."""

import re
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import Module
from jax.sharding import Mesh
from ml_collections import ConfigDict

from infofeat_jax import attacks
from infofeat_jax import config as configs
from infofeat_jax.data import Split
from infofeat_jax.data.batches import padded_batches
from infofeat_jax.runtime import devices, signals
from infofeat_jax.types import Attack, InvalidInput

# Attacks whose name is followed by the number of steps ("pgd20"); all take config.eval.step_size.
ITERATED = ("pgd", "cw", "infofeature", "feature_scatter", "adversarial_interpolation")
OneBatch = Callable  # (variables, key, (images uint8, labels)) -> correct [b]


def split_name(name: str) -> tuple[str, str]:
    """("pgd10", "runs/a") of "pgd10@runs/a": the attack, and the run that it is crafted on ("": the attacked one)."""
    attack, _, source = name.partition("@")
    return attack, source


def create_attack(name: str, *, norm: str, epsilon: float, step_size: float) -> Attack | None:
    """The attack behind a name as in config.eval.attacks; None for "clean". Raises InvalidInput.

    `epsilon` and `step_size` in the images' units.
    """
    if name == "clean":
        return None
    if name == "fgsm":
        return partial(attacks.fgsm, epsilon=epsilon, norm=norm)
    if name == "noise":
        return partial(attacks.pgd, epsilon=epsilon, norm=norm, num_steps=0)
    match = re.fullmatch(r"([a-z_]+)([1-9]\d*)", name)
    if match and match[1] in ITERATED:
        attack = attacks.ATTACKS[match[1]]
        return partial(attack, epsilon=epsilon, norm=norm, step_size=step_size, num_steps=int(match[2]))
    choices = ", ".join(["clean", "fgsm", "noise", *(f"{name}N" for name in ITERATED), "autoattack"])
    raise InvalidInput(
        f"unknown attack {name!r} in config.eval: choose of {choices}"
        " (N steps, as pgd20; pgd20@RUN: crafted on another run)"
    )


def budget(config: ConfigDict) -> dict:
    """The threat model of the evaluation in the images' units."""
    return {
        "norm": config.attack.norm,
        "epsilon": config.attack.epsilon / configs.LEVELS,
        "step_size": config.eval.step_size / configs.LEVELS,
    }


def check_attacks(config: ConfigDict) -> None:
    """Raises InvalidInput for unknown attack names, before anything expensive starts."""
    if not config.eval.attacks:
        raise InvalidInput("config.eval.attacks is empty: expected names such as ('clean', 'pgd20')")
    for name in config.eval.attacks:
        if name != "autoattack":
            create_attack(split_name(name)[0], **budget(config))
    create_attack(config.eval.validation_attack, **budget(config))
    for name in config.eval.distances:
        if name.rstrip("0123456789") not in ITERATED:
            raise InvalidInput(f"config.eval.distances: {name!r} is no iterated attack: expected names such as 'cw5'")
        create_attack(name, **budget(config))


def compile_attack(module: Module, attack: Attack | None, mesh: Mesh, source: Module | None = None) -> OneBatch:
    """Compiles attack and classification of one batch; the weights are arguments, so that it serves every epoch.

    With `source` the attack is crafted on that model, and the variables are a pair: `module`'s, `source`'s.
    """

    def one_batch(variables, key, batch):
        images, labels = batch[0].astype(jnp.float32) / 255, batch[1]
        own, other = (variables, variables) if source is None else variables
        if attack is not None:
            images = attack(partial((source or module).apply, other), key, images, labels)
        return module.apply(own, images).logits.argmax(-1) == labels

    return devices.parallelize_batch(one_batch, mesh)


def correct(one_batch: OneBatch, mesh: Mesh, variables, key, split: Split, batch_size: int) -> Iterator[np.ndarray]:
    """Yields the results of `one_batch` (such as which examples stay correct) without those of padding."""
    for index, (images, labels, mask) in enumerate(padded_batches(split, batch_size)):
        signals.check()
        batch = devices.shard(mesh, (images, labels))
        yield np.asarray(one_batch(variables, jax.random.fold_in(key, index), batch))[mask]
