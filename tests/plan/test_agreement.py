"""Decisions of one plan that cannot both hold, in files and with --set."""

from __future__ import annotations

import re

import pytest

from autopar.errors import PlanError, UsageError
from autopar.plan.decisions import ClusterReference
from autopar.plan.merge import merge, override
from autopar.plan.pins import parse_sets
from autopar.plan.read import parse_plan
from autopar.plan.write import write_plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "mesh: {data: 12}\nshard_group: 8\n",
            "p.yaml:2: shard_group 8 does not divide mesh.data 12; the data axis is a whole number of "
            "groups: write shard_group: 6",
        ),
        ("shard_group: 0\n", "p.yaml:1: 'shard_group' is 0; write a whole number of at least 1"),
        (
            "mesh: {order: [pipeline, data]}\n",
            "p.yaml:1: 'mesh.order' is [pipeline, data], which leaves out tensor; name every axis once",
        ),
        ("mesh: {order: [data, data, pipeline, tensor]}\n", "which names an axis twice"),
        (
            "mesh:\n  order: [pipeline, date, tensor]\n",
            "p.yaml:2: 'mesh.order.1' is 'date'; did you mean 'data'?",
        ),
        ("mesh: {order: 3}\n", "p.yaml:1: 'mesh.order' is 3; write a list"),
        (
            "pipeline: {schedule: interleaved, virtual: 1}\n",
            "p.yaml:1: schedule interleaved runs several stages on each rank, but virtual is 1",
        ),
        ("pipeline:\n  schedule: zbv\n  virtual: 4\n", "p.yaml:3: schedule zbv runs two stages on each rank"),
        (
            "pipeline:\n  virtual: 2\n  schedule: zero-bubble\n",
            "p.yaml:3: schedule zero-bubble runs one stage on each rank, but virtual is 2; write virtual: 1",
        ),
        (
            "mesh: {pipeline: 2}\npipeline:\n  virtual: 2\n  stages: [[a], [b], [c]]\n",
            "p.yaml:4: there are 3 stages, but mesh.pipeline 2 x virtual 2 asks for 4; move the blocks",
        ),
        (
            "mesh: {pipeline: 2}\npipeline: {schedule: zbv, stages: [[a], [b]]}\n",
            "p.yaml:2: there are 2 stages, but mesh.pipeline 2 x virtual 2 asks for 4",
        ),
        (
            "mesh: {pipeline: 2}\npipeline: {schedule: 1f1b, stages: [[a], [b], [c], [d]]}\n",
            "there are 4 stages, but mesh.pipeline 2 asks for 2",
        ),
        (
            "zero: 2\noffload: [parameters, activations]\n",
            "p.yaml:2: offload of parameters needs zero: 3, but zero is 2; only there each rank has a shard "
            "of its own to move: write zero: 3, or offload: optimizer",
        ),
        (
            "zero: [3, 1]\noffload: parameters\n",
            "p.yaml:2: offload of parameters needs zero: 3, but zero is 1",
        ),
        ("offload: [optimiser]\n", "p.yaml:1: 'offload.0' is 'optimiser'; did you mean 'optimizer'?"),
        (
            "cluster: {device: h100, devices_per_node: 8, memory_limit: 70 gigs}\n",
            "p.yaml:1: '70 gigs' is not a size; write a number with a unit, e.g. 80GiB",
        ),
        (
            "cluster: {device: h100, devices_per_node: 8, files: a.yaml}\n",
            "p.yaml:1: 'files' is not a key in 'cluster'; did you mean 'file'?",
        ),
    ],
)
def test_a_contradiction_is_named_at_its_line(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=r"^p.yaml:\d+:\d+: ") as caught:
        parse_plan(text, "p.yaml")
    problem = caught.value
    assert message in f"p.yaml:{problem.line}: {problem.message}"


@pytest.mark.parametrize(
    "text",
    [
        "mesh: {data: 12}\nshard_group: 4\n",
        "mesh: {order: [data, pipeline, tensor]}\n",
        "pipeline: {schedule: interleaved, virtual: 3}\n",
        "mesh: {pipeline: 2}\npipeline: {schedule: interleaved, stages: [[a], [b], [c], [d]]}\n",
        "pipeline: {schedule: zbv}\n",
        "zero: 3\noffload: [parameters, optimizer]\n",
        "offload: parameters\n",
        "cluster: {device: h100-sxm-80gb, nodes: 1, devices_per_node: 8, memory_limit: 70GiB}\n",
    ],
)
def test_what_agrees_is_read_and_written_again(text: str) -> None:
    plan = parse_plan(text)
    assert parse_plan(write_plan(plan)) == plan


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            ["mesh.order=data,tensor"],
            "--set mesh.order=data,tensor: 'mesh.order' is [data, tensor], which leaves",
        ),
        (["mesh.data=6", "shard_group=4"], "shard_group 4 does not divide mesh.data 6"),
        (["pipeline.schedule=zbv", "pipeline.virtual=1"], "schedule zbv runs two stages on each rank"),
        (["mesh.ordr=[data]"], "'mesh.ordr' cannot be set; did you mean 'mesh.order'?"),
        (["shardgroup=4"], "'shardgroup' cannot be set; did you mean 'shard_group'?"),
        (["mesh.order=tensor,data,pipeline", "mesh.order=data,tensor,pipeline"], "both are constraints"),
    ],
)
def test_set_takes_the_new_decisions_and_refuses_as_files_do(sets: list[str], message: str) -> None:
    with pytest.raises((UsageError, PlanError), match=re.escape(message)):
        parse_sets(sets)


def test_set_of_an_order_and_a_shard_group() -> None:
    pins = parse_sets(["mesh.order=data,pipeline,tensor", "shard_group=4", "pipeline.schedule=interleaved"])
    assert pins.mesh.order == ("data", "pipeline", "tensor")
    assert pins.shard_group == 4
    assert parse_sets(["mesh.order=[data, pipeline, tensor]"]).mesh == pins.mesh
    base = parse_plan("mesh: {data: 8, order: [pipeline, data, tensor]}\nshard_group: 8\n", "p.yaml")
    changed = override(base, pins)
    assert (changed.mesh.order, changed.mesh.data, changed.shard_group) == (pins.mesh.order, 8, 4)
    with pytest.raises(PlanError, match=r"shard_group is 8 here and 4 in --set.* both are constraints"):
        merge(pins, base)


def test_strides_of_a_mesh_follow_its_order() -> None:
    mesh = parse_plan("mesh: {pipeline: 2, data: 3, tensor: 4}\n").mesh
    assert [mesh.stride(axis) for axis in ("pipeline", "data", "tensor")] == [12, 4, 1]
    mesh = parse_plan("mesh: {pipeline: 2, data: 3, tensor: 4, order: [tensor, data, pipeline]}\n").mesh
    assert [mesh.stride(axis) for axis in ("pipeline", "data", "tensor")] == [1, 2, 6]


def test_the_cluster_keeps_its_file_and_its_memory_limit() -> None:
    cluster = "{device: h100-sxm-80gb, nodes: 2, devices_per_node: 8, file: c.yaml, memory_limit: 70 GiB}"
    plan = parse_plan(f"cluster: {cluster}\n")
    assert plan.cluster == ClusterReference("h100-sxm-80gb", 2, 8, "c.yaml", 70 * 2**30)
    assert "file: c.yaml, memory_limit: 70GiB}" in write_plan(plan)
    assert parse_plan("offload: [activations, optimizer]\n").offloaded == ("optimizer", "activations")
    assert parse_plan("offload: none\n").offloaded == ()
