"""What a person sees of a search that takes longer than a moment: a line on stderr that keeps changing.

On a terminal it is a bar with the candidates done and the best step so far; under ``-v`` every step of the
search is a line of its own; under ``-q``, ``--json``, or where nobody watches, there is nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from autopar.cli.outcome import tell
from autopar.units import format_seconds

if TYPE_CHECKING:
    from autopar.solve.considered import News

_PATIENCE_S = 1.0
_WIDTH = 44


class Watcher:
    """Where a search is; told by the search itself."""

    def __init__(self, *, is_verbose: bool, bar: Progress | None) -> None:
        self._is_verbose, self._bar = is_verbose, bar
        self._begun_s = time.monotonic()
        self._task: TaskID | None = None
        self._doing, self._found = "", "no plan yet"
        self._done = 0
        self._total: int | None = None

    def doing(self, text: str) -> None:
        """What is being done, in a few words."""
        self._doing = text
        if self._is_verbose:
            tell(text)
        self._show()

    def news(self, news: News) -> None:
        """How far the search has come."""
        self._done, self._total = news.num_done, news.num_done + news.num_waiting
        if news.best_s is not None:
            self._found = f"best {format_seconds(news.best_s)}"
        self._show()

    def _show(self) -> None:
        bar = self._bar
        if bar is None or time.monotonic() - self._begun_s < _PATIENCE_S:
            return
        if self._task is None:
            self._task = bar.add_task("", total=None, done=0, found="", doing="")
            bar.start()
        doing = self._doing if len(self._doing) <= _WIDTH else f"{self._doing[: _WIDTH - 1]}…"
        bar.update(
            self._task,
            completed=self._done,
            total=self._total,
            done=self._done,
            found=self._found,
            doing=doing,
        )


@contextmanager
def watching(args: argparse.Namespace) -> Iterator[Watcher]:
    """A watcher as the flags want it; what it shows is gone when the search is over."""
    stream = sys.__stderr__
    is_watched = not (args.quiet or args.json or args.verbose) and stream is not None and stream.isatty()
    bar = _bar() if is_watched else None
    try:
        yield Watcher(is_verbose=args.verbose and not args.quiet, bar=bar)
    finally:
        if bar is not None:
            bar.stop()


def _bar() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.fields[done]} candidates"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[found]}"),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[doing]}"),
        console=Console(file=sys.__stderr__),
        transient=True,
        refresh_per_second=4,
    )
