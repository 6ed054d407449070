import re

import pytest

from autopar.errors import PlanError
from autopar.plan.decisions import Mesh, PatternLine, Plan
from autopar.plan.merge import merge, override
from autopar.plan.pins import parse_sets
from autopar.plan.read import parse_plan

FILE = """\
cluster: {device: cpu, nodes: 1, devices_per_node: 8}
batch: {global: 64, micro: 4}
mesh: {tensor: 2}
tensor:
  wte: vocab
  "*": replicate
zero: 3
"""


def test_merge_keeps_all_constraints_and_their_places() -> None:
    plan = merge(parse_sets(["mesh.data=4", "tensor.lm_head=column"]), parse_plan(FILE, "a.yaml"))
    assert plan.mesh == Mesh(None, 4, 2)
    assert plan.tensor == (
        PatternLine("lm_head", "column"),
        PatternLine("wte", "vocab"),
        PatternLine("*", "replicate"),
    )
    assert str(plan.error("mesh.data", "x")) == "--set mesh.data=4: x"
    assert str(plan.error("tensor.lm_head", "x")) == "--set tensor.lm_head=column: x"
    assert str(plan.error("mesh.tensor", "x")) == "a.yaml:3:8: x"
    assert str(plan.error("tensor.wte.weight", "x")) == "a.yaml:5:3: x"
    assert plan.tensor[0].line is None and plan.tensor[1].line == 5


def test_merge_of_two_files_names_the_right_file() -> None:
    plan = merge(parse_plan("zero: 3\n", "a.yaml"), parse_plan("\nprecision: bf16\n", "b.yaml"))
    assert str(plan.error("zero", "x")) == "a.yaml:1:1: x"
    assert str(plan.error("precision", "x")) == "b.yaml:2:1: x"


def test_merge_of_equal_constraints_is_no_contradiction() -> None:
    assert merge(parse_sets(["zero=3"]), parse_plan(FILE, "a.yaml")).zero == 3


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            ["mesh.tensor=4"],
            "a.yaml:3:8: mesh.tensor is 2 here and 4 in --set mesh.tensor=4; both are constraints: keep",
        ),
        (
            ["tensor.wte=column"],
            "a.yaml:5:3: tensor gives 'wte' vocab here, but --set tensor.wte=column gives 'wte' col",
        ),
        (
            ["tensor=column"],
            "a.yaml:5:3: tensor gives 'wte' vocab here, but --set tensor=column gives '*' column",
        ),
        (["mesh.data=3"], "--set mesh.data=3: the mesh data 3 x tensor 2 does not divide the 8 devices"),
        (["mesh.data=8", "mesh.pipeline=1"], "is 16 devices, but the cluster has 8"),
        (["mesh.data=32"], "does not divide"),
    ],
)
def test_merge_names_both_sides_of_a_contradiction(sets: list[str], message: str) -> None:
    with pytest.raises(PlanError, match=re.escape(message)):
        merge(parse_sets(sets), parse_plan(FILE, "a.yaml"))


def test_override_replaces_and_keeps_the_rest() -> None:
    plan = override(parse_plan(FILE, "a.yaml"), parse_sets(["mesh.tensor=4", "tensor.wte=column", "zero=0"]))
    assert plan.mesh.tensor == 4 and plan.zero == 0 and plan.micro_batch == 4
    assert plan.tensor == (PatternLine("wte", "column"), PatternLine("*", "replicate"))
    assert str(plan.error("mesh.tensor", "x")) == "--set mesh.tensor=4: x"
    assert str(plan.error("batch.micro", "x")) == "a.yaml:2:21: x"
    with pytest.raises(PlanError, match="does not divide the 8 devices"):
        override(plan, parse_sets(["mesh.tensor=3"]))


def test_merge_of_nothing_is_free() -> None:
    assert merge() == Plan()
