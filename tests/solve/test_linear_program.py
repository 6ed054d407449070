"""The linear solver: what it gives up is tried in another way."""

import random
from typing import Any

import pytest
from ortools.linear_solver import pywraplp

from autopar.solve.linear_program import linear_solver, solved


def transport(seed: int) -> Any:
    """A programme of least cost that takes some iterations: supplies to demands."""
    rng, solver = random.Random(seed), linear_solver()
    sent = [[solver.NumVar(0, solver.infinity(), "") for _ in range(8)] for _ in range(6)]
    for row in sent:
        supply = solver.Constraint(0, rng.randint(20, 30))
        for one in row:
            supply.SetCoefficient(one, 1.0)
    for column in zip(*sent, strict=True):
        demand = solver.Constraint(rng.randint(5, 12), solver.infinity())
        for one in column:
            demand.SetCoefficient(one, 1.0)
    for row in sent:
        for one in row:
            solver.Objective().SetCoefficient(one, rng.uniform(1, 9))
    solver.Objective().SetMinimization()
    return solver


@pytest.mark.parametrize("seed", range(5))
def test_what_is_given_up_is_solved_afresh(seed: int) -> None:
    usual, given_up = transport(seed), transport(seed)
    assert solved(usual) == pywraplp.Solver.OPTIMAL
    given_up.SetSolverSpecificParametersAsString("max_number_of_iterations: 1")
    assert given_up.Solve() != pywraplp.Solver.OPTIMAL

    assert solved(given_up) == pywraplp.Solver.OPTIMAL
    assert given_up.Objective().Value() == pytest.approx(usual.Objective().Value())


def test_what_has_no_solution_is_said_to_have_none() -> None:
    solver = transport(0)
    impossible = solver.Constraint(-solver.infinity(), -1.0)
    impossible.SetCoefficient(solver.variables()[0], 1.0)
    assert solved(solver) == pywraplp.Solver.INFEASIBLE
