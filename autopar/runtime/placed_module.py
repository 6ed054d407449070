"""What a plan has placed stays as it is: calls of ``nn.Module`` that would move it, cast it or take it for
the whole model are refused, with the call that does what was meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from autopar.errors import UsageError


class PlacedModule(nn.Module):
    """A module whose parameters lie where a plan has put them, in the plan's precision.

    Args:
        device: where they lie.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Does nothing for the device on which the model is; another device, a dtype or a memory format is
        refused.

        Raises:
            UsageError: says what decides instead.
        """
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.dtype):
                _refuse_cast(f"to({value})")
            if isinstance(value, torch.memory_format):
                raise UsageError(
                    f"to(memory_format={value}): the parameters of a model under a plan lie as its captured"
                    " program reads them; convert what the module computes with inside its forward(), as in"
                    f" images = images.to(memory_format={value})"
                )
            if isinstance(value, Tensor):
                _refuse_cast("to(tensor)")
            if isinstance(value, str | int | torch.device) and not isinstance(value, bool):
                self._check_device(torch.device(value))
        return self

    def cpu(self) -> Self:
        """Does nothing on a CPU, and is refused elsewhere."""
        return self.to("cpu")

    def cuda(self, device: int | torch.device | None = None) -> Self:
        """Does nothing on the model's own GPU, and is refused elsewhere."""
        return self.to("cuda" if device is None else device)

    def half(self) -> Self:
        """Refused: the plan says the precision."""
        _refuse_cast("half()")

    def bfloat16(self) -> Self:
        """Refused: the plan says the precision."""
        _refuse_cast("bfloat16()")

    def float(self) -> Self:
        """Refused: the plan says the precision."""
        _refuse_cast("float()")

    def double(self) -> Self:
        """Refused: the plan says the precision."""
        _refuse_cast("double()")

    def type(self, dst_type: torch.dtype | str) -> Self:
        """Refused: the plan says the precision."""
        _refuse_cast(f"type({dst_type})")

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]
        """Not offered: this rank holds pieces only.

        Raises:
            UsageError: always; says what to call.
        """
        raise UsageError(
            "a parallel model has no state_dict() of its own: call save(path) for a checkpoint, or"
            " full_state_dict() for whole tensors on every rank"
        )

    def load_state_dict(self, state_dict: Mapping[str, Any], *_: Any, **__: Any) -> NoReturn:
        """Not offered: this rank holds pieces only.

        Raises:
            UsageError: always; says what to call.
        """
        raise UsageError(
            f"a parallel model does not take a whole state dict (of {len(state_dict)} entries): give it to"
            " parallelize(..., init=state_dict), or call load(path) for a checkpoint"
        )

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> NoReturn:
        """What ``DistributedDataParallel`` asks first of a module that it wraps, which this one needs not.

        Raises:
            UsageError: always; says what to do.
        """
        raise UsageError(
            "a model under a plan averages the gradients of its data ranks by itself: leave out"
            " DistributedDataParallel(model), and train with model.step(batch)"
        )

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Not offered: neither a copy nor a pickle could talk to the other ranks.

        Raises:
            UsageError: always; says what to do.
        """
        raise UsageError(
            "a parallel model can be neither copied nor pickled: call save(path) for a checkpoint; for a"
            " moving average of the weights, keep clones of named_parameters(), which lie as these do"
        )

    def _check_device(self, wanted: torch.device) -> None:
        here = self._device
        if wanted.type != here.type or wanted.index not in (None, here.index):
            raise UsageError(
                f"the model is on {here}, where its rank runs, and stays there: do not move it to {wanted}"
            )


def _refuse_cast(call: str) -> NoReturn:
    raise UsageError(
        f"{call} would change the precision of a model under a plan: write 'precision: bf16' (or fp16, fp32)"
        " into the plan"
    )
