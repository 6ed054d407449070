"""One candidate with one table: a good plan, and how far it may be from the best there is.

First the chain problem (``chain.py``), whose objective is close to the step that the step model simulates; a
solution that misses the memory by its count is solved again with that much less. A simple recipe
(``recipes.py``) may do better. Then a lower bound of every plan (``bounds.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from autopar.cost.choice import BlockChoice
from autopar.cost.layout import Layout
from autopar.cost.prediction import Prediction
from autopar.cost.step import predict
from autopar.cost.training import Training
from autopar.schedule.actions import SPLIT_BACKWARD, rank_in_flight, rank_stages
from autopar.solve.bounds import makespan_floor_s
from autopar.solve.candidate import Candidate, ChoiceTable, Job, MeshSolution, Shortfall
from autopar.solve.chain import ChainSolver
from autopar.solve.chain_build import (
    build_problem,
    candidate_training,
    chosen_stages,
    layout_of,
    messages_s,
    usable_bytes,
)
from autopar.solve.chain_problem import ChainProblem, ChainSolution
from autopar.solve.exhaust import Exhaust
from autopar.solve.fronts import Fronts
from autopar.solve.packing import least_load
from autopar.solve.recipes import Recipes
from autopar.solve.shortfall import can_fit, least_excess
from autopar.solve.spare_memory import better_spent
from autopar.solve.stage_floor import StageFloor, StageFloors

_RETRIES = 8


@dataclass(frozen=True, slots=True)
class _Plan:
    """A plan of a candidate that fits."""

    layout: Layout
    choices: tuple[BlockChoice, ...]
    prediction: Prediction

    @classmethod
    def of(cls, layout: Layout, prediction: Prediction) -> _Plan:
        """With the choices of all stages, in order."""
        return cls(layout, tuple(choice for stage in layout.stages for choice in stage), prediction)


class TableAttempt:
    """One candidate with one table."""

    def __init__(self, table: ChoiceTable, candidate: Candidate, job: Job) -> None:
        self._table, self._candidate, self._job = table, candidate, job
        self._training: Training = candidate_training(candidate, job)
        self._floors = {
            level: StageFloors(table, self._training, level) for level in sorted(set(candidate.zero))
        }

    def free_floor_s(self) -> float:
        """Lower bound of the step without regard to memory: from the blocks' least times alone."""
        candidate, floor = self._candidate, self._whole()
        if candidate.pipeline == 1 and candidate.virtual == 1:
            return self._of_one_rank_s(0.0) + floor.update_s
        total_s = floor.forward_s + floor.backward_s - floor.extra_s
        if min(candidate.zero) == 3:
            total_s = max(total_s, self._floors[3].traffic_floor_s())
        return self._floor_s(total_s, self._least_load_s())

    def shortfall(self, like: ChainSolver | None = None) -> Shortfall:
        """By how much the leanest way misses the memory.

        Args:
            like: of this attempt.
        """
        excess = least_excess(self._whole_problem, like)
        rank = min(excess.stage, self._candidate.pipeline - 1)
        return Shortfall(self._candidate, rank, excess.missing_bytes)

    def solve(self, index: int) -> MeshSolution | Shortfall:
        """A good plan, with a lower bound of all."""
        solver = ChainSolver(self._whole_problem, proof_s=0.0)
        plan, limited = self._first_plan(solver)
        is_solved = not isinstance(plan, Shortfall)
        # Of several stages a rank, neither the time nor the memory of a chain problem is quite the step's.
        simple = Recipes((self._table,)).first_fitting(self._candidate, self._job)
        if simple is not None and (
            isinstance(plan, Shortfall) or simple.step_s < plan.prediction.step_time_s
        ):
            plan = _Plan(simple.layout, simple.choices, simple.prediction)
        if isinstance(plan, Shortfall):
            return plan
        if self._candidate.virtual > 1:
            plan = _Plan.of(*better_spent(plan.layout, plan.prediction, self._table, self._job))
        # A recipe may fit where the chain problem, which counts memory otherwise, has no solution.
        bound_s = min(
            self._bound_s(solver) if is_solved else self.free_floor_s(), plan.prediction.step_time_s
        )
        return MeshSolution(
            self._candidate, plan.layout, plan.choices, plan.prediction, bound_s, index, limited
        )

    @cached_property
    def _whole_problem(self) -> ChainProblem:
        """With all the memory there is."""
        return self._problem()

    def _problem(self, margin_bytes: int = 0, limits: tuple[int, ...] = ()) -> ChainProblem:
        return build_problem(
            self._table, self._candidate, self._job, self._floors, margin_bytes=margin_bytes, limits=limits
        )

    def _first_plan(self, solver: ChainSolver) -> tuple[_Plan | Shortfall, bool]:
        """The chain problem's plan, solved again with less memory while it misses the step model's count;
        and whether memory binds."""
        solution = solver.solve() if can_fit(self._whole_problem, solver) else None
        if solution is None:
            return self.shortfall(solver), True
        limited, limits = solver.limited, self._limits()
        margin_bytes = kept_bytes = 0
        too_much_bytes: int | None = None
        missing = Shortfall(self._candidate, 0, self._job.memory_limit_bytes)
        for attempt in range(_RETRIES):
            if attempt or (limits and limited):
                solution = ChainSolver(self._problem(margin_bytes, limits), proof_s=0.0, like=solver).solve()
            if solution is None:
                too_much_bytes = margin_bytes
                if attempt == 0:
                    break
                margin_bytes = (kept_bytes + too_much_bytes) // 2
                continue
            plan = self._judged(solution)
            if plan.prediction.fits:
                return plan, limited or attempt > 0
            limited = True
            over = _missing(plan.prediction, self._candidate)
            if over.missing_bytes < missing.missing_bytes:
                missing = over
            kept_bytes = margin_bytes
            margin_bytes += max(over.missing_bytes // self._candidate.virtual, 1)
            if too_much_bytes is not None and margin_bytes >= too_much_bytes:
                margin_bytes = (kept_bytes + too_much_bytes) // 2
        lean = self._lean_plan()
        if lean is not None and lean.prediction.fits:
            return lean, True
        return replace(missing, bound_s=self.free_floor_s()), True

    def _lean_plan(self) -> _Plan | None:
        """The plan whose fullest stage holds least, as far as that adds up over blocks."""
        problem = self._whole_problem
        flight = max(problem.in_flight)
        lean = replace(
            problem,
            tables=tuple(
                tuple(
                    tuple(
                        replace(o, seconds=float(o.held_bytes + o.saved_bytes * flight), send_s=0.0)
                        for o in k
                    )
                    for k in table
                )
                for table in problem.tables
            ),
            shared=tuple(replace(shared, seconds=float(shared.held_bytes)) for shared in problem.shared),
            num_micro_batches=1_000_000,
            carry_s=(),
            extra_s=None,
        )
        solution = ChainSolver(lean, proof_s=0.0).solve()
        return None if solution is None else self._judged(solution)

    def _judged(self, solution: ChainSolution) -> _Plan:
        stages = chosen_stages(self._table, solution.first_blocks, solution.options)
        layout = layout_of(self._candidate, self._job, self._table, stages)
        return _Plan.of(layout, predict(layout, self._job.cluster, self._job.memory_limit_bytes))

    def _limits(self) -> tuple[int, ...]:
        """Of virtual stages: what each may take of its rank's memory, by what it would like to hold."""
        candidate = self._candidate
        if candidate.virtual == 1:
            return ()
        problem, usable = self._whole_problem, usable_bytes(self._table, candidate, self._job)
        saved = sum(min(o.saved_bytes for o in problem.tables[0][kind]) for kind in self._table.blocks)
        held = sum(min(o.held_bytes for o in problem.tables[0][kind]) for kind in self._table.blocks)
        wanted = [held + saved * flight for flight in problem.in_flight]
        limits = [0] * candidate.num_stages
        for rank in range(candidate.pipeline):
            own = rank_stages(candidate.schedule, rank, candidate.pipeline, candidate.virtual)
            moments = rank_in_flight(
                candidate.schedule,
                candidate.num_stages,
                candidate.num_micro_batches,
                rank,
                candidate.virtual,
            )
            # Its stages do not hold most at the same time.
            total = max(held * len(own) + saved * sum(counts) for counts in moments) or 1
            for stage in own:
                limits[stage] = usable * wanted[stage] // total
        return tuple(limits)

    def _bound_s(self, solver: ChainSolver) -> float:
        """Lower bound of the step of every plan of the candidate."""
        candidate = self._candidate
        free_s = self.free_floor_s()
        if candidate.virtual > 1:
            return free_s
        if candidate.pipeline == 1 and not solver.truncated:
            # What the blocks take here has a share of the update in it, and no block updates less than this.
            floor, once_s = self._whole(), self._job.cluster.device.step_s
            least_update_s = floor.update_s - once_s
            least_s = solver.least_total_s() - least_update_s / candidate.num_micro_batches
            return max(free_s, self._of_one_rank_s(least_s) + least_update_s + once_s)
        if solver.truncated:
            return free_s
        total_s, slowest_s, width_s = solver.least_times_s()
        beyond_s = candidate.num_micro_batches * width_s / self._job.cluster.device.time_share
        return max(free_s, min(self._floor_s(total_s, slowest_s), beyond_s))

    def _floor_s(self, total_s: float, slowest_s: float) -> float:
        """Lower bound of a step over several stages from the time of the chain and of the slowest rank."""
        candidate, whole = self._candidate, self._whole()
        path_s = None
        if candidate.schedule in SPLIT_BACKWARD:
            path_s = whole.forward_s + whole.backward_s - whole.weight_s - whole.extra_s
        p, m = candidate.pipeline, candidate.num_micro_batches
        makespan_s = makespan_floor_s(
            candidate.schedule,
            p,
            m,
            total_s,
            slowest_s,
            2 * sum(self._messages_s()),
            path_s,
            sum(self._floors[min(self._floors)].forward_alone_s(b) for b in range(len(self._table.blocks))),
            self._job.cluster.device.time_share,
        )
        return makespan_s + whole.update_s / p

    def _of_one_rank_s(self, least_s: float) -> float:
        (floors,) = self._floors.values()
        return floors.of_one_rank_s(least_s, self._candidate.num_micro_batches)

    def _least_load_s(self) -> float:
        """Least time of the slowest rank, whichever blocks it holds."""
        floors = self._floors[min(self._floors)]
        loads = [floors.alone_s(block) for block in range(len(self._table.blocks))]
        return least_load(loads, self._candidate.pipeline)

    def _messages_s(self) -> list[float]:
        least = min((c.output_bytes for kind in self._table.kinds for c in kind), default=0)
        return messages_s(self._candidate, self._job, least)

    def _whole(self) -> StageFloor:
        return self._floors[min(self._floors)].of(0, len(self._table.blocks))

    def exhaust(self, most_work: int) -> Exhaust:
        """All cuts and ways, judged one by one."""
        problem = self._whole_problem
        fronts = Fronts(
            self._table,
            self._training,
            self._candidate.zero,
            problem.in_flight,
            self._job.memory_limit_bytes,
        )
        return Exhaust(
            self._table,
            self._candidate,
            self._job,
            fronts,
            self._floors,
            lambda num_bytes: messages_s(self._candidate, self._job, num_bytes),
            most_work,
        )


def _missing(prediction: Prediction, candidate: Candidate) -> Shortfall:
    """What the fullest rank needs beyond the limit; of host memory where that alone is short."""
    totals = [stage.memory.total_bytes for stage in prediction.stages]
    over = max(totals) - prediction.memory_limit_bytes
    if over <= 0:
        over = prediction.peak_host_bytes - prediction.host_limit_bytes
    return Shortfall(candidate, totals.index(max(totals)), over)
