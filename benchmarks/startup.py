"""Time from the start of a run to its first training step: with an empty compilation cache, and with a filled one.

  python benchmarks/startup.py --config=configs/cifar10_small.py --config.data.name=cifar10.npz
  python benchmarks/startup.py                       # the digits

Starts main.py in fresh processes and directories until metrics.jsonl shows a step; flags go on to main.py.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent


def seconds_to_first_step(flags: list[str], cache: pathlib.Path, workdir: pathlib.Path) -> float:
    """From the start of the process to the first line of metrics.jsonl; then the process is killed."""
    command = [sys.executable, "main.py", *flags, f"--workdir={workdir}", "--config.log_every=1"]
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)})
    lines = workdir / "metrics.jsonl"
    while not (lines.exists() and lines.stat().st_size):
        if process.poll() is not None:
            sys.exit(f"main.py ended with status {process.returncode} before its first step")
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    process.kill()
    process.wait()
    return seconds


def main():
    flags = sys.argv[1:] or ["--config=configs/digits.py"]
    if flags[0] in ("-h", "--help"):
        sys.exit(print(__doc__))
    imports = {}
    for module in ("jax", "infofeat_jax.attacks", "infofeat_jax.cli"):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], cwd=ROOT, check=True)
        imports[module] = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as directory:
        place = pathlib.Path(directory)
        first, second = (seconds_to_first_step(flags, place / "cache", place / name) for name in ("a", "b"))
    print(" ".join(flags))
    for module, seconds in imports.items():
        print(f"import {module:>20}: {seconds:5.2f} s")
    print(f"{'first start':>27}: {first:5.2f} s to the first step")
    print(f"{'second start':>27}: {second:5.2f} s, {second / first:.2f} x the first")


if __name__ == "__main__":
    main()
