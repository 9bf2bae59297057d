"""Progress on the terminal: a bar where rich is installed and a terminal there, otherwise plain lines."""

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

BETWEEN = 30.0  # seconds between two plain lines about what is still being done


class Show(Protocol):
    """Reports progress: `steps` done, `text` beside the bar; `line` is kept above it, `note` in it from now on.

    `left`: seconds that remain at most, where the caller knows better than the bar, which assumes equal steps.
    """

    def __call__(
        self, steps: int | float, text: str, line: str | None = None, note: str | None = None,
        left: float | None = None,
    ) -> None: ...  # fmt: skip


@contextmanager
def progress(total: int, done: int = 0, *, active: bool = True) -> Iterator[Show]:
    """A progress bar with the time left, or plain lines without a terminal; `active` is False where nobody watches."""
    if not active:
        yield _ignore
    elif importlib.util.find_spec("rich") is None or not sys.stderr.isatty():
        yield _plain_lines()
    else:
        with _bar(total, done) as show:
            yield show


def in_words(seconds: float) -> str:
    """A duration, rounded up: 40 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


@contextmanager
def _bar(total: int, done: int) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column
    from rich.text import Text

    class Left(TimeRemainingColumn):
        def render(self, task):
            left = task.fields.get("left")
            return super().render(task) if left is None else Text(f"at most {in_words(left)}", "progress.remaining")

    columns = (
        TextColumn("{task.description}{task.fields[note]}"), BarColumn(None), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), Left(table_column=Column(no_wrap=True)),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting (compiling takes a while)", total=total, completed=done, note="", left=None)

        def show(steps, text, line=None, note=None, left=None) -> None:
            kept: dict[str, Any] = {} if note is None else {"note": f"  {note}"}
            bar.update(task, completed=steps, description=text, left=left, **kept)
            if line:
                bar.console.print(line, highlight=False)

        yield show


def _plain_lines() -> Callable[..., None]:
    last = [time.monotonic()]

    def show(steps, text, line=None, note=None, left=None) -> None:
        if line is None and left is not None and time.monotonic() - last[0] > BETWEEN:
            line = f"{text}; at most {in_words(left)} left"
        if line:
            print(line, file=sys.stderr, flush=True)
            last[0] = time.monotonic()

    return show


def _ignore(steps, text, line=None, note=None, left=None) -> None:
    pass
