"""Memory of one block, read off by running its lowered program on fake tensors under autograd: what the quick
walk (``cost.local_run``) must find.

Saved bytes are the distinct storages that autograd keeps (``torch.autograd.graph.saved_tensors_hooks``),
parameters, buffers, constants and batch entries excluded. Operators whose CPU kernels keep other things than
the GPU's (attention, dropout, recurrent layers) are replaced by stand-ins that keep what the GPU's keep.
Transient bytes are the most that lives beyond: in the forward pass results until their last use, in the
backward pass gradients of the values that are live at that point of the program.

Under recomputation the block's inputs are kept, and under selective recomputation what ``lower.selective``
names; what autograd keeps comes back when the block's backward pass begins, beside what was kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from autopar.capture.model_graph import Block, BlockInput, InputKind
from autopar.cost.local_run import UNCOUNTED
from autopar.cost.operator_traffic import PIECES, WHOLE_TEMPORARY
from autopar.cost.operators import operator_name
from autopar.cost.stand_ins import STAND_INS
from autopar.cost.storages import BlockMemory, new_ledger
from autopar.lower.axis import FakeAxis
from autopar.lower.block import LoweredBlock
from autopar.lower.selective import kept_nodes


def block_memory(block: Block, lowered: LoweredBlock, frozen: frozenset[str] = frozenset()) -> BlockMemory:
    """Reads off the memory of a lowered block.

    Args:
        block: with the kinds of the inputs.
        lowered: its program at the tensor degree of interest.
        frozen: names of parameters without gradient.
    """
    run = _Run(block, lowered, frozen)
    run.execute()
    return run.ledger.memory()


def block_inputs(block: Block, lowered: LoweredBlock) -> dict[str, BlockInput]:
    """The block's inputs by name in the lowered graph, where a name may have had to change."""
    _axis, *placeholders = (node for node in lowered.graph.graph.nodes if node.op == "placeholder")
    return {node.name: item for node, item in zip(placeholders, block.inputs, strict=True)}


def input_kinds(block: Block, lowered: LoweredBlock) -> dict[str, InputKind]:
    """Kinds of ``block_inputs``."""
    return {name: item.kind for name, item in block_inputs(block, lowered).items()}


class _Run(fx.Interpreter):
    """One run of the program, with notes of what is kept and what is live when."""

    def __init__(self, block: Block, lowered: LoweredBlock, frozen: frozenset[str]) -> None:
        super().__init__(lowered.graph, garbage_collect_values=False)
        inputs = block_inputs(block, lowered)
        self.kinds = {name: item.kind for name, item in inputs.items()}
        self.frozen = {name for name, item in inputs.items() if item.source in frozen}
        self.axis = FakeAxis(lowered.sharding.degree)
        self.steps = {node: i for i, node in enumerate(lowered.graph.graph.nodes)}
        self.ledger = new_ledger()
        self.kept_nodes = kept_nodes(lowered.graph.graph)
        self.storage_of: dict[fx.Node, tuple[int, ...]] = {}

    def execute(self) -> None:
        """Runs the program once, forward."""
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        fake = next(v.fake_mode for n in placeholders if hasattr(v := n.meta["val"], "fake_mode"))
        with fake, torch.enable_grad():
            values = [self._input(node) for node in placeholders]
            with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda held: held):
                self.run(*values, enable_io_processing=False)

    def run_node(self, n: fx.Node) -> Any:
        ledger, num_saved = self.ledger, len(self.ledger.saved)
        with torch.set_grad_enabled(not n.meta.get("no_grad", False)):
            result = super().run_node(n)
        step = self.steps[n]
        if n.op == "call_function":
            self._keep(n, result, num_saved)
            self.storage_of[n] = ledger.born(((t, t.requires_grad) for t in _tensors(result)), step)
            ledger.extra[step] = self._backward_extra(n)
        for argument in self._operands(n):
            ledger.used(self.storage_of.get(argument, ()), step)
        if n.op == "output":
            for tensor in _tensors(result):
                if tensor not in ledger.inputs and tensor not in ledger.uncounted:
                    ledger.outputs.add(tensor.untyped_storage())
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = operator_name(target)
        if name == "own_stream":
            target, args = args[1], args[2:]
            name = operator_name(target)
        stand_in: Callable[..., Any] | None = STAND_INS.get(name)
        result = stand_in(*args, **kwargs) if stand_in else NotImplemented
        return super().call_function(target, args, kwargs) if result is NotImplemented else result

    def _input(self, node: fx.Node) -> Any:
        if node.name not in self.kinds:
            return self.axis
        kind = self.kinds[node.name]
        value = node.meta["val"].detach()
        differentiable = value.is_floating_point() and kind in (InputKind.PARAMETER, InputKind.ACTIVATION)
        differentiable = differentiable and node.name not in self.frozen
        value.requires_grad_(differentiable)
        if kind in UNCOUNTED:
            self.ledger.uncounted.add(value.untyped_storage())
            return value
        # A leaf may not be written in place; a copy of it may.
        value = value.clone()
        self.ledger.inputs.add(value.untyped_storage())
        # Its gradient lives until the block's first operators; its value belongs to whoever handed it over.
        self.storage_of[node] = self.ledger.born([(value, differentiable)], 0)
        return value

    def _keep(self, node: fx.Node, result: Any, num_saved: int) -> None:
        """Notes what selective recomputation keeps of a node."""
        ledger = self.ledger
        if node not in self.kept_nodes:
            inside = () if "lowered_from" in node.meta else node.meta.get("collectives") or ()
            ledger.kept_inside_bytes += sum(t.num_bytes for t in inside if not t.backward)
            return
        for tensor in _tensors(result):
            if tensor not in ledger.uncounted:
                ledger.kept.add(tensor.untyped_storage())
        if called_operator(node) in STAND_INS:
            # Results of the kernel that only its backward pass reads.
            for storage in ledger.saved.added_since(num_saved):
                if id(storage) not in ledger.lives and not ledger.inputs.has(id(storage)):
                    ledger.kept.add(storage)

    def _pack(self, tensor: Tensor) -> Tensor:
        if tensor not in self.ledger.uncounted:
            self.ledger.saved.add(tensor.untyped_storage())
        return tensor

    def _operands(self, node: fx.Node) -> list[fx.Node]:
        """What a node computes with; a shard that it only keeps is not among it."""
        return [argument for argument in node.all_input_nodes if argument is not node.kwargs.get("shard")]

    def _backward_extra(self, node: fx.Node) -> int:
        """Bytes that the backward call of ``node`` needs beside the gradients of arguments and result."""
        extra = sum(
            _num_bytes(argument)
            for argument in self._operands(node)
            if (self.kinds.get(argument.name) is InputKind.PARAMETER and argument.name not in self.frozen)
            or ("kept" in node.kwargs and "kept_shard" in argument.meta)
        )
        name = operator_name(node.target)
        tensors = [argument for argument in self._operands(node) if argument.meta.get("val") is not None]
        if tensors and (name in PIECES or name in WHOLE_TEMPORARY):
            extra += _num_bytes(tensors[0])
        return extra


def called_operator(node: fx.Node) -> str:
    """Name of the operator that a node of a lowered graph calls, also where another wraps it."""
    name = operator_name(node.target)
    return operator_name(node.args[1]) if name == "own_stream" else name


def _num_bytes(node: fx.Node) -> int:
    return sum(t.numel() * t.element_size() for t in _tensors(node.meta["val"]))


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in _tensors(item)]
    return []
