"""A captured model as bytes that another process reads: graphs node by node, operators by their names.

Of fake values, sizes, strides and dtype are written, and which of them are one and the same: the graphs of
blocks know no more of them. Constants travel whole. A block's graph is read when it is asked for.
"""

from __future__ import annotations

import dataclasses
import pickle
from functools import partial
from io import BytesIO
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.node import map_aggregate
from torch.utils._pytree import TreeSpec, tree_structure

from autopar.capture.deferred import deferred
from autopar.capture.fake_model import new_fake_mode
from autopar.capture.model_graph import Block, BlockInput, Call, ModelGraph

_BlockParts = tuple[int, str, bytes, tuple[BlockInput, ...], tuple[str, ...], str, tuple[Call, ...]]
"""The fields of a block, its graph as bytes."""


@dataclasses.dataclass(frozen=True, slots=True)
class _NodeName:
    """Stands for a node among the arguments of another."""

    name: str


def write_model(model: ModelGraph) -> bytes:
    """The whole model, the graphs of all blocks included.

    Raises:
        Exception: whatever pickle raises where something cannot be named, such as a class that is defined
            inside a function.
    """
    numbers: dict[int, int] = {}
    blocks = [
        (x.index, x.name, _write(_records(x.graph), numbers), x.inputs, x.outputs, x.class_key, x.calls)
        for x in model.blocks
    ]
    targets = list({x.target for block in model.blocks for x in block.graph.nodes})
    return _write((dataclasses.replace(model, blocks=()), blocks, targets), numbers)


def read_model(data: bytes) -> ModelGraph:
    """What ``write_model`` was given.

    Raises:
        Exception: whatever pickle raises where this process does not know a class, or an operator.
    """
    values = _FakeValues()
    model: ModelGraph
    blocks: list[_BlockParts]
    model, blocks, _ = values.read(data)  # the operators of all graphs are found now or never
    return dataclasses.replace(model, blocks=tuple(_block(parts, values) for parts in blocks))


class _Writer(pickle.Pickler):
    """Writes fake tensors and operators in a few words; ``numbers`` counts fake tensors by identity."""

    def __init__(self, file: BytesIO, numbers: dict[int, int]) -> None:
        super().__init__(file)
        self._numbers = numbers

    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        if isinstance(obj, FakeTensor):
            number = self._numbers.setdefault(id(obj), len(self._numbers))
            return "value", number, tuple(obj.shape), obj.stride(), obj.dtype
        if isinstance(obj, OpOverload):
            return "operator", *str(obj).split(".")  # namespace, name, overload
        if isinstance(obj, TreeSpec) and obj.is_leaf():
            return ("leaf",)  # read as pickle would, torch warns of it
        return None


class _FakeValues:
    """The fake tensors of a model that is read, made once each."""

    def __init__(self) -> None:
        self._mode = new_fake_mode()
        self._made: dict[int, torch.Tensor] = {}

    def read(self, data: bytes) -> Any:
        """An object that a writer has written."""
        return _Reader(BytesIO(data), self).load()

    def value(self, number: int, shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> Any:
        """The tensor of that number."""
        if number not in self._made:
            with self._mode:
                self._made[number] = torch.empty_strided(shape, stride, dtype=dtype, device="cpu")
        return self._made[number]


class _Reader(pickle.Unpickler):
    def __init__(self, file: BytesIO, values: _FakeValues) -> None:
        super().__init__(file)
        self._values = values

    def persistent_load(self, pid: tuple[Any, ...]) -> Any:
        kind, *rest = pid
        if kind == "leaf":
            return tree_structure(0)
        if kind == "value":
            return self._values.value(*rest)
        namespace, name, overload = rest
        return getattr(getattr(getattr(torch.ops, namespace), name), overload)


def _write(value: Any, numbers: dict[int, int]) -> bytes:
    file = BytesIO()
    _Writer(file, numbers).dump(value)
    return file.getvalue()


def _block(parts: _BlockParts, values: _FakeValues) -> Block:
    index, name, data, inputs, outputs, class_key, calls = parts
    graph = deferred(partial(_read_graph, data, values))
    return Block(index, name, graph, inputs, outputs, class_key, calls)


def _records(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """The nodes of a graph; nodes among arguments by their names."""

    def named(argument: Any) -> Any:
        return _NodeName(argument.name) if isinstance(argument, fx.Node) else argument

    return [
        (x.op, x.target, map_aggregate(x.args, named), map_aggregate(x.kwargs, named), x.name, x.meta)
        for x in graph.nodes
    ]


def _read_graph(data: bytes, values: _FakeValues) -> fx.Graph:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}

    def found(argument: Any) -> Any:
        return nodes[argument.name] if isinstance(argument, _NodeName) else argument

    for op, target, args, kwargs, name, meta in values.read(data):
        node = graph.create_node(op, target, map_aggregate(args, found), map_aggregate(kwargs, found), name)
        node.name, node.meta = name, meta
        nodes[name] = node
    return graph
