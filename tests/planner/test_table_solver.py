"""The optima of real blocks: by elimination, by linear programming, and as the search is told."""

from __future__ import annotations

import pytest
import torch

from autopar.capture.capture import capture
from autopar.capture.target import load_target
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import cluster_of
from autopar.plan.decisions import Recompute
from autopar.planner.operator_table import OperatorTable
from autopar.planner.table_solver import BlockPins, TableSolver
from autopar.planner.tabulate import operator_table
from autopar.sharding.roles import parameter_uses
from autopar.solve.operator_problem import assignment_cost
from autopar.solve.operators import OperatorSolver

CLUSTER = cluster_of(load_device("a100-sxm-80gb"), 8)
FREE = BlockPins({}, None, None, (Recompute.NONE,), {})
MODELS = {
    "examples/gpt.py": {"n_layer": 1, "n_embd": 256, "n_head": 8, "seq": 64, "vocab": 1024},
    "examples/perception.py": {"width": 8, "hidden": 32, "num_frames": 4, "image_size": 16},
    "examples/recommender.py": {"num_users": 512, "num_items": 256, "dim": 32},
}


def tables(target: str, degree: int) -> list[tuple[OperatorTable, TableSolver]]:
    graph = capture(load_target(target, MODELS[target]), torch.bfloat16).at(8)
    uses, found = parameter_uses(graph), []
    for block in graph.blocks:
        table = operator_table(graph, block, degree, CLUSTER, uses)
        found.append((table, TableSolver(table, CLUSTER)))
    return found


@pytest.mark.parametrize("degree", [2, 8])
@pytest.mark.parametrize("target", MODELS)
def test_elimination_and_linear_programming_agree_on_every_block(target: str, degree: int) -> None:
    for table, solver in tables(target, degree):
        programme = OperatorSolver(table.problem)
        for words in solver.word_pairs(FREE):
            found = dict(solver.solutions(words, FREE))
            for price in solver.prices(FREE):
                expected = programme.solve(price, table.allowed(*table.word_indices(words)))
                assert (price in found) == (expected is not None)
                if expected is None:
                    continue
                assert found[price].objective_s == pytest.approx(expected.objective_s, rel=1e-6)
                cost = assignment_cost(table.problem, found[price].strategies)
                assert cost is not None
                assert cost.priced_s(price) == pytest.approx(found[price].objective_s, rel=1e-12)
