"""Matrix products: rows, columns, batch dims; a sharded contraction leaves partial sums."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from autopar.sharding.placement import PARTIAL, REPLICATE, Placement, Shard
from autopar.sharding.rule import Rule
from autopar.sharding.rules.operator import Operator, Shape
from autopar.sharding.rules.pointwise import aligned

aten = torch.ops.aten


def linear(op: Operator) -> Iterator[Rule]:
    """``input (..., in) @ weight (out, in).T + bias (out)``."""
    x, w = op.shape("input"), op.shape("weight")
    if len(w) != 2:
        return
    has_bias = op.has("bias")
    last = len(x) - 1
    for shard in op.shards(x[:-1]):
        yield op.rule(shard, {"input": shard})
    for blocks in op.fused:
        if op.divides(w[0], blocks):
            wanted = {"weight": Shard(0, blocks)} | ({"bias": Shard(0, blocks)} if has_bias else {})
            yield op.rule(Shard(last, blocks), wanted)
        if op.divides(w[1], blocks):
            wanted = {"input": Shard(last, blocks), "weight": Shard(1, blocks)}
            yield op.rule(PARTIAL, wanted | ({"bias": PARTIAL} if has_bias else {}))


def matmul(op: Operator) -> Iterator[Rule]:
    """``mm``, ``bmm`` and ``matmul`` of operands with two dims or more, batch dims broadcast."""
    first, second = ("self", "other") if "other" in op.arguments else ("self", "mat2")
    yield from _product(op, first, second, None)


def addmm(op: Operator) -> Iterator[Rule]:
    """``addmm`` and ``baddbmm``: a product plus a summand that broadcasts to it."""
    first, second = ("mat1", "mat2") if "mat1" in op.arguments else ("batch1", "batch2")
    yield from _product(op, first, second, "self")


def _product(op: Operator, first: str, second: str, summand: str | None) -> Iterator[Rule]:
    a, b, out = op.shape(first), op.shape(second), op.output_shape
    if len(a) < 2 or len(b) < 2:
        return

    def rule(output: Placement, placed_a: Placement, placed_b: Placement) -> Rule:
        wanted: dict[str, Placement] = {first: placed_a, second: placed_b}
        if summand is not None:
            shape = op.shape(summand)
            wanted[summand] = aligned(shape, out, output) if isinstance(output, Shard) else output
        return op.rule(output, wanted)

    batch = out[:-2]
    for shard in op.shards(batch):
        yield rule(shard, _batch_dim(a, out, shard), _batch_dim(b, out, shard))
    for blocks in op.fused:
        if op.divides(a[-2], blocks):
            yield rule(Shard(len(out) - 2, blocks), Shard(len(a) - 2, blocks), REPLICATE)
        if op.divides(b[-1], blocks):
            yield rule(Shard(len(out) - 1, blocks), REPLICATE, Shard(len(b) - 1, blocks))
        if op.divides(a[-1], blocks):
            yield rule(PARTIAL, Shard(len(a) - 1, blocks), Shard(len(b) - 2, blocks))


def _batch_dim(shape: Shape, out: Shape, shard: Shard) -> Placement:
    """Placement of an operand whose batch dims broadcast to those of ``out``."""
    return aligned(shape[:-2], out[:-2], shard)


def einsum(op: Operator) -> Iterator[Rule]:
    """Explicit equations without ellipsis or repeated letters in a term."""
    equation = str(op.argument("equation")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow or "." in equation or any(len(set(term)) != len(term) for term in (*terms, right)):
        return
    sizes: dict[str, int] = {}
    for term, node in zip(terms, op.tensors, strict=True):
        for letter, size in zip(term, node.meta["val"].shape, strict=True):
            if sizes.get(letter, size) != size:
                return  # broadcasting of a dim of size 1
            sizes[letter] = size
    for letter, size in sizes.items():
        for blocks in op.fused:
            if not op.divides(size, blocks):
                continue
            inputs = tuple(Shard(t.index(letter), blocks) if letter in t else REPLICATE for t in terms)
            yield Rule(inputs, Shard(right.index(letter), blocks) if letter in right else PARTIAL)
