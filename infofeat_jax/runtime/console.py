"""Progress on the terminal: a bar where rich is installed and a terminal there, otherwise plain lines."""

import importlib.util
import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

BETWEEN = 30.0  # seconds between two plain lines about what is still being done, at least
SHARE = 0.05  # of the time so far, that passes between two: a day's log stays short
STARTING = "starting (compiling takes a while)"


class Show(Protocol):
    """Reports progress: `steps` done, `text` beside the bar; `line` is kept above it, `note` in it from now on.

    `left`: seconds that remain, None if that is not known; `bound` says how they are meant: "at most", "about" ...
    """

    def __call__(
        self, steps: int | float, text: str, line: str | None = None, note: str | None = None,
        left: float | None = None, bound: str = "at most",
    ) -> None: ...  # fmt: skip


@contextmanager
def progress(total: int, done: int = 0, *, active: bool = True, lasting: bool = True) -> Iterator[Show]:
    """A progress bar with the time left, or plain lines without a terminal; `active` is False where nobody watches.

    `lasting`: whether the bar stays when all is done.
    """
    if not active:
        yield _ignore
    elif importlib.util.find_spec("rich") is None or not sys.stderr.isatty():
        with _plain_lines() as show:
            yield show
    else:
        with _bar(total, done, lasting) as show:
            yield show


def in_words(seconds: float) -> str:
    """A duration, rounded up: 40 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{max(math.ceil(seconds), 1)} s"
    return f"{math.ceil(seconds / 60)} min" if seconds < 90 * 60 else f"{math.ceil(seconds / 360) / 10:.1f} h"


@contextmanager
def _bar(total: int, done: int, lasting: bool) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    columns = (
        TextColumn("{task.description}{task.fields[note]}"), BarColumn(None), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True)),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=not lasting) as bar:
        task = bar.add_task(STARTING, total=total, completed=done, note="", left="")

        def show(steps, text, line=None, note=None, left=None, bound="at most") -> None:
            kept: dict[str, Any] = {} if note is None else {"note": f"  {note}"}
            bar.update(task, completed=steps, description=text, left=_left(left, bound), **kept)
            if line:
                bar.console.print(line, highlight=False)

        yield show


class _Lines:
    """Plain lines. What is being done is said again from time to time, also while nothing is reported."""

    def __init__(self) -> None:
        self._text, self._left, self._lock = STARTING, "", threading.Lock()
        self._began = self._last = self._reported = time.monotonic()

    def show(self, steps, text, line=None, note=None, left=None, bound="at most") -> None:
        with self._lock:
            self._text, self._left, self._reported = text, _left(left, bound), time.monotonic()
            if line:
                self._print(line)
        if not line:
            self.remind()

    def remind(self) -> None:
        """Says what is being done if that is due."""
        with self._lock:
            now = time.monotonic()
            if now - self._last > max(BETWEEN, SHARE * (now - self._began)):
                age = now - self._reported
                unchanged = f", unchanged for {in_words(age)}" if self._left and age > max(BETWEEN, 1) else ""
                self._print(f"{self._text}{unchanged}; {self._left or f'{in_words(now - self._began)} so far'}")

    def _print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        self._last = time.monotonic()


@contextmanager
def _plain_lines() -> Iterator[Show]:
    lines, ended = _Lines(), threading.Event()

    def remind() -> None:
        while not ended.wait(1.0):
            lines.remind()

    thread = threading.Thread(target=remind, daemon=True)
    thread.start()
    try:
        yield lines.show
    finally:
        ended.set()
        thread.join()


def _left(seconds: float | None, bound: str) -> str:
    return "" if seconds is None else f"{bound} {in_words(seconds)} left"


def _ignore(steps, text, line=None, note=None, left=None, bound="at most") -> None:
    pass
