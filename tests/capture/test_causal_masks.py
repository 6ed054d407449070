"""``nn.TransformerEncoder`` with a mask and no word on whether it is causal, as most people call it."""

import torch
from torch import nn

from autopar.capture.capture import capture
from autopar.capture.target import source_from_functions


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return self.encoder(x, mask=mask).square().mean()


def test_the_mask_is_applied_as_any_other() -> None:
    graph = capture(source_from_functions(Masked, lambda size: {"x": torch.ones(size, 5, 8)})).at(2)
    calls = [node for block in graph.blocks for node in block.graph.nodes if node.op == "call_function"]
    attention = [node for node in calls if "scaled_dot_product" in str(node.target)]
    assert len(attention) == 2
    assert all(node.args[3] is not None or node.kwargs.get("attn_mask") is not None for node in attention)
