"""Values that share storage with a mutated tensor stay replicated together."""

import torch
from torch import fx

from autopar.sharding.aliasing import hidden_writes, is_mutable, pinned_nodes

aten = torch.ops.aten


def traced(function: object) -> fx.Graph:
    graph: fx.Graph = fx.symbolic_trace(function).graph  # type: ignore[arg-type]
    for node in graph.nodes:
        node.meta["val"] = torch.empty(4, 8)
    return graph


def test_views_and_results_of_a_write_are_pinned() -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        fresh = aten.clone.default(x)
        view = aten.slice.Tensor(fresh, 1, 0, 4)
        aten.fill_.Scalar(view, 0.0)
        return aten.relu.default(fresh)

    assert pinned_nodes(traced(program)) == {"clone_default", "slice_tensor", "fill__scalar"}


def test_nothing_is_pinned_without_writes() -> None:
    def program(x: torch.Tensor) -> torch.Tensor:
        return aten.add.Tensor(aten.transpose.int(x, 0, 1), 1.0)

    assert pinned_nodes(traced(program)) == frozenset()


def test_batch_norm_writes_to_its_statistics_in_secret() -> None:
    def program(x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> torch.Tensor:
        return aten.batch_norm.default(x, None, None, mean, var, True, 0.1, 1e-5, False)

    node = next(n for n in traced(program).nodes if n.op == "call_function")
    assert [n.name for n in hidden_writes(node)] == ["mean", "var"]
    assert not is_mutable(node.target) and is_mutable(aten.add_.Tensor)
