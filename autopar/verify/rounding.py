"""Verifying in the plan's own precision, where two right runs agree only as far as rounding lets them.

Three runs start every step from the same weights: the parallel one and one process, both in the plan's
precision, and one process in float64. The errors of the first two against the third are compared. A right
plan rounds the same products and sums, in another order and once more for every summand of a collective, so
that its errors are of the size of the single process's; a wrong one (a gradient not summed, or summed twice)
is off by the size of the gradient itself.

The bound: ``FACTOR`` times the worst error that the single process makes on any parameter, but at least
``LEAST_ROUNDOFFS`` units of roundoff. The worst of a few dozen parameters differs by up to about 2 between
two runs that round in different places (measured on the example models in bf16 and fp16 over meshes of 4);
``FACTOR`` leaves as much again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from autopar.capture.target import ModelSource
from autopar.verify.compare import WorstErrors, relative_difference
from autopar.verify.reference import Reference

FACTOR = 4.0
LEAST_ROUNDOFFS = 8.0
# A gradient much smaller than the others is lost in their rounding.
_LEAST_SCALE = 1e-2
# Keeps the single process's fp16 gradients from vanishing; halved where they overflow.
_LOSS_FACTOR = 2.0**15


class RoundedReferences(WorstErrors):
    """One process in the plan's precision and one in float64; errors of the parallel run against the latter,
    of gradients in the 2-norm.

    Attributes:
        allowed: the bound on the errors.
    """

    def __init__(
        self, source: ModelSource, keys: Sequence[str], dtype: torch.dtype, seed: int, init: str
    ) -> None:
        super().__init__()
        factor = _LOSS_FACTOR if dtype is torch.float16 else 1.0
        self._exact = Reference(source, keys, seed=seed, init=init)
        self._rounded = Reference(source, keys, seed=seed, init=init, dtype=dtype, loss_factor=factor)
        self.allowed = LEAST_ROUNDOFFS * torch.finfo(dtype).eps / 2

    def take_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Goes on from the parallel run's weights, so that rounding of one step does not add to the next."""
        with torch.no_grad():
            for reference in (self._exact, self._rounded):
                for name, parameter in reference.model.named_parameters():
                    parameter.copy_(weights[name])
                    parameter.grad = None

    def compare(
        self,
        loss: float,
        gradients: Mapping[str, Tensor | None],
        micro_batches: Sequence[Mapping[str, Tensor]],
    ) -> None:
        """Compares one step of the parallel run."""
        exact_loss = self._exact.step(micro_batches)
        rounded_loss, rounded = self._rounded_step(micro_batches)
        exact = self._exact.gradients()
        scale = max((float(g.norm()) for g in exact.values() if g is not None), default=0.0) * _LEAST_SCALE
        one_process = relative_difference(rounded_loss, exact_loss)
        self.add_loss(loss, exact_loss)
        for name, expected in exact.items():
            found = gradients.get(name)
            if expected is None or found is None:
                if expected is not None or found is not None:
                    self.note_missing(name)
                continue
            one_process = max(one_process, _norm_error(rounded[name], expected, scale))
            self.note_gradient(name, _norm_error(found, expected, scale))
        if math.isfinite(one_process):  # else the precision itself does not do for this model
            self.allowed = max(self.allowed, FACTOR * one_process)

    def _rounded_step(self, micro_batches: Sequence[Mapping[str, Tensor]]) -> tuple[float, dict[str, Tensor]]:
        while True:
            loss, gradients = self._rounded.step_by_step(micro_batches)
            is_finite = all(bool(value.isfinite().all()) for value in gradients.values())
            if is_finite or self._rounded.loss_factor <= 1.0:
                return loss, gradients
            self._rounded.loss_factor /= 2


def _norm_error(found: Tensor, expected: Tensor, least_scale: float) -> float:
    """2-norm of the difference relative to that of ``expected``, or ``least_scale``; NaN is infinite."""
    if found.shape != expected.shape:
        return float("inf")
    scale = max(float(expected.norm()), least_scale, torch.finfo(torch.float64).tiny)
    error = float((found.to(expected.dtype) - expected).norm()) / scale
    return error if error == error else float("inf")
