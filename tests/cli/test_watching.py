"""What is seen of a search: a bar on a terminal, lines under -v, nothing otherwise."""

import io
from argparse import Namespace

import pytest
from rich.console import Console

from autopar.cli.watching import Watcher, bar_on, watching
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
