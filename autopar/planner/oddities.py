"""What is legal in a plan but odd, with the seconds of a step that it costs.

Where a cost is told, it is the difference of two predictions: the plan's own, and that of the same plan
without the oddity.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

from autopar.capture.capture import Capture
from autopar.cost.blocks import Readings
from autopar.cost.prediction import Prediction
from autopar.cost.step import predict
from autopar.errors import CaptureError, PlanError
from autopar.hardware.cluster import Cluster
from autopar.lower.resolve import resolve
from autopar.plan.decisions import MESH_AXES, PatternLine, Plan
from autopar.plan.patterns import matches
from autopar.plan.ranges import expand
from autopar.planner.check import predict_plan, resolved_layout
from autopar.planner.repeated_work import repeated_work
from autopar.units import format_bytes, format_seconds

SLOW_STAGE = 0.30
NEAR_LIMIT = 0.03
LARGE_BUBBLE = 0.25
SMALL_MICRO_BATCH = 2
WORTH_TELLING = 0.01
_MOST_LINES = 300


@dataclass(frozen=True, slots=True)
class Oddity:
    """Something that a person may not have meant.

    Attributes:
        key: dotted key of the decision.
        message: what is odd, with its numbers, and what would be usual.
        cost_s: of a step; None where it costs no time.
        where: ``gpt.yaml:5:8``; empty for a plan that was not read from a file.
    """

    key: str
    message: str
    cost_s: float | None = None
    where: str = ""

    def text(self, step_time_s: float) -> str:
        """For people."""
        cost = ""
        if self.cost_s is not None:
            cost = f"; it costs {format_seconds(self.cost_s)} of {format_seconds(step_time_s)} a step"
        return f"{self.where}: {self.message}{cost}" if self.where else f"{self.message}{cost}"


def find_oddities(
    plan: Plan, captured: Capture, cluster: Cluster, prediction: Prediction
) -> tuple[Oddity, ...]:
    """What is odd about a complete plan that was costed."""
    found = chain(
        _slow_stage(prediction),
        _near_limit(prediction),
        _repeated_work(plan),
        _tensor_axis(plan, captured, cluster, prediction),
        _bubble(prediction),
        _small_micro_batch(plan, captured, cluster, prediction),
        _dead_lines(plan),
        _beyond_the_model(plan, captured),
    )
    return tuple(replace(oddity, where=plan.where(oddity.key)) for oddity in found)


def _slow_stage(prediction: Prediction) -> Iterator[Oddity]:
    busy_s = [stage.compute_s + stage.comm_s for stage in prediction.stages]
    if len(busy_s) < 2:
        return
    slowest = busy_s.index(max(busy_s))
    others_s = (sum(busy_s) - busy_s[slowest]) / (len(busy_s) - 1)
    if busy_s[slowest] > (1 + SLOW_STAGE) * others_s:
        yield Oddity(
            "pipeline.stages",
            f"position {slowest} of the pipeline works {busy_s[slowest] / others_s - 1:.0%} longer than the "
            "others do on average, which wait for it; move blocks to them",
            busy_s[slowest] - sum(busy_s) / len(busy_s),
        )


def _near_limit(prediction: Prediction) -> Iterator[Oddity]:
    left = prediction.memory_limit_bytes - prediction.peak_memory_bytes
    if 0 <= left < NEAR_LIMIT * prediction.memory_limit_bytes:
        totals = [stage.memory.total_bytes for stage in prediction.stages]
        yield Oddity(
            "batch.micro",
            f"position {totals.index(max(totals))} of the pipeline leaves {format_bytes(left)} of the "
            f"{format_bytes(prediction.memory_limit_bytes)} of a device free, less than {NEAR_LIMIT:.0%}: "
            "fragmentation may fill it; plan with --memory-limit",
        )


def _repeated_work(plan: Plan) -> Iterator[Oddity]:
    text = repeated_work(plan)
    if text:
        yield Oddity("mesh.tensor", text)


def _tensor_axis(plan: Plan, captured: Capture, cluster: Cluster, prediction: Prediction) -> Iterator[Oddity]:
    """The axis whose collectives nothing hides: the innermost, and inside a node, in the usual plan."""
    tensor, mesh = plan.mesh.tensor or 1, plan.mesh
    if tensor == 1:
        return
    crosses = cluster.spread(tensor, mesh.stride("tensor")).num_nodes > 1
    order = mesh.order or MESH_AXES
    if mesh.stride("tensor") > 1:
        usual = [*(axis for axis in order if axis != "tensor"), "tensor"]
        inside = replace(plan, mesh=replace(mesh, order=(usual[0], usual[1], usual[2])))
        cost_s = prediction.step_time_s - _step_s(inside, captured, cluster, prediction)
        if cost_s > WORTH_TELLING * prediction.step_time_s:
            yield Oddity(
                "mesh.order",
                f"the tensor axis does not vary fastest (order {', '.join(order)})"
                f"{' and crosses nodes' if crosses else ''}; with [{', '.join(usual)}] it lies closer",
                cost_s,
            )
    elif crosses:
        wide = replace(cluster, nodes=1, devices_per_node=cluster.num_devices)
        assert plan.micro_batch is not None
        layout = resolved_layout(resolve(plan, captured.at(plan.micro_batch)), wide, Readings(wide))
        inside_s = predict(layout, cluster, prediction.memory_limit_bytes).step_time_s
        yield Oddity(
            "mesh.tensor",
            f"the tensor axis of {tensor} ranks crosses nodes of {cluster.devices_per_node}; its collectives "
            "would be quicker inside a node",
            max(0.0, prediction.step_time_s - inside_s),
        )


def _bubble(prediction: Prediction) -> Iterator[Oddity]:
    idle_s = sum(stage.idle_s for stage in prediction.stages) / len(prediction.stages)
    if len(prediction.stages) > 1 and idle_s > LARGE_BUBBLE * prediction.step_time_s:
        yield Oddity(
            "pipeline",
            f"ranks stand idle {idle_s / prediction.step_time_s:.0%} of the step on average; more "
            "micro-batches (a smaller batch.micro), fewer stages, or schedule: interleaved or zero-bubble "
            "leave less",
            idle_s,
        )


def _small_micro_batch(
    plan: Plan, captured: Capture, cluster: Cluster, prediction: Prediction
) -> Iterator[Oddity]:
    if plan.micro_batch is None or plan.micro_batch > SMALL_MICRO_BATCH or plan.num_micro_batches % 2:
        return
    larger = replace(plan, micro_batch=2 * plan.micro_batch)
    cost_s = prediction.step_time_s - _step_s(larger, captured, cluster, prediction)
    if cost_s > WORTH_TELLING * prediction.step_time_s:
        yield Oddity(
            "batch.micro",
            f"batch.micro {plan.micro_batch} is small for this model; {larger.micro_batch} fits, and is "
            "quicker",
            cost_s,
        )


def _dead_lines(plan: Plan) -> Iterator[Oddity]:
    for section in ("tensor", "activations", "recompute", "operators"):
        lines: tuple[PatternLine, ...] = getattr(plan, section)[:_MOST_LINES]
        for number, line in enumerate(lines):
            wider = next((other for other in lines[:number] if matches(other.pattern, line.pattern)), None)
            if wider is not None and wider.word != line.word:
                yield Oddity(
                    f"{section}.{line.pattern}",
                    f"'{line.pattern}: {line.word}' in {section} never applies: '{wider.pattern}: "
                    f"{wider.word}' stands before it and the first match wins; move it up, or delete it",
                )


def _beyond_the_model(plan: Plan, captured: Capture) -> Iterator[Oddity]:
    """Ranges of numbers that end where the model has nothing any more."""
    assert plan.micro_batch is not None
    graph = captured.at(plan.micro_batch)
    blocks = [block.name for block in graph.blocks]
    for section in ("tensor", "activations", "recompute"):
        lines: tuple[PatternLine, ...] = getattr(plan, section)[:_MOST_LINES]
        names = list(graph.parameters) if section == "tensor" else blocks
        for line in lines:
            last = _last_of_range(line.pattern)
            if last != line.pattern and not any(matches(last, name) for name in names):
                yield Oddity(
                    f"{section}.{line.pattern}",
                    f"'{line.pattern}' in {section} reaches beyond the model: it has no {last}",
                )


def _last_of_range(pattern: str) -> str:
    try:
        return expand(pattern)[-1]
    except ValueError:
        return pattern  # two ranges, or none that a model could fill


def _step_s(plan: Plan, captured: Capture, cluster: Cluster, prediction: Prediction) -> float:
    """Predicted step of a changed plan; infinite where it cannot be run or does not fit."""
    assert plan.micro_batch is not None
    try:
        graph = captured.at(plan.micro_batch)
        changed = predict_plan(plan, graph, cluster, prediction.memory_limit_bytes, Readings(cluster))
    except (CaptureError, PlanError):
        return float("inf")
    return changed.step_time_s if changed.fits else float("inf")
