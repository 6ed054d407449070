"""Solving one candidate: from block choices to a chain problem, from its solution to a layout and prediction.

The chain problem is linear in the blocks; the step model (``cost.step``) is not quite: how much
communication sticks out depends on neighbours. Per block, what its own compute does not hide is charged to
it; what is paid once a step is spread over the micro-batches. Memory that depends on which of a block's
choices are taken together is first counted at its least; a solution that then misses the limit by the step
model's count is solved again with that much less memory, while the first solution's objective stays the
proven bound.
"""

from __future__ import annotations

from autopar.cost.choice import BlockChoice
from autopar.cost.layout import Layout
from autopar.cost.parameter_state import (
    GRADIENT_BYTES,
    compute_bytes,
    optimizer_cost,
    parameter_bytes,
    update_s,
)
from autopar.cost.step import Training, layout_memory, predict
from autopar.cost.synchronisation import data_traffic
from autopar.schedule.actions import in_flight
from autopar.solve.candidate import Candidate, Choices, ChoiceTable, Job, MeshSolution, Shortfall
from autopar.solve.chain import ChainSolver
from autopar.solve.chain_problem import ChainProblem, ChainSolution, Option, Overhead, Shared, stage_ranges
from autopar.solve.shortfall import least_excess

_RETRIES = 6


def solve_mesh(choices: Choices, candidate: Candidate, job: Job) -> MeshSolution | Shortfall:
    """The best way of running the chain on one mesh, or by how much it misses the memory."""
    best: MeshSolution | None = None
    shortfall: Shortfall | None = None
    for index, table in enumerate(choices.tables(candidate.tensor, candidate.micro_batch)):
        found = _solve_table(table, index, candidate, job)
        if isinstance(found, MeshSolution):
            if best is None or found.prediction.step_time_s < best.prediction.step_time_s:
                best = found
        elif shortfall is None or found.missing_bytes < shortfall.missing_bytes:
            shortfall = found
    if best is not None:
        return best
    return shortfall or Shortfall(candidate, 0, job.memory_limit_bytes)


def shortfall_of(choices: Choices, candidate: Candidate, job: Job) -> Shortfall:
    """What the leanest way of running the chain misses; negative bytes are to spare."""
    found = [
        _shortfall(build_problem(table, candidate, job), candidate)
        for table in choices.tables(candidate.tensor, candidate.micro_batch)
    ]
    nothing = Shortfall(candidate, 0, job.memory_limit_bytes)
    return min(found, key=lambda shortfall: shortfall.missing_bytes, default=nothing)


def least_state_bytes(trainable_elements: int, candidate: Candidate, job: Job) -> int:
    """What no rank of the fullest stage can do without: its even share of the parameters' state."""
    elements = trainable_elements // (candidate.pipeline * candidate.tensor)
    state = parameter_bytes(
        elements, 0, min(candidate.zero), candidate.data, job.precision, job.optimizer
    ).total
    return state + job.cluster.device.framework_reserved_bytes


def build_problem(table: ChoiceTable, candidate: Candidate, job: Job, margin_bytes: int = 0) -> ChainProblem:
    """The chain problem of a candidate; ``margin_bytes`` are kept free beyond what it counts."""
    training = Training(job.cluster, candidate.data, candidate.tensor, job.precision, job.optimizer)
    levels = sorted(set(candidate.zero))
    message_bytes = 0
    if candidate.pipeline > 1:
        message_bytes = 2 * min(c.output_bytes for kind in table.kinds[:-1] or table.kinds for c in kind)
    usable = job.memory_limit_bytes - job.cluster.device.framework_reserved_bytes - message_bytes
    return ChainProblem(
        tables=tuple(
            tuple(tuple(_option(c, level, training, candidate) for c in kind) for kind in table.kinds)
            for level in levels
        ),
        blocks=table.blocks,
        in_flight=tuple(
            in_flight(candidate.schedule, candidate.pipeline, candidate.num_micro_batches, stage)
            for stage in range(candidate.pipeline)
        ),
        num_micro_batches=candidate.num_micro_batches,
        limit_bytes=usable - margin_bytes,
        table_of_stage=tuple(levels.index(level) for level in candidate.zero),
        shared=_shared(table, training, levels[-1], candidate),
        overheads=tuple(
            tuple(_least_overhead(kind, level, training) for kind in table.kinds) for level in levels
        ),
        carry_s=tuple(_send_s(num_bytes, training, candidate) for num_bytes in table.carried_bytes),
        first_blocks=job.first_blocks,
    )


def _solve_table(table: ChoiceTable, index: int, candidate: Candidate, job: Job) -> MeshSolution | Shortfall:
    problem = build_problem(table, candidate, job)
    bound_s: float | None = None
    margin_bytes = 0
    for _ in range(_RETRIES):
        solution = ChainSolver(problem).solve()
        if solution is None:
            return _shortfall(problem, candidate)
        bound_s = solution.bound_s if bound_s is None else bound_s
        layout, chosen = _layout(table, solution, problem, candidate, job)
        prediction = predict(layout, job.cluster, job.memory_limit_bytes)
        if prediction.fits:
            return MeshSolution(candidate, layout, chosen, prediction, solution.objective_s, bound_s, index)
        margin_bytes += prediction.peak_memory_bytes - job.memory_limit_bytes
        problem = build_problem(table, candidate, job, margin_bytes)
    training = Training(job.cluster, candidate.data, candidate.tensor, job.precision, job.optimizer)
    totals = [memory.total_bytes for memory in layout_memory(layout, training)]
    return Shortfall(candidate, totals.index(max(totals)), max(totals) - job.memory_limit_bytes)


def _shortfall(problem: ChainProblem, candidate: Candidate) -> Shortfall:
    excess = least_excess(problem)
    return Shortfall(candidate, excess.stage, excess.missing_bytes)


def _layout(
    table: ChoiceTable, solution: ChainSolution, problem: ChainProblem, candidate: Candidate, job: Job
) -> tuple[Layout, tuple[BlockChoice, ...]]:
    chosen = tuple(
        table.kinds[kind][option] for kind, option in zip(table.blocks, solution.options, strict=True)
    )
    ranges = stage_ranges(problem, solution.first_blocks)
    layout = Layout(
        pipeline=candidate.pipeline,
        data=candidate.data,
        tensor=candidate.tensor,
        micro_batch=candidate.micro_batch,
        num_micro_batches=candidate.num_micro_batches,
        schedule=candidate.schedule,
        virtual=1,
        zero=candidate.zero,
        precision=job.precision,
        optimizer=job.optimizer,
        stages=tuple(tuple(chosen[block] for block in blocks) for blocks in ranges),
        shared=table.shared,
        carried_bytes=tuple(table.carried_bytes[blocks[-1]] for blocks in ranges[:-1]),
    )
    return layout, chosen


def _elements(choice: BlockChoice) -> tuple[int, int]:
    trainable = sum(share.num_elements for share in choice.parameters if share.trainable)
    return trainable, sum(share.num_elements for share in choice.parameters if not share.trainable)


def _option(choice: BlockChoice, zero: int, training: Training, candidate: Candidate) -> Option:
    trainable, frozen = _elements(choice)
    each_s, once_s = _data_axis_s(trainable, frozen, choice.forward_s, choice.backward_s, zero, training)
    return Option(
        choice.input_word,
        choice.output_word,
        choice.forward_s + choice.backward_s + each_s + once_s / candidate.num_micro_batches,
        choice.saved_bytes,
        _held_bytes(trainable, frozen, zero, training),
        choice.transient_bytes,
        _send_s(choice.output_bytes, training, candidate),
    )


def _held_bytes(trainable: int, frozen: int, zero: int, training: Training) -> int:
    return parameter_bytes(
        trainable, frozen, zero, training.data, training.precision, training.optimizer
    ).total


def _data_axis_s(
    trainable: int, frozen: int, forward_s: float, backward_s: float, zero: int, training: Training
) -> tuple[float, float]:
    """What sticks out of the block's own compute, per micro-batch and per step, with the update."""
    traffic = data_traffic(trainable, frozen, training)
    once_s = update_s(
        trainable, zero, training.data, training.precision, training.optimizer, training.cluster.device
    )
    gather_s = max(0.0, traffic.gather_s - forward_s)
    if zero == 0:
        return 0.0, once_s + max(0.0, traffic.reduce_s - backward_s)
    if zero == 1:
        return 0.0, once_s + gather_s + max(0.0, traffic.scatter_s - backward_s)
    if zero == 2:
        return max(0.0, traffic.scatter_s - backward_s), once_s + gather_s
    return gather_s + max(0.0, traffic.gather_s + traffic.scatter_s - backward_s), once_s


def _send_s(num_bytes: int, training: Training, candidate: Candidate) -> float:
    """Forward and backward message over a stage boundary: the mean over the boundaries of the pipeline."""
    if candidate.pipeline == 1 or num_bytes == 0:
        return 0.0
    stride = training.data * training.tensor
    times = [
        training.cluster.p2p_s(num_bytes, stage * stride, (stage + 1) * stride)
        for stage in range(candidate.pipeline - 1)
    ]
    return 2 * sum(times) / len(times)


def _least_overhead(kind: tuple[BlockChoice, ...], zero: int, training: Training) -> Overhead:
    if not kind:
        return Overhead()
    found = [_overhead(*_elements(choice), zero, training) for choice in kind]
    return Overhead(
        min(o.paired_bytes for o in found),
        min(o.single_bytes for o in found),
        min(o.floor_bytes for o in found),
    )


def _overhead(trainable: int, frozen: int, zero: int, training: Training) -> Overhead:
    element_bytes = compute_bytes(training.precision)
    updated = -(-trainable // training.data) if zero >= 1 else trainable
    single_bytes = trainable * GRADIENT_BYTES if training.data > 1 else 0
    return Overhead(
        (trainable + frozen) * element_bytes if zero >= 3 else 0,
        single_bytes + (trainable * element_bytes if zero >= 3 else 0),
        _held_bytes(trainable, frozen, zero, training)
        + optimizer_cost(training.optimizer).temporary_bytes * updated,
    )


def _shared(table: ChoiceTable, training: Training, zero: int, candidate: Candidate) -> tuple[Shared, ...]:
    """Tied parameters, at the highest ZeRO level where stages differ: that deducts least."""
    found = []
    for parameter in table.shared:
        trainable = parameter.num_elements if parameter.trainable else 0
        frozen = parameter.num_elements - trainable
        once_s = update_s(
            trainable, zero, training.data, training.precision, training.optimizer, training.cluster.device
        )
        found.append(
            Shared(
                parameter.blocks,
                _held_bytes(trainable, frozen, zero, training),
                once_s / candidate.num_micro_batches,
                _overhead(trainable, frozen, zero, training),
            )
        )
    return tuple(found)
