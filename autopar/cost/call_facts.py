"""What is known of the calls of a block class: which operator runs, and what it does to storages.

What a call keeps and how its results are laid out is observed once (``cost.effects``) and holds from then on
for other sizes, for other blocks that differ in sizes alone, and for other shardings with the same layouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from autopar.capture.model_graph import Block
from autopar.capture.operator_facts import aliased_arguments
from autopar.cost.effects import Effect, dense_strides, layout_of, observe
from autopar.cost.operator_traffic import COPY_IF_NEEDED
from autopar.cost.operators import operator_name
from autopar.lower import local_operators
from autopar.lower.axis import FakeAxis
from autopar.lower.block import WRAPPERS, local_call
from autopar.lower.selective import keeps_result
from autopar.sharding.block_facts import BlockFacts
from autopar.sharding.placement import local_shape
from autopar.sharding.rule import Rule


class CallFacts:
    """What is known of the calls of one block class; kept from run to run.

    Attributes:
        block: facts about the graph.
        position: of every node: equal blocks do not have equal names.
        structure: text that blocks share whose graphs differ in sizes alone.
        frozen: placeholders of parameters without gradient.
        effects: by structure, position, local operator, layouts and wishes for gradients of the arguments.
    """

    def __init__(
        self, block: Block, effects: dict[object, Effect], frozen: frozenset[str] = frozenset()
    ) -> None:
        self.block = BlockFacts(block)
        self.position = {node: index for index, node in enumerate(block.graph.nodes)}
        self.effects, self.frozen = effects, frozen
        self.names = {n: operator_name(n.target) for n in block.graph.nodes if n.op == "call_function"}
        self.kept = frozenset(
            n.name for n in self.names if n.name not in self.block.pinned and keeps_result(n)
        )
        self.aliases = {
            n: tuple(self.block.arguments[n].index(a) for a in aliased_arguments(n)) for n in self.names
        }
        self.structure = self._structure(block)
        placeholders = (n for n in block.graph.nodes if n.op == "placeholder")
        kinds = {item.placeholder: item.kind for item in block.inputs}
        self.kinds = {node: kinds[node.name] for node in placeholders}
        self._mode = next(
            (v.fake_mode for n in block.graph.nodes if hasattr(v := n.meta.get("val"), "fake_mode")),
            FakeTensorMode(),
        )

    def _structure(self, block: Block) -> str:
        def number(value: object) -> object:
            return "number" if type(value) is int else value

        lines = []
        for node in block.graph.nodes:
            arguments = fx.map_arg((node.args, dict(node.kwargs)), lambda n: f"%{self.position[n]}")
            if self.aliases.get(node) or self.names.get(node) in COPY_IF_NEEDED:
                # Results are made anew every time: sizes do not matter.
                arguments = fx.node.map_aggregate(arguments, number)  # type: ignore[arg-type]
            lines.append(f"{node.op} {node.target if node.op == 'call_function' else ''} {arguments}")
        return "\n".join(lines)

    def called(self, node: fx.Node, rule: Rule) -> str:
        """Name of the operator that runs where ``node`` runs by ``rule``."""
        return self.names[node] if rule.local is None or rule.local in WRAPPERS else rule.local

    def effect(
        self, node: fx.Node, rule: Rule, degree: int, given: Sequence[Tensor], wishes: tuple[bool, ...]
    ) -> Effect:
        """What a call does with tensors laid out as ``given``, of which ``wishes`` want a gradient."""
        key = (self.structure, self.position[node], rule.local, tuple(map(layout_of, given)), wishes)
        found = self.effects.get(key)
        if found is None or not (found.is_general or self._is_replayed(node, rule, found)):
            exact = (key, tuple(t.shape for t in given), degree)
            found = self.effects.get(exact)
            if found is None:
                found = self._observe(node, rule, degree, given, wishes)
                self.effects[exact] = found
                self.effects.setdefault(key, found)
        return found

    def results(
        self, node: fx.Node, rule: Rule, degree: int, effect: Effect, given: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Tensors laid out as the results of the call are, sharing storage as they do."""
        if self._is_replayed(node, rule, effect):
            aliases, target = self.aliases[node], node.target
            if isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable:
                return (given[aliases[0]],)
            args, kwargs = local_call(node, rule, degree, given)
            with torch.no_grad():
                result = target(*args, **kwargs)  # type: ignore[operator]
            return tuple(result) if isinstance(result, tuple | list) else (result,)
        if not effect.is_general:
            return tuple(
                torch.empty_strided(shape, stride, dtype=dtype, device="meta")
                for shape, stride, dtype in zip(effect.shapes, effect.strides, effect.dtypes, strict=True)
            )
        whole = node.meta["val"]
        parts = whole if isinstance(whole, tuple | list) else (whole,)
        found = []
        for index, (order, dtype) in enumerate(zip(effect.orders, effect.dtypes, strict=True)):
            shape = local_shape(tuple(parts[index].shape), rule.element(index), degree)
            found.append(torch.empty_strided(shape, dense_strides(shape, order), dtype=dtype, device="meta"))
        return tuple(found)

    def _observe(
        self, node: fx.Node, rule: Rule, degree: int, given: Sequence[Tensor], wishes: Sequence[bool]
    ) -> Effect:
        axis, function = FakeAxis(degree), node.target

        def call(tensors: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            args, kwargs = local_call(node, rule, degree, tensors)
            return ((axis, *args) if is_local else args), kwargs

        is_local = rule.local is not None and rule.local not in WRAPPERS
        if is_local:
            function = getattr(local_operators, str(rule.local))
        elif rule.local == "mean_of_shards":
            function = partial(local_operators.mean_of_shards, axis, function)  # type: ignore[arg-type]
        assert callable(function)
        no_grad = bool(node.meta.get("no_grad", False))
        name = self.called(node, rule)
        return observe(name, function, call, given, wishes, self._mode, no_grad=no_grad)

    def _is_replayed(self, node: fx.Node, rule: Rule, effect: Effect) -> bool:
        """Whether results may share storage with arguments: those are made anew every time."""
        runs_itself = rule.local is None or rule.local == "own_stream"
        return runs_itself and bool(effect.shares or self.aliases[node] or self.names[node] in COPY_IF_NEEDED)
