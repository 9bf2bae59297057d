"""The records of a training run: metrics.jsonl, and TensorBoard event files on demand."""

import json
import pathlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from infofeat_jax import installation
from infofeat_jax.runtime import files
from infofeat_jax.types import InvalidInput

Write = Callable[[int, dict], None]  # appends (step, values) to the run's records


def read(path: pathlib.Path) -> list[dict]:
    """The records in metrics.jsonl; none if there is no such file."""
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with suppress(ValueError, RecursionError):  # cut off by a kill, or damaged
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
    return records


def training_seconds(path: pathlib.Path) -> float:
    """The time that training has taken, from the records in metrics.jsonl."""
    seconds = (record.get("epoch_seconds") for record in read(path))
    return round(float(sum(value for value in seconds if isinstance(value, int | float))), 1)


def rewind(path: pathlib.Path, step: int) -> None:
    """Drops the lines of metrics.jsonl after `step`, which a resumed run writes again."""
    kept = [record for record in read(path) if record["step"] <= step]
    files.write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))


@contextmanager
def records(workdir: pathlib.Path, *, active: bool, tensorboard: bool) -> Iterator[Write]:
    """A function that appends to metrics.jsonl and, on demand, to TensorBoard event files."""
    if not active:
        yield lambda step, values: None
        return
    writer = import_metric_writers().SummaryWriter(str(workdir)) if tensorboard else None
    with (workdir / "metrics.jsonl").open("a") as lines:

        def write(step: int, values: dict) -> None:
            lines.write(json.dumps({"step": step, **values}) + "\n")
            lines.flush()
            if writer is not None:
                writer.write_scalars(step, {k: v for k, v in values.items() if isinstance(v, int | float)})

        yield write
    if writer is not None:
        writer.close()


def import_metric_writers():
    """clu's metric writers. Raises InvalidInput if TensorFlow or tensorboard, which they import, is missing."""
    try:
        from clu import metric_writers
    except ImportError as error:
        raise InvalidInput(
            f"config.tensorboard = True needs TensorFlow and tensorboard ({error}):"
            f" {installation.command('tensorflow')}, or leave it False; metrics.jsonl is always written"
        ) from None
    return metric_writers
