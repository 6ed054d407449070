"""Conversions that a model applies to itself while it is built: ``.to(...)``, ``.float()``, ``.cuda()``.

The plan says in which dtype and on which device a model runs, so they change nothing. They could not: torch
swaps tensors in place there, which fake tensors refuse.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def no_conversions() -> Iterator[None]:
    """Inside, modules stay as they are when they are told to change dtype or device.

    A conversion to a complex dtype is carried out, since it makes another model.
    """
    apply, to = nn.Module._apply, nn.Module.to

    def keep(module: nn.Module, *_: Any, **__: Any) -> nn.Module:
        return module

    def convert(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        asked = (*args, *kwargs.values())
        dtypes = [getattr(value, "dtype", value) for value in asked]
        if any(isinstance(dtype, torch.dtype) and dtype.is_complex for dtype in dtypes):
            _make_complex(module)
        return module

    nn.Module._apply, nn.Module.to = keep, convert  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module._apply, nn.Module.to = apply, to  # type: ignore[method-assign]


def _make_complex(module: nn.Module) -> None:
    for inner in module.modules():
        for name, parameter in list(inner._parameters.items()):
            if parameter is not None and parameter.is_floating_point():
                data = parameter.detach().to(torch.complex64)
                inner._parameters[name] = nn.Parameter(data, parameter.requires_grad)
