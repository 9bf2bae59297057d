"""How strong the ideas of configs/studies/ideas.py are as 20-step attacks on trained models, beside known ones.

  python benchmarks/ideas_strength.py runs/ideas-digits/madry-seed0 runs/ideas-digits/infofeature-seed0

The outcomes for the digits' 500 test images become records; docs/reproduction.md has the table.
"""

import argparse
import pathlib

import numpy as np

import infofeat_jax
from infofeat_jax import data
from infofeat_jax.configs import digits
from infofeat_jax.configs.studies.ideas import IDEAS
from infofeat_jax.runtime import compilation

RECORDS = pathlib.Path(__file__).resolve().parent.parent / "results/ideas_strength"
# What trains on its own objective is no attack of its own: margin is cw20, update_term is infofeature20.
NEW = tuple(name for name in IDEAS if name not in ("margin", "update_term"))
ATTACKS = ("clean", "pgd20", "cw20", "infofeature20", *(f"ideas:{name}" for name in NEW))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="directories of trained runs on the digits")
    args = parser.parse_args()
    compilation.tune_cpu()
    test, epsilon = data.load("digits", validation_size=200).test, digits.get_config().attack.epsilon / 255
    RECORDS.mkdir(parents=True, exist_ok=True)
    for run in args.runs:
        found = infofeat_jax.evaluate(
            infofeat_jax.load(run), data.to_unit(test.images), test.labels, epsilon=epsilon, attacks=ATTACKS
        )
        print(found)
        np.savez_compressed(RECORDS / f"{run.name}.npz", **found.outcomes)


if __name__ == "__main__":
    main()
