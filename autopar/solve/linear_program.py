"""The linear solver, kept from going round in circles: what it does not finish is tried in another way."""

from __future__ import annotations

from typing import Any

from ortools.linear_solver import pywraplp

# Most programs here take fewer than a hundred iterations, and large ones a thousand; GLOP's dual simplex was
# seen to take any number on one of 46 variables. Counted, not timed: a result is the same on every machine.
_MOST_ITERATIONS = "max_number_of_iterations: 5000"


def linear_solver() -> Any:
    """An empty program that gives up after some thousand iterations."""
    solver: Any = pywraplp.Solver.CreateSolver("GLOP")
    solver.SetSolverSpecificParametersAsString(_MOST_ITERATIONS)
    return solver


def solved(solver: Any) -> int:
    """Solves from where it was before; where that comes to nothing, afresh and without scaling.

    Returns:
        the status: optimal, infeasible, or another where no way has led to an end.
    """
    status = solver.Solve()
    if status in (pywraplp.Solver.OPTIMAL, pywraplp.Solver.INFEASIBLE):
        return int(status)
    afresh = pywraplp.MPSolverParameters()
    afresh.SetIntegerParam(afresh.INCREMENTALITY, afresh.INCREMENTALITY_OFF)
    solver.SetSolverSpecificParametersAsString(f"{_MOST_ITERATIONS} use_scaling: false")
    status = solver.Solve(afresh)
    solver.SetSolverSpecificParametersAsString(_MOST_ITERATIONS)
    return int(status)
