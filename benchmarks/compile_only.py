"""The programs that run on TPUs and GPUs, compiled on a machine without one: memory, communication, estimates.

  pip install libtpu==0.0.42.1                # for v5e, v5p, v6e: of the version that goes with the installed jax
  pip install 'jax[cuda13]==0.10.2'           # for h100
  python benchmarks/compile_only.py --target=h100 --chips=1,8 --dtype=bfloat16
  python benchmarks/compile_only.py --target=v5e --config=cifar10_wrn --program=step,pgd20,autoattack
  python benchmarks/compile_only.py --target=cpu --config=digits            # with neither package
  python benchmarks/compile_only.py --report                                # docs/compile_only.md from its .jsonl

Every combination of the flags, whose values may be lists with commas, is compiled and appended to --output; those that
it holds are passed over. Nothing is run: seconds are estimates (see hlo_cost.py), rates are the vendors' (targets.py).
A step takes 20 seconds to compile for an H100, 4 to 8 minutes for a TPU, on one core.
"""

import argparse
import itertools
import json
import math
import pathlib
import sys
import time

import hlo
import hlo_cost
import jax
import programs
import targets
from compile_only_page import program, spent, write_page
from programs import Setting

from infofeat_jax import methods
from infofeat_jax.evaluation import attack_names
from infofeat_jax.runtime import memory
from infofeat_jax.types import InvalidInput

OUTPUT = pathlib.Path(__file__).parents[1] / "docs/compile_only.jsonl"
ASSUMED_TRIPS = 10  # of loops that end when they are done: AutoAttack's take 10 iterations at most, Sinkhorn's 2 to 13


def settings(args) -> list[Setting]:
    """Every combination of the flags; what an evaluation does not depend on is left at its default."""
    names = [name for name in args.program for name in (programs.STAGES if name == "autoattack" else (name,))]
    values = (args.target, args.chips, args.config, names, args.method, args.dtype, args.images)
    found = [Setting(*one) for one in itertools.product(*values, args.parallel, args.accumulate, args.remat)]
    plain = {"method": "", "parallel": "jit", "accumulate": 1, "remat": 0}
    return list(dict.fromkeys(one if one.program == "step" else one._replace(**plain) for one in found))


def measure(setting: Setting, keep: pathlib.Path | None = None) -> dict:
    """What the compiled program is, as a line of the output; with `keep`, its text is written there."""
    began = time.perf_counter(), time.process_time()
    try:
        compiled = programs.lower(setting).compile()
    except jax.errors.JaxRuntimeError as error:  # such as more memory than the device has
        return {"error": str(error).strip().splitlines()[0][:200]}
    seconds = {
        "compile_s": round(time.perf_counter() - began[0], 1),
        "compile_cpu_s": round(time.process_time() - began[1], 1),
    }
    text = compiled.as_text()
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / ("-".join(map(str, setting)) + ".hlo")).write_text(text)
    rates = targets.TARGETS[setting.target].rates
    cost = hlo_cost.cost(hlo.parse(text), rates, devices=setting.chips, assumed_trips=ASSUMED_TRIPS)
    needed = {"memory": memory.needed(compiled), "workspace": compiled.memory_analysis().temp_size_in_bytes}
    share = {}
    if math.isnan(cost.seconds):
        cost = cost._replace(seconds=None, spent={})
    elif rates:
        peak = rates.flops["bf16" if setting.dtype == "bfloat16" else "f32"]
        share = {"share": round(cost.flops / cost.seconds / peak, 4)}
    return seconds | needed | cost._asdict() | share


def describe(row: dict) -> str:
    """A row in words, for the console."""
    if "error" in row:
        return f"  {row['error']}"
    convolutions = ", ".join(f"{count} {name}" for name, count in sorted(row["convolutions"].items()))
    lines = [
        f"compiled in {row['compile_s']} s ({row['compile_cpu_s']} s of CPU time), jax {row['jax']}",
        f"memory {row['memory'] / 2**20:,.0f} MiB a device, of which {row['workspace'] / 2**20:,.0f} work space",
        f"{row['collectives']} collectives, {row['collective_bytes'] / 1e6:.1f} MB",
        f"collectives in loops: {row['looped_collectives']}",
        f"convolutions {convolutions}",
        f"moved to other layouts in loops: {row['looped_moves']}, {row['looped_move_bytes'] / 1e6:.1f} MB",
        f"{row['kernels']} kernels, {row['flops'] / row['images'] / 1e9:.2f} GFLOP an image",
    ]
    if "share" in row:
        lines.append(f"estimated {1e3 * row['seconds']:.2f} ms, {row['share']:.1%} of the device's peak: {spent(row)}")
    elif row["seconds"] is None:
        lines.append("no estimate: the compiler has none for one of the kernels")
    return "\n".join(f"  {line}" for line in lines)


FLAGS = {  # name: (default, type, choices, help)
    "target": ("h100", str, tuple(targets.TARGETS), ""),
    "chips": ("1", int, (1, 8, 32, 256), ""),
    "config": ("cifar10_resnet18", str, programs.CONFIGS, ""),
    "program": ("step", str, (), "step, or attacks as in eval.attacks; autoattack: each of its stages"),
    "method": ("infofeature", str, tuple(methods.METHODS), "of the step"),
    "dtype": ("bfloat16", str, ("float32", "bfloat16"), ""),
    "images": ("128", int, (), "on each chip"),
    "parallel": ("jit", str, ("jit", "pmap"), ""),
    "accumulate": ("1", int, (), "parts of a batch"),
    "remat": ("0", int, (0, 1), ""),
}


def arguments(given: list[str]) -> argparse.Namespace:
    """The flags, those of FLAGS as lists. Raises InvalidInput."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, _, choices, help) in FLAGS.items():
        parser.add_argument(f"--{name}", default=default, help=" ".join([help, *map(str, choices)]))
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT, help="one line a program")
    parser.add_argument("--label", default="", help="of the version that is measured, such as before")
    parser.add_argument("--keep", type=pathlib.Path, help="a directory for the compiled programs' texts")
    parser.add_argument("--report", action="store_true", help="only write the output's table into the page beside it")
    args = parser.parse_args(given)
    for name, (_, kind, choices, _) in FLAGS.items():
        setattr(args, name, [_value(name, text, kind, choices) for text in getattr(args, name).split(",")])
    return args


def _value(name: str, text: str, kind: type, choices: tuple) -> str | int:
    if kind is int and (not text.isdecimal() or (not choices and int(text) < 1)):
        raise InvalidInput(f"--{name}={text}: expected an integer of 1 or more")
    value = kind(text)
    if choices and value not in choices:
        raise InvalidInput(f"--{name}={text}: choose from {', '.join(map(str, choices))}")
    return value


def main(given: list[str]) -> int:
    """Compiles, writes and prints what the flags ask for; the exit status, 2 after a mistake in them."""
    try:
        args = arguments(given)
        if args.report:
            write_page(read(args.output), args.output.with_suffix(".md"))
            return 0
        for target in args.target:
            targets.prepare(target, max(args.chips))
        for name in set(args.program) - {"step", "autoattack"}:
            attack_names.parse(name)
    except InvalidInput as error:
        print(f"compile_only.py: {error}", file=sys.stderr)
        return 2
    done = {(row["label"], *(row[field] for field in Setting._fields)) for row in read(args.output)}
    for setting in settings(args):
        if (args.label, *setting) not in done:
            compile_one(setting, args)
    return 0


def read(output: pathlib.Path) -> list[dict]:
    """The lines written so far."""
    return [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []


def compile_one(setting: Setting, args: argparse.Namespace) -> None:
    """One line of the output, and on the console."""
    print(f"{setting.chips} x {setting.target}: {program(setting)}, {setting.images} images a chip", flush=True)
    row = {"label": args.label, **setting._asdict(), "jax": jax.__version__, **measure(setting, args.keep)}
    with args.output.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(describe(row), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
