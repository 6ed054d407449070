"""A quick look at every family before any is solved: recipes, judged by the step model.

The tables of a tensor degree are made at one micro-batch; for others they are stretched: bytes grow with the
samples, times by how much of them does. What a look promises is only an estimate; the candidates that
promise most are then tried with tables of their own, and their plans are plans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

from autopar.cost.choice import BlockChoice
from autopar.cost.step import step_pieces
from autopar.errors import CaptureError
from autopar.hardware.link import CollectiveKind
from autopar.plan.decisions import ScheduleName
from autopar.solve.candidate import Candidate, Choices, ChoiceTable, Family, Job, Offload
from autopar.solve.candidates import NO_OFFLOAD, OFFLOADS, Space, candidates
from autopar.solve.recipes import Recipes, Tried

_MOST_LOOKS = 400
# For each way of offloading, where nothing fits without, or nothing that does not take so many times what
# FLOPs would.
_MOST_LOOKS_WITH_OFFLOAD, _MEMORY_DECIDES = 150, 1.5
_MOST_LOOKS_CLOSELY = 200
_FAMILIES_LOOKED_AT_CLOSELY = 6
_STEP = 16
# Times what FLOPs and bytes take at least: where operators take more, what they take to begin is most of it.
_MOST_OFF = 4.0
_TOO_SLOW = 1.1
# Links decide where the best look takes so many times what FLOPs would: over several nodes, or where no rank
# computes for more than so much of it. Other orders of the axes and other groups are looked at then, for so
# many meshes, with so many looks and actions of schedules in all.
_LINKS_DECIDE, _BUSY = 1.5, 0.6
_MESHES_LOOKED_AROUND, _MOST_LOOKS_AROUND, _MOST_ACTIONS = 16, 800, 400_000
# Times the pipeline is filled in a look; in the last of them a schedule repeats itself.
_FEWEST_ROUNDS = 2
_ROUNDS = {ScheduleName.ZBV: 3, ScheduleName.INTERLEAVED: 4}
# Settings that stand for others in a first look: less memory, fewer gaps.
_PLAIN_LEVELS = (1, 3)
# Looked at where the level below does not fit.
_BETWEEN = 2
_DECISIONS = tuple(decision.name for decision in fields(Candidate))
_PLAIN_SCHEDULES = (ScheduleName.ONE_F_ONE_B, ScheduleName.INTERLEAVED, ScheduleName.ZBV)


@dataclass(frozen=True, slots=True)
class Promise:
    """What a candidate may take, by a look."""

    step_s: float
    candidate: Candidate
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Look:
    """What was seen of a candidate.

    Attributes:
        busy: share of the step that the slowest stage computes for.
    """

    step_s: float
    peak_bytes: int = 0
    busy: float = 0.0


class Scout:
    """Looks at candidates with stretched tables.

    Attributes:
        links_decide: whether what looks best takes much longer than to compute; known after ``look``.
    """

    def __init__(
        self,
        choices: Choices,
        space: Space,
        job: Job,
        is_late: Callable[[], bool],
    ) -> None:
        self._choices, self._space, self._job = choices, space, job
        self._is_late = is_late
        self._recipes: dict[tuple[int, int, int], Recipes] = {}
        self._sizes: dict[int, tuple[int, ...]] = {}
        self._seen: dict[Candidate, _Look] = {}
        self._looks, self._actions_left = 0, _MOST_ACTIONS
        self.links_decide = False

    def look(self, guesses: Mapping[Family, float]) -> list[Promise]:
        """Candidates by what they promise, the best first; more of the best families.

        Args:
            guesses: of the families' steps; what is guessed to be much slower than the best is not looked at.
        """
        ordered = sorted((guess_s, family) for family, guess_s in guesses.items())
        for _, family in ordered:
            sizes = {*self._sizes.get(family.tensor, ()), family.micro_batch}
            self._sizes[family.tensor] = tuple(sorted(sizes))
        pinned = self._space.pins.offload
        promises = self._look_at(ordered, _MOST_LOOKS, pinned or NO_OFFLOAD)
        if pinned is None and not self._is_near_flops(promises.values(), guesses):
            for offload in OFFLOADS:
                for family, found in self._look_at(ordered, _MOST_LOOKS_WITH_OFFLOAD, offload).items():
                    promises[family] = min(promises.get(family, found), found, key=_rank)
        ranked = sorted(promises.values(), key=_rank)
        self._looks = 0
        self.links_decide = bool(ranked) and self._mostly_waits(ranked[0], guesses)
        if self.links_decide:
            self._look_around(promises)
            ranked = sorted(promises.values(), key=_rank)
            self._looks = 0
        for promise in ranked[:_FAMILIES_LOOKED_AT_CLOSELY]:
            self._look_closely(promise)
        seen = (Promise(o.step_s, c, o.peak_bytes) for c, o in self._seen.items() if o.step_s < float("inf"))
        return sorted(seen, key=_rank)

    def _look_at(
        self, ordered: Sequence[tuple[float, Family]], most_looks: int, offload: Offload
    ) -> dict[Family, Promise]:
        """The best of each family, of those that are not guessed to be much slower than the best."""
        promises: dict[Family, Promise] = {}
        best_s, self._looks = float("inf"), 0
        for guess_s, family in ordered:
            if guess_s >= _TOO_SLOW * best_s or self._looks >= most_looks or self._is_late():
                break
            # Where memory is short, the quickest table may not be the one that fits.
            found = self._best_of(self._plain(family, offload), num_tables=None if offload else 1)
            if found is not None:
                promises[family] = found
                best_s = min(best_s, found.step_s)
        return promises

    def _plain(
        self, family: Family, offload: Offload, order: tuple[str, ...] | None = None
    ) -> Iterator[Candidate]:
        """The settings of a family that say most about it, in the first order or a given one."""
        pins, seen = self._space.pins, set[tuple[ScheduleName, int]]()
        for candidate in candidates(family, self._space):
            order = order or candidate.order
            level = max(candidate.zero)
            is_plain = level in _PLAIN_LEVELS or family.data == 1 or pins.zero is not None
            if not is_plain and (level != _BETWEEN or self._fits_at_level(candidate, _BETWEEN - 1)):
                continue
            if pins.schedule is None and candidate.schedule not in _PLAIN_SCHEDULES:
                continue
            is_wanted = candidate.order == order and candidate.offload == offload
            if is_wanted and (candidate.schedule, level) not in seen:
                seen.add((candidate.schedule, level))
                yield candidate

    def _fits_at_level(self, candidate: Candidate, level: int) -> bool:
        """Whether a look has seen a candidate fit at another ZeRO level."""
        other = replace(candidate, zero=(level,) * len(candidate.zero))
        return other in self._seen and self._seen[other].step_s < float("inf")

    def _is_near_flops(self, promises: Iterable[Promise], guesses: Mapping[Family, float]) -> bool:
        best = min(promises, key=_rank, default=None)
        return best is not None and best.step_s <= _MEMORY_DECIDES * guesses[best.candidate.family]

    def _mostly_waits(self, promise: Promise, guesses: Mapping[Family, float]) -> bool:
        one = promise.candidate
        is_slow = promise.step_s > _LINKS_DECIDE * guesses[one.family]
        return is_slow and (self._space.nodes > 1 or self._seen[one].busy < _BUSY)

    def _look_around(self, promises: dict[Family, Promise]) -> None:
        """Other orders, groups and levels for the best family of each mesh; a better order for them all."""
        by_mesh: dict[tuple[int, int, int], list[Promise]] = {}
        for promise in sorted(promises.values(), key=_rank):
            by_mesh.setdefault(promise.candidate.mesh, []).append(promise)
        for of_mesh in list(by_mesh.values())[:_MESHES_LOOKED_AROUND]:
            top = of_mesh[0]
            legal = candidates(top.candidate.family, self._space)
            others = [c for c in legal if _differs_only(c, top.candidate, ("order", "shard_group", "zero"))]
            found = self._unless_done(others)
            if found is None or found.step_s >= top.step_s:
                continue
            promises[top.candidate.family] = found
            if found.candidate.order != top.candidate.order:
                for promise in of_mesh:
                    family = promise.candidate.family
                    alike = self._plain(family, found.candidate.offload, found.candidate.order)
                    other = self._unless_done(list(alike))
                    promises[family] = min(promises[family], other or promise, key=_rank)

    def _unless_done(self, others: Sequence[Candidate]) -> Promise | None:
        """The best of some candidates, while there are looks left."""
        self._actions_left -= sum(shortened(other)[0].num_actions for other in others)
        if self._looks + len(others) > _MOST_LOOKS_AROUND or self._actions_left < 0 or self._is_late():
            return None
        return self._best_of(others, num_tables=1)

    def _look_closely(self, promise: Promise) -> None:
        """Changes one decision after the other while that helps."""
        legal = list(candidates(promise.candidate.family, self._space))
        best = promise
        for _ in range(3):
            start = best
            for names in (
                ("schedule", "virtual"),
                ("zero",),
                ("shard_group",),
                ("order", "shard_group"),
                ("offload",),
            ):
                others = [c for c in legal if _differs_only(c, best.candidate, names)]
                found = self._best_of(others)
                if found is not None and found.step_s < best.step_s:
                    best = found
                if self._looks >= _MOST_LOOKS_CLOSELY or self._is_late():
                    return
            if best is start:
                return

    def _best_of(self, considered: Iterable[Candidate], num_tables: int | None = None) -> Promise | None:
        best: Promise | None = None
        for candidate in considered:
            step_s = self._estimate_s(candidate, num_tables)
            if step_s < float("inf") and (best is None or (step_s, candidate) < _rank(best)):
                best = Promise(step_s, candidate)
        return best

    def _estimate_s(self, candidate: Candidate, num_tables: int | None = None) -> float:
        """Predicted step of the best recipe; infinite where none fits."""
        if candidate not in self._seen:
            self._looks += 1
            short, left = shortened(candidate)
            try:
                tried = self._stretched(candidate).first_fitting(short, self._job, num_tables)
            except CaptureError:
                tried = None
            self._seen[candidate] = self._look_of(tried, left) if tried is not None else _Look(float("inf"))
        return self._seen[candidate].step_s

    def _look_of(self, tried: Tried, left: int) -> _Look:
        """What the plan of a candidate without some of its micro-batches says of it."""
        busy_s = max(stage.compute_s for stage in tried.prediction.stages)
        step_s = lengthened_s(tried, left, self._job)
        return _Look(step_s, tried.prediction.peak_memory_bytes, busy_s / tried.step_s)

    def _stretched(self, candidate: Candidate) -> Recipes:
        stride = candidate.tensor_stride if candidate.tensor > 1 else 1  # an axis of one rank lies anywhere
        key = (candidate.tensor, candidate.micro_batch, stride)
        if key not in self._recipes:
            base = _base(self._sizes[candidate.tensor], candidate.micro_batch)
            tables = self._choices.tables(candidate.tensor, base)
            if base != candidate.micro_batch or stride != 1:
                samples = candidate.micro_batch / base
                compute = self._times(candidate.tensor, base, candidate.micro_batch)
                slower = partial(self._slower, candidate.tensor, stride, samples)
                tables = tuple(_stretch(t, samples, compute, slower) for t in tables)
            self._recipes[key] = Recipes(tables)
        return self._recipes[key]

    def _times(self, tensor: int, base: int, size: int) -> float:
        """How many times longer a micro-batch computes than the one whose tables are stretched."""
        once_s, least_s = (self._choices.floor_s(tensor, one) for one in (base, size))
        samples, largest = size / base, self._sizes[tensor][-1]
        if size > base and once_s and _least_s(self._choices.tables(tensor, base)) > _MOST_OFF * once_s:
            # What does not grow with the samples is most of it: the largest micro-batch tells how much.
            base_s, largest_s = (_least_s(self._choices.tables(tensor, one)) for one in (base, largest))
            more = (largest_s / base_s - 1) / (largest / base - 1)
            return 1 + min(max(more, 0.0), 1.0) * (samples - 1)
        return least_s / once_s if once_s else samples

    def _slower(self, tensor: int, stride: int, samples: float, num_bytes: int) -> float:
        """How many times longer collectives of the tensor axis take with so many times the samples than
        between neighbours.

        Args:
            num_bytes: of a message between neighbours. Of a small one, what it takes to begin is most.
        """
        if tensor == 1:
            return 1.0
        once_s, own_s = (
            self._job.cluster.collective_s(CollectiveKind.ALL_REDUCE, size, tensor, distance)
            for size, distance in ((num_bytes, 1), (num_bytes * samples, stride))
        )
        return own_s / once_s if once_s else samples


def shortened(candidate: Candidate) -> tuple[Candidate, int]:
    """The candidate with fewer micro-batches, and how many are left out: a schedule repeats itself once the
    pipeline is full."""
    few = _ROUNDS.get(candidate.schedule, _FEWEST_ROUNDS) * candidate.pipeline
    left = max(0, candidate.num_micro_batches - few)
    return replace(candidate, num_micro_batches=few) if left else candidate, left


def lengthened_s(tried: Tried, left: int, job: Job) -> float:
    """The step of a shortened candidate's plan with the micro-batches that were left out: each round of
    the pipeline takes what the last one took, and no less than its busiest rank computes."""
    if not left:
        return tried.step_s
    layout, round_ = tried.layout, tried.layout.pipeline
    without = step_pieces(replace(layout, num_micro_batches=layout.num_micro_batches - round_), job.cluster)
    return tried.step_s + left * max((tried.step_s - without.step_s) / round_, without.busiest_s)


def _base(sizes: Sequence[int], size: int) -> int:
    """The micro-batch whose tables are stretched to ``size``: sizes are thinned out to steps of sixteen."""
    kept = [sizes[0]]
    for other in sizes:
        if other >= _STEP * kept[-1]:
            kept.append(other)
    return max(other for other in kept if other <= size)


def _rank(promise: Promise) -> tuple[float, Candidate]:
    return promise.step_s, promise.candidate


def _differs_only(one: Candidate, other: Candidate, names: tuple[str, ...]) -> bool:
    if "virtual" in names and max(one.zero) != max(other.zero):
        return False
    # Levels are written stage by stage, and other numbers of virtual stages have other numbers of stages.
    # A rank alone on its data axis divides nothing, and has the level that its offload needs.
    follows = "virtual" in names or ("offload" in names and one.data == 1)
    free = {*names, "zero"} if follows else names
    alike = all(getattr(one, name) == getattr(other, name) for name in _DECISIONS if name not in free)
    return alike and one != other


def _least_s(tables: Sequence[ChoiceTable]) -> float:
    """What the blocks of a chain compute at least; nothing where there are no tables."""
    chains_s = (
        sum(
            min(c.forward_compute_s + c.backward_compute_s for c in table.kinds[kind])
            for kind in table.blocks
        )
        for table in tables
    )
    return min(chains_s, default=0.0)


def _stretch(table: ChoiceTable, samples: float, times: float, slower: Callable[[int], float]) -> ChoiceTable:
    """The table at so many times the samples and the compute.

    Args:
        slower: times its communication, by the bytes of a message: those of what a block hands over, or, as
            the last hands over next to nothing, of what the others hand over at least.
    """
    usual_bytes = min((c.output_bytes for kind in table.kinds[:-1] for c in kind), default=0)

    def stretched(c: BlockChoice) -> BlockChoice:
        comm = slower(max(c.output_bytes, usual_bytes))
        return replace(
            c,
            forward_compute_s=c.forward_compute_s * times,
            forward_comm_s=c.forward_comm_s * comm,
            backward_compute_s=c.backward_compute_s * times,
            backward_comm_s=c.backward_comm_s * comm,
            saved_bytes=int(c.saved_bytes * samples),
            transient_bytes=int(c.transient_bytes * samples),
            output_bytes=int(c.output_bytes * samples),
            model_flops=c.model_flops * samples,
            backward_weight_s=c.backward_weight_s * times,
        )

    return replace(
        table,
        kinds=tuple(tuple(stretched(c) for c in kind) for kind in table.kinds),
        carried_bytes=tuple(int(b * samples) for b in table.carried_bytes),
    )
