"""The single process that every plan is compared with: the user's module, run eagerly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from autopar.capture.target import ModelSource
from autopar.capture.wrapper import wrap_model
from autopar.runtime.initialise import Initialisation, load_initial_state
from autopar.verify.constant_draws import ConstantDraws
from autopar.verify.without_dropout import DropoutOff

# Those of floating-point tensors alone: ``Module.to`` makes complex buffers real.
_CONVERSIONS = {
    torch.float64: nn.Module.double,
    torch.float32: nn.Module.float,
    torch.float16: nn.Module.half,
    torch.bfloat16: nn.Module.bfloat16,
}


class Reference:
    """The unparallelised model with the starting weights of every plan.

    Args:
        source: of the model.
        keys: of the batch.
        seed, init: of the starting weights.
        dtype: of parameters and floating batch entries.
        keep_dropout: leave dropout, and whatever else is drawn, as the model has it.
        loss_factor: what the loss is multiplied by before, and gradients divided by after, the backward pass.
    """

    def __init__(
        self,
        source: ModelSource,
        keys: Sequence[str],
        *,
        seed: int = 0,
        init: Initialisation | str = Initialisation.SEEDED,
        dtype: torch.dtype = torch.float64,
        keep_dropout: bool = False,
        loss_factor: float = 1.0,
    ) -> None:
        model = source.build_model()
        load_initial_state(model, source.build_model, seed, init)
        self.model = _CONVERSIONS[dtype](model).train()
        self._wrapped = wrap_model(self.model, source.loss, keys)
        self._dtype = dtype
        self._keep_dropout = keep_dropout
        self.loss_factor = loss_factor

    def step(self, micro_batches: Sequence[Mapping[str, Tensor]]) -> float:
        """Adds the mean gradient of the micro-batches to the parameters' gradients.

        Returns:
            Mean loss.
        """
        total = 0.0
        for batch in micro_batches:
            given = {
                key: value.to(self._dtype) if value.is_floating_point() else value
                for key, value in batch.items()
            }
            if self._keep_dropout:
                loss = self._wrapped(**given)
            else:
                with DropoutOff(), ConstantDraws():  # type: ignore[no-untyped-call]
                    loss = self._wrapped(**given)
            (loss * (self.loss_factor / len(micro_batches))).backward()
            total += loss.item() / len(micro_batches)
        for parameter in self.model.parameters():
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()  # as those of every plan are
        return total

    def step_by_step(self, micro_batches: Sequence[Mapping[str, Tensor]]) -> tuple[float, dict[str, Tensor]]:
        """As ``step`` on parameters without gradients, but adds gradients up in float64 and returns them."""
        total = 0.0
        sums: dict[str, Tensor] = {}
        for batch in micro_batches:
            total += self.step([batch]) / len(micro_batches)
            for name, parameter in self.model.named_parameters():
                if parameter.grad is not None:
                    gradient = parameter.grad.double() / (self.loss_factor * len(micro_batches))
                    sums[name] = sums[name] + gradient if name in sums else gradient
                    parameter.grad = None
        return total, sums

    def gradients(self) -> dict[str, Tensor | None]:
        """Gradients by canonical name."""
        return {name: parameter.grad for name, parameter in self.model.named_parameters()}

    def buffers(self) -> dict[str, Tensor]:
        """Buffers by name."""
        return dict(self.model.named_buffers())
