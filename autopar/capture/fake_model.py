"""Building a model without memory: on fake CPU tensors, in the compute dtype.

Fake CPU tensors rather than meta tensors: a meta export bakes ``device=meta`` into the graph and takes other
branches.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from autopar.capture.conversions import no_conversions
from autopar.capture.model_checks import check_model, lazy_error
from autopar.capture.user_code import error_line


def new_fake_mode() -> FakeTensorMode:
    """A fake mode that lets real tensors (constants in the user's code) take part."""
    return FakeTensorMode(allow_non_fake_inputs=True)


aten = torch.ops.aten

_FILLS = {
    aten.normal_.default,
    aten.uniform_.default,
    aten.erfinv_.default,
    aten.zero_.default,
    aten.fill_.Scalar,
}


class _AcceptSamples(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Skips initialisers that only write values, as there are none.

    Where one (``trunc_normal_``) asks whether to draw again, the answer is no.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _FILLS and isinstance(args[0], FakeTensor) and args[0].dim() > 0:
            return args[0]
        asked = func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor)
        if asked and args[0].dtype is torch.bool:
            return False
        return func(*args, **(kwargs or {}))


def build_fake_model(
    build_model: Callable[[], nn.Module], mode: FakeTensorMode, dtype: torch.dtype
) -> nn.Module:
    """The model in training mode, its parameters and buffers fake and of the compute dtype, ties kept.

    A constructor that computes with values (``torch.linspace(...).tolist()``) is run for real, and the data
    dropped. Conversions to another dtype or device change nothing.

    Raises:
        CaptureError: the model holds what no plan can train.
    """
    try:
        with warnings.catch_warnings(), no_conversions(), mode, _AcceptSamples():  # type: ignore[no-untyped-call]
            # copy.deepcopy of a layer (nn.TransformerEncoder) asks, and does no harm.
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
            model = build_model()
    except Exception as error:
        if "UninitializedParameter" in str(error):
            raise lazy_error(error_line(error) or "build_model()") from error
        if not _needs_values(error):
            raise
        with no_conversions():
            model = build_model()
    check_model(model)
    replace_tensors(model, mode, dtype)
    return model.train()


def _needs_values(error: BaseException | None) -> bool:
    return error is not None and (
        isinstance(error, DataDependentOutputException) or _needs_values(error.__cause__)
    )


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
            empty = torch.empty(tensor.shape, dtype=wanted, device="cpu")
            if isinstance(tensor, nn.Parameter):
                empty = nn.Parameter(empty, tensor.requires_grad)
            replaced[id(tensor)] = empty
        return replaced[id(tensor)]

    with mode:
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
