"""What a run leaves behind while it goes: metrics.jsonl, TensorBoard files, and a progress bar."""

import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from infofeat_jax.types import InvalidInput

Write = Callable[[int, dict], None]  # (step, values) appended to the run's records


def read(path: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl; none without the file."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):  # cut off by a kill
            records.append(json.loads(line))
    return records


def rewind(path: pathlib.Path, step: int) -> None:
    """Drops the lines of metrics.jsonl after `step`, which a resumed run writes anew."""
    kept = [record for record in read(path) if record["step"] <= step]
    write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Replaces `path` as a whole: readers and kills see the old content or the new one."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)


def write_arrays_atomically(path: pathlib.Path, arrays: Mapping) -> None:
    """The same for an .npz of arrays."""
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    partial.replace(path)


def read_arrays(path: pathlib.Path, setting: str) -> dict[str, np.ndarray] | None:
    """The arrays of an .npz of the same "setting"; None if there is no such file, or it is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            arrays = dict(saved)
    except Exception:  # zipfile, zlib and numpy raise a dozen kinds for damaged files
        return None
    return arrays if str(arrays.pop("setting", "")) == setting else None


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
    """clu's writers. Raises InvalidInput without TensorFlow and tensorboard, which they import."""
    try:
        from clu import metric_writers
    except ImportError as error:
        raise InvalidInput(
            f"config.tensorboard = True needs TensorFlow and tensorboard ({error}):"
            " pip install 'infofeat_jax[tensorflow]', or leave it False; metrics.jsonl is always written"
        ) from None
    return metric_writers


@contextmanager
def progress(total: int, done: int = 0, *, active: bool = True) -> Iterator[Callable[..., None]]:
    """A bar with time left; plain lines without a terminal.

    Call the yielded function with the steps done, a text, a line to keep above the bar, a note to keep in it.
    """
    console = Console(stderr=True)
    if not active:
        yield lambda steps, text, line=None, note=None: None
    elif not console.is_terminal:
        yield lambda steps, text, line=None, note=None: line and print(line, file=sys.stderr, flush=True)
    else:
        columns = (
            TextColumn("{task.description}{task.fields[note]}"), BarColumn(None), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("starting (compiling takes a while)", total=total, completed=done, note="")

            def show(steps: int, text: str, line: str | None = None, note: str | None = None) -> None:
                kept = {} if note is None else {"note": f"  {note}"}
                bar.update(task, completed=steps, description=text, **kept)
                if line:
                    bar.console.print(line, highlight=False)

            yield show
