"""Parameters that hold several equal parts along a dim (QKV, gate and up), read off the graph.

Each dim of a value may stem from a dim of some parameters: the last dim of ``linear(x, W, b)`` from dim 0 of
``W`` and of ``b``. Where such a dim is cut into g equal parts that go separate ways, those parameter dims are
made of g parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from autopar.capture.model_graph import BlockInput, InputKind
from autopar.capture.operator_facts import argument_value

aten = torch.ops.aten

Origin = tuple[str, int]  # parameter, dim
# What each dim of a value is: the parameter dims it stems from, and whether it is the leading part of such a
# dim.
Origins = dict[int, tuple[frozenset[Origin], bool]]

_GATES = {"lstm": 4, "gru": 3}


def fused_dims(graph: fx.Graph, inputs: Mapping[str, BlockInput]) -> dict[str, dict[int, int]]:
    """Canonical parameter name -> {dim: number of equal parts}, for the parameters that are fused."""
    reader = _Reader(inputs)
    for node in graph.nodes:
        if node.op in ("placeholder", "call_function"):
            reader.read(node)
    found: dict[str, dict[int, int]] = {}
    for (name, dim), parts in sorted(reader.parts.items()):
        if parts > 1:
            found.setdefault(name, {})[dim] = parts
    return found


class _Reader:
    def __init__(self, inputs: Mapping[str, BlockInput]) -> None:
        self.inputs = inputs
        self.origins: dict[fx.Node, Origins] = {}
        self.parts: dict[Origin, int] = {}
        self.slices: dict[tuple[fx.Node, int], list[tuple[int, int]]] = {}

    def read(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            entry = self.inputs[node.name]
            if entry.kind is InputKind.PARAMETER:
                rank = node.meta["val"].dim()
                self.origins[node] = {d: (frozenset({(entry.source, d)}), False) for d in range(rank)}
            return
        if not isinstance(node.meta["val"], torch.Tensor | list | tuple):
            return
        if not isinstance(node.target, torch._ops.OpOverload):
            return
        name = node.target._schema.name.split("::")[1]
        handler = getattr(self, f"_{name.lstrip('_')}", None)
        if handler is not None:
            handler(node)
        elif torch.Tag.pointwise in node.target.tags or name in _SAME_SHAPE:
            self._pointwise(node)

    def _of(self, node: Any) -> Origins:
        return self.origins.get(node, {}) if isinstance(node, fx.Node) else {}

    def _shape(self, node: fx.Node) -> tuple[Any, ...]:
        return tuple(node.meta["val"].shape)

    def _fused(self, origins: frozenset[Origin], parts: int) -> None:
        for origin in origins:
            self.parts[origin] = max(self.parts.get(origin, 1), parts)

    # -- products with a parameter
    # ---------------------------------------------------------------------------------

    def _linear(self, node: fx.Node) -> None:
        weight, bias = self._of(node.args[1]), self._of(node.args[2] if len(node.args) > 2 else None)
        self._product(node, weight.get(0), bias.get(0))

    def _addmm(self, node: fx.Node) -> None:
        self._product(node, self._of(node.args[2]).get(1), self._of(node.args[0]).get(0))

    def _matmul(self, node: fx.Node) -> None:
        weight = node.args[1]
        last = len(self._shape(weight)) - 1 if isinstance(weight, fx.Node) else 0
        self._product(node, self._of(weight).get(last) if last else None, None)

    _mm = _bmm = _grouped_mm = _grouped_mm_fallback = _matmul

    def _product(self, node: fx.Node, *sources: tuple[frozenset[Origin], bool] | None) -> None:
        whole = [origins for source in sources if source for origins in [source[0]] if not source[1]]
        if whole:
            last = len(self._shape(node)) - 1
            self.origins[node] = {last: (frozenset().union(*whole), False)}

    def _rnn(self, node: fx.Node) -> None:
        parts = _GATES[str(node.target).split(".")[1]]
        for weight in node.all_input_nodes:
            if weight.op == "placeholder" and 0 in self._of(weight):
                self._fused(self._of(weight)[0][0], parts)

    _lstm = _gru = _rnn

    # -- operators that keep or rearrange dims
    # -----------------------------------------------------------------------

    def _pointwise(self, node: fx.Node) -> None:
        shape = self._shape(node) if isinstance(node.meta["val"], torch.Tensor) else ()
        merged: Origins = {}
        for source in node.all_input_nodes:
            if not isinstance(source.meta["val"], torch.Tensor):
                continue
            offset = len(shape) - len(self._shape(source))
            for dim, (origins, leading) in self._of(source).items():
                out = dim + offset
                if self._shape(source)[dim] == shape[out]:
                    known = merged.get(out, (frozenset(), leading))
                    merged[out] = (known[0] | origins, known[1] and leading)
        if merged:
            self.origins[node] = merged

    def _permute(self, node: fx.Node) -> None:
        source, order = node.args[0], node.args[1]
        assert isinstance(order, list | tuple)
        rank = len(order)
        known = self._of(source)
        self._keep(
            node, {new: known[int(old) % rank] for new, old in enumerate(order) if int(old) % rank in known}
        )

    def _transpose(self, node: fx.Node) -> None:
        rank = len(self._shape(node))
        first, second = int(node.args[1]) % rank, int(node.args[2]) % rank  # type: ignore[arg-type]
        swap = {first: second, second: first}
        self._keep(node, {swap.get(dim, dim): value for dim, value in self._of(node.args[0]).items()})

    def _t(self, node: fx.Node) -> None:
        self._keep(node, {1 - dim: value for dim, value in self._of(node.args[0]).items()})

    def _unsqueeze(self, node: fx.Node) -> None:
        at = int(node.args[1]) % len(self._shape(node))  # type: ignore[arg-type]
        self._keep(node, {dim + (dim >= at): value for dim, value in self._of(node.args[0]).items()})

    def _squeeze(self, node: fx.Node) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        shape = self._shape(source)
        if len(node.args) < 2 or not isinstance(node.args[1], int) or shape[node.args[1]] != 1:
            return
        at = node.args[1] % len(shape)
        self._keep(node, {dim - (dim > at): value for dim, value in self._of(source).items() if dim != at})

    def _keep(self, node: fx.Node, origins: Origins) -> None:
        if origins:
            self.origins[node] = origins

    def _index(self, node: fx.Node) -> None:
        """``W[ids]`` on dim 0 (a table of experts): the other dims stay."""
        source, indices = node.args[0], node.args[1]
        assert isinstance(source, fx.Node) and isinstance(indices, list | tuple)
        if len(indices) == 1 and isinstance(indices[0], fx.Node):
            added = len(self._shape(indices[0])) - 1
            self._keep(node, {d + added: value for d, value in self._of(source).items() if d > 0})

    def _reshape(self, node: fx.Node) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        before, after = self._shape(source), self._shape(node)
        result: Origins = {}
        for dim, (origins, leading) in self._of(source).items():
            found = _leading_part(before, after, dim)
            if found is not None:
                out, whole = found
                result[out] = (origins, leading or not whole)
        self._keep(node, result)

    _view = _unflatten = _flatten = _reshape

    # -- cuts ------------------------------------------------------------------------------------------------
    # ----------

    def _split(self, node: fx.Node) -> None:
        dim = int(argument_value(node, "dim", 0)) % len(self._shape(node.all_input_nodes[0]))
        pieces = [piece.shape[dim] for piece in node.meta["val"]]
        known = self._of(node.args[0]).get(dim)
        if known and not known[1] and len(set(pieces)) == 1:
            self._fused(known[0], len(pieces))

    _chunk = _split_with_sizes = _tensor_split = _split

    def _glu(self, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        known = self._of(source).get(int(argument_value(node, "dim", -1)) % len(self._shape(source)))
        if known and not known[1]:
            self._fused(known[0], 2)

    def _unbind(self, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        dim = int(argument_value(node, "dim", 0)) % len(self._shape(source))
        known = self._of(source).get(dim)
        if known and known[1]:
            self._fused(known[0], int(self._shape(source)[dim]))

    def _select(self, node: fx.Node) -> None:
        self._unbind(node)
        dim = int(node.args[1]) % len(self._shape(node.all_input_nodes[0]))  # type: ignore[arg-type]
        known = self._of(node.args[0])
        self._keep(node, {d - (d > dim): value for d, value in known.items() if d != dim})

    def _slice(self, node: fx.Node) -> None:
        """Slices that tile the dim in equal parts; a slice keeps what it knows of the other dims."""
        source = node.all_input_nodes[0]
        size = self._shape(source)
        dim = int(argument_value(node, "dim", 0)) % len(size)
        known = self._of(source)
        self._keep(node, {d: value for d, value in known.items() if d != dim})
        if dim not in known or known[dim][1] or not isinstance(size[dim], int):
            return
        start = int(argument_value(node, "start", 0) or 0)
        end = argument_value(node, "end", None)
        end = size[dim] if end is None else min(int(end), size[dim])
        start, end = start % size[dim] if start < 0 else start, end % size[dim] if end < 0 else end
        tiles = self.slices.setdefault((source, dim), [])
        tiles.append((start, end))
        tiles.sort()
        widths = {stop - begin for begin, stop in tiles}
        if len(widths) == 1 and [t[0] for t in tiles] == list(range(0, size[dim], widths.copy().pop())):
            self._fused(known[dim][0], len(tiles))


_SAME_SHAPE = {"dropout", "contiguous", "clone", "to", "_to_copy", "detach", "expand", "alias"}


def _leading_part(before: tuple[Any, ...], after: tuple[Any, ...], dim: int) -> tuple[int, bool] | None:
    """Where dim ``dim`` of a reshaped tensor goes: (what it becomes or leads its parts, whole or not)."""
    ahead = _product_of(before[:dim])
    for out in range(len(after)):
        if _product_of(after[:out]) == ahead and after[out] != 1:
            if after[out] == before[dim]:
                return out, True
            size, end = 1, out
            while end < len(after) and size != before[dim]:
                size, end = size * after[end], end + 1
            return (out, False) if size == before[dim] else None
    return None


def _product_of(sizes: tuple[Any, ...]) -> Any:
    product: Any = 1
    for size in sizes:
        product = product * size
    return product
