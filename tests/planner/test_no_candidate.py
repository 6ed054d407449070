"""What is said where no setting is legal."""

from dataclasses import replace

import pytest

from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import cluster_of
from autopar.plan.decisions import Mesh, Plan, ScheduleName
from autopar.planner.legal_families import outer_pins
from autopar.planner.no_candidate import no_candidate

CLUSTER = cluster_of(load_device("a100-sxm-80gb"), 4)


@pytest.mark.parametrize(
    ("plan", "match"),
    [
        (
            Plan(mesh=Mesh(pipeline=2), schedule=ScheduleName.INTERLEAVED),
            "interleaved with 2 stages on each of 2 ranks needs 4 stages, and the model has 3 blocks",
        ),
        (Plan(mesh=Mesh(pipeline=3, tensor=1)), "mesh.pipeline 3 is not possible"),
        (Plan(mesh=Mesh(data=4), micro_batch=5), "batch.micro 5 does not divide the samples"),
        (
            Plan(shard_group=3),
            "shard_group 3 is not possible",
        ),
        (Plan(mesh=Mesh(pipeline=2), shard_group=4), "legal sizes are 1, 2"),
        (Plan(), "does not divide over any mesh of 4 devices"),
    ],
)
def test_names_what_leaves_nothing(plan: Plan, match: str) -> None:
    settled = replace(plan, global_batch=16)
    found = no_candidate(settled, outer_pins(settled), (1, 2, 4), 3, CLUSTER)
    assert match in str(found)
