"""What turns one placement into another: the collectives of the forward pass and those of the backward pass.

The gradient of a value has the placement dual to the value's: a shard for a shard, whole and equal on every
rank for a replicated value, and likewise for the summands of a partial one. An operator that reads a value
replicated while any other operand or its result is not gives that value only a summand of its gradient
(``gradient_partial``); the conversion in front of it must then sum in the backward pass. Each conversion
function in ``lower.collectives`` is the transpose of what its backward does, so gradients of every path
come out complete before they meet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from autopar.hardware.link import CollectiveKind
from autopar.sharding.placement import REPLICATE, Partial, Placement, Replicate, Shard


@dataclass(frozen=True, slots=True)
class Collective:
    """One conversion function, and what it sends in either direction.

    Attributes:
        function: its name in ``lower.collectives``.
        arguments: literal arguments after the axis and the tensor (dims and numbers of fused parts).
        forward: collective of the forward pass, or None when it is local.
        backward: likewise for the gradient.
        again: collective of the backward pass that makes the value once more, where it is not kept.
    """

    function: str
    arguments: tuple[int, ...]
    forward: CollectiveKind | None
    backward: CollectiveKind | None
    again: CollectiveKind | None = None

    def wire_units(self, degree: int, *, gradient: bool) -> int:
        """What a rank sends per byte of the unsharded tensor; unit as in ``traffic_units``.

        Args:
            degree: size of the tensor axis.
            gradient: whether a backward pass follows for this value.
        """
        total = traffic_units(self.forward, degree)
        return total + (traffic_units(self.backward, degree) if gradient else 0)


def traffic_units(kind: CollectiveKind | None, degree: int) -> int:
    """What a rank sends per byte of the whole tensor, in units of ``(degree - 1) / degree ** 2``: an integer,
    so that ties are exact.

    Ring algorithms (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", 2009): a gather or a
    scatter sends every other rank's piece once, an all-reduce is one of each, an all-to-all keeps one piece
    of a piece.
    """
    match kind:
        case None:
            return 0
        case CollectiveKind.ALL_REDUCE:
            return 2 * degree
        case CollectiveKind.ALL_TO_ALL:
            return 1
        case _:
            return degree


@cache
def conversion(source: Placement, wanted: Placement, gradient_partial: bool) -> tuple[Collective, ...]:
    """The conversions that turn a value placed ``source`` into ``wanted``, in order; empty if there is
    nothing to do.

    Args:
        source: placement that the value has.
        wanted: placement that a consumer reads.
        gradient_partial: whether that consumer returns only a summand of the gradient; it matters only where
            ``wanted`` is replicate.
    """
    partial = gradient_partial and wanted == REPLICATE
    match source, wanted:
        case Replicate(), Replicate():
            return (Collective("copy_to", (), None, CollectiveKind.ALL_REDUCE),) if partial else ()
        case Replicate(), Shard(dim, blocks):
            return (Collective("split", (dim, blocks), None, CollectiveKind.ALL_GATHER),)
        case Replicate(), Partial():
            return (Collective("to_partial", (), None, None),)
        case Partial(), Replicate():
            back = CollectiveKind.ALL_REDUCE if partial else None
            name = "all_reduce_both" if partial else "all_reduce"
            return (Collective(name, (), CollectiveKind.ALL_REDUCE, back),)
        case Partial(), Shard(dim, blocks):
            return (
                Collective(
                    "reduce_scatter", (dim, blocks), CollectiveKind.REDUCE_SCATTER, CollectiveKind.ALL_GATHER
                ),
            )
        case Shard(dim, blocks), Replicate():
            if partial:
                kinds = (CollectiveKind.ALL_GATHER, CollectiveKind.REDUCE_SCATTER)
                return (Collective("gather_partial", (dim, blocks), *kinds),)
            return (Collective("gather", (dim, blocks), CollectiveKind.ALL_GATHER, None),)
        case Shard(dim, blocks), Partial():
            return (Collective("pad_to_partial", (dim, blocks), None, None),)
        case Shard(dim, 1), Shard(other, 1) if dim != other:
            return (
                Collective("all_to_all", (dim, other), CollectiveKind.ALL_TO_ALL, CollectiveKind.ALL_TO_ALL),
            )
        case Shard(), Shard() if source != wanted:
            return (*conversion(source, REPLICATE, False), *conversion(REPLICATE, wanted, False))
        case _:
            return ()


def kept_as_shard(step: Collective) -> Collective:
    """The same step for a value that only products read (``sharding.product_inputs``): where the products
    return summands of its gradient, its shard is kept, and gathered again in the backward pass.
    """
    return replace(step, again=step.forward) if step.function == "gather_partial" else step


@cache
def conversion_units(
    source: Placement, wanted: Placement, gradient_partial: bool, degree: int, *, gradient: bool
) -> int:
    """What a rank sends in both passes to convert a tensor, per byte of it; unit as in ``traffic_units``."""
    steps = conversion(source, wanted, gradient_partial and gradient)
    return sum(step.wire_units(degree, gradient=gradient) for step in steps)
