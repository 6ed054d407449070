"""What autograd knows of a tensor and torch has no public name for: is it a view, how often written to."""

from __future__ import annotations

from torch import Tensor


def is_view(tensor: Tensor) -> bool:
    """Whether an in-place operator on ``tensor`` would rewrite the history of another one (its base)."""
    return tensor._is_view()


def own(tensor: Tensor) -> Tensor:
    """``tensor``, or a copy where it is a view."""
    return tensor.clone() if is_view(tensor) else tensor


def version(tensor: Tensor) -> int:
    """Number of in-place operators so far on the storage of ``tensor``, through it or its views."""
    return tensor._version
