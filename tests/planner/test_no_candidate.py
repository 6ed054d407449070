"""What is said where no setting is legal."""

from dataclasses import replace

import pytest

from autopar.plan.decisions import Mesh, Plan, ScheduleName
from autopar.planner.legal_families import outer_pins
from autopar.planner.no_candidate import no_candidate
from autopar.solve.candidates import Space, divisors


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
    assert match in str(no_candidate(settled, (1, 2, 4), Space(outer_pins(settled), 3, 1, 4)))


def test_a_degree_that_leaves_too_much_to_the_others_is_told_with_what_would_do() -> None:
    # One block makes one stage and no dim divides, so that all devices are on the data axis.
    settled = Plan(mesh=Mesh(data=2), global_batch=256)
    found = no_candidate(settled, (1,), Space(outer_pins(settled), 1, 1, 8))
    assert "mesh data 2 cannot fill 8 devices" in str(found) and "legal would be mesh.data 8" in str(found)


def test_micro_batches_told_as_legal_are_those_of_meshes_that_there_are() -> None:
    settled = Plan(micro_batch=64, global_batch=256)
    found = no_candidate(settled, (1,), Space(outer_pins(settled), 1, 1, 8))
    assert "legal micro-batches are 1, 2, 4, 8, 16, 32" in str(found)
    assert "64" not in str(found).partition("micro-batches are")[2]


@pytest.mark.parametrize(
    ("plan", "batch", "devices", "remedy"),
    [
        # Nine samples leave one rank to the data axis.
        (Plan(shard_group=2), 9, 8, "leave shard_group to the planner"),
        # All devices are on the pipeline, which folded has more stages than there are blocks.
        (
            Plan(mesh=Mesh(data=1, tensor=1), schedule=ScheduleName.ZBV),
            16,
            2,
            "leave pipeline.schedule or mesh.data or mesh.tensor to the planner",
        ),
    ],
)
def test_constraints_that_exclude_each_other_are_told_with_those_that_would_do_freed(
    plan: Plan, batch: int, devices: int, remedy: str
) -> None:
    settled = replace(plan, global_batch=batch)
    degrees = divisors(devices)
    found = no_candidate(settled, degrees, Space(outer_pins(settled), 3, 1, devices))
    assert str(found).endswith(remedy)
