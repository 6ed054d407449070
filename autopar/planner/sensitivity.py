"""How the time of a sample changes with the links, the memory and the batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from autopar.cost.blocks import Readings
from autopar.cost.layout import Layout
from autopar.cost.step import predict
from autopar.hardware.cluster import Cluster
from autopar.hardware.faster_links import with_faster_links
from autopar.planner.check import resolved_layout
from autopar.planner.explain import Costing
from autopar.report.picture import Sensitivity
from autopar.solve.candidate import Considered

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
_MEMORY_STEPS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)


def sensitivities(costing: Costing, considered: Sequence[Considered]) -> tuple[Sensitivity, ...]:
    """Of links and batch with the plan kept as it is; of memory with the best of what a search found."""
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
    by_memory = tuple(_with_memory(costing, considered))
    if by_memory:
        found.append(
            Sensitivity(
                "memory of a device", by_memory, "the best plan that the search met and that needs no more"
            )
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


def _with_memory(costing: Costing, considered: Iterable[Considered]) -> Iterator[tuple[float, float]]:
    fitting = [one for one in considered if one.fits and one.is_solved]
    limit_bytes, step_s = costing.memory_limit_bytes, costing.prediction.step_time_s
    for factor in _MEMORY_STEPS:
        best_s = min((x.step_s for x in fitting if x.peak_bytes <= factor * limit_bytes), default=None)
        if best_s is not None:
            yield factor, best_s / step_s


def _sample_s(layout: Layout, cluster: Cluster) -> float:
    """Seconds a sample."""
    return 1 / predict(layout, cluster, 1).samples_per_s
