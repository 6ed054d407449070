"""Where the step of each rank goes, term by term: the terms of a rank add up to the step. No torch.

What a rank computes and what sticks out of its communication are the parts of the numbers that the schedule
is played with; what is left until its last action ends is waiting. Messages cost by how much later that end
is than if they took no time; the rest of the waiting is bubble. What is hidden is what communication takes by
itself beyond what sticks out; it is no term.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace

from autopar.cost.layout import Layout
from autopar.cost.offload import activations_s, moved_for_update_s
from autopar.cost.repeated_elements import repeated_elements
from autopar.cost.stage_time import owned_elements, stage_traffic
from autopar.cost.step import StepPieces, stage_ends, step_pieces
from autopar.cost.synchronisation import sent_s
from autopar.cost.training import Training, training_of
from autopar.hardware.cluster import Cluster


@dataclass(frozen=True, slots=True)
class StepTerms:
    """The step of one rank of the pipeline axis; seconds, which add up to the step.

    Attributes:
        forward_s: computing forward.
        backward_s: computing backward, the first time.
        recompute_s: computing forward again for the backward pass.
        host_s: the device waits for its host: dispatch, and fixed times of actions and of the step.
        tensor_s: collectives on the tensor axis; nothing hides them.
        data_s: of the data axis, gathers of parameters and scatters of gradients that stick out of every
            micro-batch.
        sync_s: of the data axis, what sticks out once a step, after the last backward.
        message_s: the step is longer by this because messages on the pipeline axis take time.
        tied_s: adding up gradients of parameters that several stages hold.
        offload_s: moving between device and host that sticks out.
        bubble_s: waiting for other stages.
        update_s: the optimiser.
        waiting_s: waiting for other ranks before or after the update.
    """

    forward_s: float = 0.0
    backward_s: float = 0.0
    recompute_s: float = 0.0
    host_s: float = 0.0
    tensor_s: float = 0.0
    data_s: float = 0.0
    sync_s: float = 0.0
    message_s: float = 0.0
    tied_s: float = 0.0
    offload_s: float = 0.0
    bubble_s: float = 0.0
    update_s: float = 0.0
    waiting_s: float = 0.0

    @property
    def total_s(self) -> float:
        """The step."""
        return sum(self.seconds(name) for name in TERMS)

    def seconds(self, name: str) -> float:
        """One of ``TERMS``."""
        found: float = getattr(self, f"{name}_s")
        return found


TERMS = tuple(field.name.removesuffix("_s") for field in fields(StepTerms))
"""What a step is made of, in the order in which it is shown."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """Communication of one rank that runs beside something else, seconds a step.

    Attributes:
        data_s: collectives on the data axis.
        message_s: messages on the pipeline axis that arrive at the rank.
    """

    data_s: float
    message_s: float


@dataclass(frozen=True, slots=True)
class Breakdown:
    """A step, rank by rank of the pipeline axis.

    Attributes:
        slowest: the rank that the others wait for at the end; of equal ones, that which waits least itself.
    """

    step_time_s: float
    ranks: tuple[StepTerms, ...]
    hidden: tuple[Hidden, ...]
    slowest: int

    @property
    def terms(self) -> StepTerms:
        """Of the slowest rank."""
        return self.ranks[self.slowest]


def break_down(layout: Layout, cluster: Cluster) -> Breakdown:
    """Where the step of a layout goes."""
    training, pieces = training_of(layout, cluster), step_pieces(layout, cluster)
    bare_ends_s = stage_ends(layout, pieces, with_messages=False)
    per_stage = [
        _stage_parts(layout, stage, pieces, training, repeated)
        for stage, repeated in enumerate(repeated_elements(layout, training))
    ]
    ranks, hidden = [], []
    for rank, stages in enumerate(pieces.ranks):
        own = _added_up([per_stage[stage] for stage in stages])
        bare_end_s = max(bare_ends_s[stage] for stage in stages)
        ranks.append(_rank_terms(rank, own, pieces, bare_end_s))
        hidden.append(_hidden(layout, rank, own, pieces, ranks[-1]))
    slowest = min(
        range(len(ranks)),
        key=lambda rank: (-pieces.synchronised_s(rank), ranks[rank].bubble_s + ranks[rank].message_s, rank),
    )
    return Breakdown(pieces.step_s, tuple(ranks), tuple(hidden), slowest)


@dataclass(frozen=True, slots=True)
class _Parts:
    """A stage, or all stages of a rank, over a whole step; but for waiting.

    Attributes:
        acting: of its actions alone.
        once_host_s: fixed times of the step.
        moved_s: what the update moves between device and host.
        sent_s: what collectives of the data axis take by themselves.
    """

    acting: StepTerms
    once_host_s: float
    moved_s: float
    sent_s: float


def _stage_parts(
    layout: Layout, stage: int, pieces: StepPieces, training: Training, repeated: Sequence[int]
) -> _Parts:
    blocks, seconds = layout.stages[stage], pieces.seconds[stage]
    level = training.level(layout.zero[stage])
    action_s = training.action_s(level)
    owned = owned_elements(blocks, repeated)
    num_actions = 3 if training.splits_backward else 2
    waits_s = sum(b.forward_host_s + b.backward_host_s for b in blocks)
    recompute_s = sum(b.recompute_s for b in blocks)
    forward_host_s = sum(b.forward_host_s for b in blocks) + action_s
    host_s = waits_s + num_actions * action_s
    tensor_s = sum(b.forward_comm_s + b.backward_comm_s for b in blocks)
    offload_s = sum(activations_s(blocks, training))
    times = layout.num_micro_batches * pieces.stretch
    comm_times = layout.num_micro_batches * pieces.message_stretch
    trainable = sum(trainable for trainable, _ in owned)
    return _Parts(
        StepTerms(
            forward_s=times * (seconds.forward_compute_s - forward_host_s),
            backward_s=times * (seconds.backward_compute_s - recompute_s - (host_s - forward_host_s)),
            recompute_s=times * recompute_s,
            host_s=times * host_s,
            tensor_s=comm_times * tensor_s,
            data_s=comm_times * _rest(seconds.forward_comm_s + seconds.backward_comm_s, tensor_s + offload_s),
            offload_s=comm_times * offload_s,
        ),
        once_host_s=training.step_s(level),
        moved_s=moved_for_update_s(trainable, level, training),
        sent_s=sent_s(level, stage_traffic(owned, training), layout.num_micro_batches),
    )


def _added_up(parts: Sequence[_Parts]) -> _Parts:
    return _Parts(
        StepTerms(*(sum(seconds) for seconds in zip(*(astuple(p.acting) for p in parts), strict=True))),
        sum(p.once_host_s for p in parts),
        sum(p.moved_s for p in parts),
        sum(p.sent_s for p in parts),
    )


def _rest(whole_s: float, part_s: float) -> float:
    """What is left, where rounding may have left less than nothing."""
    return whole_s - part_s if whole_s - part_s > 1e-12 * whole_s else 0.0


def _rank_terms(rank: int, own: _Parts, pieces: StepPieces, bare_end_s: float) -> StepTerms:
    acting, end_s = own.acting, max(pieces.ends_s[stage] for stage in pieces.ranks[rank])
    message_s = _rest(end_s, bare_end_s)
    tied_s, updating_s = pieces.tied_s[rank], pieces.update_s(rank)
    synchronised_s = pieces.synchronised_s(rank)
    return replace(
        acting,
        host_s=acting.host_s + own.once_host_s,
        sync_s=_rest(synchronised_s - tied_s, end_s),
        message_s=message_s,
        tied_s=tied_s,
        offload_s=acting.offload_s + own.moved_s,
        bubble_s=_rest(end_s, acting.total_s + message_s),
        update_s=_rest(updating_s, own.once_host_s + own.moved_s),
        waiting_s=_rest(pieces.step_s, synchronised_s + updating_s),
    )


def _hidden(layout: Layout, rank: int, own: _Parts, pieces: StepPieces, terms: StepTerms) -> Hidden:
    holder = {stage: r for r, stages in enumerate(pieces.ranks) for stage in stages}
    arriving_s = sum(
        layout.num_micro_batches * seconds * pieces.message_stretch
        for boundary, seconds in enumerate(pieces.message_s)
        for one, other in ((boundary, boundary + 1), (boundary + 1, boundary))
        if holder[other] == rank != holder[one]
    )
    return Hidden(
        data_s=_rest(own.sent_s, terms.data_s + terms.sync_s),
        message_s=_rest(arriving_s, terms.message_s),
    )
