"""Mutation testing: does the suite notice when one expression of the package is wrong?

    python benchmarks/mutation.py [--output=mutants.jsonl] [--each=4] [--seed=0] [--only=training] [--report]

Mutants are those written by hand in mutants.py, then `--each` of every module of GUARDS, drawn from all that the
operators below make of its syntax tree. Each is applied to a copy of the repository, where the tests that guard the
module run until the first failure; more than LIMIT seconds count as killed. Mutants that the output holds already are
passed over. With JAX_COMPILATION_CACHE_DIR set, programs that a mutant leaves as they are compile once.
"""

import argparse
import ast
import copy
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest

from mutants import HAND_WRITTEN

ROOT, PACKAGE, LIMIT = pathlib.Path(__file__).parents[1], "infofeat_jax", 240  # seconds
FAILURE = r"^(?:FAILED|ERROR) (\S+)"  # in pytest's summary
# The tests that guard a module, quickest first.
EVALUATION = "test_wiring test_attack_names test_cascade test_heuristics test_evaluate"
ASCENT, SEARCHES = "test_attacks test_methods test_contract", "test_square test_apgd test_fab test_autoattack"
GUARDS = {
    "training/step": "test_wiring test_step test_loop", "training/loop": "test_wiring test_loop",
    "training/fitting": "test_fitting", "training/health": "test_loop", "training/seals": "test_checkpoint",
    "evaluation/heuristics": "test_heuristics", "report/estimate": "test_report_finding test_report_tables",
    "export/robustbench": "test_convert", "data/records": "test_records",
    "training/awp": "test_wiring test_recipes", "training/averaging": "test_wiring test_recipes",
    "training/state": "test_step test_recipes", "training/keeper": "test_loop test_checkpoint",
    "training/optimizers": "test_wiring test_step test_options", "evaluation/evaluate": EVALUATION,
    "evaluation/measured": EVALUATION, "evaluation/summaries": EVALUATION,
    "evaluation/robustness": "test_wiring test_evaluate", "evaluation/autoattack": EVALUATION,
    "evaluation/distances": "test_attack_names test_evaluate", "evaluation/attack_names": EVALUATION,
    "experiment": "test_wiring test_step test_loop test_evaluate",
    "run": "test_wiring test_loop test_study test_evaluate", "methods/__init__": "test_wiring test_methods",
    "methods/losses": "test_methods", "methods/labels": "test_methods", "attacks/gradient": ASCENT,
    "attacks/projected": ASCENT, "attacks/coupled": "test_methods test_contract", "attacks/inputs": ASCENT,
    "attacks/search": SEARCHES, "attacks/survivors": "test_autoattack",
    "attacks/autoattack": "test_autoattack test_cascade", "attacks/stages": "test_autoattack test_eot",
    "attacks/apgd": "test_apgd test_autoattack",
    "attacks/fab": "test_fab test_autoattack", "attacks/hyperplane": "test_fab",
    "attacks/square": "test_square test_autoattack", "attacks/patches": "test_square",
    "threat": "test_threat test_attacks test_apgd", "objectives": "test_objectives test_methods test_apgd",
    "data/batches": "test_wiring test_data", "data/augment": "test_augment test_step",
    "data/mixing": "test_wiring test_options", "data/mapped": "test_pool", "models/layers": "test_models",
    "weights": "test_recipes test_convert", "data/pixels": "test_data test_step test_evaluate",
    "data/__init__": "test_data",
    "runtime/devices": "test_wiring test_step test_loop",
    "streams": "test_streams test_data test_evaluate",
}  # fmt: skip
SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
NAMES = {"min": "max", "minimum": "maximum", "any": "all", "argmax": "argmin", "floor": "ceil", "mean": "sum"}
NAMES |= {new: old for old, new in NAMES.items()}


def changed(node: ast.AST, **fields) -> str:
    """The source of a copy of `node` with other fields, in brackets."""
    other = copy.deepcopy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return f"({ast.unparse(other)})"


def variants(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """(what is replaced, by which source): what the operators make of one node."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in SWAPS:
            yield node, changed(node, ops=[SWAPS[type(op)]()])
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in SWAPS:
            yield node, changed(node, op=SWAPS[type(op)]())
        case ast.UnaryOp(operand=operand):
            yield node, f"({ast.unparse(operand)})"
        case ast.Constant(value=bool(value)):
            yield node, str(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield node, f"({value + 1 if isinstance(value, int) else value * 2 or 0.5})"
        case ast.If(test=test) | ast.IfExp(test=test):
            yield test, f"(not ({ast.unparse(test)}))"
        case ast.Expr(value=ast.Call()) | ast.AugAssign():
            yield node, "pass"
        case ast.Return(value=ast.Call(args=[ast.expr() as first, *_]) as call):
            yield call, f"({ast.unparse(first)})"
        case ast.Call(func=ast.Name(id=name) as function) if name in NAMES:
            yield function, NAMES[name]
        case ast.Call(func=ast.Attribute(attr=name) as function) if name in NAMES:
            yield function, changed(function, attr=NAMES[name])
    if isinstance(node, ast.Call):
        for index, keyword in enumerate(node.keywords):
            others = node.keywords[:index] + node.keywords[index + 1 :]
            yield node, changed(node, keywords=others)
            for other in others[:1] if keyword.arg else ():
                yield keyword.value, f"({ast.unparse(other.value)})"


def visited(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that compute: without messages of errors and annotations."""
    yield node
    for name, field in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "format_spec"):
            continue
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.Raise | ast.JoinedStr):
                yield from visited(child)


def automatic(module: str, count: int, seed: int) -> list[tuple[str, int, str, str]]:
    """`count` mutants of a module, (module, offset, old, new), drawn among those of its functions."""
    source = (ROOT / PACKAGE / f"{module}.py").read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    every = set()
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            for node, new in (found for inside in visited(function) for found in variants(inside)):
                start = starts[node.lineno - 1] + node.col_offset
                old = source[start : starts[node.end_lineno - 1] + node.end_col_offset].decode()
                every.add((module, start, old, new))
    shuffled = sorted(every)
    random.Random(f"{seed} {module}").shuffle(shuffled)
    return shuffled[:count]  # more of them begin with the same


def hand_written() -> list[tuple[str, int, str, str]]:
    """Those of mutants.py; each must occur exactly once in its module."""
    found = []
    for module, old, new in HAND_WRITTEN:
        source = (ROOT / PACKAGE / f"{module}.py").read_bytes()
        if source.count(old.encode()) != 1:
            raise SystemExit(f"{module}: {source.count(old.encode())} times, expected once: {old}")
        found.append((module, source.index(old.encode()), old, new))
    return found


def judge(directory: pathlib.Path, mutant: tuple[str, int, str, str], number: int) -> dict:
    """Runs the tests that guard a mutant in the copy of the repository; what became of it."""
    module, start, old, new = mutant
    path = directory / PACKAGE / f"{module}.py"
    original, begun = path.read_bytes(), time.perf_counter()
    path.write_bytes(original[:start] + new.encode() + original[start + len(old.encode()) :])
    os.utime(path, (2e9 + number, 2e9 + number))  # its own, so that no compiled file is taken for this one's
    files = [f"tests/{name}.py" for name in GUARDS[module].split()]
    try:
        command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-rfE", "--tb=line", *files]
        run = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=LIMIT)
        if run.returncode in (4, 5):
            raise SystemExit(run.stdout[-2000:] + run.stderr[-2000:])
        status, by = (
            ("killed" if run.returncode else "survived"),
            re.findall(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.M),
        )
    except subprocess.TimeoutExpired:
        status, by = "killed", ["time limit"]
    finally:
        path.write_bytes(original)
    place = {"module": module, "line": original[:start].count(b"\n") + 1, "start": start, "old": old, "new": new}
    return place | {"status": status, "by": by[:1], "seconds": round(time.perf_counter() - begun, 1)}


def report(results: list[dict]) -> None:
    """A table of the modules, and the survivors."""
    total, killed = Counter(r["module"] for r in results), Counter()
    killed.update(r["module"] for r in results if r["status"] == "killed")
    print("| module | mutants | killed |\n|---|---|---|")
    for module in filter(total.get, GUARDS):
        print(f"| {module} | {total[module]} | {killed[module]} |")
    print(f"| all | {total.total()} | {killed.total()} |\n")
    for r in results:
        if r["status"] == "survived":
            print(f"{PACKAGE}/{r['module']}.py:{r['line']}: {' '.join(r['old'].split())} -> {r['new']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, default="mutants.jsonl")
    parser.add_argument("--each", type=int, default=4, help="automatic mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="modules whose name matches this expression")
    parser.add_argument("--report", action="store_true", help="of the output as it is")
    args = parser.parse_args()
    results = [json.loads(line) for line in args.output.read_text().splitlines()] if args.output.exists() else []
    drawn = [automatic(module, args.each, args.seed) for module in GUARDS]
    rest = [one for ones in zip_longest(*drawn) for one in ones if one]  # a module after the other, round by round
    done = {(r["module"], r["start"], r["old"], r["new"]) for r in results}
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name) / "copy"
        shutil.copytree(ROOT, directory, ignore=shutil.ignore_patterns(".git", "__pycache__", "results"))
        for number, mutant in enumerate([] if args.report else dict.fromkeys([*hand_written(), *rest])):
            if mutant not in done and re.search(args.only, mutant[0]):
                results.append(judge(directory, mutant, number))
                with args.output.open("a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
                print(*(results[-1][field] for field in ("status", "seconds", "module", "line", "new")), flush=True)
    report(results)


if __name__ == "__main__":
    main()
