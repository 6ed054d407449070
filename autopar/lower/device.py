"""Programs are captured on the CPU; what they make by themselves, positions say, belongs where they run."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


def to_device(program: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """The same program for tensors on ``device``: every device that its operators name becomes that one."""
    if device.type == "cpu":
        return program
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        new = values[node] = graph.node_copy(node, values.__getitem__)
        new.args, new.kwargs = _moved(new.args, device), _moved(new.kwargs, device)
    graph.lint()
    return fx.GraphModule(torch.nn.Module(), graph)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.device):
        return device
    if isinstance(value, tuple | list):
        return type(value)(_moved(item, device) for item in value)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return value
