"""Dropout off on both sides: in the captured graph, and in the module as it runs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autopar.capture.capture import capture
from autopar.capture.target import load_target, source_from_functions
from autopar.errors import UsageError
from autopar.verify.without_dropout import DropoutOff, without_dropout
from tests.runtime.world import MODELS


class EveryDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = nn.Dropout(0.5)
        self.lstm = nn.LSTM(8, 8, 2, dropout=0.5)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.5)

    def forward(self, x):
        x = F.dropout(self.module(x), 0.5, self.training)
        x = F.dropout(x, p=0.5, training=True)
        x, _ = self.lstm(x)
        x = F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)
        x = torch.dropout(x, 0.5, True)
        x, _ = self.attention(x, x, x, need_weights=False)
        return F.alpha_dropout(x, 0.5, True).square().sum()


def test_the_module_becomes_deterministic():
    model, x = EveryDropout(), torch.randn(4, 3, 8)
    assert model(x) != model(x)
    with DropoutOff():
        assert model(x) == model(x)


def test_operators_without_a_signature_run_as_they_are():
    x = torch.full((2,), 3.0)
    with DropoutOff():
        y = x**2
        y **= 2
    assert y.tolist() == [81.0, 81.0]


def test_the_graph_loses_every_probability():
    source = load_target(str(MODELS / "tied_gpt.py"), {"dropout": 0.2})
    graph, changed = without_dropout(capture(source).at(2))
    assert changed
    probabilities = [
        node.args[1]
        for block in graph.blocks
        for node in block.graph.nodes
        if node.target is torch.ops.aten.dropout.default
    ]
    assert len(probabilities) == 6 and set(probabilities) == {0.0}
    again, changed = without_dropout(graph)
    assert not changed and again.fingerprint == graph.fingerprint


def test_other_random_numbers_are_refused_at_the_users_line():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            y = self.linear(x)
            return (y + torch.rand_like(y)).sum()

    source = source_from_functions(Noisy, lambda batch_size: {"x": torch.ones(batch_size, 4)})
    graph = capture(source).at(2)
    with pytest.raises(
        UsageError, match=r"test_without_dropout.py:\d+: the model draws random numbers \(aten.rand_like"
    ):
        without_dropout(graph)


def test_names_stay_those_that_the_blocks_know():
    # A graph does not give a node the name of a builtin, such as slice; those of the model may have it.
    graph = capture(load_target(str(MODELS / "perception.py"), {})).at(2)
    changed, _ = without_dropout(graph)
    for before, after in zip(graph.blocks, changed.blocks, strict=True):
        assert [node.name for node in after.graph.nodes] == [node.name for node in before.graph.nodes]
    assert any(node.name == "slice" for block in graph.blocks for node in block.graph.nodes)
