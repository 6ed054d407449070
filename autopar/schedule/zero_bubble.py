"""Schedules with a split backward pass (Qi et al. 2024, Zero Bubble Pipeline Parallelism, arXiv 2401.10241).

The gradients of a stage's input (I) go on to the stage before at once; those of its weights (W) wait for
nobody and fill what would be bubble. A micro-batch's saved activations live until its W has run, because W
multiplies them with the gradients that I left.

* ``zero-bubble`` is ZB-H1 (section 2.3): 1F1B whose rank r puts off W by r micro-batches, so that every rank
  holds at most p micro-batches, as the first rank of 1F1B does. Bubble (p - 1) (F + I - W) where F, I and W
  take alike.
* ``zbv`` is ZB-V (section 6 and appendix; the order of actions is that of ScheduleZBVZeroBubble in
  torch.distributed.pipelining): two stages a rank, r and 2p - 1 - r, so that the model runs down the ranks
  and up again and the last stage sits beside the first; at most 2p half-size micro-batches, the memory of
  1F1B's first rank. No bubble but the first p - 1 forwards and the last W where F, I and W take alike and
  there are at least 2p micro-batches.
"""

from __future__ import annotations

from autopar.schedule.action import Action, ActionKind


def zb_h1(rank: int, pipeline: int, num_micro_batches: int) -> tuple[Action, ...]:
    """The actions of one rank of ZB-H1."""
    warm_up = min(num_micro_batches, pipeline - rank - 1)
    actions = [Action(ActionKind.FORWARD, rank, k) for k in range(warm_up)]
    for k in range(num_micro_batches):
        if warm_up + k < num_micro_batches:
            actions.append(Action(ActionKind.FORWARD, rank, warm_up + k))
        actions.append(Action(ActionKind.INPUT_BACKWARD, rank, k))
        if k >= rank:
            actions.append(Action(ActionKind.WEIGHT_BACKWARD, rank, k - rank))
    put_off = range(max(0, num_micro_batches - rank), num_micro_batches)
    return (*actions, *(Action(ActionKind.WEIGHT_BACKWARD, rank, k) for k in put_off))


def zb_v(rank: int, pipeline: int, num_micro_batches: int) -> tuple[Action, ...]:
    """The actions of one rank of ZB-V."""
    down, up = rank, 2 * pipeline - 1 - rank
    # The pattern is made for enough micro-batches to fill the pipeline; what is beyond the real ones is left
    # out.
    num_played = max(2 * pipeline - 1, num_micro_batches)
    actions: list[Action] = []
    done: dict[tuple[ActionKind, int], int] = {}

    def run(stage: int, *kinds: ActionKind) -> None:
        for kind in kinds:
            micro_batch = done.get((kind, stage), 0)
            done[kind, stage] = micro_batch + 1
            if micro_batch < num_micro_batches:
                actions.append(Action(kind, stage, micro_batch))

    forward, of_input, of_weights = (
        ActionKind.FORWARD,
        ActionKind.INPUT_BACKWARD,
        ActionKind.WEIGHT_BACKWARD,
    )
    for _ in range(2 * (pipeline - rank) - 1):
        run(down, forward)
    for _ in range(rank):
        run(up, forward)
        run(down, forward)
    for _ in range(pipeline - rank):
        run(up, forward, of_input, of_weights)
    # Steady: the forwards of the way down end before the others do.
    for k in range(num_played - pipeline):
        if 2 * pipeline - rank - 1 + k < num_played:
            run(down, forward)
        run(down, of_input, of_weights)
        run(up, forward, of_input, of_weights)
    for _ in range(rank):
        run(down, of_input)
        run(up, of_input)
    for _ in range(pipeline - rank):
        run(down, of_input, of_weights)
    for _ in range(rank):
        run(up, of_weights)
    for _ in range(rank):
        run(down, of_weights)
    return tuple(actions)
