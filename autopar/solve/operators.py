"""Level 1: the best strategy of every operator in a block: a linear programme, branched only where it must.

Given a block's table (``OperatorProblem``) and the price of a byte, with

    x[n,s]        in {0, 1}   node n runs strategy s
    y[v,p]        in [0, 1]   value v has placement p: the sum of x[v,s] over the strategies s that yield p
    z[c,i,d]      in [0, 1]   node c demands d of its i-th operand: the sum of x[c,s] that do
    e[v,c,i,p,d]  in [0, 1]   both: v has p and c demands d of it (the edge's joint marginal)
    u[v,p,d]      in [0, 1]   the conversion of v from p to d is paid

minimise   Σ cost[n,s] x[n,s]  +  Σ cost[v,p,d] u[v,p,d]
subject to Σ_s x[n,s] = 1                                  for every node              (add_strategies)
           Σ_d e[v,c,i,p,d] = y[v,p],  Σ_p e[...] = z[c,i,d]  for every edge           (add_marginals)
           u[v,p,d] >= e[v,c,i,p,d]                        for every consumer: shared  (add_conversions)
           y[a,p] = y[b,p]                                 for nodes that agree  (add_agreement)

Pairs without a conversion have no e. With joint marginals the relaxation is exact on trees and was integral
on every real block tried, so the LP is solved first (GLOP) and SCIP only branches where it is fractional.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ortools.linear_solver import pywraplp

from autopar.solve.linear_program import linear_solver, solved
from autopar.solve.operator_problem import (
    Cost,
    Demand,
    OperatorProblem,
    OperatorSolution,
    Price,
    assignment_cost,
)

_INTEGRAL = 1e-6
_NOTHING = Cost()

Allowed = Mapping[int, Sequence[int]]
"""Strategies by node index, for the nodes that may not take all of theirs."""


class OperatorSolver:
    """Solves one problem under several prices and restrictions; the model is built once."""

    def __init__(self, problem: OperatorProblem) -> None:
        self._problem = problem
        self._relaxed: _OperatorModel | None = None

    def solve(self, price: Price, allowed: Allowed | None = None) -> OperatorSolution | None:
        """The cheapest choice of a strategy per node.

        Args:
            price: of memory.
            allowed: strategies by node, where not all are.

        Returns:
            None if no choice can be converted together.
        """
        if self._relaxed is None:
            self._relaxed = _OperatorModel(self._problem, integer=False)
        if not self._relaxed.solve(price, allowed or {}):
            return None
        bound_s, branched = self._relaxed.objective_s, False
        chosen = self._relaxed.integral_choice()
        cost = assignment_cost(self._problem, chosen) if chosen is not None else None
        if cost is None or cost.priced_s(price) > bound_s + 1e-6 * abs(bound_s):
            branched = True
            exact = _OperatorModel(self._problem, integer=True)
            if not exact.solve(price, allowed or {}):
                return None
            bound_s = exact.bound_s
            chosen = exact.integral_choice()
            assert chosen is not None
            cost = assignment_cost(self._problem, chosen)
            assert cost is not None
        assert chosen is not None
        objective_s = cost.priced_s(price)
        return OperatorSolution(chosen, objective_s, min(bound_s, objective_s), branched)


class _OperatorModel:
    """One model in the solver. Costs are scaled to about 1, so that tolerances mean the same everywhere."""

    def __init__(self, problem: OperatorProblem, *, integer: bool) -> None:
        self._problem = problem
        self._solver: Any = pywraplp.Solver.CreateSolver("SCIP") if integer else linear_solver()
        self._integer = integer
        self._infinity = self._solver.infinity()
        self._scale = 1.0
        self._costs: list[tuple[Any, Cost]] = []
        self._choices: list[list[Any]] = []
        self._placements: list[dict[str, list[Any]]] = []
        self.add_strategies()
        self.add_marginals()
        self.add_agreement()

    def set_prices(self, price: Price) -> None:
        """The objective: time, with bytes at their price."""
        typical_s = sum(min(s.cost.priced_s(price) for s in node.strategies) for node in self._problem.nodes)
        self._scale = 1.0 / (typical_s or 1.0)
        objective = self._solver.Objective()
        for variable, cost in self._costs:
            objective.SetCoefficient(variable, cost.priced_s(price) * self._scale)
        objective.SetMinimization()

    def restrict(self, allowed: Allowed) -> None:
        """Only the allowed strategies of a node."""
        for node, choices in enumerate(self._choices):
            for strategy, variable in enumerate(choices):
                variable.SetUb(1.0 if node not in allowed or strategy in allowed[node] else 0.0)

    def _variable(self, cost: Cost, *, integer: bool = False) -> Any:
        variable = (
            self._solver.IntVar(0, 1, "")
            if integer and self._integer
            else self._solver.NumVar(0, self._infinity, "")
        )
        if cost != _NOTHING:
            self._costs.append((variable, cost))
        return variable

    def _equal(self, left: list[Any], right: list[Any], constant: float = 0.0) -> None:
        row = self._solver.Constraint(constant, constant, "")
        for variable in left:
            row.SetCoefficient(variable, 1.0)
        for variable in right:
            row.SetCoefficient(variable, -1.0)

    def add_strategies(self) -> None:
        """Exactly one strategy per node."""
        for node in self._problem.nodes:
            choices = [self._variable(s.cost, integer=True) for s in node.strategies]
            self._equal(choices, [], 1.0)
            placements: dict[str, list[Any]] = defaultdict(list)
            for strategy, variable in zip(node.strategies, choices, strict=True):
                placements[strategy.output].append(variable)
            self._choices.append(choices)
            self._placements.append(placements)

    def add_marginals(self) -> None:
        """Joint marginals of every edge; consumers with equal demands share the conversion."""
        consumers: dict[int, list[dict[Demand, list[Any]]]] = defaultdict(list)
        for node, choices in zip(self._problem.nodes, self._choices, strict=True):
            for position, operand in enumerate(node.operands):
                demands: dict[Demand, list[Any]] = defaultdict(list)
                for strategy, variable in zip(node.strategies, choices, strict=True):
                    demands[strategy.demands[position]].append(variable)
                consumers[operand].append(demands)
        for value in sorted(consumers):
            paid: dict[tuple[str, Demand], Any] = {}
            for demands in consumers[value]:
                self._add_edge(value, demands, paid, shared=len(consumers[value]) > 1)

    def _add_edge(
        self,
        value: int,
        demands: dict[Demand, list[Any]],
        paid: dict[tuple[str, Demand], Any],
        *,
        shared: bool,
    ) -> None:
        node = self._problem.nodes[value]
        by_placement: dict[str, list[Any]] = defaultdict(list)
        by_demand: dict[Demand, list[Any]] = defaultdict(list)
        for placement in self._placements[value]:
            for demand in demands:
                conversion = node.conversion(placement, demand)
                if conversion is None:
                    continue
                joint = self._variable(_NOTHING if shared else conversion)
                if shared and conversion != _NOTHING:
                    self.add_conversions(paid, (placement, demand), conversion, joint)
                by_placement[placement].append(joint)
                by_demand[demand].append(joint)
        for placement, variables in self._placements[value].items():
            self._equal(by_placement[placement], variables)
        for demand, variables in demands.items():
            self._equal(by_demand[demand], variables)

    def add_conversions(
        self, paid: dict[tuple[str, Demand], Any], key: tuple[str, Demand], cost: Cost, joint: Any
    ) -> None:
        """A conversion is paid once, by whichever consumer needs it most."""
        if key not in paid:
            paid[key] = self._variable(cost)
        row = self._solver.Constraint(0.0, self._infinity, "")
        row.SetCoefficient(paid[key], 1.0)
        row.SetCoefficient(joint, -1.0)

    def add_agreement(self) -> None:
        """Nodes of one group have the same placement."""
        for first, *others in self._problem.equal:
            for other in others:
                placements = dict.fromkeys([*self._placements[first], *self._placements[other]])
                for placement in placements:
                    self._equal(
                        self._placements[first].get(placement, []), self._placements[other].get(placement, [])
                    )

    def solve(self, price: Price, allowed: Allowed) -> bool:
        """Whether an optimum was found."""
        self.set_prices(price)
        self.restrict(allowed)
        if self._integer:
            parameters = pywraplp.MPSolverParameters()
            parameters.SetDoubleParam(parameters.RELATIVE_MIP_GAP, 0.0)
            return bool(self._solver.Solve(parameters) == pywraplp.Solver.OPTIMAL)
        return bool(solved(self._solver) == pywraplp.Solver.OPTIMAL)

    @property
    def objective_s(self) -> float:
        """Value of the objective at the optimum."""
        return float(self._solver.Objective().Value()) / self._scale

    @property
    def bound_s(self) -> float:
        """Lower bound that the solver has proved."""
        return float(self._solver.Objective().BestBound()) / self._scale

    def integral_choice(self) -> tuple[int, ...] | None:
        """The strategy per node, or None where the solution is fractional."""
        chosen = []
        for choices in self._choices:
            values = [variable.solution_value() for variable in choices]
            best = max(range(len(values)), key=lambda index: values[index])
            if values[best] < 1.0 - _INTEGRAL:
                return None
            chosen.append(best)
        return tuple(chosen)
