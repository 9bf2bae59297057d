"""Writes what an entry in RobustBench's leaderboard needs: its JSON, and the state_dict.

  python -m infofeat_jax.export.robustbench runs/cifar10_wrn/infofeature entry --name=Yan2026Improving \\
      --title="Improving ..." --authors="First Author, Second Author" --venue="arXiv" --link=https://arxiv.org/abs/...

The accuracies come from the run's results.json: clean accuracy and AutoAttack on all test images, in the threat
model of a leaderboard. Into the directory entry go NAME.pt and model_info/DATASET/THREAT/NAME.json; with
--official=cifar-10-batches-bin/test_batch.bin also NAME_THREAT_adversarial.pt, the images that AutoAttack found, a
tensor [10000, 3, 32, 32] in that file's order. Of a directory of `infofeat_jax.evaluate` it needs --dataset, and with
--weights the run whose weights were evaluated, as by infofeat_jax.evaluate(infofeat_jax.load(RUN), ...).
"""

import argparse
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
from absl import logging

from infofeat_jax import cli, models, weights
from infofeat_jax.evaluation.subject import digest
from infofeat_jax.export import adversarial_images, command
from infofeat_jax.models.pytorch.deepmind import is_of_deepmind
from infofeat_jax.report.runs import read_json
from infofeat_jax.runtime import files
from infofeat_jax.training import checkpoint
from infofeat_jax.types import InvalidInput

EVALUATE = "evaluate it, with main.py --mode=evaluate"
EXAMPLES = 10_000  # of the test split; AutoAttack on all of them
# (data set, norm): (name of the threat model, epsilon in 8-bit levels, as RobustBench writes it)
LEADERBOARDS = {
    ("cifar10", "linf"): ("Linf", 8.0, "8/255"),
    ("cifar10", "l2"): ("L2", 127.5, "0.5"),
    ("cifar100", "linf"): ("Linf", 8.0, "8/255"),
}
OFFICIAL = "the test split as published: test_batch.bin of CIFAR-10, test.bin of CIFAR-100, or an .npz with image_test"
FAMILIES = {models.ResNet: "ResNet", models.PreActResNet: "PreActResNet"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command. Raises InvalidInput."""
    logging.set_verbosity(logging.ERROR)  # orbax logs a lot
    options = parse(arguments)
    command.check_directory(options.target)
    results = read_results(options.run)
    dataset = options.dataset or results["config"]["data"]["name"]
    threat = check_results(results, dataset)[0]
    module, variables = evaluated_weights(options.run, results, options.weights)
    paper = {"link": options.link, "name": options.title, "authors": options.authors, "venue": options.venue}
    entry = create_entry(results, dataset, architecture(module), paper, additional_data=options.additional_data)
    found = options.official and adversarial_images.collect(options.run, results, options.official, dataset)
    folder = options.target / "model_info" / dataset / threat
    folder.mkdir(parents=True, exist_ok=True)
    state = options.target / f"{options.name}.pt"
    of_deepmind = is_of_deepmind(module)
    given = {"mean": module.mean, "std": module.std, "deepmind_keys": of_deepmind}
    command.whole(state, lambda part: models.save_torch(part, variables, **given))
    files.write_atomically(folder / f"{options.name}.json", json.dumps(entry, indent=2) + "\n")
    buffers = "(images - mean) / std" if of_deepmind else "(images - mu) / sigma"
    print(f"{state}: {entry['architecture']}, {module.activation}; normalise by its buffers: {buffers}")
    print(f"{folder / options.name}.json: clean {entry['clean_acc']}, AutoAttack {entry['autoattack_acc']}")
    if found:
        images = options.target / f"{options.name}_{threat}_adversarial.pt"
        adversarial_images.write(images, found.images)
        print(f"{images}: {len(found.images)} adversarial images in the order of {options.official}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, as the module's documentation explains it. Raises InvalidInput."""
    parser = command.parser("robustbench", __doc__)
    parser.add_argument("run", type=pathlib.Path, metavar="RUN", help="the directory of a run, or of an evaluation")
    parser.add_argument("target", type=pathlib.Path, metavar="DIRECTORY", help="where to write")
    helps = {
        "name": "the entry's: AUTHOR YEAR FIRSTWORD, together", "title": "of the paper", "authors": "of the paper",
        "venue": "of the paper", "link": "to the paper",
    }  # fmt: skip
    for flag, text in helps.items():
        kind = identifier if flag == "name" else str
        parser.add_argument(f"--{flag}", required=True, type=kind, help=text)
    parser.add_argument("--official", type=pathlib.Path, help=f"also writes the adversarial images; {OFFICIAL}")
    parser.add_argument("--weights", type=pathlib.Path, metavar="RUN", help="what an evaluation's directory is of")
    parser.add_argument("--additional_data", action="store_true", help="more than the data set was trained on")
    parser.add_argument("--dataset", help="cifar10 or cifar100; needed unless it is config.data.name")
    return parser.parse_args(arguments)


def identifier(text: str) -> str:
    """A name that is part of a file's."""
    if not re.fullmatch(r"[\w.+-]{1,100}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected letters, digits, and . _ + -")
    return text


def read_results(run: pathlib.Path) -> dict[str, Any]:
    """results.json of a run. Raises InvalidInput."""
    results = read_json(run / "results.json")
    if not isinstance(results, dict):
        raise InvalidInput(f"{run}: no results.json ({results or 'no such file'}): {EVALUATE}")
    return results


def check_results(results: Mapping[str, Any], dataset: str, attacked: str = "autoattack") -> tuple[str, float, str]:
    """The entry of LEADERBOARDS. Raises InvalidInput unless the results are what that leaderboard asks for."""
    attack = results["config"]["attack"]
    if dataset not in (known := sorted({name for name, _ in LEADERBOARDS})):
        raise InvalidInput(f"RobustBench has no leaderboard for data {dataset!r}: give --dataset={' or '.join(known)}")
    if (board := LEADERBOARDS.get((dataset, attack["norm"]))) is None:
        offered = ", ".join(" ".join(key) for key in LEADERBOARDS)
        raise InvalidInput(f"RobustBench has no leaderboard for {dataset} {attack['norm']}: it has {offered}")
    again = f"run {adversarial_images.how_to_evaluate(results, attacked)}"
    if not math.isclose(attack["epsilon"], board[1], rel_tol=1e-6):  # of 8 / 255 in float32, too
        found = f"evaluated at epsilon {attack['epsilon']:.6g}/255, the leaderboard's is {board[1]:g}/255"
        raise InvalidInput(f"{found}: {again} with that")
    for name in ("clean", attacked):
        if (count := results.get("examples", {}).get(name, 0)) < EXAMPLES:
            found = f"results.json has {name} on {count} examples, expected {EXAMPLES}"
            raise InvalidInput(f"{found}: {again} on all test images")
    return board


def evaluated_weights(
    run: pathlib.Path, results: Mapping[str, Any], source: pathlib.Path | None
) -> tuple[nn.Module, weights.Variables]:
    """(module, variables) that the results are of: of the run, or for an evaluation's directory of the run `source`.

    Raises InvalidInput unless they are those that were evaluated.
    """
    if "given" not in results:
        if source:
            raise InvalidInput(f"--weights={source}: {run} is a run, which has weights: leave it out")
        if file := results["config"]["eval"].get("torch_checkpoint"):
            again = f"python -m infofeat_jax.export.convert {file} DIRECTORY"
            raise InvalidInput(
                f"{run} evaluated {file} and has no weights: convert it, {again}, and evaluate DIRECTORY"
            )
        check_checkpoint(run, results)
        return weights.load(run, which=results["checkpoint"])
    if source is None:
        raise InvalidInput(
            f"{run} holds an evaluation of {results['given']['model']}, without its weights: give the run that has"
            " them, --weights=RUN (PyTorch files become one by python -m infofeat_jax.export.convert)"
        )
    for which in ("best", "latest"):
        module, variables = weights.load(source, which=which)
        if digest(variables) == results["given"]["weights"]:
            return module, variables
    raise InvalidInput(f"--weights={source}: not the weights that were evaluated in {run}: give the run that has them")


def check_checkpoint(run: pathlib.Path, results: Mapping[str, Any]) -> None:
    """Raises InvalidInput unless the checkpoint that was evaluated is the one that will be written."""
    step = int(checkpoint.read(run, results["checkpoint"])["step"])
    if step != results["checkpoint_step"]:
        found = (
            f"results.json is of step {results['checkpoint_step']}, the {results['checkpoint']} checkpoint of {step}"
        )
        raise InvalidInput(f"{run}: {found}: evaluate it anew, with main.py --mode=evaluate")


def architecture(module) -> str:
    """The architecture as RobustBench writes it: WideResNet-28-10, ResNet-18 ...; with the width if unusual."""
    if isinstance(module, models.WideResNet):
        name, usual = f"WideResNet-{module.depth}-{module.widen_factor}", 16
    else:
        name, usual = f"{FAMILIES[type(module)]}-{2 * sum(module.blocks) + 2}", 64
    return name if module.width == usual else f"{name} (width {module.width})"


def create_entry(
    results: Mapping[str, Any], dataset: str, architecture: str, paper: Mapping[str, str], *, additional_data: bool
) -> dict[str, Any]:
    """The JSON, accuracies in % as text. `paper`: link, name, authors, venue. Raises InvalidInput."""
    autoattack = f"{100 * results['autoattack']:.2f}"
    return {
        "link": paper["link"],
        "name": paper["name"],
        "authors": paper["authors"],
        "additional_data": additional_data,
        "number_forward_passes": 1,
        "dataset": dataset,
        "venue": paper["venue"],
        "architecture": architecture,
        "eps": check_results(results, dataset)[2],
        "clean_acc": f"{100 * results['clean']:.2f}",
        "reported": autoattack,
        "autoattack_acc": autoattack,
        "footnote": "AutoAttack as implemented in infofeat_jax; not yet confirmed with the official code.",
    }


if __name__ == "__main__":
    with cli.one_line_errors():
        main()
