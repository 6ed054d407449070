"""From the choices of a candidate to its chain problem: linear in the blocks, never above the step model.

Memory that depends on which of a block's choices are taken together is counted at its least, so that what the
chain problem cannot fit does not fit, and what communication sticks out at its least (``stage_floor``), so
that its times are lower bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from autopar.cost.choice import BlockChoice
from autopar.cost.layout import Layout
from autopar.cost.offload import on_device, step_update_s
from autopar.cost.parameter_state import compute_bytes
from autopar.cost.stage_memory import rank_memory, stage_pieces
from autopar.cost.training import Training, training_of
from autopar.schedule.actions import in_flight, stage_rank
from autopar.solve.candidate import Candidate, ChoiceTable, Job
from autopar.solve.chain_problem import ChainProblem, Option, Overhead, Shared
from autopar.solve.stage_floor import StageFloors, holding, option_seconds

_MANY_ELEMENTS = 1_000_000


def layout_of(
    candidate: Candidate,
    job: Job,
    table: ChoiceTable | None = None,
    stages: Sequence[Sequence[BlockChoice]] = (),
) -> Layout:
    """The layout of a candidate's stages; of none, for what does not depend on them."""
    ends, end = [], 0
    for stage in stages[:-1]:
        end += len(stage)
        ends.append(end)
    return Layout(
        pipeline=candidate.pipeline,
        data=candidate.data,
        tensor=candidate.tensor,
        micro_batch=candidate.micro_batch,
        num_micro_batches=candidate.num_micro_batches,
        schedule=candidate.schedule,
        virtual=candidate.virtual,
        zero=candidate.zero,
        precision=job.precision,
        optimizer=job.optimizer,
        stages=tuple(tuple(stage) for stage in stages),
        shared=table.shared if table is not None else (),
        carried_bytes=tuple(table.carried_bytes[end - 1] for end in ends) if table is not None else (),
        order=candidate.order,
        shard_group=candidate.shard_group,
        offload=candidate.offload,
    )


def chosen_stages(
    table: ChoiceTable, first_blocks: Sequence[int], options: Sequence[int]
) -> list[list[BlockChoice]]:
    """The choice of every block, stage by stage."""
    ends = [*first_blocks[1:], len(table.blocks)]
    return [
        [table.kinds[table.blocks[block]][options[block]] for block in range(first, end)]
        for first, end in zip(first_blocks, ends, strict=True)
    ]


def candidate_training(candidate: Candidate, job: Job) -> Training:
    """How the ranks of a candidate train."""
    return training_of(layout_of(candidate, job), job.cluster)


def messages_s(candidate: Candidate, job: Job, num_bytes: float) -> list[float]:
    """Seconds of a message over every stage boundary; none between stages of one rank. At least: where ranks
    share cores, as if nobody computed.
    """
    busy = 0.0 if job.cluster.device.time_share > 1 else 1.0
    stride = layout_of(candidate, job).stride("pipeline")
    ranks = [
        stage_rank(candidate.schedule, stage, candidate.pipeline, candidate.virtual)
        for stage in range(candidate.num_stages)
    ]
    return [
        0.0
        if one == other
        else job.cluster.axis_p2p_s(num_bytes, one, other, candidate.pipeline, stride, busy)
        for one, other in pairwise(ranks)
    ]


def build_problem(
    table: ChoiceTable,
    candidate: Candidate,
    job: Job,
    floors: dict[int, StageFloors],
    *,
    margin_bytes: int = 0,
    limits: tuple[int, ...] = (),
) -> ChainProblem:
    """The chain problem of a candidate.

    Args:
        floors: of the segments, by ZeRO level.
        margin_bytes: kept free beyond what the problem counts.
        limits: of every stage, instead of the whole memory of a rank for each.
    """
    training = candidate_training(candidate, job)
    levels = sorted(set(candidate.zero))
    usable = usable_bytes(table, candidate, job) - margin_bytes
    return ChainProblem(
        tables=tuple(
            tuple(tuple(_option(c, level, training, candidate, job) for c in kind) for kind in table.kinds)
            for level in levels
        ),
        blocks=table.blocks,
        in_flight=tuple(
            in_flight(
                candidate.schedule,
                candidate.num_stages,
                candidate.num_micro_batches,
                stage,
                candidate.virtual,
            )
            for stage in range(candidate.num_stages)
        ),
        num_micro_batches=candidate.num_micro_batches,
        limit_bytes=usable,
        table_of_stage=tuple(levels.index(level) for level in candidate.zero),
        shared=_shared(table, training, levels[-1], candidate),
        overheads=tuple(
            tuple(_least_overhead(kind, level, training) for kind in table.kinds) for level in levels
        ),
        carry_s=tuple(_send_s(num_bytes, candidate, job) for num_bytes in table.carried_bytes),
        first_blocks=job.first_blocks,
        limits=tuple(limit - margin_bytes for limit in limits),
        extra_s=_extra_s(candidate, floors),
        sizes=job.sizes(candidate.num_stages),
    )


def usable_bytes(table: ChoiceTable, candidate: Candidate, job: Job) -> int:
    """Memory of a rank for its blocks."""
    message_bytes = 0
    if candidate.pipeline > 1:
        message_bytes = 2 * min(c.output_bytes for kind in table.kinds[:-1] or table.kinds for c in kind)
    return job.memory_limit_bytes - job.cluster.device.framework_reserved_bytes - message_bytes


def _extra_s(candidate: Candidate, floors: dict[int, StageFloors]) -> Callable[[int, int, int], float] | None:
    if candidate.data == 1 and not candidate.offload:
        return None
    return lambda stage, first, end: floors[candidate.zero[stage]].of(first, end).extra_s


def _option(choice: BlockChoice, zero: int, training: Training, candidate: Candidate, job: Job) -> Option:
    pieces = stage_pieces([choice], training, zero)
    memory = rank_memory((pieces,), training, ((1,),))
    back_bytes = choice.saved_bytes if "activations" in training.offload else 0
    return Option(
        choice.input_word,
        choice.output_word,
        sum(option_seconds(choice, training))
        + update_rate_s(candidate, zero, training) * choice.update_weight * choice.trainable_elements,
        memory.activations_bytes,
        memory.parameters_bytes + memory.gradients_bytes + memory.optimizer_bytes,
        choice.transient_bytes + back_bytes,
        _send_s(choice.output_bytes, candidate, job),
    )


def _send_s(num_bytes: int, candidate: Candidate, job: Job) -> float:
    """Forward and backward message over a stage boundary: the mean over the boundaries of the pipeline."""
    if candidate.num_stages == 1:
        return 0.0
    times = messages_s(candidate, job, num_bytes)
    return 2 * sum(times) / len(times)


def update_rate_s(candidate: Candidate, zero: int, training: Training) -> float:
    """What the update adds to a micro-batch for each trainable element, where one rank holds the whole chain;
    over several ranks only the slowest counts, and nothing is added."""
    if candidate.num_stages > 1:
        return 0.0
    return element_update_s(zero, training) / candidate.num_micro_batches


def element_update_s(zero: int, training: Training) -> float:
    """What one trainable element more adds to the update."""
    few = training.group * _MANY_ELEMENTS
    return (step_update_s(2 * few, zero, training) - step_update_s(few, zero, training)) / few


def _least_overhead(kind: Sequence[BlockChoice], zero: int, training: Training) -> Overhead:
    found = [_overhead(choice, zero, training) for choice in kind]
    return Overhead(
        min((o.paired_bytes for o in found), default=0),
        min((o.single_bytes for o in found), default=0),
        min((o.floor_bytes for o in found), default=0),
    )


def _overhead(choice: BlockChoice, zero: int, training: Training) -> Overhead:
    """What a block needs beyond state and activations: of the gathered, whole parameters of the block and of
    the one next to it count, and the gradients of one."""
    pieces = stage_pieces([choice], training, zero)
    state = on_device(pieces.state, training)
    back_bytes = choice.saved_bytes if "activations" in training.offload else 0
    gathered_bytes = pieces.running - choice.transient_bytes - back_bytes
    gradient_bytes = min(choice.trainable_elements * compute_bytes(training.precision), gathered_bytes)
    return Overhead(
        gathered_bytes - gradient_bytes, pieces.reduced + gradient_bytes, state.total + pieces.updating
    )


def _shared(table: ChoiceTable, training: Training, zero: int, candidate: Candidate) -> tuple[Shared, ...]:
    """Tied parameters, at the highest ZeRO level where stages differ: that deducts least."""
    found = []
    for parameter in table.shared:
        trainable = parameter.num_elements if parameter.trainable else 0
        one = next(c for k in table.kinds for c in k)
        alone = holding(one, trainable, parameter.num_elements - trainable)
        state = on_device(stage_pieces([alone], training, zero).state, training)
        weight = max(c.update_weight for block in parameter.blocks for c in table.kinds[table.blocks[block]])
        update_s = update_rate_s(candidate, zero, training) * weight * trainable
        found.append(Shared(parameter.blocks, state.total, update_s, _overhead(alone, zero, training)))
    return tuple(found)
