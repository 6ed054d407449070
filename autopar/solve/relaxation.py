"""The continuous relaxation of a candidate: a lower bound of its step that knows its memory, its schedule and
what it synchronises.

Blocks may be divided among stages and options (but for the largest that is alone of its kind), and placements
need not meet:

    minimise   z + u
    over       y[s, j] >= 0             blocks that stage s runs by option j
    subject to Σ y[s, j] = number       of every kind of block; each stage holds one at least    (add_blocks)
               F_s, I_s, W_s, G_s       times of a stage: forward, input half (or whole backward), weight
                                        half, synchronisation, at least those of its blocks      (add_times)
               z >= path + G_end        for the paths of the schedule (``paths.py``)             (add_paths)
               u >= update of a rank                                                             (add_updates)
               memory of a rank         at the moments when its stages hold most                 (add_memory)

Of the largest transient only the least of any option is counted, and beside a kind of block its own least:
a rank that holds none of it satisfies that row anyway. Where nothing fits here, nothing fits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ortools.linear_solver import pywraplp

from autopar.schedule.actions import rank_in_flight, rank_stages
from autopar.solve.candidate import Candidate, ChoiceTable, Job
from autopar.solve.chain_build import messages_s
from autopar.solve.linear_program import linear_solver, solved
from autopar.solve.parts import Parts, Row, Rows, least_of
from autopar.solve.paths import Path, critical_path, rank_paths

_MOST_MOMENTS = 3
_GB = 1e9
# Of the solver.
_TOLERANCE = 1e-6
# Paths that are much shorter than the longest at even stages are left out.
_WORTH_A_ROW = 0.5
# So are those that tell only what ranks synchronise, where that takes less than this of them.
_SYNC_WORTH_ROWS = 0.05
# Steps of so many actions are played to find longer paths, so often, while that raises the bound so much.
_MOST_ACTIONS = 600
_MOST_CUTS = 8
_WORTH_A_CUT = 1.0001
# Of so many ranks each is tried as the slowest; of so many stages, as the place of a block.
_MOST_RANKS, _MOST_PLACES = 16, 4


@dataclass(frozen=True, slots=True)
class Relaxed:
    """Lower bounds of a step.

    Attributes:
        step_s: infinite where nothing fits.
        free_s: if memory were no matter.
    """

    step_s: float
    free_s: float


def relaxed_step_s(
    table: ChoiceTable,
    candidates: Sequence[Candidate],
    parts: Sequence[Parts],
    job: Job,
    *,
    slowest_s: float = 0.0,
) -> Relaxed:
    """No plan of the candidates has a shorter step.

    Args:
        candidates: of one family, schedule and number of virtual stages.
        parts: of the table, for every candidate and each of its ZeRO levels.
        slowest_s: some rank takes at least this for a micro-batch, because blocks are whole.
    """
    return _Relaxation(table, candidates, job, _undominated(least_of(parts))).solve(slowest_s)


class _Relaxation:
    """One model in the solver. Seconds are scaled to about 1, bytes to GB."""

    def __init__(
        self,
        table: ChoiceTable,
        candidates: Sequence[Candidate],
        job: Job,
        parts: Parts,
    ) -> None:
        self._table, self._candidate, self._job, self._parts = table, candidates[0], job, parts
        self._splits = bool(parts.weight_s.any())
        self._counts = Counter(table.blocks)
        one = self._candidate
        self._ranks = [
            rank_stages(one.schedule, rank, one.pipeline, one.virtual) for rank in range(one.pipeline)
        ]
        least_sent = min(choice.output_bytes for kind in table.kinds for choice in kind)
        self._least_sent = least_sent if one.num_stages > 1 else 0
        sent = [messages_s(candidate, job, least_sent) for candidate in candidates]
        self._messages_s = [min(times) for times in zip(*sent, strict=True)]
        self._solver = linear_solver()
        self._infinity = self._solver.infinity()
        self._scale = one.pipeline / max(self._least_s(parts.forward_s) + self._least_s(parts.input_s), 1e-12)
        self._allowed = _stages_of_kinds(table.blocks, one.num_stages)
        kinds = parts.kind.tolist()
        self._may_hold = [
            np.array([stage in self._allowed.get(kind, ()) for kind in kinds])
            for stage in range(one.num_stages)
        ]
        self._blocks = [
            [self._solver.NumVar(0, self._infinity if may else 0, "") for may in may_hold.tolist()]
            for may_hold in self._may_hold
        ]
        self._memory: list[Any] = []
        self._end, self._update = self._variable(), self._variable()
        self._times = [[self._variable() for _ in range(3)] for _ in range(one.num_stages)]
        self._sync = [self._variable() for _ in range(one.num_stages)]
        self.add_blocks()
        self.add_times()
        self.add_paths()
        self.add_updates()
        self.add_memory()
        objective = self._solver.Objective()
        objective.SetCoefficient(self._end, 1.0)
        objective.SetCoefficient(self._update, 1.0)
        objective.SetMinimization()

    def solve(self, slowest_s: float) -> Relaxed:
        """With memory and without."""
        step_s = self._tightened_s(slowest_s)
        for row in self._memory:
            row.SetUb(self._infinity)
        return Relaxed(step_s, self._value_s())

    def _tightened_s(self, slowest_s: float) -> float:
        """Whichever rank is the slowest."""
        value_s = self._value_s()
        if 0.0 < value_s < float("inf"):
            self.add_critical_paths()
            value_s = max(value_s, self._value_s())
            value_s = max(value_s, self._undivided_s(value_s))
        if slowest_s == 0.0 or value_s == float("inf") or not 1 < len(self._ranks) <= _MOST_RANKS:
            return value_s
        least_s = float("inf")
        for own in self._ranks:
            row = self._solver.Constraint(slowest_s * self._scale, self._infinity)
            for stage in own:
                for time in self._times[stage][: 3 if self._splits else 2]:
                    row.SetCoefficient(time, 1.0)
            least_s = min(least_s, self._value_s())
            row.SetLb(-self._infinity)
        return max(value_s, least_s)

    def _undivided_s(self, otherwise_s: float) -> float:
        """The largest block that is alone of its kind is whole: in whichever stage it may be."""
        alone = [kind for kind, count in self._counts.items() if count == 1]
        least_s = {kind: self._least_of_kind_s(kind) for kind in alone}
        largest = max(alone, key=lambda kind: least_s[kind], default=None)
        if largest is None or not 1 < len(self._allowed[largest]) <= _MOST_PLACES:
            return otherwise_s
        own = np.flatnonzero(self._parts.kind == largest).tolist()
        found_s = float("inf")
        for place in self._allowed[largest]:
            for stage in self._allowed[largest]:
                for option in own:
                    self._blocks[stage][option].SetUb(self._infinity if stage == place else 0)
            found_s = min(found_s, self._value_s())
        for stage in self._allowed[largest]:
            for option in own:
                self._blocks[stage][option].SetUb(self._infinity)
        return found_s

    def _least_of_kind_s(self, kind: int) -> float:
        """Forward and backward of a block at its least."""
        own = self._parts.kind == kind
        return float(self._parts.forward_s.weights[0][own].min() + self._parts.input_s.weights[0][own].min())

    def _value_s(self) -> float:
        status = solved(self._solver)
        if status == pywraplp.Solver.INFEASIBLE:
            return float("inf")
        if status != pywraplp.Solver.OPTIMAL:
            return 0.0
        return float(self._solver.Objective().Value()) * (1 - _TOLERANCE) / self._scale

    def add_blocks(self) -> None:
        """Every block runs somewhere, and no stage is empty."""
        for kind, count in self._counts.items():
            row = self._solver.Constraint(count, count)
            for blocks in self._blocks:
                self._spread(row, blocks, (self._parts.kind == kind).astype(float))
        for blocks in self._blocks if len(self._blocks) > 1 else ():
            row = self._solver.Constraint(1.0, self._infinity)
            self._spread(row, blocks, np.ones(len(blocks)))

    def add_times(self) -> None:
        """What the blocks of a stage take."""
        action_s = self._job.cluster.device.action_s
        for stage, (blocks, (forward, of_input, of_weight), sync) in enumerate(
            zip(self._blocks, self._times, self._sync, strict=True)
        ):
            self._bound(forward, stage, self._parts.forward_s, action_s)
            self._bound(of_input, stage, self._parts.input_s, action_s)
            self._bound(sync, stage, self._parts.sync_s, 0.0)
            if self._splits:
                self._at_least(of_weight, blocks, self._parts.weight_s, action_s)

    def add_paths(self) -> None:
        """The step is no shorter than any path of its schedule."""
        one, device = self._candidate, self._job.cluster.device
        share = device.time_share if one.pipeline > 1 else 1
        paths = rank_paths(one.schedule, one.pipeline, one.num_micro_batches, one.virtual)
        even = np.zeros((3, one.num_stages))
        even[0], even[1] = self._least_s(self._parts.forward_s), self._least_s(self._parts.input_s)
        even[2] = self._weighed(self._parts.weight_s)
        # A rank's share, where a stage takes what all should.
        sync_s = max(self._weighed(row) for row in self._parts.sync_s.weights) * one.virtual
        lengths = [path.seconds(even, [0.0] * (one.num_stages - 1)) for path in paths]
        for path, length in zip(paths, lengths, strict=True):
            if length < _WORTH_A_ROW * max(lengths) or (path.later and sync_s < _SYNC_WORTH_ROWS * length):
                continue
            self._add_path(path, share)

    def add_critical_paths(self) -> None:
        """Plays the schedule with the times found and adds the path that was the longest, while that raises
        the bound: stages of uneven times wait for each other in more ways than are known beforehand."""
        one = self._candidate
        share = self._job.cluster.device.time_share
        if one.pipeline == 1 or one.num_actions > _MOST_ACTIONS or share > 1:
            return
        even: NDArray[np.float64] | None = None
        for _ in range(_MOST_CUTS):
            known = self._solver.Objective().Value()
            found = [[time.solution_value() / self._scale for time in times] for times in self._times]
            times_s = np.array(found).T
            if even is None:
                even = np.repeat(times_s.mean(axis=1, keepdims=True), one.num_stages, axis=1)
            # Cuts half way to even stages tell more than those at the corner that was found.
            for mixed in (times_s, (times_s + even) / 2):
                path = critical_path(
                    one.schedule, one.virtual, one.num_micro_batches, mixed, self._messages_s
                )
                self._add_path(path, 1)
            if (
                self._value_s() in (0.0, float("inf"))
                or self._solver.Objective().Value() < known * _WORTH_A_CUT
            ):
                return

    def _add_path(self, path: Path, share: float) -> None:
        least_s = float(path.messages @ np.array(self._messages_s)) if len(self._messages_s) else 0.0
        row = self._solver.Constraint(least_s * self._scale / share, self._infinity)
        row.SetCoefficient(self._end, 1.0)
        for stage in (path.end, *path.later):
            row.SetCoefficient(self._sync[stage], -1.0)
        for half, stage in np.argwhere(path.times).tolist():
            row.SetCoefficient(self._times[stage][half], -float(path.times[half, stage]) / share)

    def add_updates(self) -> None:
        """The update ends when the last rank's does."""
        for own in self._ranks:
            row = self._solver.Constraint(
                len(own) * self._job.cluster.device.step_s * self._scale, self._infinity
            )
            row.SetCoefficient(self._update, 1.0)
            for stage in own:
                self._spread(row, self._blocks[stage], -self._scale * self._parts.update_s)

    def add_memory(self) -> None:
        """What a rank holds."""
        one, parts = self._candidate, self._parts
        usable = self._job.memory_limit_bytes - self._job.cluster.device.framework_reserved_bytes
        usable -= 2 * self._least_sent
        least_running = [float(parts.running_bytes[parts.kind == kind].min()) for kind in self._counts]
        beside = dict(zip(self._counts, least_running, strict=True))
        main = max(self._counts, key=lambda kind: (self._counts[kind], -kind))
        for rank, own in enumerate(self._ranks):
            moments = rank_in_flight(one.schedule, one.num_stages, one.num_micro_batches, rank, one.virtual)
            for held in moments[:_MOST_MOMENTS]:
                handed_on = sum(
                    n * self._least_sent for n, s in zip(held, own, strict=True) if s < one.num_stages - 1
                )
                for only, running in ((None, min(least_running)), (main, beside[main])):
                    row = self._solver.Constraint(-self._infinity, (usable - handed_on - running) / _GB)
                    self._memory.append(row)
                    for count, stage in zip(held, own, strict=True):
                        taken = (parts.held_bytes + count * parts.saved_bytes) / _GB
                        self._spread(
                            row, self._blocks[stage], taken if only is None else taken * (parts.kind == only)
                        )

    def _bound(self, variable: Any, stage: int, rows: Rows, action_s: float) -> None:
        seen: set[bytes] = set()
        for weights, least_s in zip(rows.weights, rows.least_with(self._may_hold[stage]), strict=True):
            key = weights.tobytes() + least_s.tobytes()
            if key not in seen:
                seen.add(key)
                self._at_least(variable, self._blocks[stage], weights, float(least_s) + action_s)

    def _at_least(self, variable: Any, blocks: Sequence[Any], weights: Row, least_s: float) -> None:
        row = self._solver.Constraint(least_s * self._scale, self._infinity)
        row.SetCoefficient(variable, 1.0)
        self._spread(row, blocks, -self._scale * weights)

    def _spread(self, row: Any, blocks: Sequence[Any], weights: Row) -> None:
        for block, weight in zip(blocks, weights.tolist(), strict=True):
            if weight:
                row.SetCoefficient(block, weight)

    def _variable(self) -> Any:
        return self._solver.NumVar(0, self._infinity, "")

    def _least_s(self, rows: Rows) -> float:
        return self._weighed(rows.weights[0])

    def _weighed(self, weights: Row) -> float:
        """Of the whole chain, every block at its least."""
        return sum(
            count * float(weights[self._parts.kind == kind].min()) for kind, count in self._counts.items()
        )


def _stages_of_kinds(blocks: Sequence[int], num_stages: int) -> dict[int, range]:
    """Stages that the blocks of a kind may be in, as each stage holds at least one block."""
    found: dict[int, range] = {}
    for position, kind in enumerate(blocks):
        first = max(0, num_stages - (len(blocks) - position))
        last = min(num_stages - 1, position)
        known = found.get(kind, range(first, last + 1))
        found[kind] = range(min(first, known.start), max(last + 1, known.stop))
    return found


def _undominated(parts: Parts) -> Parts:
    """Without options that are no better in anything than another of their kind."""
    measures = np.concatenate(
        [
            parts.forward_s.weights,
            parts.input_s.weights,
            parts.sync_s.weights,
            np.stack([parts.weight_s, parts.update_s, parts.held_bytes, parts.saved_bytes]),
        ]
    )
    kept: list[int] = []
    for option in range(len(parts.kind)):
        rivals = [other for other in kept if parts.kind[other] == parts.kind[option]]
        if any((measures[:, other] <= measures[:, option]).all() for other in rivals):
            continue
        beaten = {other for other in rivals if (measures[:, option] <= measures[:, other]).all()}
        kept = [other for other in kept if other not in beaten] + [option]
    return parts.only(np.array(kept))
