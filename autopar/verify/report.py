"""What a verification found."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from autopar.errors import DifferenceError


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The parallel run against the single process, over ``num_steps`` optimiser steps.

    Attributes:
        num_steps: optimiser steps compared.
        tolerance: largest error that counts as equal: given, or found where the plan's precision is kept.
        worst_loss_error: relative error of the loss.
        worst_gradient_error: largest difference of a gradient's elements, relative to the largest element of
            that gradient (or a thousandth of the largest of all gradients, where that is more); the 2-norm
            in the place of the largest element where the plan's precision is kept.
        worst_parameter: whose gradient it is; with two runs of the same values, any.
        missing: parameters with a gradient on one side only.
        worst_buffer_error: as for gradients, of buffers (BatchNorm statistics) after the last step; None
            where the data ranks keep statistics of their own samples.
        notes: what was changed for the comparison, for people.
        carried_buffers: buffers that the model changes and computes with, where data ranks do so apart.
    """

    num_steps: int
    tolerance: float
    worst_loss_error: float
    worst_gradient_error: float
    worst_parameter: str
    missing: tuple[str, ...] = ()
    worst_buffer_error: float | None = None
    notes: tuple[str, ...] = ()
    carried_buffers: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything agrees within the tolerance."""
        errors = [self.worst_loss_error, self.worst_gradient_error, self.worst_buffer_error or 0.0]
        return not self.missing and all(error <= self.tolerance for error in errors)

    def check(self) -> None:
        """Raises where the runs disagree.

        Raises:
            DifferenceError: names the worst parameter and the errors.
        """
        if self.ok:
            return
        if self.missing:
            raise DifferenceError(
                f"the parallel run and the single process disagree: {len(self.missing)} parameters have a"
                " gradient on"
                f" one side only, the first is '{self.missing[0]}'; this is a defect of autopar, please"
                " report the plan"
            )
        raise DifferenceError(
            f"the parallel run and the single process disagree: gradient of '{self.worst_parameter}' by"
            f" {self.worst_gradient_error:.1e}, loss by {self.worst_loss_error:.1e} (tolerance"
            f" {self.tolerance:.1e}); {self._reason}"
        )

    @property
    def _reason(self) -> str:
        if not self.carried_buffers:
            return "this is a defect of autopar, please report the plan"
        others = f" and {len(self.carried_buffers) - 1} more" if len(self.carried_buffers) > 1 else ""
        return (
            f"the model keeps a buffer '{self.carried_buffers[0]}'{others} which each data rank updates in"
            " its own micro-batches, as under DistributedDataParallel, and one process in all: such runs are"
            " never equal; verify a plan with 'data: 1' in its mesh instead"
        )

    def to_json(self) -> dict[str, Any]:
        """The document of ``verify --json``; an infinite error is written as null."""
        fields = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }
        return {"schema": 1, "ok": self.ok, **fields}
