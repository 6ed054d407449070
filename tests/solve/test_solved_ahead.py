"""A search with forks beside it finds what it finds alone, and speaks of its own tables."""

import os
import random
import time

import pytest

from autopar import forked
from autopar.cost.choice import BlockChoice
from autopar.solve import search as search_module
from autopar.solve import solved_ahead
from autopar.solve.candidate import Candidate, Choices, ChoiceTable, MeshSolution, SearchResult
from autopar.solve.errands import Errands
from autopar.solve.mesh import solve_mesh
from tests.solve.fake_choices import FakeCase, random_case
from tests.solve.test_search import found_by

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="forks are for Linux alone")


def facts(result: SearchResult | None) -> object:
    """All of a result that a person is shown."""
    if result is None:
        return None
    beside = [(a.candidate, a.prediction, a.why_not) for a in result.alternatives]
    return result.best.candidate, result.best.layout, result.bound_s, result.gap, result.num_solved, beside


@pytest.mark.parametrize("seed", range(0, 40, 2))
def test_forks_change_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = facts(found_by(random_case(random.Random(seed))))
    monkeypatch.setattr(forked, "num_spare_processors", lambda: 2)
    monkeypatch.setattr(solved_ahead, "LARGE_UNITS", 0)
    monkeypatch.setattr(search_module, "LARGE_UNITS", 0)
    assert facts(found_by(random_case(random.Random(seed)))) == alone


class Kept:
    """Choices whose tables are made once."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self.num_blocks = choices.num_blocks
        self.trainable_elements = choices.trainable_elements
        self._made: dict[tuple[int, int, int], tuple[ChoiceTable, ...]] = {}

    def tables(
        self, tensor: int, micro_batch: int, tensor_stride: int = 1, *, thorough: bool = False
    ) -> tuple[ChoiceTable, ...]:
        place = tensor, micro_batch, tensor_stride
        if place not in self._made:
            self._made[place] = self._choices.tables(*place, thorough=thorough)
        return self._made[place]

    def floor_s(self, tensor: int, micro_batch: int) -> float:
        return self._choices.floor_s(tensor, micro_batch)


def solvable() -> tuple[FakeCase, Candidate, MeshSolution]:
    """A case with a candidate that has a plan."""
    for seed in range(100):
        case = random_case(random.Random(seed))
        result = found_by(case)
        if result is not None:
            found = solve_mesh(case.choices, result.best.candidate, case.job)
            assert isinstance(found, MeshSolution)
            return case, result.best.candidate, found
    raise AssertionError("no case has a plan")


def test_found_plans_refer_to_the_tables_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked, "num_spare_processors", lambda: 1)
    case, candidate, own = solvable()
    place = candidate.tensor, candidate.micro_batch, candidate.tensor_stride
    choices = Kept(case.choices)
    choices.tables(*place)
    errands = [lambda: solve_mesh(choices, candidate, case.job)] * 2
    with Errands(choices, [place], errands, are_large=True, begun=1) as asked:
        while not asked.is_begun(1):
            time.sleep(0.01)
        found = asked.taken(1)
    assert found == own
    offered: set[int] = {
        id(choice)
        for table in choices.tables(*place)
        for kind in table.kinds
        for choice in kind
        if isinstance(choice, BlockChoice)
    }
    assert {id(choice) for choice in found.choices} <= offered
