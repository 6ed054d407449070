"""Building a model without memory: on fake CPU tensors, in the compute dtype.

Fake CPU tensors rather than meta tensors: a meta export bakes ``device=meta`` into the graph and takes other
branches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException

from autopar.errors import UsageError


def new_fake_mode() -> FakeTensorMode:
    """A fake mode that lets real tensors (constants in the user's code) take part."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def build_fake_model(
    build_model: Callable[[], nn.Module], mode: FakeTensorMode, dtype: torch.dtype
) -> nn.Module:
    """The model in training mode, its parameters and buffers fake and of the compute dtype, ties kept."""
    try:
        with mode:
            model = build_model()
    except UsageError as error:
        if not isinstance(error.__cause__, DataDependentOutputException):
            raise
        # The constructor reads a tensor's value (``torch.linspace(...).tolist()``): build for real, then drop
        # the data.
        model = build_model()
    replace_tensors(model, mode, dtype)
    return model.train()


def replace_tensors(model: nn.Module, mode: FakeTensorMode, dtype: torch.dtype) -> None:
    """Replaces parameters and buffers by fake ones, floating ones in ``dtype``; what was shared stays shared.

    ``Module.to`` cannot do this: it swaps tensors in place, which fake tensors refuse.
    """
    replaced: dict[int, Tensor] = {}
    kept: list[Tensor] = []  # ids are unique only among living objects

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in replaced:
            kept.append(tensor)
            wanted = dtype if tensor.is_floating_point() else tensor.dtype
            with mode:
                empty = torch.empty(tensor.shape, dtype=wanted, device="cpu")
                if isinstance(tensor, nn.Parameter):
                    empty = nn.Parameter(empty, tensor.requires_grad)
            replaced[id(tensor)] = empty
        return replaced[id(tensor)]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in list(tensors.items()):
                if tensor is not None:
                    tensors[name] = fake(tensor)  # type: ignore[assignment]


def fake_batch(batch: dict[str, Tensor], mode: FakeTensorMode, dtype: torch.dtype) -> dict[str, Tensor]:
    """Fake entries of the same shapes, floating ones in the compute dtype."""
    with mode:
        return {
            name: torch.empty(
                value.shape, dtype=dtype if value.is_floating_point() else value.dtype, device="cpu"
            )
            for name, value in batch.items()
        }
