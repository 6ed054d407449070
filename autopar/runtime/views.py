"""Whether autograd counts a tensor as a view; torch has no public name for the question."""

from __future__ import annotations

from torch import Tensor


def is_view(tensor: Tensor) -> bool:
    """Whether an in-place operator on ``tensor`` would rewrite the history of another one (its base)."""
    return tensor._is_view()


def own(tensor: Tensor) -> Tensor:
    """``tensor``, or a copy where it is a view."""
    return tensor.clone() if is_view(tensor) else tensor
