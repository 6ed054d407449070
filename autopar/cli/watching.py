"""What a person sees of work that takes longer than a moment: a line on stderr that keeps changing.

On a terminal a search is a bar with the candidates done and the best step so far, and other work is named;
under ``-v`` every step of a search is a line of its own; under ``-q``, ``--json``, or where nobody watches,
there is nothing.
"""

from __future__ import annotations

import argparse
import sys
import threading
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
        self._task: TaskID | None = None
        if bar is not None:
            self._task = bar.add_task("", total=None, done=0, found="no plan yet", doing="")

    def doing(self, text: str) -> None:
        """What is being done, in a few words."""
        if self._is_verbose:
            tell(text)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, doing=text if len(text) <= _WIDTH else f"{text[: _WIDTH - 1]}…")

    def news(self, news: News) -> None:
        """How far the search has come."""
        if self._bar is None or self._task is None:
            return
        self._bar.update(
            self._task, completed=news.num_done, total=news.num_done + news.num_waiting, done=news.num_done
        )
        if news.best_s is not None:
            self._bar.update(self._task, found=f"best {format_seconds(news.best_s)}")


@contextmanager
def watching(args: argparse.Namespace) -> Iterator[Watcher]:
    """A watcher as the flags want it; what it shows is gone when the search is over."""
    console = _console_of(args)
    bar = None if console is None else bar_on(console)
    with _shown(bar):
        yield Watcher(is_verbose=args.verbose and not args.quiet, bar=bar)


@contextmanager
def waiting(args: argparse.Namespace, text: str) -> Iterator[None]:
    """Names what is waited for, where there is nothing to count; gone when it is done."""
    console = _console_of(args)
    bar = None if console is None else spinner_on(console)
    if bar is not None:
        bar.add_task(text, total=None)
    with _shown(bar):
        yield


def _console_of(args: argparse.Namespace) -> Console | None:
    """Where somebody watches; None where nobody does or wants to."""
    stream = sys.__stderr__
    is_watched = not (args.quiet or args.json or args.verbose) and stream is not None and stream.isatty()
    return Console(file=stream) if is_watched else None


@contextmanager
def _shown(bar: Progress | None) -> Iterator[None]:
    """Shows a bar once the work has taken longer than a moment."""
    if bar is None:
        yield
        return
    patience = threading.Timer(_PATIENCE_S, bar.start)
    patience.daemon = True
    patience.start()
    try:
        yield
    finally:
        patience.cancel()
        patience.join()
        bar.stop()


def bar_on(console: Console) -> Progress:
    """A bar with room for what a watcher is told."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.fields[done]} candidates"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[found]}"),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[doing]}"),
        console=console,
        transient=True,
        refresh_per_second=4,
    )


def spinner_on(console: Console) -> Progress:
    """A line that says what is being done, and for how long."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True, refresh_per_second=4)
