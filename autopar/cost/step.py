"""What a step of a whole plan takes: the schedule played with its stages' times, and their memory. No torch.

    step = max over ranks of (end of its last backward + gradient synchronisation that sticks out)
           + max over ranks of (update)

because clipping by the global norm makes every rank wait for all gradients before any updates. A rank with
several virtual stages synchronises each as soon as its last backward has ended, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from autopar.cost.layout import Layout
from autopar.cost.layout_memory import rank_memories
from autopar.cost.parameter_state import GRADIENT_BYTES
from autopar.cost.prediction import Prediction, StageMemory, StagePrediction
from autopar.cost.repeated_elements import repeated_elements
from autopar.cost.stage_time import StageSeconds, stage_seconds
from autopar.cost.training import Training, training_of
from autopar.hardware.cluster import Cluster
from autopar.hardware.device import Device
from autopar.hardware.link import CollectiveKind
from autopar.schedule.actions import rank_stages, schedule_actions, stage_rank
from autopar.schedule.simulator import Timeline, finish_times, simulate


def predict(
    layout: Layout, cluster: Cluster, memory_limit_bytes: int, memory: Sequence[StageMemory] = ()
) -> Prediction:
    """Step time, throughput, MFU and memory of a plan.

    Args:
        memory_limit_bytes: of a device; only recorded, for ``Prediction.fits``.
        memory: of every rank of the pipeline axis, where it is known (``fitting_memory``).

    Raises:
        UsageError: the optimiser is unknown, or the schedule does not run so many stages on a rank.
    """
    pieces = step_pieces(layout, cluster)
    seconds, step_s = pieces.seconds, pieces.step_s
    memory = memory or list(rank_memories(layout, training_of(layout, cluster)))
    model_flops = sum(b.model_flops for blocks in layout.stages for b in blocks)
    step_flops = 3 * model_flops * layout.num_micro_batches * layout.data
    peak = layout.num_devices * cluster.device.peak(layout.precision)
    return Prediction(
        step_time_s=step_s,
        samples_per_s=layout.global_batch / step_s,
        mfu=step_flops / (step_s * peak),
        peak_memory_bytes=max(m.total_bytes for m in memory),
        memory_limit_bytes=memory_limit_bytes,
        stages=tuple(
            _rank_prediction(
                [seconds[s] for s in stages],
                pieces.tied_s[rank],
                layout.num_micro_batches,
                step_s,
                memory[rank],
            )
            for rank, stages in enumerate(pieces.ranks)
        ),
        peak_host_bytes=max(m.host_bytes for m in memory),
        host_limit_bytes=cluster.host_bytes_per_device,
    )


def fits(layout: Layout, cluster: Cluster, memory_limit_bytes: int) -> bool:
    """What ``predict(...).fits`` says, without playing the schedule."""
    return all(fitting_ranks(layout, cluster, memory_limit_bytes))


def fitting_ranks(layout: Layout, cluster: Cluster, memory_limit_bytes: int) -> Iterator[bool]:
    """Of a rank at each position of the pipeline axis, one after the other, whether its stages fit."""
    for memory in rank_memories(layout, training_of(layout, cluster)):
        yield _is_enough(cluster, memory_limit_bytes, memory)


def fitting_memory(
    layout: Layout, cluster: Cluster, memory_limit_bytes: int
) -> tuple[StageMemory, ...] | None:
    """Of a rank at each position of the pipeline axis, what its stages need; None where one does not fit."""
    found = []
    for memory in rank_memories(layout, training_of(layout, cluster)):
        if not _is_enough(cluster, memory_limit_bytes, memory):
            return None
        found.append(memory)
    return tuple(found)


def _is_enough(cluster: Cluster, memory_limit_bytes: int, needed: StageMemory) -> bool:
    on_host = needed.host_bytes <= cluster.host_bytes_per_device
    return needed.total_bytes <= memory_limit_bytes and on_host


@dataclass(frozen=True, slots=True)
class StepPieces:
    """What a step is put together from.

    Attributes:
        seconds: of every stage.
        ranks: the stages of each rank of the pipeline axis.
        message_s: per boundary between stages, of a message across it.
        tied_s: per rank, of adding up gradients of parameters that several ranks hold.
        stretch: how much longer the computing of an action takes than ``seconds`` say, where ranks share
            cores.
        message_stretch: likewise, its communication, and a message.
        update_stretch: likewise, the update.
        ends_s: when the last action of each stage ends.
    """

    seconds: tuple[StageSeconds, ...]
    ranks: tuple[tuple[int, ...], ...]
    message_s: tuple[float, ...]
    tied_s: tuple[float, ...]
    stretch: float
    message_stretch: float
    ends_s: tuple[float, ...]
    update_stretch: float = 1.0

    def synchronisations(self, rank: int) -> list[tuple[int, float, float]]:
        """Stage, start and end of what sticks out of each synchronisation of gradients of a rank, in order.

        All take the same links: while one goes on, nothing of the next runs beside the backward either.
        """
        found, finished_s = [], 0.0
        for end_s, sync_s, stage in sorted(
            (self.ends_s[s], self.seconds[s].sync_s, s) for s in self.ranks[rank]
        ):
            start_s = max(end_s, finished_s + self.seconds[stage].sync_hidden_s)
            finished_s = start_s + sync_s
            found.append((stage, start_s, finished_s))
        return found

    def synchronised_s(self, rank: int) -> float:
        """When a rank has the gradients of all its stages."""
        return self.synchronisations(rank)[-1][2] + self.tied_s[rank]

    def update_s(self, rank: int) -> float:
        """What the update of all stages of a rank takes."""
        return self.update_stretch * sum(self.seconds[stage].update_s for stage in self.ranks[rank])

    @property
    def busiest_s(self) -> float:
        """What a micro-batch takes the rank that it takes longest."""
        busy_s = (sum(self.seconds[s].forward_s + self.seconds[s].backward_s for s in r) for r in self.ranks)
        return self.stretch * max(busy_s)

    @property
    def updates_from_s(self) -> float:
        """When all ranks begin to update."""
        return max(self.synchronised_s(rank) for rank in range(len(self.ranks)))

    @property
    def step_s(self) -> float:
        """The whole step."""
        return self.updates_from_s + max(self.update_s(rank) for rank in range(len(self.ranks)))


def step_pieces(layout: Layout, cluster: Cluster) -> StepPieces:
    """Times of all stages and messages of a layout, and when each stage has run its last action."""
    seconds = tuple(_all_seconds(layout, training_of(layout, cluster)))
    share = cluster.device.time_share
    shares_cores = share > 1 and layout.pipeline > 1
    alone = StepPieces(
        seconds,
        tuple(
            rank_stages(layout.schedule, rank, layout.pipeline, layout.virtual)
            for rank in range(layout.pipeline)
        ),
        tuple(_message_s(layout, cluster, 0.0 if shares_cores else 1.0)),
        tuple(_tied_s(layout, cluster)),
        1.0,
        1.0,
        (),
    )
    if not shares_cores:
        return replace(alone, ends_s=stage_ends(layout, alone))
    # Processes that wait leave their cores to the others: no sooner than all work is done by all cores, nor
    # than what depends on each other takes with cores to itself. Sending is no quicker for that: it waits for
    # other ranks to wake up.
    alone = replace(alone, stretch=1 / share)
    work_s = layout.num_micro_batches * sum(s.forward_s + s.backward_s for s in seconds) / layout.pipeline
    busy = _busy(work_s / max(stage_ends(layout, alone)), layout.pipeline / share)
    alone = replace(alone, message_s=tuple(_message_s(layout, cluster, busy)))
    ends_s = stage_ends(layout, alone)
    slower = max(1.0, work_s / max(ends_s))
    return replace(
        alone,
        stretch=slower / share,
        message_stretch=slower,
        ends_s=tuple(end_s * slower for end_s in ends_s),
        update_stretch=_update_stretch(alone, cluster.device),
    )


def _busy(load: float, num_at_once: float) -> float:
    """Fraction of the cores that compute while a message is on its way: none where one stage computes at a
    time, because that has just ended.

    Args:
        load: work by what the cores could do meanwhile.
        num_at_once: stages for which there are cores.
    """
    return min(1.0, max(0.0, load * num_at_once - 1) / max(1.0, num_at_once - 1))


def _update_stretch(alone: StepPieces, device: Device) -> float:
    """How much longer updates take than ``seconds`` say, where ranks share cores: no less than all cores need
    for all of them.
    """
    once_s = device.step_s * len(alone.ranks[0])
    updates_s = [alone.update_s(rank) for rank in range(len(alone.ranks))]
    work_s = device.time_share * (sum(updates_s) / len(updates_s) - once_s)
    return max(1.0, (work_s + once_s) / max(updates_s))


def stage_ends(layout: Layout, pieces: StepPieces, *, with_messages: bool = True) -> tuple[float, ...]:
    """When the last action of each stage ends; without messages, as if they took no time."""
    forward_s, backward_s, messages_s, weight_s = _durations_s(pieces)
    if not with_messages:
        messages_s = [0.0] * len(messages_s)
    return finish_times(
        layout.schedule,
        layout.num_micro_batches,
        layout.virtual,
        forward_s,
        backward_s,
        messages_s,
        weight_s,
    )


def play(layout: Layout, pieces: StepPieces) -> Timeline:
    """The pipeline part of a step: every action with its start and end."""
    return simulate(
        schedule_actions(layout.schedule, len(layout.stages), layout.num_micro_batches, layout.virtual),
        *_durations_s(pieces),
    )


def _durations_s(pieces: StepPieces) -> tuple[list[float], list[float], list[float], list[float]]:
    """Forwards and backwards of stages, messages across boundaries, and postponed halves; all stretched."""
    own, sent = pieces.stretch, pieces.message_stretch
    return (
        [s.forward_compute_s * own + s.forward_comm_s * sent for s in pieces.seconds],
        [s.backward_compute_s * own + s.backward_comm_s * sent for s in pieces.seconds],
        [s * pieces.message_stretch for s in pieces.message_s],
        [s.weight_s * pieces.stretch for s in pieces.seconds],
    )


def _all_seconds(layout: Layout, training: Training) -> list[StageSeconds]:
    """Times of every stage; those that are alike are worked out once."""
    known: dict[tuple[object, ...], StageSeconds] = {}
    found = []
    for stage, repeated in enumerate(repeated_elements(layout, training)):
        blocks = layout.stages[stage]
        key = (tuple(map(id, blocks)), layout.zero[stage], repeated)
        if key not in known:
            known[key] = stage_seconds(blocks, training, layout.zero[stage], repeated)
        found.append(known[key])
    return _synchronised_as_one(layout, found, training) if layout.pipeline == 1 < len(found) else found


def _synchronised_as_one(
    layout: Layout, seconds: list[StageSeconds], training: Training
) -> list[StageSeconds]:
    """The stages of a rank that holds them all: what of its traffic sticks out is no less than that of one
    stage with all of its blocks, and is in sync after the last backward, which is the first stage's.
    """
    whole = replace(layout, stages=(tuple(b for blocks in layout.stages for b in blocks),), virtual=1)
    one = stage_seconds(whole.stages[0], training, max(layout.zero), *repeated_elements(whole, training))
    cut_s = sum(s.forward_s + s.backward_s for s in seconds)
    spared_s = max(0.0, layout.num_micro_batches * (one.forward_s + one.backward_s - cut_s))
    return [
        replace(s, sync_s=0.0 if stage else one.sync_s + spared_s, sync_hidden_s=0.0)
        for stage, s in enumerate(seconds)
    ]


def _message_s(layout: Layout, cluster: Cluster, busy: float) -> list[float]:
    """Per boundary between stages, seconds of a message between the ranks that hold them.

    Args:
        busy: fraction of the cores that compute meanwhile.
    """
    stride = layout.stride("pipeline")
    ranks = [
        stage_rank(layout.schedule, s, layout.pipeline, layout.virtual) for s in range(len(layout.stages))
    ]
    return [
        cluster.axis_p2p_s(layout.boundary_bytes(s), ranks[s], ranks[s + 1], layout.pipeline, stride, busy)
        for s in range(len(layout.stages) - 1)
    ]


def _rank_prediction(
    stages: Sequence[StageSeconds],
    tied_s: float,
    num_micro_batches: int,
    step_s: float,
    memory: StageMemory,
) -> StagePrediction:
    compute_s = sum(
        num_micro_batches * (s.forward_compute_s + s.backward_compute_s) + s.update_s for s in stages
    )
    compute_s = min(compute_s, step_s)  # of ranks that share cores, one may have more than its share of work
    comm_s = sum(num_micro_batches * (s.forward_comm_s + s.backward_comm_s) + s.sync_s for s in stages)
    # Where virtual stages synchronise beside each other's compute, less sticks out than the sum.
    comm_s = min(comm_s + tied_s, max(0.0, step_s - compute_s))
    return StagePrediction(compute_s, comm_s, max(0.0, step_s - compute_s - comm_s), memory)


def _tied_s(layout: Layout, cluster: Cluster) -> list[float]:
    """Per rank of the pipeline axis, adding up the gradients of parameters that several stages hold."""
    result = [0.0] * layout.pipeline
    group = layout.shard_group or layout.data
    for parameter in layout.shared:
        holders = layout.holders(parameter)
        ranks = sorted({stage_rank(layout.schedule, s, layout.pipeline, layout.virtual) for s in holders})
        if len(ranks) < 2 or not parameter.trainable:
            continue
        sharded = all(layout.zero[s] >= 1 for s in holders)
        num_bytes = parameter.num_elements * GRADIENT_BYTES / (group if sharded else 1)
        span = layout.stride("pipeline") * (ranks[-1] - ranks[0]) // (len(ranks) - 1)
        for rank in ranks:
            result[rank] += cluster.collective_s(CollectiveKind.ALL_REDUCE, num_bytes, len(ranks), span)
    return result
