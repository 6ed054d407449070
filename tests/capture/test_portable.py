"""A captured model as bytes: what is read equals what was written."""

import operator

import pytest
import torch

from autopar.capture.portable import read_model, write_model
from tests.capture.models import SMALL, small_capture
from tests.capture.same_graph import assert_same_graph

_QUICK = ("gpt", "recommender", "hf-gpt2")


@pytest.mark.parametrize(
    "name", [*_QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SMALL if name not in _QUICK)]
)
def test_reads_what_was_written(name: str) -> None:
    written = small_capture(name).at(2)
    found = read_model(write_model(written))
    assert_same_graph(found, written)
    assert found.output == written.output
    assert found.batch_dims == written.batch_dims


def test_same_values_stay_the_same() -> None:
    written = small_capture("gpt").at(2)
    found = read_model(write_model(written))
    pairs = [
        (old.meta["val"], new.meta["val"])
        for block, read in zip(written.blocks, found.blocks, strict=True)
        for old, new in zip(block.graph.nodes, read.graph.nodes, strict=True)
        if isinstance(old.meta["val"], torch.Tensor)
    ]
    assert len({id(old) for old, _ in pairs}) == len({id(new) for _, new in pairs})
    assert len({(id(old), id(new)) for old, new in pairs}) == len({id(old) for old, _ in pairs})


def test_function_that_nobody_else_can_find() -> None:
    written = small_capture("recommender").at(2)
    graph = written.blocks[0].graph
    node = next(node for node in graph.nodes if node.op == "call_function")
    before = node.target
    try:
        node.target = lambda *args: operator.add(*args)
        with pytest.raises(Exception, match="lambda"):
            write_model(written)
    finally:
        node.target = before
