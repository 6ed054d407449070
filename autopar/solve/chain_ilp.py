"""Level 2 as an integer programme, for chains whose Pareto fronts are too large to be carried whole.

    x[i,s,o]  in {0, 1}   block i is in stage s and takes option o;  u[i,s] = Σ_o x[i,s,o]
    r[s,k]    in [0, 1]   stage s holds a tied parameter's k-th block and the one before it
    e[i,s]    in [0, 1]   stage s ends after block i
    τ[s], P[s], S[s]      largest transient, pair and single overhead of a stage;  t[s] its time;  M the
    slowest

minimise   Σ_s t[s] + (m - 1) · M
subject to Σ_s u[i,s] = 1, stages in order and not empty          (add_stages)
           the word out of block i is the word into block i + 1   (add_words)
           memory of every stage within the limit                 (add_memory)
           t[s] = Σ seconds + hand-over at its end, M >= t[s]     (add_time)

It names every block, so that it is slow on long chains; ``chain.py`` solves the same problem without, and
comes here only to bound what it may have missed. The tests hold one against the other.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from ortools.linear_solver import pywraplp

from autopar.plan.bounds import Bound
from autopar.solve.chain_problem import ChainProblem, ChainSolution, evaluate_chain, objective_s, stage_ranges


def solve_chain_ilp(problem: ChainProblem, time_limit_s: float | None = None) -> ChainSolution | None:
    """The optimum, or after ``time_limit_s`` the best found with its bound; None where nothing was found."""
    return _ChainModel(problem).solve(time_limit_s)


class _ChainModel:
    def __init__(self, problem: ChainProblem) -> None:
        self._problem = problem
        self._solver: Any = pywraplp.Solver.CreateSolver("SCIP")
        self._infinity = self._solver.infinity()
        self._stages, self._blocks = range(problem.num_stages), range(len(problem.blocks))
        self._taken = [
            [[self._solver.IntVar(0, 1, "") for _ in problem.options(s, i)] for s in self._stages]
            for i in self._blocks
        ]
        self._held = [[self._solver.Sum(own) for own in block] for block in self._taken]
        self._repeated = self._add_repeated()
        self.add_stages()
        self.add_words()
        self.add_memory()
        self.add_time()

    def add_stages(self) -> None:
        """Every block in one stage, stages in order and not empty."""
        numbers = []
        for block in self._blocks:
            self._solver.Add(self._solver.Sum(self._held[block]) == 1)
            numbers.append(self._solver.Sum([s * held for s, held in enumerate(self._held[block])]))
        for before, after in pairwise(numbers):
            self._solver.Add(before <= after)
        for stage in self._stages:
            size = self._solver.Sum([self._held[i][stage] for i in self._blocks])
            bound = self._problem.sizes[stage] if self._problem.sizes else Bound(1)
            self._solver.Add(size >= bound.least)
            if bound.most is not None:
                self._solver.Add(size <= bound.most)
        if self._problem.first_blocks is not None:
            for stage, blocks in enumerate(stage_ranges(self._problem, self._problem.first_blocks)):
                for block in blocks:
                    self._solver.Add(self._held[block][stage] == 1)

    def add_words(self) -> None:
        """Words of neighbours meet; the chain starts and ends as the problem says."""
        problem = self._problem
        for word in {
            w: None for t in problem.tables for k in t for o in k for w in (o.input_word, o.output_word)
        }:
            for before, after in pairwise(self._blocks):
                self._solver.Add(self._word(before, word, out=True) == self._word(after, word, out=False))
        self._solver.Add(self._word(0, problem.first_word, out=False) == 1)
        self._solver.Add(self._word(self._blocks[-1], problem.last_word, out=True) == 1)

    def add_memory(self) -> None:
        """What adds up, and the largest transient, pair and single overhead; the second peak."""
        solver, problem = self._solver, self._problem
        for stage in self._stages:
            transient, pair, single = (solver.NumVar(0, self._infinity, "") for _ in range(3))
            resident, floor, paired = [transient, pair, single], [], []
            for block in self._blocks:
                overhead = problem.overhead(stage, problem.blocks[block])
                held = self._held[block][stage]
                own_pair, own_single = overhead.paired_bytes * held, overhead.single_bytes * held
                floor.append(overhead.floor_bytes * held)
                for option, taken in zip(
                    problem.options(stage, block), self._taken[block][stage], strict=True
                ):
                    saved_bytes = option.saved_bytes * problem.in_flight[stage]
                    resident.append((saved_bytes + option.held_bytes) * taken)
                    solver.Add(transient >= option.transient_bytes * taken)
                for group, shared in enumerate(problem.shared):
                    repeated = self._repeated[stage][group].get(block)
                    if repeated is not None:
                        resident.append(-shared.held_bytes * repeated)
                        floor.append(-shared.overhead.floor_bytes * repeated)
                        own_pair = own_pair - shared.overhead.paired_bytes * repeated
                        own_single = own_single - shared.overhead.single_bytes * repeated
                paired.append(own_pair)
                solver.Add(single >= own_single)
                solver.Add(pair >= own_pair)
            for before, after in pairwise(paired):
                solver.Add(pair >= before + after)
            solver.Add(solver.Sum(resident) <= problem.limit_bytes)
            solver.Add(solver.Sum(floor) <= problem.limit_bytes)

    def add_time(self) -> None:
        """The objective: all stages once, the slowest for every further micro-batch."""
        solver, problem = self._solver, self._problem
        slowest = solver.NumVar(0, self._infinity, "")
        total = [(problem.num_micro_batches - 1) * slowest]
        for stage in self._stages:
            parts = []
            for block in self._blocks:
                for option, taken in zip(
                    problem.options(stage, block), self._taken[block][stage], strict=True
                ):
                    parts.append(option.seconds * taken)
                for group, shared in enumerate(problem.shared):
                    if block in self._repeated[stage][group]:
                        parts.append(-shared.seconds * self._repeated[stage][group][block])
            if stage + 1 < problem.num_stages:
                parts.append(self._hand_over(stage))
            time = solver.Sum(parts)
            solver.Add(slowest >= time)
            total.append(time)
        solver.Minimize(solver.Sum(total))

    def solve(self, time_limit_s: float | None) -> ChainSolution | None:
        if time_limit_s is not None:
            self._solver.SetTimeLimit(int(1000 * time_limit_s))
        parameters = pywraplp.MPSolverParameters()
        parameters.SetDoubleParam(parameters.RELATIVE_MIP_GAP, 0.0)
        if self._solver.Solve(parameters) not in (pywraplp.Solver.OPTIMAL, pywraplp.Solver.FEASIBLE):
            return None
        stage_of, options = [], []
        for block in self._blocks:
            taken = [
                (stage, option)
                for stage in self._stages
                for option, variable in enumerate(self._taken[block][stage])
                if variable.solution_value() > 0.5
            ]
            stage_of.append(taken[0][0])
            options.append(taken[0][1])
        first_blocks = tuple(stage_of.index(stage) for stage in self._stages)
        loads = evaluate_chain(self._problem, first_blocks, options)
        assert loads is not None
        objective = objective_s(self._problem, [load.seconds for load in loads])
        bound = min(objective, float(self._solver.Objective().BestBound()))
        return ChainSolution(first_blocks, tuple(options), loads, objective, bound)

    def _word(self, block: int, word: str, *, out: bool) -> Any:
        return self._solver.Sum(
            [
                taken
                for stage in self._stages
                for option, taken in zip(
                    self._problem.options(stage, block), self._taken[block][stage], strict=True
                )
                if (option.output_word if out else option.input_word) == word
            ]
        )

    def _add_repeated(self) -> list[list[dict[int, Any]]]:
        """Per stage and tied parameter: its further blocks, 1 where the stage holds the one before."""
        found: list[list[dict[int, Any]]] = []
        for stage in self._stages:
            groups = []
            for shared in self._problem.shared:
                own: dict[int, Any] = {}
                for before, after in pairwise(shared.blocks):
                    own[after] = self._solver.IntVar(0, 1, "")
                    self._solver.Add(own[after] <= self._held[before][stage])
                    self._solver.Add(own[after] <= self._held[after][stage])
                groups.append(own)
            found.append(groups)
        return found

    def _hand_over(self, stage: int) -> Any:
        """Sending from the block that a stage ends in: what its option sends, if the next is elsewhere."""
        sent = self._solver.NumVar(0, self._infinity, "")
        for before, after in pairwise(self._blocks):
            carry_s = self._problem.carry_s[before] if self._problem.carry_s else 0.0
            for option, taken in zip(
                self._problem.options(stage, before), self._taken[before][stage], strict=True
            ):
                self._solver.Add(sent >= (option.send_s + carry_s) * (taken - self._held[after][stage]))
        return sent
