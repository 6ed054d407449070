"""One rank's run of a block under a sharding, added up without building or running the program.

Walks the block as the lowering does (``lower.walk``); at every call notes the time, and what happens to the
storages (``cost.call_facts``). What it finds is what autograd shows when the lowered program is run on fake
tensors, at a tenth of the time; tests hold the two together.

Saved bytes are the distinct storages that autograd keeps; parameters, buffers, constants and batch entries
do not count. Transient bytes are the most that lives beyond: in the forward pass results until their last
use, in the backward pass gradients of the values that are live at that point of the program. Under
recomputation the block's inputs are kept, and under selective recomputation what ``lower.selective`` names;
what autograd keeps comes back when the block's backward pass begins, beside what was kept.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from autopar.capture.model_graph import Block, InputKind, TensorSpec
from autopar.cost.call_facts import CallFacts
from autopar.cost.operator_traffic import COPY_IF_NEEDED, PIECES, WHOLE_TEMPORARY
from autopar.cost.operators import FREE, OperatorCost, operator_seconds, specs_seconds
from autopar.cost.stand_ins import STAND_INS
from autopar.cost.storages import Ledger, new_ledger
from autopar.hardware.device import Device
from autopar.lower.block import WRAPPERS, Transfer, conversion_transfers, transfers_inside
from autopar.lower.collectives import from_pieces
from autopar.lower.selective import is_forgotten
from autopar.lower.walk import LocalWalk
from autopar.sharding.gradients import is_floating
from autopar.sharding.placement import Placement, local_shape
from autopar.sharding.propagation import BlockSharding
from autopar.sharding.redistribution import Collective
from autopar.sharding.rule import Rule
from autopar.sharding.rules.operator import whole_bytes

UNCOUNTED = frozenset({InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT, InputKind.BATCH})

_KEEP_STORAGE = frozenset({"copy_to", "to_partial"})
_FROM_PIECES = frozenset({"gather", "gather_partial", "all_to_all", "pad_to_partial"})


@dataclass(slots=True, eq=False)
class LocalValue:
    """A value as one rank holds it.

    Attributes:
        tensors: on no device; their storages tell which values share memory.
        requires_grad: per tensor, as autograd would have it.
        has_gradient: whether it is floating and made of parameters or activations.
        of_parameters: whether it is made of parameters alone.
        is_trained: whether it is a parameter itself, and has a gradient.
        lives: keys in the ledger.
        num_readers: with a gradient.
        shard: what products that read it keep instead, and gather again.
        gathered: how it was gathered, where there is a ``shard``.
        num_reads: by calls and conversions, and by the block's result.
        num_forgetting: of them, of collectives that selective recompute keeps.
    """

    tensors: tuple[Tensor, ...]
    is_tuple: bool
    requires_grad: tuple[bool, ...]
    has_gradient: bool
    of_parameters: bool = False
    is_trained: bool = False
    lives: tuple[int, ...] = ()
    num_readers: int = 0
    shard: Tensor | None = None
    gathered: Timed | None = None
    num_reads: int = 0
    num_forgetting: int = 0

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors)


@dataclass(slots=True)
class Timed:
    """A call or a conversion: its time, and whether selective recompute runs it again.

    Attributes:
        without_weights_s: of its backward pass, without gradients of parameters.
        beside_s: of the product beside which the backward pass gathers again.
        is_divided: whether the ranks have divided it among them.
    """

    cost: OperatorCost
    without_weights_s: float
    is_kept: bool
    transfers: tuple[Transfer, ...]
    beside_s: float = 0.0
    is_divided: bool = True


class LocalRun(LocalWalk[LocalValue]):
    """Walks a block under a sharding and notes time and storages.

    Attributes:
        ledger: what lives when.
        calls: in order.
        made: all values.
    """

    def __init__(self, block: Block, sharding: BlockSharding, facts: CallFacts, device: Device) -> None:
        super().__init__(block, sharding, facts.block)
        self._known = facts
        self._device = device
        self._step = 0
        self.ledger: Ledger = new_ledger()
        self.calls: list[Timed] = []
        self.made: list[LocalValue] = []
        self._forgotten: list[LocalValue] = []

    def enter(self, node: fx.Node, placement: Placement) -> LocalValue:
        """A placeholder: an activation counts, everything else is held anyway."""
        whole, kind = node.meta["val"], self._known.kinds[node]
        tensor = torch.empty(
            local_shape(tuple(whole.shape), placement, self.degree), dtype=whole.dtype, device="meta"
        )
        wanted = whole.is_floating_point() and kind in (InputKind.PARAMETER, InputKind.ACTIVATION)
        wanted = wanted and node.name not in self._known.frozen
        is_parameter = kind is InputKind.PARAMETER
        value = LocalValue((tensor,), False, (wanted,), wanted, is_parameter, is_parameter and wanted)
        if kind in UNCOUNTED:
            self.ledger.uncounted.add(tensor.untyped_storage())
        else:
            self.ledger.inputs.add(tensor.untyped_storage())
            value.lives = self.ledger.born([(tensor, wanted)], 0)
        self.made.append(value)
        return value

    def call(self, node: fx.Node, rule: Rule, arguments: Sequence[LocalValue]) -> LocalValue:
        """A call: its time, what it makes and what is kept of it."""
        num_saved = len(self.ledger.saved)
        if node.target is operator.getitem:
            index = node.args[1]
            assert isinstance(index, int)
            tensors, needs = arguments[0].tensors[index : index + 1], arguments[0].requires_grad[index]
            value = LocalValue(tensors, False, (needs,), False)
        else:
            value = self._run(node, rule, arguments)
        self._inherit(value, node, arguments)
        name = self._known.called(node, rule)
        self._time(node, rule, name, value, arguments)
        self._keep(node, rule, value, num_saved)
        self._note(value, name, arguments)
        return value

    def convert(
        self, step: Collective, after: Placement, local: LocalValue, value: fx.Node, consumer: fx.Node
    ) -> LocalValue:
        """A conversion: it keeps nothing itself; products that read what it gathers may keep the shard."""
        (source,) = local.tensors
        if step.function in _KEEP_STORAGE:
            tensor = source.view(source.shape)
        elif step.function in _FROM_PIECES:
            tensor = self._from_pieces(step, source)
        else:
            shape = local_shape(tuple(value.meta["val"].shape), after, self.degree)
            tensor = torch.empty(shape, dtype=source.dtype, device="meta")
        made = LocalValue((tensor,), False, local.requires_grad, local.has_gradient, local.of_parameters)
        transfers = conversion_transfers(
            step, whole_bytes(value), self.degree, has_gradient=local.has_gradient
        )
        kept = any(not transfer.backward for transfer in transfers) and value.name not in self.pinned
        local.num_forgetting += kept
        if kept and step.again is None and tensor not in self.ledger.uncounted:
            self.ledger.kept.add(tensor.untyped_storage())
        cost = operator_seconds(
            f"axis.{step.function}",
            (_spec(source),),
            (_spec(tensor),),
            (local.has_gradient,),
            self._device,
        )
        if step.again is not None:
            cost = replace(
                cost,
                backward_s=cost.backward_s + cost.forward_s,
                backward_kernels=cost.backward_kernels + cost.forward_kernels,
            )
        without_s = 0.0 if local.of_parameters else cost.backward_s
        self.calls.append(Timed(cost, without_s, kept, transfers))
        if step.again is not None:
            made.shard, made.gathered = source, self.calls[-1]
        self._note(made, f"axis.{step.function}", (local,))
        return made

    def leave(self, node: fx.Node, results: Sequence[LocalValue]) -> None:
        """What the block returns."""
        self._step += 1
        has_gradient = any(value.has_gradient for value in results)
        for value in _distinct(results):
            value.num_readers += has_gradient
            value.num_reads += 1
            self.ledger.used(value.lives, self._step)
            for tensor in value.tensors:
                if tensor not in self.ledger.inputs and tensor not in self.ledger.uncounted:
                    self.ledger.outputs.add(tensor.untyped_storage())
        for value in self._forgotten:
            if value.num_reads == value.num_forgetting:
                self.ledger.kept.remove(value.tensors[0].untyped_storage())

    def _from_pieces(self, step: Collective, source: Tensor) -> Tensor:
        """What stacked pieces become: where no dim has to be merged, a view of them."""
        shape, blocks = list(source.shape), 1
        if step.function == "all_to_all":
            shape[step.arguments[1]] //= self.degree
        else:
            blocks = step.arguments[1]
        pieces = torch.empty((self.degree, *shape), dtype=source.dtype, device="meta")
        return from_pieces(pieces, step.arguments[0], blocks)

    def _run(self, node: fx.Node, rule: Rule, arguments: Sequence[LocalValue]) -> LocalValue:
        given = [a.tensors[0] for a in arguments]
        wishes = tuple(a.requires_grad[0] for a in arguments)
        effect = self._known.effect(node, rule, self.degree, given, wishes)
        tensors = self._known.results(node, rule, self.degree, effect, given)
        for index in effect.kept_arguments:
            shard = arguments[index].shard
            self._save((given[index] if shard is None else shard).untyped_storage())
        for index in effect.kept_results:
            self._save(tensors[index].untyped_storage())
        for inside in effect.inside:
            basis = given[inside.basis] if inside.basis >= 0 else tensors[-1 - inside.basis]
            num_bytes = int(inside.bytes_per_element * basis.numel())
            self.ledger.saved.add(torch.empty(num_bytes, dtype=torch.uint8, device="meta").untyped_storage())
        return LocalValue(tensors, effect.is_tuple, effect.requires_grad, False)

    def _save(self, storage: torch.UntypedStorage) -> None:
        if not self.ledger.uncounted.has(id(storage)):
            self.ledger.saved.add(storage)

    def _inherit(self, value: LocalValue, node: fx.Node, arguments: Sequence[LocalValue]) -> None:
        depends = not node.meta.get("no_grad") and any(a.has_gradient for a in arguments)
        value.has_gradient = depends and is_floating(node)
        value.of_parameters = bool(arguments) and all(a.of_parameters for a in arguments)

    def _time(
        self, node: fx.Node, rule: Rule, name: str, value: LocalValue, arguments: Sequence[LocalValue]
    ) -> None:
        transfers = transfers_inside(node, rule)
        is_kept = node.name in self._known.kept and rule.local not in WRAPPERS
        cost, without_s = FREE, 0.0
        if not self._is_free(name, value, arguments):
            inputs = tuple(_spec(a.tensors[0]) for a in arguments)
            outputs = tuple(map(_spec, value.tensors))
            needs = tuple(a.has_gradient for a in arguments)
            cost = specs_seconds(node, name, inputs, outputs, needs, self._device)
            without_s = cost.backward_s
            if value.of_parameters:
                without_s = 0.0
            elif any(a.of_parameters and a.has_gradient for a in arguments):
                rest = tuple(a.has_gradient and not a.of_parameters for a in arguments)
                without_s = specs_seconds(node, name, inputs, outputs, rest, self._device).backward_s
        self.calls.append(Timed(cost, without_s, is_kept, transfers, is_divided=not rule.is_replicated))
        for argument in arguments:
            if argument.gathered is not None:
                argument.gathered.beside_s = without_s  # of the last reader, whose backward pass is the first

    def _is_free(self, name: str, value: LocalValue, arguments: Sequence[LocalValue]) -> bool:
        """Whether nothing is copied that need not be."""
        if name not in COPY_IF_NEEDED:
            return False
        return value.tensors[0].untyped_storage() is arguments[0].tensors[0].untyped_storage()

    def _keep(self, node: fx.Node, rule: Rule, value: LocalValue, num_saved: int) -> None:
        """Notes what selective recomputation keeps of a call."""
        ledger = self.ledger
        if node.name not in self._known.kept or rule.local in WRAPPERS:
            inside = transfers_inside(node, rule)
            ledger.kept_inside_bytes += sum(t.num_bytes for t in inside if not t.backward)
            return
        for tensor in value.tensors:
            if tensor not in ledger.uncounted:
                ledger.kept.add(tensor.untyped_storage())
        if is_forgotten(self._known.called(node, rule)):
            self._forgotten.append(value)
        if self._known.names[node] in STAND_INS:
            for storage in ledger.saved.added_since(num_saved):
                if id(storage) not in ledger.lives and not ledger.inputs.has(id(storage)):
                    ledger.kept.add(storage)

    def _note(self, value: LocalValue, name: str, arguments: Sequence[LocalValue]) -> None:
        self._step += 1
        value.lives = self.ledger.born(zip(value.tensors, value.requires_grad, strict=True), self._step)
        self.ledger.extra[self._step] = _backward_extra(name, arguments)
        for argument in _distinct(arguments):
            self.ledger.used(argument.lives, self._step)
            argument.num_reads += 1
            if value.has_gradient:
                argument.num_readers += 1
        self.made.append(value)


def _backward_extra(name: str, arguments: Sequence[LocalValue]) -> int:
    """Bytes that a backward call needs beside the gradients of arguments and result."""
    extra = sum(a.num_bytes for a in _distinct(arguments) if a.is_trained or a.shard is not None)
    if arguments and (name in PIECES or name in WHOLE_TEMPORARY):
        extra += arguments[0].num_bytes
    return extra


def _distinct(values: Iterable[LocalValue]) -> list[LocalValue]:
    return list({id(value): value for value in values}.values())


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tuple(tensor.shape), tensor.dtype)
