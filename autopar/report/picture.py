"""What a report shows of a plan: everything in numbers, before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autopar.cost.breakdown import Breakdown
from autopar.cost.memory_over_time import Curve
from autopar.cost.prediction import Prediction
from autopar.cost.step_timeline import StepTimeline
from autopar.plan.decisions import Plan


@dataclass(frozen=True, slots=True)
class BlockCell:
    """One block of the chain.

    Attributes:
        rank: position on the pipeline axis.
        input_word, output_word: what flows in and out on the tensor axis.
        placements: of its parameters, e.g. ``column, row``; empty where nothing is sharded.
        saved_bytes: kept for the backward pass, of one micro-batch.
    """

    name: str
    stage: int
    rank: int
    input_word: str
    output_word: str
    placements: str
    recompute: str
    forward_s: float
    backward_s: float
    saved_bytes: int


@dataclass(frozen=True, slots=True)
class CandidatePoint:
    """One setting that was considered, or the plan itself.

    Attributes:
        label: its decisions in words.
        step_s: of the step; of one that does not fit, a guess.
        mark: ``plan`` (the one reported), ``best`` (the free optimum), ``other``,
            ``looked at`` or ``infeasible``.
    """

    label: str
    step_s: float
    peak_bytes: int
    mark: str


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How the time of a sample changes with something.

    Attributes:
        points: (factor, seconds a sample over seconds a sample of the plan), by ascending factor.
        remark: what is kept, and what is chosen again.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    remark: str


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything that a report shows.

    Attributes:
        title: of the page.
        summary: two or three sentences.
        yaml: the plan file.
        candidates: empty where nothing was searched.
    """

    title: str
    summary: Sequence[str]
    yaml: str
    plan: Plan
    prediction: Prediction
    breakdown: Breakdown
    timeline: StepTimeline
    memory: tuple[Curve, ...]
    blocks: tuple[BlockCell, ...]
    candidates: tuple[CandidatePoint, ...]
    sensitivities: tuple[Sensitivity, ...]
