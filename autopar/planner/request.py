"""What is asked of the planner, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from autopar.capture.target import ModelSource
from autopar.cost.breakdown import StepTerms
from autopar.cost.prediction import Prediction
from autopar.cost.step_timeline import StepTimeline
from autopar.hardware.cluster import Cluster
from autopar.plan.decisions import Mesh, Plan, Precision, ScheduleName
from autopar.solve.candidate import Considered


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """A model, a cluster, and what is fixed.

    Attributes:
        source: the model.
        cluster: the devices; all of them are used.
        global_batch: samples per step; None: the constraints', else a default that the result tells.
        optimizer: None: the constraints', else ``adamw``.
        precision: None: the constraints', else the device's usual one.
        memory_limit_bytes: of a device; None: all that it has.
        constraints: a partial plan; every field that is set is law.
        top: plans to show, the best included.
        time_limit_s: of the search; None: none.
        effort: times the work that a search may do before it leaves the rest unproved.
        with_baselines: whether plans as people write them by hand are found as well.
        seed: of whatever is drawn at random; nothing is at present.
    """

    source: ModelSource
    cluster: Cluster
    global_batch: int | None = None
    optimizer: str | None = None
    precision: Precision | None = None
    memory_limit_bytes: int | None = None
    constraints: Plan = field(default_factory=Plan)
    top: int = 4
    time_limit_s: float | None = None
    effort: int = 1
    with_baselines: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True)
class RunnerUp:
    """The best plan on another mesh, and what it loses.

    Attributes:
        step_time_s: predicted; None where it does not fit.
        peak_memory_bytes: likewise.
        why_not: in a few words, with numbers.
        terms: where its step goes, on the slowest rank.
    """

    mesh: Mesh
    schedule: ScheduleName
    virtual: int
    shard_group: int
    offload: str
    micro_batch: int
    zero: int | tuple[int, ...]
    step_time_s: float | None
    peak_memory_bytes: int | None
    why_not: str
    terms: StepTerms | None = None


@dataclass(frozen=True, slots=True)
class BaselineResult:
    """The best plan of a kind that people write by hand.

    Attributes:
        name: ``Megatron``, ``data parallel`` or ``FSDP``.
        mesh: None, as all that follows, where no such plan fits.
        recompute: the one word for all blocks.
        remark: how much slower than the plan, or why none fits.
    """

    name: str
    mesh: Mesh | None
    micro_batch: int | None
    zero: int | None
    recompute: str | None
    step_time_s: float | None
    peak_memory_bytes: int | None
    remark: str


@dataclass(frozen=True, slots=True)
class SearchStatistics:
    """What the search took.

    Attributes:
        wall_s: in all.
        capture_s: of it, capturing the model.
        solve_s: of it, tables, ILPs and search.
        num_candidates: outer settings (mesh, micro-batch, ZeRO) considered.
        num_solved: of these, solved to the end; the others were cut by their bound.
    """

    wall_s: float
    capture_s: float
    solve_s: float
    num_candidates: int
    num_solved: int


@dataclass(frozen=True, slots=True)
class BatchTried:
    """A global batch that was tried for its throughput.

    Attributes:
        step_time_s: predicted, of its best plan; None where none fits.
        samples_per_s: likewise.
    """

    global_batch: int
    step_time_s: float | None
    samples_per_s: float | None


@dataclass(frozen=True, slots=True)
class PlanResult:
    """A complete plan and what is known of it.

    Attributes:
        plan: complete; ``check_plan`` predicts the same for it.
        status: ``optimal`` or ``feasible``.
        gap: (predicted step - bound) / predicted step; 0 when optimal.
        bound_s: no plan within the constraints is predicted to be quicker.
        notes: defaults that were chosen, for people.
        batches: what was tried, where the global batch was the planner's to choose.
        considered: outer settings with what the search found out about each.
        timeline: of its step.
    """

    plan: Plan
    status: str
    gap: float
    bound_s: float
    prediction: Prediction
    alternatives: tuple[RunnerUp, ...]
    search: SearchStatistics
    notes: tuple[str, ...] = ()
    baselines: tuple[BaselineResult, ...] = ()
    batches: tuple[BatchTried, ...] = ()
    considered: tuple[Considered, ...] = ()
    timeline: StepTimeline | None = None
