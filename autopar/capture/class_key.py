"""Structural hashes: of a block (its class) and of the whole model (its fingerprint)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx

from autopar.capture.model_graph import Block, InputKind, ParameterSpec


def class_key(
    block: Block,
    parameters: Mapping[str, ParameterSpec],
    constants: Mapping[str, torch.Tensor],
    skips: Iterable[str],
) -> str:
    """Hash of a block's graph up to names.

    Two blocks with equal keys have the same operators, arguments, shapes, dtypes, constants and kinds of
    inputs, parameters that agree in shape, ``requires_grad`` and ``fused_dims``, and the same outputs that
    only the next block reads (``skips`` names the global values that others read too).
    """
    skipping = set(skips)
    number: dict[fx.Node, int] = {}
    lines: list[str] = []
    inputs = {entry.placeholder: entry for entry in block.inputs}
    for node in block.graph.nodes:
        number[node] = len(number)
        if node.op == "placeholder":
            entry = inputs[node.name]
            detail = _detail(entry.kind, entry.source, parameters, constants, skipping)
            lines.append(f"{entry.kind} {_value(node.meta['val'])}{detail}")
        elif node.op == "output":
            flags = [name in skipping for name in block.outputs]
            lines.append(f"output {_argument(node.args, number)} {flags}")
        else:
            lines.append(
                f"{node.target} {_argument(node.args, number)} {_argument(dict(node.kwargs), number)} "
                f"{_value(node.meta['val'])} {node.meta['no_grad']}"
            )
    return _digest(lines)


def _detail(
    kind: InputKind,
    source: str,
    parameters: Mapping[str, ParameterSpec],
    constants: Mapping[str, torch.Tensor],
    skipping: set[str],
) -> str:
    if kind is InputKind.PARAMETER:
        parameter = parameters[source]
        return f" {parameter.requires_grad} {sorted((parameter.fused_dims or {}).items())}"
    if kind is InputKind.CONSTANT:
        constant = constants[source].detach().cpu().contiguous()
        return " " + hashlib.sha256(constant.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
    return f" {source in skipping}" if kind is InputKind.ACTIVATION else ""


def _value(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)}{value.dtype}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_value(item) for item in value) + "]"
    return str(value)


def _argument(value: Any, number: Mapping[fx.Node, int]) -> str:
    if isinstance(value, fx.Node):
        return f"%{number[value]}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_argument(item, number) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_argument(value[key], number)}" for key in sorted(value)) + "}"
    if isinstance(value, slice):
        return f"slice({_argument([value.start, value.stop, value.step], number)})"
    return repr(value)


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
