"""Injects faults into runs of main.py, resumes them, and compares the result with an undisturbed run.

  python benchmarks/faults.py sigkill --trials=20      # or another of FAULTS; full_disk mounts a tmpfs, as root
  python benchmarks/faults.py table                    # writes docs/faults.md anew from docs/faults.jsonl

Each trial appends a line to docs/faults.jsonl. On the digits, one CPU device per process, 24 steps in 6 epochs. A trial
is lost unless all arrays of the final and of the best checkpoint equal the undisturbed run's, of as many processes,
bit for bit.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import processes  # noqa: E402 - what the tests start main.py with

RECORDS, TABLE = ROOT / "docs" / "faults.jsonl", ROOT / "docs" / "faults.md"
STEPS = 24
every_minutes = 0.0  # between checkpoints; 0: after every epoch


class Main:
    """Where the compiled programs are kept, in the form that tests/processes.py expects."""

    cache = pathlib.Path(tempfile.gettempdir()) / "infofeat_jax-faults"


def start(count: int, workdir: pathlib.Path) -> list[subprocess.Popen]:
    """The run in the background, in `count` processes."""
    flags = *processes.QUICK, f"--workdir={workdir}", f"--config.checkpoint.every_minutes={every_minutes}"
    return [processes.start(Main, *flags)] if count == 1 else processes.start_several(Main, count, *flags)


def main(workdir: pathlib.Path, count: int = 1) -> tuple[int, str]:
    """(exit status, error output) of main.py run to its end; of several processes the first one's."""
    running = start(count, workdir)
    outputs = [process.communicate(timeout=600) for process in running]
    return running[0].returncode, outputs[0][1]


def sigkill(workdir: pathlib.Path, seconds: float, rng: random.Random) -> str:
    """SIGKILL at a random moment, up to three times in a row, from the start of the process to its end."""
    moments = []
    for _ in range(rng.randint(1, 3)):
        [process] = start(1, workdir)
        moments.append(rng.uniform(0, seconds))
        time.sleep(moments[-1])
        process.kill()
        process.communicate()
    return f"after {', '.join(f'{moment:.1f}' for moment in moments)} s"


def timed(workdir: pathlib.Path, seconds: float, rng: random.Random) -> str:
    """The same, with checkpoints only when one to four tenths of the run's time have passed since the one before."""
    global every_minutes
    every_minutes = rng.uniform(0.1, 0.4) * seconds / 60
    return f"every {60 * every_minutes:.1f} s, {sigkill(workdir, seconds, rng)}"


def sigterm(workdir: pathlib.Path, seconds: float, rng: random.Random) -> str:
    """SIGTERM at a random moment after the first step; the state is saved within 10 s, the exit status is 75."""
    [process] = start(1, workdir)
    processes.wait_for(process, lambda: (workdir / "metrics.jsonl").exists())
    time.sleep(rng.uniform(0, seconds / 4))
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    process.communicate(timeout=10)
    assert process.returncode in (0, 75), process.returncode
    return f"ended in {time.monotonic() - began:.1f} s with status {process.returncode}"


def damage(workdir: pathlib.Path, seconds: float, rng: random.Random) -> str:
    """A random file of the newest checkpoint truncated at a random length; the run falls back and says so."""
    assert main(workdir)[0] == 0
    files = sorted(path for path in (workdir / "checkpoints" / str(STEPS)).rglob("*") if path.is_file())
    path = rng.choice([path for path in files if path.name != "seal.json"])
    data = path.read_bytes()
    left = rng.randrange(len(data))
    path.write_bytes(data[:left])
    status, errors = main(workdir)
    assert status == 0, errors
    assert "is damaged" in errors, errors
    return f"{path.relative_to(workdir)}: {left} of {len(data)} bytes left"


def full_disk(workdir: pathlib.Path, seconds: float, rng: random.Random) -> str:
    """A file system that fills up at a random moment after the first checkpoint; space is freed, the run continued."""
    disk = workdir.with_name("disk")
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", disk], check=True)
    try:
        [process] = start(1, disk / "run")
        processes.wait_for(process, lambda: (disk / "run" / "checkpoints" / "4").exists())
        time.sleep(rng.uniform(0, seconds / 8))
        fill(disk / "ballast")
        _, errors = process.communicate(timeout=600)
        said = errors.splitlines()[-1]
        assert process.returncode == 1, (process.returncode, errors)
        assert said.startswith("error: "), errors
        (disk / "ballast").unlink()
        assert main(disk / "run")[0] == 0
        shutil.copytree(disk / "run", workdir)
    finally:
        subprocess.run(["umount", disk], check=True)
    return said[:160].replace(str(disk), "DISK")


def fill(path: pathlib.Path) -> None:
    """Writes until the disk is full."""
    try:
        with path.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
    except OSError:
        pass


def moved(workdir: pathlib.Path, seconds: float, rng: random.Random) -> str:
    """SIGTERM, and the directory moved to another place."""
    other = workdir.with_name("elsewhere")
    text = sigterm(other, seconds, rng)
    other.rename(workdir)
    return text


def preempted(workdir: pathlib.Path, seconds: float, rng: random.Random) -> str:
    """Two processes, SIGTERM to one of them at a random moment; both save the same step and end with status 75."""
    running = start(2, workdir)
    processes.wait_for(running[0], lambda: (workdir / "metrics.jsonl").exists())
    time.sleep(rng.uniform(0, seconds / 8))
    victim = rng.randrange(2)
    running[victim].send_signal(signal.SIGTERM)
    began = time.monotonic()
    said = [process.communicate(timeout=120)[1].splitlines()[-1] for process in running]
    assert [process.returncode for process in running] in ([75, 75], [0, 0]), said  # 0: it was done before
    assert said[0] == said[1] or running[0].returncode == 0, said
    return f"process {victim} asked, both ended in {time.monotonic() - began:.1f} s with {running[0].returncode}"


def one_dies(workdir: pathlib.Path, seconds: float, rng: random.Random) -> str:
    """Two processes, SIGKILL to one of them at a random moment; the other ends with an error within 75 s."""
    running = start(2, workdir)
    processes.wait_for(running[0], lambda: (workdir / "metrics.jsonl").exists())
    time.sleep(rng.uniform(0, seconds / 8))
    victim = rng.randrange(2)
    running[victim].kill()
    began = time.monotonic()
    running[1 - victim].communicate(timeout=75)
    running[victim].communicate()
    assert running[1 - victim].returncode != 0
    return f"process {victim} killed, the other ended in {time.monotonic() - began:.1f} s"


FAULTS = {
    "sigkill": sigkill, "timed": timed, "sigterm": sigterm, "damage": damage, "full_disk": full_disk, "moved": moved,
    "preempted": preempted, "one_dies": one_dies,
}  # fmt: skip
SEVERAL = ("preempted", "one_dies")  # of two processes


def trial(fault: str, seed: int, whole: pathlib.Path, seconds: float) -> dict:
    """One fault, then the same command until the run is done."""
    rng = random.Random(f"{fault} {seed}")
    with tempfile.TemporaryDirectory() as directory:
        workdir = pathlib.Path(directory) / "run"
        detail = FAULTS[fault](workdir, seconds, rng)
        status, errors = main(workdir, 2 if fault in SEVERAL else 1)
        assert status == 0, errors
        same = best_step(workdir) == best_step(whole)
        for step in {STEPS, best_step(whole)} if same else ():
            pairs = zip(processes.parameters(workdir, step), processes.parameters(whole, step), strict=True)
            same &= all(np.array_equal(one, other) for one, other in pairs)
    date = datetime.date.today().isoformat()
    machine = f"{os.cpu_count()} {platform.machine()} cores, jax {jax.__version__}"
    return {"fault": fault, "seed": seed, "detail": detail, "same_bits": same, "date": date, "machine": machine}


def best_step(workdir: pathlib.Path) -> int:
    """The step of the best checkpoint, by the scores beside the weights; of equals the later."""
    scores = {}
    for path in (workdir / "checkpoints").glob("*/metrics/metrics"):
        scores[int(path.parent.parent.name)] = json.loads(path.read_text())["validation_score"]
    return max(scores, key=lambda step: (scores[step], step))


def write_table() -> None:
    """docs/faults.md from docs/faults.jsonl."""
    records = [json.loads(line) for line in RECORDS.read_text().splitlines()]
    rows = []
    for fault, function in FAULTS.items():
        tried = [record for record in records if record["fault"] == fault]
        if tried:
            lost = sum(not record["same_bits"] for record in tried)
            dates = sorted({record["date"] for record in tried})
            where = "; ".join(sorted({record["machine"] for record in tried}))
            what = " ".join(function.__doc__.split())
            rows.append(f"| {what} | {len(tried)} | {lost} | {where}, {dates[-1]} |")
    TABLE.write_text(
        "# Fault injection: trials, and what was lost\n\n"
        "Written by `python benchmarks/faults.py table` from `docs/faults.jsonl`, to which each trial of\n"
        "`python benchmarks/faults.py FAULT --trials=N` appends a line. After each fault the same command is run\n"
        "again; lost: an array of the final or of the best checkpoint (parameters, statistics, momentum) differs in\n"
        "any bit from the undisturbed run's (before 2026-11-27 only the final one was compared). InfoFeature training\n"
        "of a WRN-10-1 of width 4 on 256 digits, 24 steps in 6 epochs, one CPU device per process, a checkpoint after\n"
        "each epoch unless the row says otherwise.\n\n"
        "| fault | trials | lost | where |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fault", choices=[*FAULTS, "table"])
    parser.add_argument("--trials", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="seed of the first trial; the others follow")
    options = parser.parse_args()
    if options.fault != "table":
        with tempfile.TemporaryDirectory() as directory:
            whole = pathlib.Path(directory) / "whole"
            count = 2 if options.fault in SEVERAL else 1
            main(whole, count)  # compiles
            shutil.rmtree(whole)
            began = time.monotonic()
            main(whole, count)
            seconds = time.monotonic() - began
            for seed in range(options.first, options.first + options.trials):
                record = trial(options.fault, seed, whole, seconds)
                print(record, flush=True)
                RECORDS.parent.mkdir(exist_ok=True)
                with RECORDS.open("a") as lines:
                    lines.write(json.dumps(record) + "\n")
    write_table()
