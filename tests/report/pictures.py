"""Pictures of made-up plans, as large as wanted, without a model."""

from __future__ import annotations

from autopar.cost.breakdown import break_down
from autopar.cost.layout import Layout
from autopar.cost.memory_over_time import memory_over_time
from autopar.cost.step import predict
from autopar.cost.step_timeline import step_timeline
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import make_cluster
from autopar.plan.decisions import Mesh, Plan, Precision, ScheduleName
from autopar.report.picture import BlockCell, CandidatePoint, Picture, Sensitivity
from autopar.schedule.actions import stage_rank
from tests.cost.layouts import GiB, heavy, layout

CLUSTER = make_cluster(load_device("a100-sxm-80gb"), 128)
SMALL, LARGE = (2, 8, 12), (8, 48, 96)
"""Ranks of the pipeline axis, micro-batches and blocks: of a quick test, and as of 175 B parameters."""


def made_up_layout(pipeline: int, num_micro_batches: int, num_blocks: int) -> Layout:
    """Two stages a rank, ZB-V, data parallel."""
    size = num_blocks // (2 * pipeline)
    return layout(
        ((heavy(saved_bytes=10**8),) * size,) * (2 * pipeline),
        pipeline=pipeline,
        data=16,
        virtual=2,
        schedule=ScheduleName.ZBV,
        num_micro_batches=num_micro_batches,
        zero=(1,) * 2 * pipeline,
    )


def made_up_picture(pipeline: int, num_micro_batches: int, num_blocks: int) -> Picture:
    """A picture of that, with a few hundred candidates."""
    whole = made_up_layout(pipeline, num_micro_batches, num_blocks)
    prediction, timeline = predict(whole, CLUSTER, 80 * GiB), step_timeline(whole, CLUSTER)
    stages = [stage for stage, blocks in enumerate(whole.stages) for _ in blocks]
    points = [
        CandidatePoint(
            f"candidate {i}", 1.0 + i % 17, (20 + i % 80) * GiB, "other" if i % 80 < 60 else "infeasible"
        )
        for i in range(400)
    ]
    return Picture(
        title="a <plan> & its page",
        summary=("one sentence", "another"),
        yaml="mesh: {pipeline: 2} # </script>\n",
        plan=Plan(
            mesh=Mesh(pipeline, 16, 1),
            precision=Precision.BF16,
            schedule=ScheduleName.ZBV,
            stages=tuple((f"stage.{i}",) for i in range(2 * pipeline)),
        ),
        prediction=prediction,
        breakdown=break_down(whole, CLUSTER),
        timeline=timeline,
        memory=memory_over_time(whole, CLUSTER, timeline),
        blocks=tuple(
            BlockCell(
                f"blocks.{i}",
                stage,
                stage_rank(ScheduleName.ZBV, stage, pipeline, 2),
                "replicate",
                "sequence" if i % 3 else "replicate",
                "",
                "none",
                0.01,
                0.02,
                10**8,
            )
            for i, stage in enumerate(stages)
        ),
        candidates=(
            *points,
            CandidatePoint("mine", 2.0, 40 * GiB, "plan"),
            CandidatePoint("best", 1.0, 30 * GiB, "best"),
        ),
        sensitivities=(
            Sensitivity("link bandwidth", ((0.5, 1.2), (1.0, 1.0), (2.0, 0.9)), "as it is"),
            Sensitivity("global batch", ((0.5, 1.1), (1.0, 1.0), (2.0, 0.95)), "as it is"),
        ),
    )
