"""The smallest changes after which a plan would fit, each tried for real; only memory is asked."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from autopar.capture.capture import Capture
from autopar.errors import InfeasibleError, PlanError, UsageError
from autopar.plan.agreement import check_agreement
from autopar.plan.decisions import MESH_AXES, Mesh, Plan
from autopar.planner.legal_families import legal_families
from autopar.planner.model_choices import ModelChoices
from autopar.planner.pins import pinned_first_blocks
from autopar.solve.candidate import Family, Job
from autopar.solve.candidates import Space, divisors
from autopar.solve.diagnosis import Diagnosis, fits

# Tables are made under these constraints.
_IN_TABLES = frozenset(("recompute", "tensor", "activations", "operators"))


@dataclass(frozen=True, slots=True)
class Remedies:
    """What would make a plan fit, each by itself; None, or no key, where it would not.

    Attributes:
        memory_bytes: of a device, that would do.
        devices: how many of the same would do.
        global_batch: the largest of those that divide the one asked for by a power of two.
        micro_batch: the largest below the pinned one.
        free: the keys of the pins each of which, left to the planner, lets a plan fit.
    """

    memory_bytes: int
    devices: int | None = None
    global_batch: int | None = None
    micro_batch: int | None = None
    free: tuple[str, ...] = ()


def find_remedies(
    diagnosis: Diagnosis, choices: ModelChoices, captured: Capture, settled: Plan, job: Job
) -> Remedies:
    """All of them, for constraints under which nothing fits."""
    trial = _Trial(choices, captured, job)
    return Remedies(
        diagnosis.enough_bytes,
        diagnosis.enough_devices,
        trial.largest({size: replace(settled, global_batch=size) for size in _halves(job.global_batch)}),
        trial.largest({size: replace(settled, micro_batch=size) for size in _smaller_micros(settled)}),
        tuple(trial.keys_to_free(settled)),
    )


class _Trial:
    """Whether changed constraints let a plan fit."""

    def __init__(self, choices: ModelChoices, captured: Capture, job: Job) -> None:
        self._choices, self._captured, self._job = choices, captured, job

    def keys_to_free(self, settled: Plan) -> Iterator[str]:
        """The single pins that do; the mesh as a whole only where no degree does alone."""
        found: list[str] = []
        for key, freed in _freed(settled):
            if key == "mesh" and any(other.startswith("mesh.") for other in found):
                continue
            choices = self._choices
            if key in _IN_TABLES:
                choices = ModelChoices(self._captured, self._job.cluster, self._job.precision, freed)
            if self.fits(freed, choices):
                found.append(key)
                yield key

    def largest(self, options: Mapping[int, Plan]) -> int | None:
        """The largest of ascending sizes that lets a plan fit; less never needs more memory."""
        legal = [size for size, settled in options.items() if self._legal(settled, self._choices)]
        return max(
            legal[: bisect_left(legal, True, key=lambda size: not self.fits(options[size]))], default=None
        )

    def fits(self, settled: Plan, choices: ModelChoices | None = None) -> bool:
        """Whether a plan fits under these constraints."""
        choices = choices or self._choices
        legal = self._legal(settled, choices)
        if legal is None:
            return False
        assert settled.global_batch is not None
        firsts = pinned_first_blocks(settled, choices.graph)
        job = replace(
            self._job,
            global_batch=settled.global_batch,
            first_blocks=firsts,
            stage_sizes=settled.stage_sizes,
        )
        return fits(choices, *legal, job) is not None

    def _legal(self, settled: Plan, choices: ModelChoices) -> tuple[tuple[Family, ...], Space] | None:
        """What may be searched; None where what was changed does not go with the rest."""
        try:
            check_agreement(settled)
            return legal_families(choices, settled, self._job.cluster)
        except (InfeasibleError, PlanError, UsageError):
            return None


def _freed(settled: Plan) -> Iterator[tuple[str, Plan]]:
    """The constraints without one of them: its key, and the rest."""
    without = (
        ("recompute", replace(settled, recompute=())),
        ("zero", replace(settled, zero=None)),
        ("shard_group", replace(settled, shard_group=None)),
        ("offload", replace(settled, offload=None)),
        ("pipeline.schedule", replace(settled, schedule=None)),
        ("pipeline.virtual", replace(settled, virtual=None)),
        ("pipeline.stages", replace(settled, stages=None)),
        ("tensor", replace(settled, tensor=())),
        ("activations", replace(settled, activations=())),
        ("operators", replace(settled, operators=())),
        ("pipeline.blocks_per_stage", replace(settled, stage_sizes=())),
    )
    yield from ((key, freed) for key, freed in without if freed != settled)
    for key in settled.bounds:
        yield key, replace(settled, bounds={k: bound for k, bound in settled.bounds.items() if k != key})
    pinned = [axis for axis in MESH_AXES if getattr(settled.mesh, axis) is not None]
    for axis in pinned:
        degrees = {name: getattr(settled.mesh, name) for name in pinned if name != axis}
        yield f"mesh.{axis}", replace(settled, mesh=Mesh(**degrees, order=settled.mesh.order))
    if len(pinned) > 1:
        yield "mesh", replace(settled, mesh=Mesh(order=settled.mesh.order))


def _halves(global_batch: int) -> tuple[int, ...]:
    """The halves of a batch, their halves and so on, ascending."""
    sizes = []
    while global_batch % 2 == 0:
        global_batch //= 2
        sizes.append(global_batch)
    return tuple(reversed(sizes))


def _smaller_micros(settled: Plan) -> tuple[int, ...]:
    """Micro-batches below the pinned one, ascending."""
    if settled.micro_batch is None:
        return ()
    assert settled.global_batch is not None
    samples = settled.global_batch // (settled.mesh.data or 1)
    return tuple(size for size in divisors(samples) if size < settled.micro_batch)
