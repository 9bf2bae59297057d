"""Lines about settings that are allowed, but rarely meant."""

import numpy as np
from ml_collections import ConfigDict

from infofeat_jax.data import Dataset

FEWEST = 5  # times as many training images as are held out for validation, or a line says so
FEW_OF_EACH = 10  # images of a class among the first ones make it likely that all classes are among them


def show(config: ConfigDict, dataset: Dataset, *, to_train: bool) -> None:
    """Prints a line for each thing that is allowed, but rarely meant."""
    of_training = (held_out(config, dataset), schedule(config)) if to_train else ()
    for note in filter(None, (*of_training, budget(config), order(config, dataset))):
        print(f"note: {note}")


def budget(config: ConfigDict) -> str:
    """A line for an epsilon that looks like one of images in [0, 1]; "" for others."""
    epsilon = config.attack.epsilon
    if not 0 < epsilon < 1:
        return ""
    return f"config.attack.epsilon = {epsilon:g} is in 8-bit levels, {epsilon:g}/255: 8 is 8/255, 128 in l2 is 0.5"


def order(config: ConfigDict, dataset: Dataset) -> str:
    """A line if the first test images, which evaluations may be limited to, lack classes of the others; "" if not."""
    labels, options = dataset.test.labels, config.eval
    limits = [limit for limit in (options.num_examples, options.autoattack_examples) if 0 < limit < len(labels)]
    if not limits:
        return ""
    seen, there = len(np.unique(labels[: min(limits)])), len(np.unique(labels))
    if seen == there or min(limits) < FEW_OF_EACH * there:
        return ""
    return (
        f"the first {min(limits)} test images, of which evaluations are, hold {seen} of {there} classes: shuffle the"
        " test images, or set config.eval.num_examples and config.eval.autoattack_examples to 0"
    )


def held_out(config: ConfigDict, dataset: Dataset) -> str:
    """A line if the validation images leave few to train on, as a default made for larger data does; "" if not."""
    train, held_out = len(dataset.train.labels), len(dataset.validation.labels)
    if config.data.train_size or held_out * FEWEST <= train + held_out:
        return ""
    fitting = max((train + held_out) // FEWEST, 1)
    return (
        f"{held_out} of {train + held_out} training images are held out for validation, which leaves {train}:"
        f" --config.data.validation_size={fitting} would leave {train + held_out - fitting}"
    )


def schedule(config: ConfigDict) -> str:
    """A line if the learning rate, piecewise constant, would not fall within the training; "" if it does."""
    options, epochs = config.optimizer, config.num_epochs
    if options.schedule != "piecewise" or not options.milestones or min(options.milestones) < epochs:
        return ""
    return (
        f"the learning rate stays {options.learning_rate:g}: config.optimizer.milestones = {tuple(options.milestones)}"
        f' lie beyond {epochs} epochs; --config.optimizer.milestones="({epochs / 2:g},{epochs * 3 / 4:g})" would be'
        " half and three quarters"
    )
