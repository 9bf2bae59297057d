"""Everything that is to be known of an accelerator that is lent for a short while, in one command with a time budget.

  python benchmarks/accelerator.py --minutes=15 --data=cifar10.npz --out=carried

First (40 % of the time, at most 5 minutes) the device's rates, and the speed of training steps, evaluation and
AutoAttack. Then ResNet18 is trained with Madry and InfoFeature and evaluated with PGD20 and AutoAttack: the number of
epochs, the same for both, follows from the measured rates. The same command again goes on with what is left. A part
that fails is noted, and the next begins. --out receives at most 8 files of at most 16 MB: results.json, accelerator.md,
outcomes.npz, log.txt, and the weights as float16. The state, and all else, is in --workdir. Exit status: 0 all is
done, 1 something failed, 75 something is left, 2 a mistake in the command.

Needs jax, flax, optax, orbax-checkpoint, absl-py, ml_collections and jaxtyping. Several calls on one machine:
--minutes=9 --total_minutes=13 plans for both, and begins the evaluation in the last.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import sys
import time
from contextlib import ExitStack

from accelerator_parts import supervisor
from accelerator_parts.state import Call, Options

ROOT = pathlib.Path(__file__).resolve().parent.parent
NEEDED = ("jax", "flax", "optax", "orbax.checkpoint", "absl", "ml_collections", "jaxtyping", "numpy")
ENDING = 4.0  # seconds of a call in which nothing computes any more: the page is written, the command ends
MEASURE = 300.0  # seconds after which no optional measurement begins, if that is less than 40 % of the time


def main() -> int:
    began = time.monotonic()
    args = parse()
    if missing := [name for name in NEEDED if not is_installed(name)]:
        return complain(f"missing packages: {', '.join(missing)}: install them, or add their folder to PYTHONPATH")
    data = args.data and os.path.abspath(args.data)
    options = Options(data, args.dtype, args.epochs, args.autoattack_images, args.tiny)
    for directory in (args.workdir, args.out):
        directory.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ROOT))
    from infofeat_jax.runtime import lock  # here: they need the packages
    from infofeat_jax.types import InvalidInput

    with ExitStack() as stack:
        try:
            stack.enter_context(lock.lock(args.workdir))
        except InvalidInput as error:  # another call is under way
            return complain(str(error))
        return call(args, options, began)


def call(args: argparse.Namespace, options: Options, began: float) -> int:
    """One call, in a directory that no other uses. Returns the status to exit with."""
    path = args.workdir / "calls.json"
    history = json.loads(path.read_text()) if path.exists() else {"options": list(options), "calls": []}
    if history["options"] != list(options):
        return complain(f"{args.workdir} was begun with {Options(*history['options'])}: give another --workdir")
    status = supervisor.supervise(schedule(args, began, history["calls"]), history, args.workdir, args.out)
    if status == supervisor.MISTAKE:  # nothing was done: the corrected command may use the directory
        for name in ("calls.json", "state.json"):
            (args.workdir / name).unlink(missing_ok=True)
    return status


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15, help="of this call; they are kept to")
    parser.add_argument("--total_minutes", type=float, default=0, help="of this call, earlier and later ones")
    parser.add_argument("--data", default="", help="an .npz, or TFDS's data_dir; without it, nothing is trained")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of training, evaluation")
    parser.add_argument("--epochs", type=int, default=120, help="of each method, if they fit")
    parser.add_argument("--autoattack_images", type=int, default=1000, help="if they fit")
    place = ROOT / "runs" / "accelerator"
    parser.add_argument("--workdir", type=pathlib.Path, default=place, help="state, runs, compiled programs")
    parser.add_argument("--out", type=pathlib.Path, help="receives what is to be carried away; WORKDIR/out by default")
    parser.add_argument("--tiny", action="store_true", help="tiny networks and data, to try the command on a CPU")
    args = parser.parse_args()
    args.out = args.out or args.workdir / "out"
    return args


def complain(text: str, status: int = 2) -> int:
    """Reports an error; returns the status to exit with."""
    print(f"error: {text}", file=sys.stderr)
    return status


def is_installed(name: str) -> bool:
    """Whether a package can be found; it is not imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def schedule(args: argparse.Namespace, began: float, earlier: list[dict]) -> Call:
    """The moments of this call: a few seconds before its end everything stops, and is saved."""
    seconds, before = 60 * args.minutes, sum(call["seconds"] for call in earlier)
    end = began + seconds - ENDING
    later = max(60 * args.total_minutes - seconds - before, 0.0)
    measure = max(min(MEASURE, 0.4 * (before + seconds + later)) - before, 0.0)
    return Call(len(earlier) + 1, began + measure, end - min(max(0.05 * seconds, 6.0), 40.0), end, later)


if __name__ == "__main__":
    sys.exit(main())
