"""Converts trained weights between PyTorch, DeepMind's Haiku files and this package, and for serving.

  python -m infofeat_jax.export.convert robust.pt runs/robust        # a directory for main.py --mode=evaluate
  python -m infofeat_jax.export.convert runs/mine robust.pt          # a state_dict: .pt, .pth, .safetensors, .npz
  python -m infofeat_jax.export.convert runs/mine model.stablehlo    # weights and program in one file (jax.export)

SOURCE is a PyTorch checkpoint, DeepMind's .npy, or a run's directory, of which the best checkpoint is taken. What
TARGET becomes follows from its ending; without one it is a directory.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import logging

from infofeat_jax import cli, models, weights
from infofeat_jax import config as configs
from infofeat_jax.export import command
from infofeat_jax.models.pytorch import deepmind
from infofeat_jax.runtime import files
from infofeat_jax.training import checkpoint, optimizers
from infofeat_jax.training.state import State
from infofeat_jax.types import InvalidInput

TORCH_FILES = (".pt", ".pth", ".safetensors", ".npz")
PROGRAM = ".stablehlo"
SIDE = 32  # of a program's images, unless --image_size says
NAMES = {"relu": "ReLU", "silu": "SiLU"}  # of activations, in messages


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command. Raises InvalidInput."""
    logging.set_verbosity(logging.ERROR)  # orbax logs a lot
    options = parse(arguments)
    source, target = options.source, options.target
    if target.suffix not in ("", *TORCH_FILES, PROGRAM):
        raise InvalidInput(f"{target}: expected a directory, or a file ending in {', '.join((*TORCH_FILES, PROGRAM))}")
    if not target.suffix and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidInput(f"{target} exists already: give another name")
    check_used(options)
    module, variables = weights.load(
        source, options.arch, mean=options.mean, std=options.std, activation=options.activation,
        key=options.key, which=options.checkpoint or "best",
    )  # fmt: skip
    channels, classes = weights.sizes(variables)
    model = weights.describe(module)
    print(
        f"{source}: {model['name']} of width {module.width} with {NAMES[module.activation]}, {classes} classes,"
        f" images of {channels} channels"
    )
    print(f"  in [0, 1], normalised by mean {module.mean} and std {module.std}")
    if target.suffix in TORCH_FILES:
        write_torch(target, module, variables, bare=options.bare)
    elif target.suffix == PROGRAM:
        shape = (SIDE if options.image_size is None else options.image_size,) * 2 + (channels,)
        count = options.batch or "symbolic"
        command.whole(target, lambda path: models.export(module, variables, path, shape, count))
        print(f"{target}: {'any number' if count == 'symbolic' else count} of images {shape} -> logits")
    else:
        write_run(target, model, variables, str(source))
        print(f"{target}: infofeat-jax --config=CONFIG_OF_ITS_DATA --mode=evaluate --workdir={target}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, as the module's documentation explains it. Raises InvalidInput."""
    parser = command.parser("convert", __doc__)
    add = parser.add_argument
    add("source", type=pathlib.Path, metavar="SOURCE", help="a PyTorch checkpoint, or a run's directory")
    add("target", type=pathlib.Path, metavar="TARGET", help="a file or a new directory")
    add("--arch", help="the expected architecture, such as resnet18: see models.from_torch")
    add(
        "--mean", type=numbers, help="of its normalisation of [0, 1] pixels, such as 0.49,0.48,0.45; by default its own"
    )
    add("--std", type=numbers, help="likewise")
    add("--activation", choices=list(NAMES), help="of a file's network: silu for DeepMind's, relu for others")
    add("--key", help="which network, of a file that holds several: last, ema.net ...")
    add("--checkpoint", choices=["best", "latest"], help="which checkpoint of a run (best)")
    add("--bare", action="store_true", help="leave out mu and sigma, the buffers with the normalisation")
    add("--image_size", type=positive, metavar="N", help=f"height and width that a {PROGRAM} takes ({SIDE})")
    add("--batch", type=batch, metavar="N", help=f"images per call of a {PROGRAM} (any number)")
    return parser.parse_args(arguments)


def numbers(text: str) -> float | tuple[float, ...]:
    """ "0.5" or "0.49,0.48,0.45"."""
    try:
        values = tuple(map(float, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number, or several as 0.49,0.48,0.45") from None
    return values[0] if len(values) == 1 else values


def positive(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 1 or more")
    return int(text)


def batch(text: str) -> str | int:
    """A whole number from 1 on, or "symbolic"."""
    return text if text == "symbolic" else positive(text)


def check_used(options: argparse.Namespace) -> None:
    """Raises InvalidInput for an option that SOURCE or TARGET has no use for."""
    program = options.target.suffix == PROGRAM, f"expected a TARGET ending in {PROGRAM}"
    uses = {
        "checkpoint": (options.source.is_dir() or not options.source.exists(), "expected a run's directory as SOURCE"),
        "bare": (options.target.suffix in TORCH_FILES, f"expected a TARGET ending in {', '.join(TORCH_FILES)}"),
        "image_size": program,
        "batch": program,
    }
    for name, (used, expected) in uses.items():
        if getattr(options, name) and not used:
            raise InvalidInput(f"--{name} has no effect here: {expected}")


def write_torch(path: pathlib.Path, module, variables: weights.Variables, *, bare: bool) -> None:
    """Writes a state_dict, with its normalisation as buffers unless there is none or `bare`."""
    of_deepmind = deepmind.is_of_deepmind(module)  # which without buffers stands for its data set's normalisation
    normalises = (module.mean, module.std) not in ((0.0, 1.0), ((0.0,), (1.0,)))
    buffers = not bare and (normalises or of_deepmind)
    normal = {"mean": module.mean, "std": module.std} if buffers else {}
    command.whole(path, lambda part: models.save_torch(part, variables, deepmind_keys=of_deepmind, **normal))
    owner, names = ("DeepMind's", "mean and std") if of_deepmind else ("the public", "mu and sigma")
    if buffers:
        print(f"{path}: a state_dict with the buffers {names}, as RobustBench's classes have; without: --bare")
    else:
        print(f"{path}: a state_dict that {owner} class loads with strict=True")
    if module.activation != ("silu" if of_deepmind else "relu"):
        print(f"  it does not tell the activation: whoever reads it gives {NAMES[module.activation]}")
    read_back = models.from_torch(models.to_torch(variables, deepmind_keys=of_deepmind), mean=0.0, std=1.0)[0]
    if (kind := getattr(module, "activated_shortcut", None)) != getattr(read_back, "activated_shortcut", None):
        arch = f"preact_resnet{2 * sum(module.blocks) + 2}_{'activated' if kind else 'raw'}_shortcut"
        print(f"  it does not tell what its shortcuts convolve: whoever reads it here gives --arch={arch}")


def write_run(directory: pathlib.Path, model: dict, variables: weights.Variables, source: str) -> None:
    """Writes a run's directory that can be evaluated: a configuration with the model, and one checkpoint, of step 0."""
    config = configs.default()
    optimizer = optimizers.sgd(lambda _: 0.0)
    params, batch_stats = variables["params"], variables["batch_stats"]
    state = State(jnp.zeros((), jnp.int32), params, batch_stats, jax.jit(optimizer.init)(params))
    with checkpoint.opened(directory) as checkpoints:
        checkpoint.save(checkpoints, checkpoint.Snapshot(0, state, 0.0))
    values = config.to_dict() | {"model": model, "init_from": source, "num_epochs": 0}
    files.write_atomically(directory / "config.json", json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    with cli.one_line_errors():
        main()
