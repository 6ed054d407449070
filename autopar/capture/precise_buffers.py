"""Buffers that a 16-bit model reads in float32 stay in float32.

``model.to(torch.bfloat16)`` would round them first: rotary frequencies lose the positions of long sequences,
though the model casts them back to float32 before it computes the angles.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from autopar.capture.model_graph import BlockInput, InputKind
from autopar.capture.operator_facts import is_cast

_HALF = (torch.bfloat16, torch.float16)


def keep_precise(graph: fx.Graph, inputs: Mapping[str, BlockInput]) -> frozenset[str]:
    """Makes float32 of the 16-bit buffers whose every reader casts them to it; returns their names.

    Views between the buffer and the casts become float32 as well.
    """
    kept: set[str] = set()
    for node in list(graph.nodes):
        entry = inputs.get(node.name)
        if node.op != "placeholder" or entry is None or entry.kind is not InputKind.BUFFER:
            continue
        value = node.meta["val"]
        if value.dtype not in _HALF or not node.users:
            continue
        views, casts = _readers(node)
        if casts is None:
            continue
        for view in (node, *views):
            view.meta["val"] = view.meta["val"].to(torch.float32)
        for cast in casts:
            cast.replace_all_uses_with(cast.all_input_nodes[0])
            graph.erase_node(cast)
        kept.add(entry.source)
    return frozenset(kept)


def _readers(node: fx.Node) -> tuple[list[fx.Node], list[fx.Node] | None]:
    """Views of the value and the casts to float32 behind them; None where something else reads it."""
    views: list[fx.Node] = []
    casts: list[fx.Node] = []
    for user in node.users:
        if is_cast(user) and user.meta["val"].dtype is torch.float32:
            casts.append(user)
        elif isinstance(user.target, torch._ops.OpOverload) and user.target.is_view and not is_cast(user):
            inner_views, inner_casts = _readers(user)
            if inner_casts is None or not isinstance(user.meta["val"], torch.Tensor):
                return views, None
            views += [user, *inner_views]
            casts += inner_casts
        else:
            return views, None
    return views, casts
