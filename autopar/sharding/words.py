"""The words of a plan for parameters (``column``, ``row``, ``shard(d)``, ...) and placements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autopar.capture.model_graph import ParameterSpec
from autopar.sharding.placement import REPLICATE, Placement, Shard, parse_placement
from autopar.sharding.roles import Role, Use

WORDS = ("column", "row", "vocab", "replicate", "shard(d)")


class WordError(ValueError):
    """A word that does not fit its parameter; the message says why, without file and line."""


def placement_of_word(
    word: str, shape: Sequence[int], fused_dims: Mapping[int, int] | None, role: Role, degree: int
) -> Placement:
    """Placement of a parameter of ``shape`` in ``role`` under ``word``.

    A dim that is made of g fused parts is sharded inside each part.

    Args:
        word: one of ``WORDS``.
        shape: whole shape.
        fused_dims: dim -> number of equal parts, as in ``ParameterSpec``.
        role: what the parameter is for.
        degree: size of the tensor axis; at 1 the word is only checked for meaning.

    Raises:
        WordError: the word means nothing for this role, or the dim does not exist or does not divide.
    """
    if word in ("column", "row", "vocab"):
        dim = role.dim_of(word)
        if dim == "":
            raise WordError(
                f"'{word}' has no meaning for this {role.noun} of shape {_text(shape)}; "
                "write replicate or shard(d) with the dim to shard"
            )
    else:
        placement = parse_placement(word)
        if placement is None or not (placement == REPLICATE or isinstance(placement, Shard)):
            raise WordError(f"'{word}' is no placement of a parameter; write one of {', '.join(WORDS)}")
        dim = placement.dim if isinstance(placement, Shard) else None
    if dim is None or degree == 1:
        return REPLICATE
    assert isinstance(dim, int)
    if dim >= len(shape):
        raise WordError(
            f"dim {dim} does not exist: the shape is {_text(shape)}; use dims 0 to {len(shape) - 1}"
        )
    parts = (fused_dims or {}).get(dim, 1)
    if shape[dim] % (parts * degree):
        raise WordError(
            f"dim {dim} of size {shape[dim]}"
            + (f", made of {parts} fused parts," if parts > 1 else "")
            + f" does not divide by tensor {degree}; legal degrees are "
            + f"{_text(divisors(shape[dim] // parts))}, or write replicate"
        )
    return Shard(dim, parts)


def word_of(placement: Placement, spec: ParameterSpec, role: Role) -> str:
    """The word that gives ``placement`` back, the plain ``shard(d)`` where no other does."""
    if not isinstance(placement, Shard):
        return "replicate"
    words = ("vocab", "column", "row") if role is Role.EMBEDDING else ("column", "row")
    return next((word for word in words if role.dim_of(word) == placement.dim), f"shard({placement.dim})")


def role_for(name: str, uses: Sequence[Use]) -> Role:
    """Role of a parameter under one of its names: that in the module which the name is in, else its first."""
    module = name.rpartition(".")[0]
    own = [use.role for use in uses if use.module == module and use.role is not Role.OTHER]
    known = [use.role for use in uses if use.role is not Role.OTHER]
    return next(iter(own + known), Role.OTHER)


def divisors(number: int) -> tuple[int, ...]:
    """Divisors of a positive number, ascending."""
    return tuple(d for d in range(1, number + 1) if number % d == 0)


def _text(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) if len(numbers) != 1 else str(numbers[0])
