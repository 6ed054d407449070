"""Memory of one block, read off by running its lowered program on fake tensors under autograd.

Saved bytes are the distinct storages that autograd keeps (``torch.autograd.graph.saved_tensors_hooks``),
parameters, buffers, constants and batch entries excluded. Operators whose CPU kernels keep other things than
the GPU's (attention, dropout, recurrent layers) are replaced by stand-ins that keep what the GPU's keep.
Transient bytes are the most that lives beyond: in the forward pass results until their last use, in the
backward pass gradients of the values that are live at that point of the program.

Under recomputation the block's inputs are kept, and under selective recomputation what ``lower.selective``
names; what autograd keeps comes back when the block's backward pass begins, beside what was kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from autopar.capture.model_graph import Block, InputKind
from autopar.cost.operator_traffic import PIECES
from autopar.cost.operators import operator_name
from autopar.cost.stand_ins import STAND_INS
from autopar.lower.axis import FakeAxis
from autopar.lower.block import LoweredBlock
from autopar.lower.selective import kept_nodes

_UNCOUNTED = frozenset({InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT, InputKind.BATCH})

# Their backward calls make one more tensor of the size of the logits: nll's zeros before log-softmax's
# gradient.
_WHOLE_TEMPORARY = frozenset({"cross_entropy_loss", "cross_entropy_tokens", "cross_entropy_vocab"})


@dataclass(frozen=True, slots=True)
class BlockMemory:
    """Bytes of one rank and one micro-batch.

    Attributes:
        saved_bytes: kept from forward to backward.
        input_bytes: of the activations that the block reads; all that full recompute keeps.
        output_bytes: of the values that it returns.
        forward_transient_bytes: most that lives beyond in the forward pass.
        backward_transient_bytes: likewise in the backward pass, gradients of parameters in the compute dtype
            included.
        selective_bytes: kept under selective recompute.
        replayed_bytes: what full recompute brings back beside the inputs.
        selective_replayed_bytes: what selective recompute brings back beside what it kept.
    """

    saved_bytes: int
    input_bytes: int
    output_bytes: int
    forward_transient_bytes: int
    backward_transient_bytes: int
    selective_bytes: int
    replayed_bytes: int
    selective_replayed_bytes: int


def block_memory(block: Block, lowered: LoweredBlock) -> BlockMemory:
    """Reads off the memory of a lowered block.

    Args:
        block: with the kinds of the inputs.
        lowered: its program at the tensor degree of interest.
    """
    run = _Run(block, lowered)
    run.execute()
    selective_bytes = run.inputs.total() + run.kept.beyond(run.inputs) + run.kept_inside_bytes
    return BlockMemory(
        saved_bytes=run.saved.total(),
        input_bytes=run.inputs.total(),
        output_bytes=run.outputs.total(),
        forward_transient_bytes=run.forward_peak(),
        backward_transient_bytes=run.backward_peak(),
        selective_bytes=selective_bytes,
        replayed_bytes=run.saved.beyond(run.inputs),
        selective_replayed_bytes=run.saved.beyond(run.inputs, run.kept),
    )


class _Storages:
    """A set of storages, by identity."""

    def __init__(self) -> None:
        self._held: dict[int, torch.UntypedStorage] = {}

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        # Holding the storage keeps its id from being given to another.
        self._held[id(storage)] = storage

    def __contains__(self, tensor: object) -> bool:
        return isinstance(tensor, Tensor) and id(tensor.untyped_storage()) in self._held

    def __len__(self) -> int:
        return len(self._held)

    def has(self, key: int) -> bool:
        return key in self._held

    def added_since(self, count: int) -> list[torch.UntypedStorage]:
        return list(self._held.values())[count:]

    def add_storage(self, storage: torch.UntypedStorage) -> None:
        self._held[id(storage)] = storage

    def beyond(self, *others: _Storages) -> int:
        """Bytes of the storages that none of the others holds."""
        held = self._held.items()
        return sum(s.nbytes() for key, s in held if not any(other.has(key) for other in others))

    def total(self) -> int:
        return sum(storage.nbytes() for storage in self._held.values())


@dataclass(slots=True)
class _Life:
    """A storage made by the program: from which step to which it is used, and its gradient."""

    first: int
    last: int
    num_bytes: int
    differentiable: bool


def input_kinds(block: Block, lowered: LoweredBlock) -> dict[str, InputKind]:
    """Kinds of the block's inputs by name in the lowered graph, where a name may have had to change."""
    _axis, *placeholders = (node for node in lowered.graph.graph.nodes if node.op == "placeholder")
    return {node.name: item.kind for node, item in zip(placeholders, block.inputs, strict=True)}


class _Run(fx.Interpreter):
    """One run of the program, with notes of what is kept and what is live when."""

    def __init__(self, block: Block, lowered: LoweredBlock) -> None:
        super().__init__(lowered.graph, garbage_collect_values=False)
        self.kinds = input_kinds(block, lowered)
        self.axis = FakeAxis(lowered.sharding.degree)
        self.steps = {node: i for i, node in enumerate(lowered.graph.graph.nodes)}
        self.inputs, self.outputs, self.saved = _Storages(), _Storages(), _Storages()
        self.uncounted, self.kept = _Storages(), _Storages()
        self.kept_nodes = kept_nodes(lowered.graph.graph)
        self.kept_inside_bytes = 0
        self.lives: dict[int, _Life] = {}
        self.extra: dict[int, int] = {}
        self.storage_of: dict[fx.Node, tuple[int, ...]] = {}
        self.kept_alive: list[torch.UntypedStorage] = []

    def execute(self) -> None:
        """Runs the program once, forward."""
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        fake = next(v.fake_mode for n in placeholders if hasattr(v := n.meta["val"], "fake_mode"))
        with fake, torch.enable_grad():
            values = [self._input(node) for node in placeholders]
            with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda held: held):
                self.run(*values, enable_io_processing=False)

    def run_node(self, n: fx.Node) -> Any:
        num_saved = len(self.saved)
        with torch.set_grad_enabled(not n.meta.get("no_grad", False)):
            result = super().run_node(n)
        step = self.steps[n]
        if n.op == "call_function":
            self._keep(n, result, num_saved)
            self._note(n, result, step)
        for argument in n.all_input_nodes:
            for key in self.storage_of.get(argument, ()):
                if key in self.lives:
                    self.lives[key].last = step
        if n.op == "output":
            for tensor in _tensors(result):
                if tensor not in self.inputs and tensor not in self.uncounted:
                    self.outputs.add(tensor)
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = operator_name(target)
        if name == "own_stream":
            target, args = args[1], args[2:]
            name = operator_name(target)
        stand_in: Callable[..., Any] | None = STAND_INS.get(name)
        result = stand_in(*args, **kwargs) if stand_in else NotImplemented
        return super().call_function(target, args, kwargs) if result is NotImplemented else result

    def forward_peak(self) -> int:
        """Most bytes at once of storages that the program makes and autograd does not keep."""
        lives = [
            life for key, life in self.lives.items() if not (self.saved.has(key) or self.inputs.has(key))
        ]
        return _peak(lives, {})

    def backward_peak(self) -> int:
        """Most bytes at once of gradients, when the program is walked backwards."""
        lives = [life for life in self.lives.values() if life.differentiable]
        return _peak(lives, self.extra)

    def _input(self, node: fx.Node) -> Any:
        if node.name not in self.kinds:
            return self.axis
        kind = self.kinds[node.name]
        value = node.meta["val"].detach()
        differentiable = value.is_floating_point() and kind in (InputKind.PARAMETER, InputKind.ACTIVATION)
        value.requires_grad_(differentiable)
        if kind in _UNCOUNTED:
            self.uncounted.add(value)
            return value
        # A leaf may not be written in place; a copy of it may.
        value = value.clone()
        self.inputs.add(value)
        # Its gradient lives until the block's first operators; its value belongs to whoever handed it over.
        storage = value.untyped_storage()
        self.storage_of[node] = (id(storage),)
        self.lives[id(storage)] = _Life(0, 0, storage.nbytes(), differentiable)
        return value

    def _note(self, node: fx.Node, result: Any, step: int) -> None:
        keys = []
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            key = id(storage)
            if tensor in self.uncounted:
                continue
            keys.append(key)
            life = self.lives.get(key)
            if life is None:
                self.kept_alive.append(storage)
                self.lives[key] = _Life(step, step, storage.nbytes(), tensor.requires_grad)
            else:
                life.last = step
        self.storage_of[node] = tuple(keys)
        self.extra[step] = self._backward_extra(node)

    def _keep(self, node: fx.Node, result: Any, num_saved: int) -> None:
        """Notes what selective recomputation keeps of a node."""
        if node not in self.kept_nodes:
            inside = node.meta.get("collectives") or ()
            self.kept_inside_bytes += sum(t.num_bytes for t in inside if not t.backward)
            return
        for tensor in _tensors(result):
            if tensor not in self.uncounted:
                self.kept.add(tensor)
        if called_operator(node) in STAND_INS:
            # Results of the kernel that only its backward pass reads.
            for storage in self.saved.added_since(num_saved):
                if not (id(storage) in self.lives or self.inputs.has(id(storage))):
                    self.kept.add_storage(storage)

    def _pack(self, tensor: Tensor) -> Tensor:
        if tensor not in self.uncounted:
            self.saved.add(tensor)
        return tensor

    def _backward_extra(self, node: fx.Node) -> int:
        """Bytes that the backward call of ``node`` needs beside the gradients of arguments and result."""
        extra = sum(
            _num_bytes(argument)
            for argument in node.all_input_nodes
            if self.kinds.get(argument.name) is InputKind.PARAMETER
        )
        name = operator_name(node.target)
        tensors = [argument for argument in node.all_input_nodes if argument.meta.get("val") is not None]
        if tensors and (name in PIECES or name in _WHOLE_TEMPORARY):
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


def _peak(lives: list[_Life], extra: Mapping[int, int]) -> int:
    """Most bytes of overlapping lives at any step, with what the step itself needs."""
    last = max([life.last for life in lives] + list(extra), default=-1)
    change = [0] * (last + 2)
    for life in lives:
        change[life.first] += life.num_bytes
        change[life.last + 1] -= life.num_bytes
    peak = live = 0
    for step in range(last + 1):
        live += change[step]
        peak = max(peak, live + extra.get(step, 0))
    return peak
