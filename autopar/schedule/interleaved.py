"""Interleaved 1F1B: rank r of p holds the v stages r, r + p, r + 2p, ... and takes micro-batches in groups.

Narayanan et al. 2021 (arXiv 2104.04473, section 2.2.2) and Megatron-LM (core/pipeline_parallel/schedules.py):
a group of micro-batches runs through a rank's first stage, then through its second, and so on; backwards in
the opposite order of stages. With all stages even the bubble is (p - 1) (F + B) / v, F and B being those of a
rank's v stages together.

Megatron's groups are of p micro-batches and the number of micro-batches has to suit them. Here any number
does: the step is cut into groups of at least p, as equal as possible, the larger ones first. A smaller group
before a larger one could deadlock: the warm-up runs ahead by the size of the first.
"""

from __future__ import annotations

from collections.abc import Sequence

from autopar.schedule.action import Action, ActionKind


def interleaved(rank: int, pipeline: int, groups: Sequence[int], virtual: int) -> tuple[Action, ...]:
    """The actions of one rank of interleaved 1F1B, with the micro-batches in ``micro_batch_groups``."""
    forwards, backwards = [], []
    first = 0
    for size in groups:
        members = range(first, first + size)
        for chunk in range(virtual):
            stage, mirrored = rank + chunk * pipeline, rank + (virtual - 1 - chunk) * pipeline
            forwards += [Action(ActionKind.FORWARD, stage, k) for k in members]
            backwards += [Action(ActionKind.BACKWARD, mirrored, k) for k in members]
        first += size
    # Twice the distance to the last rank, because the forward of one micro-batch and the backward of another
    # travel at once (Megatron-LM, get_pp_rank_microbatches).
    ahead = min(len(forwards), 2 * (pipeline - rank - 1) + (virtual - 1) * groups[0])
    actions = forwards[:ahead]
    for k, backward in enumerate(backwards):
        actions += forwards[ahead + k : ahead + k + 1]
        actions.append(backward)
    return tuple(actions)


def micro_batch_groups(pipeline: int, num_micro_batches: int) -> tuple[int, ...]:
    """Sizes of the groups that move together: at least ``pipeline`` where there are so many, larger first."""
    num_groups = max(1, num_micro_batches // pipeline)
    size, larger = divmod(num_micro_batches, num_groups)
    return (size + 1,) * larger + (size,) * (num_groups - larger)
