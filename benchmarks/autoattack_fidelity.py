"""AutoAttack against the recorded outcomes of the official implementation, per example, with seconds.

    python benchmarks/autoattack_fidelity.py --golden=DIR --images=cifar10.npz [--mode=cascade|alone] [--norm=linf|l1]

DIR/autoattack_small/records.npz holds what the official code found on 256 images and a small network (see
tests/golden/README.md). A line appears after each stage. `cascade` is the standard run; `alone`
runs each stage on all correct examples, which shows a broken FAB or Square that the cascade would hide. With
--norm=l1 the budget is 12, on the first 128 of these images (DIR/autoattack_l1/records.npz).
"""

import argparse
import itertools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from infofeat_jax import models
from infofeat_jax import threat as threats
from infofeat_jax.attacks.autoattack import ROBUST, steps
from infofeat_jax.attacks.stages import VERSIONS, plan
from infofeat_jax.runtime import compilation

NETWORK = Path(__file__).parent.parent / "tests" / "golden" / "resnet10_w16.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, required=True, help="folder of the recorded outcomes")
    parser.add_argument("--images", type=Path, required=True, help=".npz with CIFAR-10's image_test, uint8")
    parser.add_argument("--mode", choices=("cascade", "alone"), default="cascade")
    parser.add_argument("--norm", choices=("linf", "l1"), default="linf")
    parser.add_argument("--attacks", nargs="+", default=list(VERSIONS["standard"]))
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    compilation.tune_cpu()

    records = np.load(args.golden / "autoattack_small" / "records.npz")
    images = np.load(args.images)["image_test"][records["test_index"]].astype(np.float32) / 255
    records = dict(records)
    if args.norm == "l1":
        images, records = images[:128], {"labels": records["labels"][:128]} | _in_l1(args.golden)
    runs = [args.attacks] if args.mode == "cascade" else [[name] for name in args.attacks]
    prefix = "correct_after_" if args.mode == "cascade" else "individual_correct_"
    print("| stage | correct, ours | official | differing | seconds | CPU seconds | of these compiling |")
    print("|---|---|---|---|---|---|---|")
    for attacks in runs:
        _report(attacks, images, records, prefix, args)


def _report(attacks, images, records, prefix: str, args) -> None:
    epsilon = {"linf": 8 / 255, "l1": 12.0}[args.norm]
    threat = threats.threat(args.norm, epsilon)
    the_plan = plan(threat, 10, images.shape[1:3], attacks=attacks)
    inputs = (network(), jax.random.key(args.seed), images, records["labels"])
    with _Clocks() as clocks:
        stages = itertools.groupby(steps(the_plan, *inputs, batch_size=args.batch_size), lambda pair: pair[0].stage)
        for name, progress in stages:
            *_, (_, state) = progress
            _print_stage(name, attacks, state, records, prefix, clocks.lap())
    change = (state.adversarial.astype(np.float64) - images).reshape(len(images), -1)
    size = np.linalg.norm(change, ord={"linf": np.inf, "l1": 1}[args.norm], axis=1).max()
    print(f"largest change {size:.10f} of {epsilon:.10f}; {state.queries} queries")


def _in_l1(golden: Path) -> dict[str, np.ndarray]:
    """Its records name the stages alone, and the whole cascade, of which APGD-CE is the first stage."""
    records = np.load(golden / "autoattack_l1" / "records.npz")
    alone = {f"individual_correct_{name}": records[f"correct_{name}"] for name in VERSIONS["standard"]}
    after = dict.fromkeys(VERSIONS["standard"][1:], records["correct_cascade"])
    after["apgd-ce"] = records["correct_apgd-ce"]
    return alone | {f"correct_after_{name}": correct for name, correct in after.items()}


def _print_stage(name: str, attacks, state, records, prefix: str, spent: np.ndarray) -> None:
    if name == "clean":
        return
    ours = (state.broken_by == ROBUST) | (state.broken_by > attacks.index(name) + 1)
    official = records[prefix + name]
    seconds = " | ".join(f"{value:.1f}" for value in spent)
    print(f"| {name} | {ours.sum()} | {official.sum()} | {(ours != official).sum()} | {seconds} |", flush=True)


class _Clocks:
    """Seconds since the last lap: by the wall, of this process's CPU time, and spent compiling."""

    def __enter__(self):
        self.compiling = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._add)
        self.last = self._now()
        return self

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._add)

    def lap(self) -> np.ndarray:
        before, self.last = self.last, self._now()
        return self.last - before

    def _now(self) -> np.ndarray:
        return np.array([time.perf_counter(), time.process_time(), self.compiling])

    def _add(self, event: str, seconds: float, **_) -> None:
        if event.startswith("/jax/core/compile/"):
            self.compiling += seconds


def network() -> jax.tree_util.Partial:
    arrays = np.load(NETWORK)
    variables = unflatten_dict({tuple(path.split("/")): jnp.asarray(value) for path, value in arrays.items()})
    module = models.create("resnet10", num_classes=10, width=16, mean=0.0, std=1.0)
    return jax.tree_util.Partial(module.apply, variables)


if __name__ == "__main__":
    main()
