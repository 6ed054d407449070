"""From a block and its sharding to each rank's program: local tensors, and explicit collectives between them.

The program is an fx graph whose first placeholder is the tensor axis (``lower.axis.TensorAxis``) and whose
other placeholders are the block's inputs as local tensors. Every node has ``meta["val"]``, a fake tensor of
*local* shape. Nodes that communicate have ``meta["collectives"]``, a tuple of ``Transfer``; conversions
have ``meta["lowered_from"]``, the name of the node in the block's graph whose value they convert. Where of a
gathered value the shard is kept, products read it together with a ``KeptShard`` (``lower.kept_shards``): a
node without value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from autopar.capture.model_graph import Block
from autopar.hardware.link import CollectiveKind
from autopar.lower import collectives, local_operators, products
from autopar.lower.axis import FakeAxis
from autopar.lower.kept_shards import kept_shard
from autopar.lower.literals import dense_gradients, local_literals
from autopar.lower.walk import LocalWalk
from autopar.sharding.placement import Placement, local_shape
from autopar.sharding.product_inputs import OPERANDS
from autopar.sharding.propagation import BlockSharding
from autopar.sharding.redistribution import Collective
from autopar.sharding.rule import Rule
from autopar.sharding.rules.operator import tensor_arguments, whole_bytes
from autopar.sharding.rules.table import has_rules

# Local operators that are handed the operator which they wrap.
WRAPPERS = frozenset({"own_stream", "mean_of_shards"})
_aten = torch.ops.aten
_PRODUCTS: dict[Any, Callable[..., Any]] = {
    _aten.linear.default: products.linear,
    _aten.matmul.default: products.matmul,
    _aten.mm.default: products.matmul,
    _aten.addmm.default: products.addmm,
}
_COPIED_META = ("module", "source_line", "operator_key", "no_grad")


@dataclass(frozen=True, slots=True)
class Transfer:
    """One collective that a node of a lowered graph runs.

    Attributes:
        kind: which collective.
        num_bytes: as ``CollectiveKind`` counts them: of the whole tensor, for all-to-all of one rank's piece.
        backward: whether it runs in the backward pass.
        again: whether it makes once more what was not kept, beside the product that comes first.
    """

    kind: CollectiveKind
    num_bytes: int
    backward: bool
    again: bool = False


@dataclass(frozen=True, slots=True)
class LoweredBlock:
    """One rank's program for a block; the same on all ranks of the tensor axis.

    Attributes:
        graph: placeholders are the axis, then the block's inputs in order; returns a tuple.
        sharding: what it was lowered from.
        fallbacks: operator keys of what runs replicated for lack of a rule.
    """

    graph: fx.GraphModule
    sharding: BlockSharding
    fallbacks: tuple[str, ...]


def lower_block(block: Block, sharding: BlockSharding) -> LoweredBlock:
    """Lowers ``block``; at degree 1 that is its own graph behind an axis that nothing reads."""
    lowering = _Lowering(block, sharding)
    lowering.walk()
    lowering.graph.lint()
    module = fx.GraphModule(torch.nn.Module(), lowering.graph)
    return LoweredBlock(module, sharding, tuple(lowering.fallbacks))


class _Lowering(LocalWalk[fx.Node]):
    """The program under construction."""

    def __init__(self, block: Block, sharding: BlockSharding) -> None:
        super().__init__(block, sharding)
        self.graph = fx.Graph()
        self.fallbacks: list[str] = []
        self.axis = self.graph.placeholder("axis")
        self.axis.meta["val"] = None
        self.fake_axis = FakeAxis(self.degree)

    def enter(self, node: fx.Node, placement: Placement) -> fx.Node:
        new = self.graph.placeholder(node.name)
        new.meta.update(node.meta)
        value = node.meta["val"]
        new.meta["val"] = value.new_empty(local_shape(tuple(value.shape), placement, self.degree))
        return new

    def call(self, node: fx.Node, rule: Rule, arguments: Sequence[fx.Node]) -> fx.Node:
        args, kwargs = local_call(node, rule, self.degree, arguments)
        target: Callable[..., Any] = node.target  # type: ignore[assignment]
        if rule.local is not None:
            replaced = (target,) if rule.local in WRAPPERS else ()
            target = getattr(local_operators, rule.local)
            args = (self.axis, *replaced, *args)
        shard = self._kept_shard(node, arguments)
        if shard is not None:
            target, args, kwargs = _PRODUCTS[target], (None, *args), {**kwargs, **shard}
        new = self.graph.call_function(target, args, kwargs)
        _copy_meta(node, new)
        new.meta["val"] = node.meta["val"] if rule.is_replicated else self.fake_value(new)
        new.meta["collectives"] = transfers_inside(node, rule)
        if self.degree > 1 and arguments and self.is_fallback(node):
            self.fallbacks.append(node.meta.get("operator_key", node.name))
        return new

    def _kept_shard(self, node: fx.Node, arguments: Sequence[fx.Node]) -> dict[str, Any] | None:
        """What a product needs to keep a shard of its input, where there is one."""
        if node.target not in _PRODUCTS:
            return None
        found: dict[str, Any] | None = arguments[OPERANDS[node.target][0]].meta.get("kept_shard")
        return found

    def is_fallback(self, node: fx.Node) -> bool:
        """Whether the node runs replicated for lack of a rule; single numbers (counters) do not count."""
        value = node.meta["val"]
        if isinstance(value, torch.Tensor) and value.numel() <= 1:
            return False
        return node.name in self.pinned or not has_rules(node.target)

    def leave(self, node: fx.Node, results: Sequence[fx.Node]) -> None:
        new = self.graph.output(tuple(results))
        new.meta["val"] = tuple(result.meta["val"] for result in results)

    def convert(
        self, step: Collective, after: Placement, local: fx.Node, value: fx.Node, consumer: fx.Node
    ) -> fx.Node:
        new = self.graph.call_function(
            getattr(collectives, step.function), (self.axis, local, *step.arguments)
        )
        # What is done to a parameter belongs to the module that uses it.
        _copy_meta(consumer if value.op == "placeholder" else value, new)
        new.meta.pop("operator_key", None)
        new.meta["val"] = self.fake_value(new)
        new.meta["lowered_from"] = value.name
        if step.again is not None:
            kept = self.graph.call_function(kept_shard, (self.axis, *step.arguments))
            kept.meta["val"] = None
            new.meta["kept_shard"] = {"kept": kept, "shard": local}
        new.meta["collectives"] = conversion_transfers(
            step, whole_bytes(value), self.degree, has_gradient=value.name in self.gradients
        )
        return new

    def fake_value(self, node: fx.Node) -> Any:
        """Result of a new node on fake tensors of local shape."""

        def fake(argument: fx.Node) -> Any:
            return self.fake_axis if argument is self.axis else argument.meta["val"]

        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), fake)
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]


def local_call(
    node: fx.Node, rule: Rule, degree: int, arguments: Sequence[Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a call with local values in the place of nodes, and with local sizes."""
    given = iter(arguments)
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda _: next(given))
    literals = dense_gradients(node)
    if degree > 1:
        literals |= local_literals(node, rule, degree)
    return _with_literals(node, list(args), dict(kwargs), literals)


def conversion_transfers(
    step: Collective, num_bytes: int, degree: int, *, has_gradient: bool
) -> tuple[Transfer, ...]:
    """Collectives of one step of a conversion of a value of ``num_bytes`` in all."""
    return tuple(
        Transfer(
            kind, num_bytes // degree if kind is CollectiveKind.ALL_TO_ALL else num_bytes, backward, again
        )
        for kind, backward, again in (
            (step.forward, False, False),
            (step.backward, True, False),
            (step.again, True, True),
        )
        if kind is not None and (not backward or has_gradient)
    )


def _with_literals(
    node: fx.Node, args: list[Any], kwargs: dict[str, Any], literals: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    names = [a.name for a in node.target._schema.arguments] if literals else []  # type: ignore[union-attr]
    for name, value in literals.items():
        position = names.index(name)
        if position < len(args):
            args[position] = value
        else:
            kwargs[name] = value
    return tuple(args), kwargs


def _copy_meta(source: fx.Node, target: fx.Node) -> None:
    target.meta.update({key: source.meta[key] for key in _COPIED_META if key in source.meta})


def transfers_inside(node: fx.Node, rule: Rule) -> tuple[Transfer, ...]:
    """Collectives that a local operator runs itself."""
    if rule.local == "cross_entropy_vocab":
        logits = tensor_arguments(node)[0].meta["val"]
        tokens = logits.numel() // logits.shape[1]
        one = Transfer(CollectiveKind.ALL_REDUCE, tokens * max(logits.element_size(), 4), False)
        return (one, one, one)
    if rule.local in ("cross_entropy_tokens", "nll_tokens"):
        return (Transfer(CollectiveKind.ALL_REDUCE, 8, False),)
    return ()
