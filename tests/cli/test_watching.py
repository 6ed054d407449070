"""What is seen of a search: a bar on a terminal, lines under -v, nothing otherwise."""

import io
import sys
import time
from argparse import Namespace

import pytest
from rich.console import Console

from autopar.cli import watching as module
from autopar.cli.watching import Watcher, bar_on, waiting, watching
from autopar.solve.considered import News


def test_the_bar_shows_candidates_done_and_the_best_so_far() -> None:
    screen = io.StringIO()
    bar = bar_on(Console(file=screen, force_terminal=True, width=160))
    watcher = Watcher(is_verbose=False, bar=bar)
    with bar:
        watcher.doing("mesh 1 x 8 x 1, micro-batch 8 and much more that no line has room for at all")
        watcher.news(News(num_done=12, num_waiting=28, best_s=0.0849))
    (task,) = bar.tasks
    assert (task.completed, task.total) == (12, 40)
    for text in ("12 candidates", "best 84.9 ms", "mesh 1 x 8 x 1", "…"):
        assert text in screen.getvalue()


def test_before_the_first_plan_the_bar_says_so() -> None:
    bar = bar_on(Console(file=io.StringIO()))
    Watcher(is_verbose=False, bar=bar).news(News(3, 5, None))
    assert bar.tasks[0].fields["found"] == "no plan yet"


@pytest.mark.parametrize(
    ("flags", "lines"), [({}, ""), ({"verbose": True}, "capturing the model\n"), ({"quiet": True}, "")]
)
def test_where_nobody_watches_only_verbose_tells(
    capsys: pytest.CaptureFixture[str], flags: dict[str, bool], lines: str
) -> None:
    with watching(Namespace(**{"quiet": False, "json": False, "verbose": False} | flags)) as watcher:
        watcher.doing("capturing the model")
        watcher.news(News(1, 2, 0.1))
    assert capsys.readouterr() == ("", lines)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("flag", "is_seen"), [("", True), ("quiet", False), ("json", False), ("verbose", False)]
)
def test_what_takes_long_is_named_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, flag: str, is_seen: bool
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "__stderr__", screen)
    monkeypatch.setattr(module, "_PATIENCE_S", 0.0)
    flags = {"quiet": False, "json": False, "verbose": False}
    with waiting(Namespace(**flags | ({flag: True} if flag else {})), "capturing the model"):
        deadline_s = time.monotonic() + (10.0 if is_seen else 0.05)
        while "capturing the model" not in screen.getvalue() and time.monotonic() < deadline_s:
            time.sleep(0.01)
    assert ("capturing the model" in screen.getvalue()) == is_seen


def test_what_takes_a_moment_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "__stderr__", screen)
    with waiting(Namespace(quiet=False, json=False, verbose=False), "capturing the model"):
        pass
    assert "capturing" not in screen.getvalue()
