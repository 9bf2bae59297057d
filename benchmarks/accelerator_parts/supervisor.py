"""Runs the process that computes, keeps the time, and writes results.json and the page. Needs no JAX.

The worker is a process of its own, so that nothing it does, crashing and hanging included, costs more than one part.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

from accelerator_parts import page
from accelerator_parts import state as states
from accelerator_parts.state import Call, Options

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
WORKER = (sys.executable, "-m", "accelerator_parts.worker")
POLL, SHOW = 0.25, 10.0  # seconds between two looks at the worker, and between two pages
FINISHED, MISTAKE, UNFINISHED = 0, 2, os.EX_TEMPFAIL  # statuses of a worker that ended by itself
LOG = 200_000  # bytes of the log's end that are carried away


def supervise(
    call: Call, history: dict, workdir: pathlib.Path, out: pathlib.Path, worker: Sequence[str] = WORKER
) -> int:
    """Runs workers until nothing is left, or the time is up; one that dies costs the part it was at.

    `history`: the options, and the calls so far. Returns the status to exit with: 0 if all is done, 1 if something
    failed, 75 if something is left, 2 if the data cannot be read.
    """
    began, record = time.monotonic(), {"when": time.strftime("%Y-%m-%d %H:%M:%S"), "seconds": 0.0}
    history["calls"].append(record)

    def show() -> None:
        record["seconds"] = round(time.monotonic() - began, 1)
        write(workdir / "calls.json", json.dumps(history))
        publish(history, workdir, out)

    settle(workdir, call, "the command was ended before it was done", failed=False)
    given = json.dumps({"options": history["options"], "call": call, "directory": str(workdir), "out": str(out)})
    status, asked, over = -1, [], False
    while status not in (FINISHED, MISTAKE, UNFINISHED) and not over and time.monotonic() < call.stop:
        process = start([*worker, given], workdir / "log.txt")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, partial(pass_on, process, asked))
        status = watch(process, call, workdir, show)
        over = bool(asked) or time.monotonic() >= call.end
        why = "the time was over" if over else f"its process took too long, or died (status {status}): see log.txt"
        settled = settle(workdir, call, why, failed=not over)
        if not (settled or over) and status not in (FINISHED, MISTAKE, UNFINISHED):
            print(f"error: the process that computes died (status {status}): see {workdir}/log.txt", file=sys.stderr)
            status = 1
            break
    show()
    if status == MISTAKE:
        why = states.read(workdir).parts["data"]["error"]
        print(f"error: {why.removeprefix('InvalidInput: ')}", file=sys.stderr)
    else:
        print(f"{out / 'accelerator.md'}: {page.summary(states.read(workdir))}")
    failed = any(part["status"] == states.FAILED for part in states.read(workdir).parts.values())
    return UNFINISHED if status < 0 else status or int(failed)


def settle(workdir: pathlib.Path, call: Call, why: str, *, failed: bool) -> bool:
    """Records how the part ended whose worker is no more. Returns whether there was one."""
    state = states.read(workdir)
    for name in (running := state.running()):
        if failed:
            state.fail(name, why, call.number)
        else:
            state.note(name, status=states.STOPPED, error=why)
    return bool(running)


def pass_on(process: subprocess.Popen, asked: list[int], number: int, frame) -> None:
    """Notes a signal, and asks the worker to save and to stop."""
    asked.append(number)
    process.send_signal(signal.SIGTERM)


def start(command: list[str], log: pathlib.Path) -> subprocess.Popen:
    """A worker; what it prints goes to the log."""
    paths = [str(ROOT / "benchmarks"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    with log.open("ab") as opened:
        return subprocess.Popen(command, env=environment, stdout=opened, stderr=opened)


def watch(process: subprocess.Popen, call: Call, workdir: pathlib.Path, show: Callable[[], None]) -> int:
    """Waits for a worker; kills it at the end of the call's time, or of its part's. Returns its status."""
    seen, shown = None, -SHOW
    while process.poll() is None:
        running, now = states.read(workdir).running(), time.monotonic()
        if now >= min([call.end, *(part["end"] for part in running.values())]):
            process.kill()
        if running.keys() != seen or now > shown + SHOW:
            if running and running.keys() != seen:
                print(f"{call.end - now:4.0f} s left: {', '.join(running)}", flush=True)
            show()
            seen, shown = running.keys(), now
        time.sleep(POLL)
    return process.returncode


def publish(history: dict, workdir: pathlib.Path, out: pathlib.Path) -> None:
    """Writes what is known so far to the directory that is carried away."""
    results = {
        "options": Options(*history["options"])._asdict(), "calls": history["calls"],
        "parts": states.read(workdir).parts, "training": page.progress(workdir),
    }  # fmt: skip
    write(out / "results.json", json.dumps(results, indent=1) + "\n")
    write(out / "accelerator.md", page.create(results))
    log = workdir / "log.txt"
    write(out / "log.txt", log.read_bytes()[-LOG:].decode(errors="replace") if log.exists() else "")


def write(path: pathlib.Path, text: str) -> None:
    """Replaces a file as a whole."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)
