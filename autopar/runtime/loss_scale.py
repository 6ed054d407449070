"""Dynamic loss scaling for fp16, whose smallest gradients would otherwise vanish.

Micikevicius et al. 2018 (arXiv 1710.03740, section 3.2); factors and interval are the defaults of
``torch.amp.GradScaler``. The scale enters the backward pass as the gradient of the loss, an fp16
number: hence its upper end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from autopar.runtime.gradients import scale_gradients
from autopar.runtime.marked_sum import MarkedSum
from autopar.runtime.mesh import RankMesh
from autopar.runtime.storage import local_tensor

_LARGEST = 2.0**15
_GROWTH, _BACKOFF = 2.0, 0.5
_GROWTH_INTERVAL = 2000


class LossScale:
    """The factor by which a backward pass is scaled; 1 and never changed unless the compute dtype is fp16.

    Attributes:
        factor: the gradient of the loss.
    """

    def __init__(self, compute_dtype: torch.dtype) -> None:
        self.is_active = compute_dtype is torch.float16
        self.factor = _LARGEST if self.is_active else 1.0
        self._num_good_steps = 0

    @property
    def state(self) -> Tensor | None:
        """Factor and good steps in a row, for a checkpoint; None where nothing is scaled."""
        values = [self.factor, float(self._num_good_steps)]
        return torch.tensor(values, dtype=torch.float64) if self.is_active else None

    def restore(self, state: Tensor | None) -> None:
        """Goes on from what ``state`` gave."""
        if state is not None:
            self.factor, self._num_good_steps = float(state[0]), int(state[1])

    def unscale(self, parameters: Mapping[str, nn.Parameter], mesh: RankMesh) -> bool:
        """Undoes the scaling of complete gradients; a collective of all ranks.

        Where any has overflowed, all are dropped: optimisers then leave parameters and their own state as
        they are.

        Returns:
            Whether there still are gradients, for ``update``.
        """
        is_finite = all_finite([p.grad for p in parameters.values() if p.grad is not None], mesh)
        if is_finite:
            inverse = torch.tensor(1 / self.factor, device=mesh.device)
            scale_gradients(list(parameters.values()), inverse)
        else:
            for parameter in parameters.values():
                parameter.grad = None
        return is_finite

    def update(self, is_finite: bool) -> None:
        """Adapts the factor after a step, or after the update of a model that the user drives."""
        self._num_good_steps = self._num_good_steps + 1 if is_finite else 0
        if not is_finite:
            self.factor = max(self.factor * _BACKOFF, 1.0)
        elif self._num_good_steps == _GROWTH_INTERVAL:
            self.factor = min(self.factor * _GROWTH, _LARGEST)
            self._num_good_steps = 0


def all_finite(gradients: Iterable[Tensor], mesh: RankMesh) -> bool:
    """Whether no rank has an infinite or undefined gradient; a collective of all ranks."""
    number = MarkedSum(mesh, "ranks with an overflow")
    own = torch.zeros((), dtype=number.dtype, device=mesh.device)
    for gradient in gradients:
        local = local_tensor(gradient)
        if local.numel() and not bool(local.isfinite().all()):
            own.fill_(1.0)
            break
    number.begin(own)
    return not bool(number.wait())
