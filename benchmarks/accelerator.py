"""Everything that is to be known of an accelerator that is lent for a short while, in one command with a time budget.

  python benchmarks/accelerator.py --minutes=15 --data=cifar10.npz --out=carried

First (a third of the time, at most 5 minutes) the device's rates, and the speed of training steps, evaluation and
AutoAttack. Then ResNet18 is trained with Madry and InfoFeature and evaluated with PGD20 and AutoAttack: the number of
epochs, the same for both, follows from the measured rates. The same command again goes on with what is left. A part
that fails is noted, and the next begins. --out receives at most 8 files of at most 16 MB: results.json, accelerator.md,
outcomes.npz, log.txt, and the weights as float16. The state, and all else, is in --workdir.

Needs jax, flax, optax, orbax-checkpoint, absl-py, ml_collections and jaxtyping. Several calls on one machine:
--minutes=9 --total_minutes=13 plans for both, and begins the evaluation in the last.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from accelerator_parts import page
from accelerator_parts import state as states
from accelerator_parts.state import Call, Options, State

ROOT = pathlib.Path(__file__).resolve().parent.parent
NEEDED = ("jax", "flax", "optax", "orbax.checkpoint", "absl", "ml_collections", "jaxtyping", "numpy")
POLL = 0.25  # seconds
MEASURE = 300.0  # seconds after which no optional measurement begins, if that is less than a third of the time
LOG = 200_000  # bytes of the log's end that are carried away


def main() -> int:
    began = time.monotonic()
    args = parse()
    if missing := [name for name in NEEDED if not is_installed(name)]:
        return complain(f"missing packages: {', '.join(missing)}: install them, or add their folder to PYTHONPATH")
    data = args.data and os.path.abspath(args.data)
    options = Options(data, args.dtype, args.epochs, args.autoattack_images, args.tiny)
    args.workdir.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    calls = read_json(args.workdir / "calls.json") or {"options": list(options), "calls": []}
    if calls["options"] != list(options):
        return complain(
            f"{args.workdir} was begun with {Options(*calls['options'])}: repeat it, or give another --workdir"
        )
    call = schedule(args, began, calls["calls"])
    return supervise(call, calls, args.workdir, args.out)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15, help="of this call; they are kept to")
    parser.add_argument("--total_minutes", type=float, default=0, help="of this call, earlier and later ones")
    parser.add_argument("--data", default="", help="an .npz, or TFDS's data_dir; without it, nothing is trained")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of training, evaluation")
    parser.add_argument("--epochs", type=int, default=120, help="of each method, if they fit")
    parser.add_argument("--autoattack_images", type=int, default=1000, help="if they fit")
    runs = ROOT / "runs"
    parser.add_argument("--workdir", type=pathlib.Path, default=runs / "accelerator", help="state, runs, programs")
    parser.add_argument("--out", type=pathlib.Path, default=runs / "accelerator" / "out", help="what to carry away")
    parser.add_argument("--tiny", action="store_true", help="tiny networks and data, to try the command on a CPU")
    return parser.parse_args()


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
    seconds = 60 * args.minutes
    end = began + seconds - 1.5
    later = max(60 * args.total_minutes - seconds - sum(call["seconds"] for call in earlier), 0.0)
    measure = min(MEASURE, (seconds + later) / 3)
    return Call(len(earlier) + 1, began + measure, end - min(max(0.05 * seconds, 6.0), 40.0), end, later)


def supervise(call: Call, calls: dict, workdir: pathlib.Path, out: pathlib.Path) -> int:
    """Runs workers until nothing is left to do, or the time is up. A worker that dies costs the part it was at."""
    began, record = time.monotonic(), {"when": time.strftime("%Y-%m-%d %H:%M:%S"), "seconds": 0.0}
    calls["calls"].append(record)

    def show(state: State) -> None:
        record["seconds"] = round(time.monotonic() - began, 1)
        write(workdir / "calls.json", json.dumps(calls))
        results = {**calls, "options": Options(*calls["options"])._asdict(), "parts": state.parts}
        results["training"] = page.progress(workdir)
        write(out / "results.json", json.dumps(results, indent=1))
        write(out / "accelerator.md", page.create(results))
        if (workdir / "log.txt").exists():
            write(out / "log.txt", (workdir / "log.txt").read_bytes()[-LOG:].decode(errors="replace"))

    given = {"options": calls["options"], "call": call, "directory": str(workdir), "out": str(out)}
    status = None
    while status not in (0, 2, os.EX_TEMPFAIL) and time.monotonic() < call.stop:
        with (workdir / "log.txt").open("ab") as log:
            status = watch(start(given, log), call, workdir, show)
        state = states.read(workdir)
        running = state.running()
        for name, part in running.items():
            over = part["end"] <= time.monotonic()
            why = "took longer than its time" if over else f"its process ended with status {status}: see log.txt"
            if time.monotonic() >= call.end - POLL:
                state.note(name, status=states.STOPPED, error="cut off at the end of the time")
            else:
                state.fail(name, why, call.number)
        show(state)
        if status not in (0, 2, os.EX_TEMPFAIL) and not running:
            return complain(
                f"the process that computes ended with status {status}, at no part: see {out / 'log.txt'}", 1
            )
    print(f"{out / 'accelerator.md'}: {page.summary(states.read(workdir))}")
    return os.EX_TEMPFAIL if status is None or status < 0 else status  # ended with the time: something is left


def start(given: dict, log) -> subprocess.Popen:
    """A worker; what it prints goes to the log."""
    paths = [str(ROOT / "benchmarks"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "accelerator_parts.worker", json.dumps(given)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, stdout=log, stderr=log,
    )  # fmt: skip


def watch(worker: subprocess.Popen, call: Call, workdir: pathlib.Path, show) -> int:
    """Waits for a worker; ends it with the time of the call or of its part. Returns its status."""
    seen, shown = "", time.monotonic()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: worker.send_signal(signal.SIGTERM))
    while worker.poll() is None:
        state, now = states.read(workdir), time.monotonic()
        end = min([call.end, *(part["end"] for part in state.running().values())])
        if now >= end:
            worker.kill()
        text = ", ".join(state.running())
        if text != seen or now > shown + 10:
            if text and text != seen:
                print(f"{now - call.end:.0f} s: {text}", flush=True)
            show(state)
            seen, shown = text, now
        time.sleep(POLL)
    return worker.returncode


def read_json(path: pathlib.Path) -> dict | None:
    return json.loads(path.read_text()) if path.exists() else None


def write(path: pathlib.Path, text: str) -> None:
    """Replaces a file as a whole."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
