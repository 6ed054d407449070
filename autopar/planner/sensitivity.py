"""How the time of a sample changes with the links, the memory and the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from autopar.cost.blocks import Readings
from autopar.cost.layout import Layout
from autopar.cost.step import predict
from autopar.errors import InfeasibleError
from autopar.hardware.cluster import Cluster
from autopar.hardware.faster_links import with_faster_links
from autopar.plan.decisions import Plan
from autopar.planner.check import resolved_layout
from autopar.planner.explain import Costing
from autopar.planner.replan import Replanner
from autopar.planner.request import PlanResult
from autopar.report.picture import Sensitivity
from autopar.solve.candidate import Considered

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
PLANNED_FACTORS = (0.25, 0.5, 0.75)
"""Of the memory of a device, for which it is planned again."""
_MEMORY_STEPS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)


def planned_with_less(
    planner: Replanner, costing: Costing, free: PlanResult | None = None
) -> dict[float, float]:
    """Seconds of the step of the best plan for parts of the memory; without those for which nothing fits.

    Args:
        free: the best plan for all of the memory, which is the best for any part that it fits into.
    """
    found = {}
    for factor in PLANNED_FACTORS:
        limit_bytes = int(factor * costing.memory_limit_bytes)
        if free is not None and free.prediction.peak_memory_bytes <= limit_bytes:
            found[factor] = free.prediction.step_time_s
            continue
        with suppress(InfeasibleError):
            planned = planner.plan(Plan(), memory_limit_bytes=limit_bytes)
            found[factor] = planned.prediction.step_time_s
    return found


def sensitivities(
    costing: Costing, considered: Sequence[Considered], planned_s: Mapping[float, float] | None = None
) -> tuple[Sensitivity, ...]:
    """Of links and batch with the plan kept as it is; of memory with the best that is known.

    Args:
        considered: what a search met.
        planned_s: of ``planned_with_less``.
    """
    found = [
        Sensitivity(
            "link bandwidth",
            tuple(_with_links(costing)),
            "the plan as it is, all links faster or slower alike",
        ),
        Sensitivity(
            "global batch", tuple(_with_batch(costing)), "the plan as it is, with more or fewer micro-batches"
        ),
    ]
    by_memory = tuple(_with_memory(costing, considered, planned_s or {}))
    if by_memory:
        found.append(
            Sensitivity("memory of a device", by_memory, "the best plan that is known to need no more")
        )
    return tuple(found)


def _with_links(costing: Costing) -> Iterator[tuple[float, float]]:
    for factor in FACTORS:
        cluster = with_faster_links(costing.cluster, factor)
        layout = resolved_layout(costing.resolved, cluster, Readings(cluster))
        yield factor, _sample_s(layout, cluster) / _sample_s(costing.layout, costing.cluster)


def _with_batch(costing: Costing) -> Iterator[tuple[float, float]]:
    layout, known_s = costing.layout, _sample_s(costing.layout, costing.cluster)
    for count in dict.fromkeys(max(1, round(layout.num_micro_batches * factor)) for factor in FACTORS):
        other = replace(layout, num_micro_batches=count)
        yield count / layout.num_micro_batches, _sample_s(other, costing.cluster) / known_s


def _with_memory(
    costing: Costing, considered: Sequence[Considered], planned_s: Mapping[float, float]
) -> Iterator[tuple[float, float]]:
    known = [
        (x.peak_bytes / costing.memory_limit_bytes, x.step_s) for x in considered if x.fits and x.is_solved
    ]
    known += planned_s.items()
    for factor in _MEMORY_STEPS:
        best_s = min((step_s for needed, step_s in known if needed <= factor), default=None)
        if best_s is not None:
            yield factor, best_s / costing.prediction.step_time_s


def _sample_s(layout: Layout, cluster: Cluster) -> float:
    """Seconds a sample."""
    return 1 / predict(layout, cluster, 1).samples_per_s
