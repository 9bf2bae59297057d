"""Progress bars on the terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Show(Protocol):
    """Reports progress: `steps` done, `text` beside the bar; `line` is kept above it, `note` in it from now on."""

    def __call__(self, steps: int | float, text: str, line: str | None = None, note: str | None = None) -> None: ...


@contextmanager
def progress(total: int, done: int = 0, *, active: bool = True) -> Iterator[Show]:
    """A progress bar with the time left, or plain lines without a terminal; `active` is False where nobody watches."""
    console = Console(stderr=True)
    if not active:
        yield _ignore
    elif not console.is_terminal:
        yield _print_line
    else:
        columns = (
            TextColumn("{task.description}{task.fields[note]}"), BarColumn(None), MofNCompleteColumn(),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("starting (compiling takes a while)", total=total, completed=done, note="")

            def show(steps: int | float, text: str, line: str | None = None, note: str | None = None) -> None:
                kept: dict[str, Any] = {} if note is None else {"note": f"  {note}"}
                bar.update(task, completed=steps, description=text, **kept)
                if line:
                    bar.console.print(line, highlight=False)

            yield show


def _print_line(steps: int | float, text: str, line: str | None = None, note: str | None = None) -> None:
    if line:
        print(line, file=sys.stderr, flush=True)


def _ignore(steps: int | float, text: str, line: str | None = None, note: str | None = None) -> None:
    pass
