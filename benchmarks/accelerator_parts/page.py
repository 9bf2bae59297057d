"""The page that is left: results.json as Markdown. Needs no JAX."""

import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from accelerator_parts.planning import METHODS
from accelerator_parts.state import DONE, State


def create(results: Mapping[str, Any]) -> str:
    """The page."""
    parts = results["parts"]
    found = {name: part["result"] for name, part in parts.items() if part["status"] == DONE}
    sections = [
        "# infofeat_jax on an accelerator",
        introduction(results, found.get("device", {})),
        *section("Rates of the device", rates(found)),
        *section("Training steps", steps(found)),
        *section("Where the time of a step goes", profile(found.get("profile", {}))),
        *section("Evaluation and AutoAttack, on synthetic images and random weights", attacks(found)),
        *section("Training", training(results, found)),
        *section("Robustness", robustness(found)),
        *section("Not done", failures(parts)),
    ]
    return "\n\n".join(sections) + "\n"


def section(title: str, text: str) -> list[str]:
    """A heading and its text; nothing without text."""
    return [f"## {title}", text] if text else []


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *([text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text(cell: object) -> str:
    """A cell, in which a bar ends no cell."""
    return "" if cell is None else str(cell).replace("|", r"\|")


def introduction(results: Mapping[str, Any], device: Mapping[str, Any]) -> str:
    """What was run on what."""
    calls = results["calls"]
    spent = sum(call["seconds"] for call in calls)
    when = f"{len(calls)} call(s) from {calls[0]['when']}, {spent / 60:.1f} minutes" if calls else ""
    if not device:
        return f"{when}. The device is not known."
    versions = ", ".join(f"{name} {version}" for name, version in device["versions"].items())
    memory = f", {device['memory_gib']} GiB usable" if device["memory_gib"] else ""
    return (
        f"{device['devices']} x {device['kind']} ({device['platform']}{memory}),"
        f" {device['host']}, Python {device['python']}, {versions}. {device['runtime']}."
        f" {when}. Options: {json.dumps(results['options'])}."
    )


def rates(found: Mapping[str, Any]) -> str:
    """Matrix products and memory."""
    product, memory = found.get("matrix product", {}), found.get("memory bandwidth", {})
    rows = [[f"matrix product, {name}", f"{rate} TFLOP/s"] for name, rate in product.items() if name != "size"]
    rows += [["memory, read and write", f"{memory['gb_per_second']} GB/s"]] if memory else []
    size = f"Products of two {product['size']} x {product['size']} matrices of normal numbers." if product else ""
    return f"{table(('', 'measured'), rows)}\n\n{size}" if rows else ""


def steps(found: Mapping[str, Any]) -> str:
    """One line for each measured step; the share is of the matrix product of the same dtype."""
    head = ("step", "ms", "images/s", "TFLOP/s", "share", "trace s", "compile s", "program MiB", "peak so far MiB")
    rows = [
        [
            name.removeprefix("step: "), part["milliseconds"], part["images_per_second"], part["tflops"] or None,
            percent(part["share"]) if part["share"] else None, part["trace_seconds"], part["compile_seconds"],
            part["program_mib"], part["peak_mib_so_far"] or None,
        ]
        for name, part in found.items() if name.startswith("step: ")
    ]  # fmt: skip
    note = (
        "TFLOP/s are of the arithmetic that the method needs, not of what was executed; the share is of the matrix"
        " product of the same dtype (default precision)."
    )
    return f"{table(head, rows)}\n\n{note}" if rows else ""


def profile(found: Mapping[str, Any]) -> str:
    """The kinds of operations and the longest ones, or the counts."""
    if "kinds" not in found:
        counts = ", ".join(f"{name}: {value}" for name, value in found.items())
        return f"No trace; {counts}." if found else ""
    shares = [[name, percent(share)] for name, share in found["kinds"].items()]
    single = [[f"`{name}`", percent(share)] for name, share in found["operations"].items()]
    source = f"From {found['source']}, {found['milliseconds_per_step']} ms of operations a step."
    return f"{source}\n\n{table(('kind', 'share'), shares)}\n\n{table(('operation', 'share'), single)}"


def attacks(found: Mapping[str, Any]) -> str:
    """The rates of the evaluation."""
    quick, stages = found.get("evaluation", {}), found.get("AutoAttack", {})
    rows = [
        [name, f"{quick[name]['images_per_second']} images/s", quick[name]["compile_seconds"]]
        for name in ("clean", "pgd20") if name in quick
    ]  # fmt: skip
    rows += [
        [f"AutoAttack: {name}", f"{stage['seconds_per_survivor']} s per surviving image", stage["compile_seconds"]]
        for name, stage in stages.get("stages", {}).items()
    ]
    return table(("attack", "rate", "compile s"), rows) if rows else ""


def training(results: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The plan, and how far each method has come."""
    plan = found.get("plan")
    if not plan:
        return ""
    planned = (
        f"Planned from the measured rates for {plan['seconds']} s: {plan['epochs']} epochs of each method, the learning"
        f" rate multiplied by 0.1 at epochs {', '.join(f'{epoch:g}' for epoch in plan['milestones'])} (the paper: 120"
        f" epochs, 60 and 90); AutoAttack on {plan['autoattack_images']} images."
    )
    rows = []
    for method, one in results.get("training", {}).items():
        best = max(one["validation_robust"], default=None)
        images = one["images_per_second"]
        rows.append([method, f"{one['epochs']} of {plan['epochs']}", one["seconds"], images, best and percent(best)])
    head = ("method", "epochs", "seconds", "images/s", "best robust validation accuracy")
    return f"{planned}\n\n{table(head, rows)}" if rows else planned


def robustness(found: Mapping[str, Any]) -> str:
    """Accuracy with Wilson's 95 % interval; the evaluation is of the best checkpoint on validation images."""
    rows, flags = [], []
    for method in METHODS:
        one = found.get(f"AutoAttack on {method}") or found.get(f"evaluate {method}")
        if one:
            cells = [interval(one[name], one["examples"][name]) if name in one else None for name in NAMES]
            rows.append([method, *cells, one["checkpoint_step"], "yes" if one["finished"] else "no"])
            flags += [f"{method}: {flag}" for flag in one.get("flags", [])]
    head = ("method", *NAMES, "step", "trained to the end")
    return "\n\n".join([table(head, rows), *flags]) if rows else ""


NAMES = ("clean", "pgd20", "autoattack")


def failures(parts: Mapping[str, Any]) -> str:
    """What failed or was stopped, and why."""
    rows = [[name, part["status"], part.get("error") or ""] for name, part in parts.items() if part["status"] != DONE]
    return table(("part", "", "why"), rows) if rows else ""


def summary(state: State) -> str:
    """One line."""
    counts = {}
    for part in state.parts.values():
        counts[part["status"]] = counts.get(part["status"], 0) + 1
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def progress(workdir: pathlib.Path) -> dict[str, Any]:
    """{method: what the records of its run say}, also while it runs."""
    found = {}
    for method in METHODS:
        path = workdir / method / "metrics.jsonl"
        lines = []
        for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
            with suppress(json.JSONDecodeError):  # being written
                lines.append(json.loads(line))
        if lines:
            found[method] = describe(lines)
    return found


def describe(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Epochs, seconds, the median rate, and the accuracies at the end of each epoch."""
    ends = [line for line in lines if "epoch" in line]
    speeds = sorted(line["images_per_second"] for line in lines if "images_per_second" in line)
    return {
        "epochs": ends[-1]["epoch"] if ends else 0,
        "seconds": round(sum(line.get("epoch_seconds", 0.0) for line in lines), 1),
        "images_per_second": speeds[len(speeds) // 2] if speeds else None,
        "validation_clean": [line["validation_clean_accuracy"] for line in ends],
        "validation_robust": [line["validation_robust_accuracy"] for line in ends],
    }


def percent(share: float) -> str:
    """42.0 %."""
    return f"{100 * share:.1f} %"


def interval(rate: float, count: int, z: float = 1.96) -> str:
    """A rate in percent, with Wilson's 95 % interval for `count` images."""
    middle, spread = rate + z * z / (2 * count), z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count**2))
    low, high = ((middle + sign * spread) / (1 + z * z / count) for sign in (-1, 1))
    return f"{100 * rate:.1f} ({100 * low:.1f} to {100 * high:.1f}; {count})"
