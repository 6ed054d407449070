"""The class of a block: a hash of its structure, up to names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx

from autopar.capture.model_graph import BlockInput, InputKind, ParameterSpec
from autopar.capture.recipe import BlockRecipe
from autopar.capture.specialize import is_number


def class_keys(
    graph: fx.Graph,
    recipes: Sequence[BlockRecipe],
    symbols: frozenset[sympy.Symbol],
    parameters: Mapping[str, ParameterSpec],
    constants: Mapping[str, torch.Tensor],
) -> tuple[str, ...]:
    """One hash per recipe.

    Two blocks with equal keys have the same operators, arguments, shapes, dtypes, constants and kinds of
    inputs, parameters that agree in shape, ``requires_grad`` and ``fused_dims``, and the same inputs and
    outputs that skip blocks: those are placed differently from what only the next block reads.
    """
    describe = _Describer(graph, symbols, parameters, constants, skipping_values(recipes))
    return tuple(describe.key(recipe) for recipe in recipes)


def class_key_at(structure: str, micro_batch: int) -> str:
    """The key of a structure's class at one micro-batch size."""
    return f"{structure}-{micro_batch}"


def structure_of(class_key: str) -> str:
    """What the keys of one structure at different micro-batch sizes have in common."""
    return class_key.rpartition("-")[0]


def skipping_values(recipes: Sequence[BlockRecipe]) -> frozenset[str]:
    """Values read by a block other than the one after their producer."""
    producer = {name: index for index, recipe in enumerate(recipes) for name in recipe.outputs}
    return frozenset(
        entry.source
        for index, recipe in enumerate(recipes)
        for entry in recipe.inputs
        if entry.kind is InputKind.ACTIVATION and index != producer[entry.source] + 1
    )


class _Describer:
    """Writes graphs as text in which nodes are numbers and the batch size is ``B``."""

    def __init__(
        self,
        graph: fx.Graph,
        symbols: frozenset[sympy.Symbol],
        parameters: Mapping[str, ParameterSpec],
        constants: Mapping[str, torch.Tensor],
        skipping: frozenset[str],
    ) -> None:
        self.nodes = {node.name: node for node in graph.nodes}
        self.batch = dict.fromkeys(symbols, sympy.Symbol("B"))
        self.parameters = parameters
        self.constants = constants
        self.skipping = skipping
        self.sizes: dict[Any, str] = {}

    def key(self, recipe: BlockRecipe) -> str:
        number: dict[fx.Node, int] = {}
        lines: list[str] = []
        for entry in recipe.inputs:
            node = self.nodes[entry.placeholder]
            number[node] = len(number)
            lines.append(f"{entry.kind} {self.value(node.meta['val'])} {self.detail(entry)}")
        for name in recipe.operators:
            node = self.nodes[name]
            number[node] = len(number)
            arguments = self.argument((node.args, node.kwargs), number)
            lines.append(f"{node.target} {arguments} {self.value(node.meta['val'])} {node.meta['no_grad']}")
        outputs = [(number[self.nodes[name]], name in self.skipping) for name in recipe.outputs]
        lines.append(f"output {outputs}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def detail(self, entry: BlockInput) -> str:
        match entry.kind:
            case InputKind.PARAMETER:
                spec = self.parameters[entry.source]
                return f"{spec.requires_grad} {sorted((spec.fused_dims or {}).items())}"
            case InputKind.CONSTANT:
                constant = self.constants[entry.source].detach().cpu().contiguous()
                return hashlib.sha256(constant.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
            case InputKind.ACTIVATION:
                return str(entry.source in self.skipping)
            case _:
                return ""

    def value(self, value: Any) -> str:
        if isinstance(value, torch.Tensor):
            return f"{[self.size(dim) for dim in value.shape]}{value.dtype}"
        if isinstance(value, list | tuple):
            return str([self.value(item) for item in value])
        return self.size(value)

    def size(self, value: Any) -> str:
        if not isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return repr(value)
        expression = value.node.expr
        if expression not in self.sizes:
            self.sizes[expression] = str(expression.subs(self.batch))
        return self.sizes[expression]

    def argument(self, value: Any, number: Mapping[fx.Node, int]) -> str:
        if isinstance(value, fx.Node):
            return self.size(value.meta["val"]) if is_number(value) else f"%{number[value]}"
        if isinstance(value, list | tuple):
            return "[" + ",".join(self.argument(item, number) for item in value) + "]"
        if isinstance(value, dict):
            return "{" + ",".join(f"{key}:{self.argument(value[key], number)}" for key in sorted(value)) + "}"
        if isinstance(value, slice):
            return f"slice{self.argument((value.start, value.stop, value.step), number)}"
        return self.size(value)
