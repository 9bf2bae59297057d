"""Writes what an external evaluation for RobustBench needs: the adversarial images, and the text of the issue.

  python main.py --config=configs/cifar10_wrn.py --mode=evaluate --workdir=runs/carmon \\
      --config.eval.torch_checkpoint=Carmon2019Unlabeled.pt \\
      --config.eval.attacks="('clean','autoattack')" --config.eval.autoattack_examples=0
  python -m infofeat_jax.export.external runs/carmon evaluation --model=Carmon2019Unlabeled \\
      --official=cifar-10-batches-bin/test_batch.bin --authors="First Author" --method="..."

Into the directory evaluation go MODEL_THREAT.pt, a tensor [10000, 3, 32, 32] of images in [0, 1] in the order of
--official, and MODEL_THREAT.md, the answers to the questions of RobustBench's form for new evaluations. A directory of
`infofeat_jax.evaluate(..., directory=DIR)` takes the place of runs/carmon, with --dataset=cifar10 or cifar100.
"""

import argparse
import pathlib
from collections.abc import Sequence

from infofeat_jax import cli
from infofeat_jax.export import adversarial_images, command, robustbench
from infofeat_jax.runtime import files


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command. Raises InvalidInput."""
    options = parse(arguments)
    command.check_directory(options.target)
    results = robustbench.read_results(options.run)
    dataset = options.dataset or results["config"]["data"]["name"]
    board = robustbench.check_results(results, dataset, options.attack)
    found = adversarial_images.collect(options.run, results, options.official, dataset, options.attack)
    options.target.mkdir(parents=True, exist_ok=True)
    path = options.target / f"{options.model}_{board[0]}.pt"
    adversarial_images.write(path, found.images)
    accuracy = f"{100 * found.robust.mean():.2f}%"
    text = describe(options.model, f"{dataset}, {board[0]}, eps {board[2]}", accuracy, options.authors, options.method)
    files.write_atomically(path.with_suffix(".md"), text)
    print(f"{path}: {len(found.robust)} adversarial images, robust accuracy {accuracy}; {path.with_suffix('.md')}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, as the module's documentation explains it. Raises InvalidInput."""
    parser = command.parser("external", __doc__)
    parser.add_argument("run", type=pathlib.Path, metavar="RUN", help="the directory of the evaluation")
    parser.add_argument("target", type=pathlib.Path, metavar="DIRECTORY", help="where to write")
    parser.add_argument("--model", required=True, type=robustbench.identifier, help="its identifier in the Model Zoo")
    parser.add_argument("--official", required=True, type=pathlib.Path, help=robustbench.OFFICIAL)
    parser.add_argument("--authors", required=True, help="of the evaluation")
    parser.add_argument("--method", required=True, help="what was done: a description, or a link to one")
    parser.add_argument("--attack", default="autoattack", help="whose images: autoattack, or a stage such as apgd-t")
    parser.add_argument("--dataset", help="cifar10 or cifar100; needed unless it is config.data.name")
    return parser.parse_args(arguments)


def describe(model: str, board: str, accuracy: str, authors: str, method: str) -> str:
    """The answers to the questions of RobustBench's form."""
    return (
        f"## Target model\n+ **Model identifier(s):** {model}\n+ **Leaderboard(s):** {board}\n\n"
        f"## New evaluation\n+ **Link to adversarial images:** (upload {model}_*.pt and give its address)\n"
        f"+ **Robust accuracy:** {accuracy}\n+ **Author(s):** {authors}\n"
        f"+ **Description of the method used:** {method}\n"
    )


if __name__ == "__main__":
    with cli.one_line_errors():
        main()
