"""Progress on the terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


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
