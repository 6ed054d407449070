"""Comparison of two captures of one model, node by node."""

from typing import Any

import torch
from torch import fx

from autopar.capture.capture import capture
from autopar.capture.model_graph import Block, ModelGraph
from autopar.capture.target import ModelSource


def capture_both_ways(
    source: ModelSource, size: int = 2, dtype: torch.dtype = torch.float32
) -> tuple[ModelGraph, ModelGraph]:
    """The model captured with equal layers traced once, and with each layer traced."""
    return capture(source, dtype).at(size), capture(source, dtype, share_layers=False).at(size)


def assert_same_graph(found: ModelGraph, expected: ModelGraph) -> None:
    """Asserts that two graphs agree in everything that a graph has."""
    assert [describe(block) for block in found.blocks] == [describe(block) for block in expected.blocks]
    for name in ("parameters", "buffers", "batch", "values", "loss", "fingerprint"):
        assert getattr(found, name) == getattr(expected, name)
    assert list(found.constants) == list(expected.constants)
    for name, constant in found.constants.items():
        assert torch.equal(constant, expected.constants[name])


def describe(block: Block) -> dict[str, Any]:
    """A block as plain values."""
    return {
        "block": (block.index, block.name, block.inputs, block.outputs, block.class_key),
        "nodes": [_node(node) for node in block.graph.nodes],
    }


def _node(node: fx.Node) -> tuple[Any, ...]:
    meta = {key: value for key, value in node.meta.items() if key != "val"}
    return (
        node.op,
        node.name,
        node.target,
        repr(node.args),
        repr(node.kwargs),
        meta,
        _value(node.meta["val"]),
    )


def _value(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.stride(), value.dtype
    if isinstance(value, list | tuple):
        return [_value(item) for item in value]
    return value
