"""The schedules of one stage a rank with a whole backward pass: GPipe and 1F1B.

* ``gpipe`` (Huang et al. 2019, arXiv 1811.06965): all forwards, then all backwards; every micro-batch in
  flight at once.
* ``1f1b`` (PipeDream, Narayanan et al., SOSP 2019; flushed as in Narayanan et al. 2021, arXiv 2104.04473,
  section 2.2.1): rank r of p runs min(m, p - r - 1) forwards, then one forward and one backward in turn, then
  what is left; min(m, p - r) micro-batches in flight. Bubble (p - 1) (F + B).
"""

from __future__ import annotations

from autopar.schedule.action import Action, ActionKind


def gpipe(rank: int, num_micro_batches: int) -> tuple[Action, ...]:
    """The actions of one rank of GPipe."""
    return tuple(
        Action(kind, rank, micro_batch)
        for kind in (ActionKind.FORWARD, ActionKind.BACKWARD)
        for micro_batch in range(num_micro_batches)
    )


def one_f_one_b(rank: int, pipeline: int, num_micro_batches: int) -> tuple[Action, ...]:
    """The actions of one rank of 1F1B."""
    warm_up = min(num_micro_batches, pipeline - rank - 1)
    actions = [Action(ActionKind.FORWARD, rank, k) for k in range(warm_up)]
    for k in range(num_micro_batches):
        if warm_up + k < num_micro_batches:
            actions.append(Action(ActionKind.FORWARD, rank, warm_up + k))
        actions.append(Action(ActionKind.BACKWARD, rank, k))
    return tuple(actions)
