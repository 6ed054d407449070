"""The mode of autograd in which the user calls, and that in which the work is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from autopar.errors import UsageError


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Inside, a caller's ``torch.inference_mode()`` counts as ``torch.no_grad()``.

    What is made in inference mode stays without a version for good, and later steps could not train with it.
    """
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def check_trains() -> None:
    """Refuses a training step without gradients.

    Raises:
        UsageError: says what to call.
    """
    if not torch.is_grad_enabled():
        raise UsageError(
            "step() trains; call it outside torch.no_grad() and torch.inference_mode(), or use eval_step()"
        )
