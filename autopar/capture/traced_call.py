"""The arguments, results and operators of one module call in a graph that is being traced."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from autopar.capture.descriptions import Described, UnclearError
from autopar.capture.operator_facts import is_cast
from autopar.capture.repeat_operators import ENTER, LEAVE

_NUMBERS = int | float | bool | torch.SymInt | torch.SymFloat | torch.SymBool


@dataclass(slots=True)
class Arguments:
    """What a module was called with.

    Attributes:
        inputs: the tensors among the arguments, each once.
        own: the module's parameters and buffers.
        description: equal for calls with equal arguments.
    """

    inputs: list[Tensor]
    own: list[Tensor]
    description: Hashable
    _values: tuple[Any, ...]
    _before: Hashable

    @classmethod
    def of(
        cls,
        described: Described,
        inputs: list[Tensor],
        own: list[Tensor],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Arguments:
        """Describes a call.

        Raises:
            UnclearError: an argument cannot be compared with another call's.
        """
        tensors = tuple(_spec(tensor) for tensor in inputs)
        aliases = tuple(described.of(tensor) for tensor in (*own, *inputs))
        values = (args, dict(kwargs))
        before = described.of(values)
        return cls(inputs, own, (tensors, aliases, before), values, before)

    @staticmethod
    def tensors_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """The tensors in the arguments and in containers among them, each once."""
        found: dict[int, Tensor] = {}
        _collect((args, dict(kwargs)), found)
        return list(found.values())

    def unchanged(self, described: Described) -> bool:
        """Whether lists and other objects among the arguments are as they were before the call."""
        try:
            return described.of(self._values) == self._before
        except UnclearError:
            return False


def _collect(value: Any, found: dict[int, Tensor]) -> None:
    if isinstance(value, Tensor):
        found.setdefault(id(value), value)
    elif isinstance(value, list | tuple):
        for item in value:
            _collect(item, found)
    elif isinstance(value, dict):
        for item in value.values():
            _collect(item, found)


def _spec(tensor: Tensor) -> Hashable:
    sizes = (*tensor.shape, *tensor.stride(), tensor.storage_offset())
    return (
        type(tensor),
        tensor.dim(),
        tuple(size.node.expr if isinstance(size, torch.SymInt) else size for size in sizes),
        (tensor.dtype, tensor.layout, tensor.device),
        (tensor.requires_grad, tensor.is_conj(), tensor.is_neg()),
    )


@dataclass(slots=True)
class Results:
    """What a module returned, from which the same is built for another call.

    Attributes:
        made: the tensors that the call made, each once.
    """

    made: list[Tensor]
    _template: Any

    @classmethod
    def of(cls, output: Any, inputs: Sequence[Tensor], own: Sequence[Tensor]) -> Results | None:
        """The results, or None where they hold more than tensors, plain values and plain containers."""
        places = {id(tensor): ("own", index) for index, tensor in enumerate(own)}
        places |= {id(tensor): ("input", index) for index, tensor in enumerate(inputs)}
        results = cls([], None)
        try:
            results._template = results._pattern(output, places)
        except UnclearError:
            return None
        return results if results._can_be_repeated((*inputs, *own)) else None

    def _pattern(self, value: Any, places: dict[int, tuple[str, int]]) -> Any:
        kind = type(value)
        if isinstance(value, Tensor):
            if id(value) not in places:
                places[id(value)] = ("made", len(self.made))
                self.made.append(value)
            return places[id(value)]
        if kind in (list, tuple):
            return kind, [self._pattern(item, places) for item in value]
        if kind is dict:
            return kind, {name: self._pattern(item, places) for name, item in value.items()}
        if value is None or isinstance(value, _NUMBERS | str):
            return "value", value
        raise UnclearError(f"a module returned a {kind.__name__}")

    def _can_be_repeated(self, sources: Sequence[Tensor]) -> bool:
        """Whether the repeating operator makes tensors of this kind: dense ones."""
        gradient = torch.is_grad_enabled() and any(t.requires_grad for t in (*sources, *self.made))
        return all(
            tensor.layout is torch.strided
            and not tensor.is_conj()
            and not tensor.is_neg()
            and (gradient or not tensor.requires_grad)
            for tensor in self.made
        )

    def rebuild(self, made: Sequence[Tensor], inputs: Sequence[Tensor], own: Sequence[Tensor]) -> Any:
        """The output of another call, of whose tensors the first were made by it."""
        tensors = {"made": made, "input": inputs, "own": own}

        def build(pattern: Any) -> Any:
            kind, content = pattern
            if kind == "value":
                return content
            if kind is dict:
                return {name: build(item) for name, item in content.items()}
            if kind in (list, tuple):
                return kind(build(item) for item in content)
            return tensors[kind][content]

        return build(self._template)


def nodes_between(graph: fx.Graph, call: int) -> list[fx.Node] | None:
    """The nodes of a call that has just ended, its two marks included; None where they are not at the end."""
    found: list[fx.Node] = []
    for node in reversed(graph.nodes):
        found.append(node)
        if node.target is ENTER and node.args[2] == call:
            break
    found.reverse()
    ends = bool(found) and found[0].target is ENTER and found[-1].target is LEAVE
    return found if ends and found[-1].args[2] == call else None


def self_contained(nodes: Sequence[fx.Node]) -> bool:
    """Whether the nodes between the marks read only each other, the call's inputs, and numbers.

    Numbers are sizes, the same in every call; tracing writes them down where the first of them is used.
    Results must be made inside, and inputs must not have been replaced by in-place operators.
    """
    enter, *inside, leave = nodes
    known = set(enter.all_input_nodes)
    for node in inside:
        if node.op != "call_function":
            return False
        sources = () if is_numeric(node) else node.all_input_nodes
        if any(source not in known and not is_numeric(source) for source in sources):
            return False
        known.add(node)
    made, inputs, _ = leave.args
    assert isinstance(made, list | tuple) and isinstance(inputs, list | tuple)
    before = enter.args[0]
    assert isinstance(before, list | tuple)
    kept = [_before_noops(node) for node in inputs] == [_before_noops(node) for node in before]
    return kept and set(made) <= set(inside)


def _before_noops(node: Any) -> Any:
    """Where a value was before casts that change nothing: tracing takes their result for the value itself."""
    while is_cast(node) and node.meta["val"].dtype == node.args[0].meta["val"].dtype:
        node = node.args[0]
    return node


def is_numeric(node: fx.Node) -> bool:
    """Whether the node computes a size and not a tensor."""
    return node.op == "call_function" and isinstance(node.meta.get("val"), _NUMBERS)
