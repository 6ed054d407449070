"""Errors of a parallel run against its reference, gathered over the steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

# A gradient that is zero but for rounding (a bias before a normalisation) has no scale of its own.
_LEAST_SCALE = 1e-3


class WorstErrors:
    """The worst errors seen so far.

    Attributes:
        worst_loss_error: of a loss.
        worst_gradient_error: of a gradient, that of ``worst_parameter``.
        worst_buffer_error: of a buffer; None where none was compared.
        missing: parameters with a gradient on one side only.
    """

    def __init__(self) -> None:
        self.worst_loss_error = 0.0
        self.worst_gradient_error = 0.0
        self.worst_parameter = ""
        self.worst_buffer_error: float | None = None
        self.missing: list[str] = []

    def add_loss(self, found: float, expected: float) -> None:
        """Compares the losses of one step."""
        self.worst_loss_error = max(self.worst_loss_error, relative_difference(found, expected))

    def note_gradient(self, name: str, error: float) -> None:
        """Takes in the error of a gradient."""
        if not self.worst_parameter or not error <= self.worst_gradient_error:
            self.worst_gradient_error, self.worst_parameter = error, name

    def note_missing(self, name: str) -> None:
        """Takes in a gradient that one side has not."""
        if name not in self.missing:
            self.missing.append(name)


class Comparison(WorstErrors):
    """The worst errors of a run against one of the same precision."""

    def add_gradients(
        self, found: Iterable[tuple[str, Tensor | None]], expected: Mapping[str, Tensor | None]
    ) -> None:
        """Compares the gradients of one step, one parameter at a time."""
        largest = max((_largest(value) for value in expected.values() if value is not None), default=0.0)
        seen: set[str] = set()
        for name, value in found:
            seen.add(name)
            reference = expected.get(name)
            if value is not None and reference is not None:
                self.note_gradient(name, relative_error(value, reference, _LEAST_SCALE * largest))
            elif value is not None or reference is not None:
                self.note_missing(name)
        for name, value in expected.items():
            if value is not None and name not in seen:
                self.note_missing(name)

    def add_buffers(self, found: Iterable[tuple[str, Tensor | None]], expected: Mapping[str, Tensor]) -> None:
        """Compares the buffers after the last step."""
        for name, value in found:
            if value is not None and name in expected:
                error = relative_error(_wide(value), _wide(expected[name]), 1e-3)
                self.worst_buffer_error = max(self.worst_buffer_error or 0.0, error)


def relative_error(found: Tensor, expected: Tensor, least_scale: float) -> float:
    """Largest difference of two tensors, relative to the largest element expected or ``least_scale``.

    NaN on either side and different shapes give infinity.
    """
    if found.shape != expected.shape:
        return float("inf")
    if not found.numel():
        return 0.0
    difference = float((found.to(expected.dtype) - expected).abs().max())
    scale = max(_largest(expected), least_scale)
    error = difference / scale if scale else difference
    return error if error == error else float("inf")


def relative_difference(found: float, expected: float) -> float:
    """Difference of two numbers, relative to the one expected; NaN on either side gives infinity."""
    error = abs(found - expected) / max(abs(expected), 1e-12)
    return error if error == error else float("inf")


def _largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max()) if tensor.numel() else 0.0


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.complex128 if value.is_complex() else torch.float64)
