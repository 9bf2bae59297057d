"""Keeps of a study's runs what tables are made from, as records: about 50 kB a run.

  python benchmarks/collect.py runs/overfitting-thousand results/overfitting_thousand

Configurations, metrics, results and per-image outcomes of the runs whose evaluation is complete (or not, if asked for);
of a data set that is a file, its name without the directory.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

KEPT = ("config.json", "metrics.jsonl", "results.json", "outcomes*.npz")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=pathlib.Path, help="directory of a study, with study.json")
    parser.add_argument("records", type=pathlib.Path, help="directory that receives them")
    parser.add_argument("--unfinished", action="store_true", help="also runs whose evaluation was cut short")
    args = parser.parse_args()
    if not (args.study / "study.json").is_file():
        parser.error(f"{args.study} has no study.json: expected the directory of a study")
    args.records.mkdir(parents=True, exist_ok=True)
    (args.records / "study.json").write_bytes((args.study / "study.json").read_bytes())
    for run in sorted(args.study.iterdir()):
        wanted = any(run.glob("outcomes*.npz")) and (args.unfinished or (run / "results.json").is_file())
        if wanted and (run / "config.json").is_file():
            keep(run, args.records / run.name)
            print(args.records / run.name)
    return 0


def keep(run: pathlib.Path, record: pathlib.Path) -> None:
    """Copies the files of one run."""
    record.mkdir(exist_ok=True)
    path = json.loads((run / "config.json").read_text())["data"]["name"]
    name = pathlib.PurePath(path).name
    for source in sorted(file for pattern in KEPT for file in run.glob(pattern)):
        if source.suffix == ".npz":
            with np.load(source, allow_pickle=False) as arrays:
                found = {key: renamed(arrays[key], path, name) for key in arrays}
            np.savez_compressed(record / source.name, **found)
        else:
            (record / source.name).write_text(source.read_text().replace(path, name))


def renamed(array: np.ndarray, path: str, name: str) -> np.ndarray:
    """An array of text with `name` for `path`; others as they are."""
    return np.array(str(array).replace(path, name)) if array.dtype.kind == "U" else array


if __name__ == "__main__":
    sys.exit(main())
