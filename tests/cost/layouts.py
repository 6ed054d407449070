"""Blocks and layouts with round numbers, for tests of the step model."""

from __future__ import annotations

from dataclasses import replace

from autopar.cost.choice import BlockChoice, ParameterShare
from autopar.cost.layout import Layout
from autopar.plan.decisions import Precision, Recompute, ScheduleName

GiB = 2**30

VARIANTS = [
    (ScheduleName.GPIPE, 1),
    (ScheduleName.ONE_F_ONE_B, 1),
    (ScheduleName.INTERLEAVED, 2),
    (ScheduleName.ZERO_BUBBLE, 1),
    (ScheduleName.ZBV, 2),
]
"""Schedules with their stages a rank."""


def block(**changes: object) -> BlockChoice:
    whole = BlockChoice(
        class_key="k",
        tensor_degree=1,
        micro_batch=2,
        input_word="replicate",
        output_word="replicate",
        recompute=Recompute.NONE,
        parameters=(ParameterShare("w", "replicate", 1000, True),),
        overrides={},
        forward_compute_s=0.010,
        forward_comm_s=0.001,
        backward_compute_s=0.020,
        backward_comm_s=0.002,
        saved_bytes=100,
        transient_bytes=50,
        output_bytes=0,
        model_flops=1e12,
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def layout(stages: tuple[tuple[BlockChoice, ...], ...], **changes: object) -> Layout:
    whole = Layout(
        pipeline=len(stages),
        data=1,
        tensor=1,
        micro_batch=2,
        num_micro_batches=4,
        schedule=ScheduleName.ONE_F_ONE_B,
        virtual=1,
        zero=(0,) * len(stages),
        precision=Precision.BF16,
        optimizer="adamw",
        stages=stages,
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def heavy(**changes: object) -> BlockChoice:
    share = ParameterShare("w", "replicate", 20_000_000, True)
    return block(**{"parameters": (share,), "output_bytes": 10**6, "backward_weight_s": 0.008} | changes)


def four_ranks(schedule: ScheduleName, virtual: int, **changes: object) -> Layout:
    """Eight equal blocks on four ranks of the pipeline."""
    per_stage = 8 // (4 * virtual)
    stages = tuple((heavy(),) * per_stage for _ in range(4 * virtual))
    whole = layout(
        stages, pipeline=4, virtual=virtual, schedule=schedule, num_micro_batches=8, zero=(0,) * 4 * virtual
    )
    return replace(whole, **changes)  # type: ignore[arg-type]
