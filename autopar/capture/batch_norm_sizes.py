"""BatchNorm needs more than one value per channel in training; a captured graph no longer says so."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from autopar.capture.model_graph import Block
from autopar.errors import CaptureError

_TRAINING = 5  # position among the arguments of aten::batch_norm


def check_batch_norm_sizes(blocks: Iterable[Block], micro_batch: int) -> None:
    """Refuses a micro-batch that leaves a BatchNorm one value per channel, as ``torch.nn.functional`` does.

    Raises:
        CaptureError: names the module.
    """
    first: dict[str, Block] = {}  # of each class, in order: what blocks of one class compute is the same
    for block in blocks:
        first.setdefault(block.class_key, block)
    for block in first.values():
        for node in block.graph.nodes:
            if node.op != "call_function" or node.target is not torch.ops.aten.batch_norm.default:
                continue
            value = node.args[0]
            assert isinstance(value, fx.Node)
            shape = value.meta["val"].shape
            if node.args[_TRAINING] and shape.numel() == shape[1]:
                where = node.meta.get("source_line") or "the model"
                raise CaptureError(
                    f"{where}: with micro-batch {micro_batch}, BatchNorm '{node.meta.get('module', '')}' "
                    f"sees one value per channel (input {tuple(shape)}), which training cannot normalise; "
                    "use a larger micro-batch or larger inputs"
                )
