"""Existing weights, to evaluate, to start training from or to convert: PyTorch files and runs' directories."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from ml_collections import ConfigDict

from infofeat_jax import config as configs
from infofeat_jax import config_checks, models, parts
from infofeat_jax.models import Normalization
from infofeat_jax.runtime import files
from infofeat_jax.training import checkpoint
from infofeat_jax.training.state import evaluated
from infofeat_jax.types import InvalidInput

Variables = Mapping[str, PyTree]  # params and batch_stats
# Fields of every module, or with a field of their own in config.model.
NOT_OPTIONS = ("num_classes", "width", "activation", "mean", "std", "dtype", "remat", "parent", "name")


def load(
    path: str | pathlib.Path,
    arch: str | None = None,
    *,
    mean: Normalization | None = None,
    std: Normalization | None = None,
    activation: str | None = None,
    key: str | None = None,
    which: str = "best",
    images: tuple[tuple[int, ...], int] | None = None,
) -> tuple[nn.Module, Variables]:
    """(module, variables) from a file of weights, as read by `models.from_torch`, or from a run's directory.

    `key` tells which network of a file; `which` checkpoint of a run: "best" or "latest". A run's module computes in the
    run's dtype, a file's in float32.
    `images`, (shape [h, w, c], number of classes), is needed for a run's model of one's own. Raises InvalidInput.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        return models.from_torch(path, arch, mean=mean, std=std, activation=activation, key=key)
    if any(value is not None for value in (arch, mean, std, activation, key)):
        raise InvalidInput(f"{path}: a run's config.json determines its architecture, activation and normalisation")
    config = read_config(path)
    if config is None:
        raise InvalidInput(f"{path}: no config.json: expected a run's directory")
    variables = read_variables(path, which)
    if parts.is_own(name := config["model"]["name"]):
        if images is None:
            raise InvalidInput(f"{path}: its model {name!r} is not of this package: it is used in runs of it alone")
        module = create(config["model"], images[1], dtype=config["dtype"])
        check_shapes(str(path), module, variables, images[0])
        return module, variables
    channels, classes = sizes(variables)
    module = create(config["model"], classes, dtype=config["dtype"])
    template = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, channels)))
    if jax.tree.map(jnp.shape, template) != jax.tree.map(jnp.shape, variables):
        raise InvalidInput(f"{path}: the checkpoint does not hold the {config['model']['name']} of its config.json")
    return module, variables


def read_variables(directory: pathlib.Path, which: str) -> Variables:
    """The weights in a run's checkpoint, whatever its model is. Raises InvalidInput."""
    state = checkpoint.read(directory, which)
    average, of_average = (state.get(name) or () for name in ("average", "average_stats"))
    return evaluated(state["params"], state.get("batch_stats") or {}, average, of_average)


def check_shapes(path: str, module: nn.Module, variables: Variables, image_shape: tuple[int, ...]) -> None:
    """Raises InvalidInput unless the weights are those of `module` for images of `image_shape`."""
    template = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *image_shape)))
    if jax.tree.map(jnp.shape, template) != jax.tree.map(jnp.shape, variables):
        raise InvalidInput(f"{path}: the weights do not fit config.model on images of shape {list(image_shape)}")


def read_config(directory: pathlib.Path) -> dict | None:
    """The contents of config.json in `directory`; None if there is none. Raises InvalidInput."""
    stored = files.read_json(directory / "config.json")
    if stored is None:
        return None
    stored = configs.complete(stored)
    try:
        config_checks.check_types(stored, configs.default(), others=True)
    except InvalidInput as error:
        raise InvalidInput(f"{directory / 'config.json'}: {error}") from None
    return stored


def create(model: Mapping[str, Any], num_classes: int, **execution) -> nn.Module:
    """The module that the fields of config.model describe; `execution`: dtype, remat. Raises InvalidInput."""
    try:
        options = {name: tuple(v) if isinstance(v, list) else v for name, v in model["options"].items()}
        options |= given(model) | execution
        return models.create(model["name"], num_classes=num_classes, width=model["width"], **options)
    except (AttributeError, KeyError, TypeError) as error:
        raise InvalidInput(f"config.model = {dict(model)}: cannot build a model from it ({error})") from error


def normalization(model: Mapping[str, Any]) -> dict[str, Normalization]:
    """mean and std, where the fields of config.model give them."""
    stated = {name: tuple(model[name]) for name in ("mean", "std") if model[name]}
    return {name: values[0] if len(values) == 1 else values for name, values in stated.items()}


def given(model: Mapping[str, Any]) -> dict[str, Any]:
    """What no shape of the weights tells, where the fields of config.model give it: mean, std and activation."""
    activation = {"activation": model["activation"]} if model["activation"] else {}
    return normalization(model) | activation


def describe(module: nn.Module) -> dict[str, Any]:
    """The fields of config.model from which `create` builds `module`; defaults are left unset."""
    names = [f"wrn_{module.depth}_{module.widen_factor}"] if isinstance(module, models.WideResNet) else models.MODELS
    plain = {name: models.create(name, num_classes=module.num_classes) for name in names}
    options = {
        name: {
            field.name: getattr(module, field.name)
            for field in dataclasses.fields(module)
            if field.name not in NOT_OPTIONS and getattr(module, field.name) != getattr(other, field.name)
        }
        for name, other in plain.items()
        if type(other) is type(module)
    }
    name = min(options, key=lambda name: len(options[name]))
    width = module.width if module.width != plain[name].width else 0
    mean, std = (
        () if value == default else value if isinstance(value, tuple) else (value,)
        for value, default in ((module.mean, plain[name].mean), (module.std, plain[name].std))
    )
    activation = module.activation if module.activation != plain[name].activation else ""
    return {
        "name": name, "width": width, "activation": activation, "mean": mean, "std": std, "options": options[name],
    }  # fmt: skip


def sizes(variables: Variables) -> tuple[int, int]:
    """(channels of the images, number of classes)."""
    params = variables["params"]
    head = params["linear" if "linear" in params else "fc"]
    return params["conv1"]["kernel"].shape[2], head["kernel"].shape[1]


# The weights that a configuration names.


def adopt(config: ConfigDict, directory: pathlib.Path) -> ConfigDict:
    """`config` with the model of the weights that it names, or of those that were converted to `directory`.

    A run that has begun keeps its model, whatever happens to the file that it started from, and its held-out images,
    unless data.split_seed is given. Raises InvalidInput.
    """
    source = config.eval.torch_checkpoint or config.init_from
    begun = checkpoint.has_begun(directory) and not config.eval.torch_checkpoint
    stored = read_config(directory) if begun else None
    converted = stored is not None and is_converted(stored)
    adopted = ConfigDict(config.to_dict())
    if stored and not converted and config.data.split_seed == 0:
        adopted.data.split_seed = stored["data"]["split_seed"]
    if converted:
        source = adopted.init_from = stored["init_from"]
    if stored and source and stored.get("init_from") == source:
        model = stored["model"]
    elif source and (given_own := own_model(source)):
        model = given_own
    elif source:
        module = load(source, **given(config.model.to_dict()))[0]
        check_options(source, module, config.model.options.to_dict())
        model = describe(module)
    else:
        return adopted
    if config.eval.torch_checkpoint or converted:
        adopted.num_epochs = 0  # no training of ours: results say so
    if converted:  # what `export.convert` stores, whatever the recipe
        adopted.optimizer.update({"name": "sgd", "momentum": 0.9, "decay_norm": True})
        adopted.ema.decay = adopted.swa.start_epoch = 0.0
    adopted.model = ConfigDict({**model, "mean": tuple(model["mean"]), "std": tuple(model["std"])})
    return adopted


def named(config: ConfigDict, directory: pathlib.Path) -> tuple[str, Variables] | None:
    """(path, variables) of the weights that `config` names; None if it names none, or if the run has checkpoints."""
    path = config.eval.torch_checkpoint or (config.init_from if not checkpoint.finished(directory) else "")
    if not path:
        return None
    if own_model(path):
        return path, read_variables(pathlib.Path(path), "best")
    stated = {} if pathlib.Path(path).is_dir() else given(config.model.to_dict())
    return path, load(path, **stated)[1]


def own_model(path: str) -> dict[str, Any] | None:
    """config.model of the run in `path` if its model is one's own; None for other runs, and files. Imports nothing."""
    stored = read_config(pathlib.Path(path)) if pathlib.Path(path).is_dir() else None
    return stored["model"] if stored and parts.is_own(stored["model"]["name"]) else None


def check_fits(path: str, variables: Variables, image_shape: tuple[int, ...], num_classes: int, data: str) -> None:
    """Raises InvalidInput unless the weights fit the images' channels and the number of classes."""
    channels, classes = sizes(variables)
    if (channels, classes) != (image_shape[-1], num_classes):
        raise InvalidInput(
            f"{path} is for images of {channels} channels in {classes} classes; data {data!r} has"
            f" {image_shape[-1]} channels, {num_classes} classes: give the --config of its data set"
        )


def check_options(path: str, module: nn.Module, options: Mapping[str, Any]) -> None:
    """Raises InvalidInput where config.model.options contradict the module that the weights were read with."""
    for name, value in options.items():
        found = getattr(module, name, None)
        if found != (tuple(value) if isinstance(value, list) else value):
            advice = f"python -m infofeat_jax.export.convert {path} DIRECTORY --arch=..., then give the directory"
            advice = "leave it out" if pathlib.Path(path).is_dir() else f"name what it is when converting it: {advice}"
            raise InvalidInput(f"config.model.options.{name} = {value}: {path} is read with {found}; {advice}")


def is_converted(config: Mapping[str, Any]) -> bool:
    """Whether config.json was written by `infofeat_jax.export.convert`: no training took place."""
    return config.get("num_epochs") == 0
