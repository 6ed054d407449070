"""Per source: how much of it was expressed, and how well it was predicted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from published.express import reason_not_expressed
from published.metrics import bias, mean_error, pick_regret, scalar, spearman
from published.predict import Predicted
from published.runs import Run

_SMALLEST_SWEEP = 3


@dataclass(frozen=True, slots=True)
class Scores:
    """Of the step times that one model predicts; fractions, not percent.

    Attributes:
        error: mean of |predicted / measured - 1|.
        bias: mean of predicted / measured - 1.
        scaled_error: the error after one factor for all runs of the source.
        factor: that factor.
        spearman: mean over the sweeps; None without a sweep.
        pick_regret: likewise.
    """

    error: float
    bias: float
    scaled_error: float
    factor: float
    spearman: float | None
    pick_regret: float | None


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """One source.

    Attributes:
        num_expressed: runs with a prediction.
        num_runs: rows of the source that were asked for.
        not_expressed: reason -> rows.
        ours: scores of the cost model; None where nothing was expressed.
        trivial: scores of the trivial model.
        num_sweeps: sweeps (same model, devices and batch) with at least three plans.
        num_memory: expressed runs whose peak memory is printed.
        memory_error: mean of |predicted / measured - 1| of the peak memory.
    """

    source: str
    num_expressed: int
    num_runs: int
    not_expressed: dict[str, int]
    ours: Scores | None
    trivial: Scores | None
    num_sweeps: int
    num_memory: int
    memory_error: float | None


def summarise(source: str, runs: Sequence[Run], predicted: Sequence[Predicted]) -> SourceSummary:
    """The summary of one source."""
    mine = [p for p in predicted if p.run.source == source]
    asked = [run for run in runs if run.source == source]
    with_memory = [(p.peak_memory_bytes, m) for p in mine if (m := p.run.peak_memory_bytes)]
    sweeps = sweeps_of(mine)
    times = [[(p.step_s, p.run.step_s) for p in sweep] for sweep in sweeps]
    trivial_times = [[(p.trivial_s, p.run.step_s) for p in sweep] for sweep in sweeps]
    return SourceSummary(
        source=source,
        num_expressed=len(mine),
        num_runs=len(asked),
        not_expressed=dict(Counter(r for run in asked if (r := reason_not_expressed(run)))),
        ours=_scores([(p.step_s, p.run.step_s) for p in mine], times),
        trivial=_scores([(p.trivial_s, p.run.step_s) for p in mine], trivial_times),
        num_sweeps=len(sweeps),
        num_memory=len(with_memory),
        memory_error=_mean(abs(ours / printed - 1) for ours, printed in with_memory),
    )


def sweeps_of(predicted: Sequence[Predicted]) -> list[list[Predicted]]:
    """Runs of one model with one batch on the same devices under at least three plans."""
    groups: dict[tuple[str, ...], list[Predicted]] = defaultdict(list)
    for p in predicted:
        groups[p.run.sweep].append(p)
    return [group for group in groups.values() if len(group) >= _SMALLEST_SWEEP]


_Times = Sequence[tuple[float, float]]


def _scores(times: _Times, sweeps: Sequence[_Times]) -> Scores | None:
    """Of pairs (predicted, measured): all of a source, and those of each sweep."""
    if not times:
        return None
    predicted, measured = zip(*times, strict=True)
    factor = scalar(predicted, measured)
    columns = [tuple(zip(*sweep, strict=True)) for sweep in sweeps]
    return Scores(
        error=mean_error(predicted, measured),
        bias=bias(predicted, measured),
        scaled_error=mean_error([factor * p for p in predicted], measured),
        factor=factor,
        spearman=_mean(spearman(p, m) for p, m in columns),
        pick_regret=_mean(pick_regret(p, m) for p, m in columns),
    )


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return fmean(found) if found else None
