"""What a call does to storages: observed once on fake tensors, true for every size of the same layout.

Which arguments and results autograd keeps, what else a kernel keeps, whether a result is laid out as its
argument: all of this follows from the operator, the order of the strides of its arguments and which of them
want a gradient, not from sizes. So each combination is run once under ``saved_tensors_hooks``, and bytes that
a kernel keeps beside its arguments and results are noted per element of the one that they grow with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from autopar.cost.operator_traffic import NORMS
from autopar.cost.stand_ins import STAND_INS

_OF_RESULT = frozenset({*NORMS, "scaled_dot_product_attention", "lstm", "gru"}) - {"batch_norm"}

Layout = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Inside:
    """A storage that a kernel makes and keeps.

    Attributes:
        basis: index of the argument, or -1 - index of the result, with whose elements it grows.
        bytes_per_element: of the basis.
    """

    basis: int
    bytes_per_element: Fraction


@dataclass(frozen=True, slots=True)
class Effect:
    """What a call does.

    Attributes:
        is_tuple: whether it returns several tensors.
        orders: per result, its dims by falling stride; None where dense in the order of its dims.
        requires_grad: per result.
        dtypes: per result.
        kept_arguments: indices of arguments whose storages autograd keeps.
        kept_results: likewise, of results.
        inside: what else it keeps.
        is_general: whether results are dense, so that the effect holds for other sizes.
        shares: whether a result shares storage with an argument.
        shapes: of the results as observed.
        strides: likewise.
    """

    is_tuple: bool
    orders: tuple[tuple[int, ...] | None, ...]
    requires_grad: tuple[bool, ...]
    dtypes: tuple[torch.dtype, ...]
    kept_arguments: tuple[int, ...]
    kept_results: tuple[int, ...]
    inside: tuple[Inside, ...]
    is_general: bool
    shares: bool
    shapes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]


def layout_of(tensor: Tensor) -> Layout:
    """What of a tensor's layout can matter: order of its strides, gaps, dims of size one, dtype."""
    shape, strides = tensor.shape, tensor.stride()
    wide = [dim for dim in range(len(shape)) if shape[dim] != 1]
    contiguous = tensor.is_contiguous()
    if contiguous:
        return (tensor.dtype, len(shape), tuple(wide), True)
    order = tuple(sorted(wide, key=lambda dim: -strides[dim]))
    span = sum((shape[dim] - 1) * strides[dim] for dim in wide) + 1
    broadcast = tuple(dim for dim in wide if strides[dim] == 0)
    return (tensor.dtype, len(shape), order, broadcast, span == tensor.numel())


def observe(
    name: str,
    function: Callable[..., Any],
    call: Callable[[Sequence[Tensor]], tuple[tuple[Any, ...], dict[str, Any]]],
    arguments: Sequence[Tensor],
    requires_grad: Sequence[bool],
    mode: FakeTensorMode,
    *,
    no_grad: bool,
) -> Effect:
    """Runs a call once on fake tensors that are laid out as ``arguments`` are.

    Args:
        name: of the operator, for stand-ins.
        call: makes arguments and keyword arguments of tensors.
        mode: of the fake tensors.
        no_grad: whether the model runs it without gradients.
    """
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor

    with mode, torch.enable_grad():
        leaves = [
            torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device="cpu").requires_grad_(needs)
            for a, needs in zip(arguments, requires_grad, strict=True)
        ]
        mutates = isinstance(function, torch._ops.OpOverload) and function._schema.is_mutable
        given = [leaf.clone() if mutates and leaf.requires_grad else leaf for leaf in leaves]
        args, kwargs = call(given)
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held),
            torch.set_grad_enabled(not no_grad),
        ):
            stand_in = STAND_INS.get(name)
            result = stand_in(*args, **kwargs) if stand_in else NotImplemented
            if result is NotImplemented:
                result = function(*args, **kwargs)
    results = tuple(result) if isinstance(result, tuple | list) else (result,)
    kept_arguments, kept_results, inside = _roles(name, packed, given, results)
    return Effect(
        is_tuple=isinstance(result, tuple | list),
        orders=tuple(_order(t) for t in results),
        requires_grad=tuple(t.requires_grad for t in results),
        dtypes=tuple(t.dtype for t in results),
        kept_arguments=kept_arguments,
        kept_results=kept_results,
        inside=inside,
        is_general=all(_is_dense(t) for t in results),
        shares=bool({id(t.untyped_storage()) for t in results} & {id(t.untyped_storage()) for t in given}),
        shapes=tuple(tuple(t.shape) for t in results),
        strides=tuple(t.stride() for t in results),
    )


def _roles(
    name: str, packed: Sequence[Tensor], given: Sequence[Tensor], results: Sequence[Tensor]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[Inside, ...]]:
    of_argument = {id(t.untyped_storage()): index for index, t in enumerate(given)}
    of_result = {id(t.untyped_storage()): index for index, t in enumerate(results)}
    arguments: dict[int, None] = {}
    outcomes: dict[int, None] = {}
    inside: dict[int, Inside] = {}
    for tensor in packed:
        storage = tensor.untyped_storage()
        if id(storage) in of_argument:
            arguments[of_argument[id(storage)]] = None
        elif id(storage) in of_result:
            outcomes[of_result[id(storage)]] = None
        else:
            basis = _basis(name, tensor, given, results)
            elements = (given[basis] if basis >= 0 else results[-1 - basis]).numel()
            inside[id(storage)] = Inside(basis, Fraction(storage.nbytes(), max(elements, 1)))
    return tuple(arguments), tuple(outcomes), tuple(inside.values())


def _basis(name: str, tensor: Tensor, given: Sequence[Tensor], results: Sequence[Tensor]) -> int:
    """What an inner tensor grows with: what has its dims, else what is known of the operator, else its
    number of elements."""
    candidates = [(-1 - i, t) for i, t in enumerate(results)] + list(enumerate(given))
    dims = _dims(tensor)
    alike = [index for index, t in candidates if _dims(t) == dims]
    if alike:
        return alike[0]
    if name in _OF_RESULT:
        return -1
    equal = [index for index, t in candidates if t.numel() == tensor.numel()]
    if equal:
        return equal[0]
    return -1 if results[0].numel() > 1 or not given else 0


def _dims(tensor: Tensor) -> list[int]:
    return sorted(size for size in tensor.shape if size != 1)


def _order(tensor: Tensor) -> tuple[int, ...] | None:
    if tensor.is_contiguous():
        return None
    strides = tensor.stride()
    return tuple(sorted(range(tensor.dim()), key=lambda dim: (-strides[dim], dim)))


def _is_dense(tensor: Tensor) -> bool:
    span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return span == tensor.numel() and tensor.storage_offset() == 0


def dense_strides(shape: Sequence[int], order: tuple[int, ...] | None) -> tuple[int, ...]:
    """Strides of a dense tensor whose dims follow each other in memory as ``order`` says."""
    strides = [0] * len(shape)
    step = 1
    for dim in reversed(order if order is not None else range(len(shape))):
        strides[dim] = step
        step *= max(shape[dim], 1)
    return tuple(strides)
