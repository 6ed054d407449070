"""What a built model may not hold, because a plan would compute something else without a word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from autopar.capture.user_code import is_user_file
from autopar.errors import CaptureError


def check_model(model: nn.Module) -> None:
    """Refuses a model that cannot be trained as it stands; to be asked while its parameters are its own.

    Raises:
        CaptureError: it names the module or parameter, and what to do.
    """
    _check_modules(model)
    _check_parameters(model)
    hook = next(_gradient_hooks(model), None)
    if hook is not None:
        raise CaptureError(
            f"{hook}: hooks on gradients do not run under a plan; "
            "change the gradients in the training script between step() and the optimiser, or say it in the "
            "forward so that autograd derives it"
        )


def check_batch(batch: Mapping[str, Tensor]) -> None:
    """Refuses entries of the batch that would lose a part of their value.

    Raises:
        CaptureError: an entry is complex.
    """
    for name, value in batch.items():
        if value.is_complex():
            raise CaptureError(
                f"example_batch()['{name}'] is complex ({value.dtype}), which a plan cannot divide or send; "
                "give torch.view_as_real(...) of it, and call torch.view_as_complex in forward"
            )


def lazy_error(where: str) -> CaptureError:
    """That a model has a lazy module, made at ``where``."""
    return CaptureError(
        f"{where}: lazy modules have no shapes before the first batch, and a plan needs them; give the input "
        "size and use the module that is not lazy (nn.Linear for nn.LazyLinear)"
    )


def _check_modules(model: nn.Module) -> None:
    for name, module in model.named_modules():
        where = f"module '{name}'" if name else "the model"
        if isinstance(module, nn.SyncBatchNorm):
            raise CaptureError(
                f"{where} is a SyncBatchNorm, but a plan does not synchronise statistics: each data rank "
                "normalises its own micro-batch; use BatchNorm if that will do, or GroupNorm, which does not "
                "depend on the batch"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(
                f"{where} is a torch.jit script ({module.original_name}), into which capture cannot see; "
                "leave out torch.jit.script and use the plain module"
            )


def _check_parameters(model: nn.Module) -> None:
    parameters = dict(model.named_parameters())
    if not parameters:
        raise CaptureError(
            f"the model ({type(model).__name__}) has no parameters, so there is nothing to train; "
            "assign modules and nn.Parameter to attributes of the module, or lists of them as nn.ModuleList"
        )
    for name, parameter in parameters.items():
        if is_lazy(parameter):
            raise lazy_error(f"parameter '{name}'")
        if parameter.is_complex():
            raise CaptureError(
                f"parameter '{name}' is complex ({parameter.dtype}, shape {tuple(parameter.shape)}), and its "
                "imaginary part would be lost; keep a real parameter of shape "
                f"{(*parameter.shape, 2)} and use torch.view_as_complex(self.{name.rpartition('.')[2]}) in "
                "forward"
            )


def _gradient_hooks(model: nn.Module) -> Iterator[str]:
    """A description of each hook on a gradient, the place of its function first where that is known."""
    for name, parameter in model.named_parameters():
        for hooks in (parameter._backward_hooks, getattr(parameter, "_post_accumulate_grad_hooks", None)):
            for hook in (hooks or {}).values():
                yield f"{_place(hook)}parameter '{name}' has a gradient hook"
    for name, module in model.named_modules():
        for hook in (*module._backward_hooks.values(), *module._backward_pre_hooks.values()):
            which = f"module '{name}'" if name else "the model"
            yield f"{_place(hook)}{which} has a backward hook"


def _place(function: Any) -> str:
    code = getattr(function, "__code__", None)
    if code is None or not is_user_file(code.co_filename):
        return ""
    return f"{code.co_filename}:{code.co_firstlineno}: "
