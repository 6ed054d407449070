"""Lower bounds of a simulated step from few numbers: what no cut of the chain and no choice can go below.

With m micro-batches, stage times t_s (forward and backward of one), T their sum, H_s = Σ_{i<s} t_i,
A_s = Σ_{i>s} t_i and w_s = min(m, p - s) micro-batches in flight, 1F1B makes stage s wait for A_s twice:
between its first forward and its first backward, where it has w_s - 1 more forwards to do, and between its
last forward and its last backward, where it has w_s - 1 more backwards. For m > w_s these are different
times:

    step >= H_s + m t_s + max(0, 2 A_s - (w_s - 1) t_s)

Let θ be the slowest stage. As T = H_s + θ + A_s and H_s <= s θ, A_s >= (p - s - 1) θ - δ with δ = p θ - T:

    step >= T + (m - 1) θ - min(δ, (p - 1) θ / 2)

whichever stage is the slowest; it is tight for even stages (δ = 0). The right side is convex in θ with one
kink, so that its least over all θ >= max(T / p, what is known of the slowest stage) is at the one or the
other.

Schedules that fill the bubble keep the slowest rank busy for m θ, and one micro-batch passes through all
stages. In ZB-H1, F_i and I_i the forward and the input half of stage i, stage s waits for Σ_{i<s} F_i at
first, and until its first backward for Σ_{i>s} (F_i + I_i), with p - 1 - s more forwards to do:

    step >= m t_s + Σ_{i<s} F_i + max(0, Σ_{i>s} (F_i + I_i) - (p - 1 - s) F_s)          for m >= p

The mean over all stages and over both ways of reading the maximum is m T / p + (p - 1) / 2p Σ F_i at least.
"""

from __future__ import annotations

from autopar.plan.decisions import ScheduleName
from autopar.schedule.actions import SPLIT_BACKWARD


def makespan_floor_s(
    schedule: ScheduleName,
    pipeline: int,
    num_micro_batches: int,
    total_s: float,
    slowest_s: float = 0.0,
    messages_s: float = 0.0,
    path_s: float | None = None,
    forward_s: float = 0.0,
    time_share: float = 1,
) -> float:
    """Lower bound of the pipeline part of a step.

    Args:
        total_s: forward and backward of one micro-batch through all stages.
        slowest_s: no cut has a slowest rank quicker than this, per micro-batch.
        messages_s: of one micro-batch over all boundaries and back.
        path_s: of one micro-batch through all stages and back, without what it need not wait for; default:
            total_s, and no more is known where the backward pass is split.
        forward_s: of one micro-batch through all stages, at least.
        time_share: ranks that share one processor; where one waits, the others are the quicker.
    """
    own_s = _of_ranks_alone(
        schedule, pipeline, num_micro_batches, total_s, slowest_s, messages_s, path_s, forward_s
    )
    if time_share > 1 and pipeline > 1:
        return max(own_s / time_share, num_micro_batches * total_s / pipeline)
    return own_s


def _of_ranks_alone(
    schedule: ScheduleName,
    p: int,
    m: int,
    total_s: float,
    slowest_s: float,
    messages_s: float,
    path_s: float | None,
    forward_s: float,
) -> float:
    """The same where every rank has a processor of its own."""
    slowest = max(slowest_s, total_s / p)
    if path_s is None:
        path_s = 0.0 if schedule in SPLIT_BACKWARD and p > 1 else total_s
    floor = max(m * slowest, path_s + messages_s)
    if p == 1:
        return m * total_s if schedule is not ScheduleName.INTERLEAVED else floor
    if schedule is ScheduleName.GPIPE:
        return max(floor, total_s + (m - 1) * slowest + messages_s)
    if schedule is ScheduleName.ZERO_BUBBLE and m >= p:
        return max(floor, m * total_s / p + (p - 1) / (2 * p) * forward_s)
    if schedule is not ScheduleName.ONE_F_ONE_B:
        return floor
    if m <= p:
        return max(floor, total_s + (m - 1) * slowest / 2 + messages_s)
    kink = 2 * total_s / (p + 1)
    least = min(_one_f_one_b_s(p, m, total_s, s) for s in (slowest, max(slowest, kink)))
    return max(floor, least + messages_s)


def _one_f_one_b_s(p: int, m: int, total_s: float, slowest_s: float) -> float:
    slack = p * slowest_s - total_s
    return total_s + (m - 1) * slowest_s - min(slack, (p - 1) * slowest_s / 2)
