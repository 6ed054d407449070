"""The module that is exported and that verify's reference runs: batch entries in, scalar loss out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from autopar.capture.module_output import OutputForm, describe_output
from autopar.errors import UsageError, closest_match

MODULE_PREFIX = "module."  # names inside the wrapper are the user's names behind this prefix


class _DoubleInsteadOfFloat(TorchFunctionMode):
    """Carries out explicit casts to float32 in float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def double(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        if func is Tensor.float:
            func = Tensor.double
        elif (
            getattr(func, "__name__", "") in ("grouped_mm", "_grouped_mm") and args[0].dtype is torch.float64
        ):
            func = _grouped_mm
        return func(*map(double, args), **{name: double(value) for name, value in (kwargs or {}).items()})


def _grouped_mm(x: Tensor, weights: Tensor, offs: Tensor, **_: object) -> Tensor:
    """``F.grouped_mm`` in float64, which torch lacks: rows up to ``offs[i]`` times ``weights[i]``."""
    sizes = offs.diff(prepend=offs.new_zeros(1)).tolist()
    return torch.cat([rows @ weight for rows, weight in zip(torch.split(x, sizes), weights, strict=True)])


@contextmanager
def compute_in(dtype: torch.dtype) -> Iterator[None]:
    """Runs a model in ``dtype``: tensors that its code creates come out in it.

    Under float64, which is for exact comparisons, the model's own casts to float32 (norms, losses) become
    casts to float64; otherwise they would limit every comparison to the precision of float32.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with _DoubleInsteadOfFloat() if dtype is torch.float64 else nullcontext():
            yield
    finally:
        torch.set_default_dtype(before)


@dataclass
class LastOutput:
    """What a module has returned."""

    form: OutputForm | None = None
    tensors: tuple[Tensor, ...] = ()


class LossModule(nn.Module):
    """The user's module and loss as one module; made by :func:`wrap_model`.

    Attributes:
        module: the user's module.
        last_output: structure and tensors of what it last returned, if that is kept.
        around: a context in which the user's code is called.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Any, dict[str, Tensor]], Tensor] | None,
        keys: tuple[str, ...],
        forward_keys: tuple[str, ...],
        keeps_output: bool,
    ) -> None:
        super().__init__()
        self.module = module
        self.last_output = LastOutput() if keeps_output else None
        self.around: Callable[[], AbstractContextManager[None]] = nullcontext
        self._loss = loss
        self._keys = keys
        self._forward_keys = forward_keys

    def compute(self, batch: dict[str, Tensor]) -> Tensor:
        """The scalar loss of one micro-batch."""
        with compute_in(self.dtype), self.around():
            output = self.module(**{key: batch[key] for key in self._forward_keys})
            if self.last_output is not None:
                # Aliases: where an operator of the loss returns its very argument, as broadcast_tensors does,
                # the tracer would take the output for that operator's result.
                form, tensors = describe_output(output)
                aliases = tuple(torch.ops.aten.alias.default(tensor) for tensor in tensors)
                self.last_output.form, self.last_output.tensors = form, aliases
            if self._loss is not None:
                loss = _scalar(self._loss(output, batch), "loss()")
            else:
                loss = _loss_of(output, type(self.module).__name__)
            self._check_trains(loss)
            return loss

    def _check_trains(self, loss: Tensor) -> None:
        if not loss.is_floating_point():
            raise UsageError(
                f"the loss is {loss.dtype}, of which there is no gradient; return a real floating-point"
                " number"
            )
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.module.parameters())
        if trains and not loss.requires_grad:
            raise UsageError(
                "the loss depends on no parameter that requires a gradient, so that nothing would be trained;"
                " leave out what cuts it off in forward or loss: detach(), torch.no_grad(), argmax,"
                " comparisons"
            )

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype: that of the first floating parameter."""
        floating = (p.dtype for p in self.module.parameters() if p.is_floating_point())
        return next(floating, torch.float32)


def wrap_model(
    model: nn.Module,
    loss: Callable[[Any, dict[str, Tensor]], Tensor] | None,
    keys: Sequence[str],
    keeps_output: bool = False,
) -> LossModule:
    """Wraps ``model`` so that ``forward(<keys>)`` returns the scalar loss.

    With ``keeps_output`` it returns a tuple: the loss, and the tensors of the module's output.

    The module is given the batch entries that its forward names (all of them, if it takes ``**kwargs``).
    ``torch.export`` makes the batch dynamic only for named arguments, hence the explicit signature.

    Raises:
        UsageError: the module's forward wants something that the batch does not hold.
    """
    keys = tuple(keys)

    def forward(self: LossModule, *args: Tensor, **kwargs: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = self.compute({**dict(zip(keys, args, strict=False)), **kwargs})
        return found if self.last_output is None else (found, *self.last_output.tensors)

    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *keys)
    ]
    cast(Any, forward).__signature__ = inspect.Signature(parameters)
    wrapper = type("LossModule", (LossModule,), {"forward": forward, "__module__": __name__})
    return cast(LossModule, wrapper(model, loss, keys, _forward_keys(model, keys), keeps_output))


def _forward_keys(model: nn.Module, keys: tuple[str, ...]) -> tuple[str, ...]:
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return keys
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for parameter in parameters:
        required = parameter.default is parameter.empty and parameter.name in named
        if required and parameter.name not in keys:
            raise UsageError(
                f"{type(model).__name__}.forward() needs '{parameter.name}', "
                f"which example_batch() does not give{closest_match(parameter.name, keys)} "
                f"(it gives: {', '.join(keys)})"
            )
    return tuple(key for key in keys if key in named)


def _loss_of(output: object, model_name: str) -> Tensor:
    candidate = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", output)
    if isinstance(candidate, Tensor) and candidate.dim() == 0:
        return candidate
    raise UsageError(
        f"{model_name} returned {_describe(candidate)}, not a scalar loss, and there is no loss() function; "
        "add one to the model file, for example:\n\n"
        "    def loss(output, batch):\n"
        '        return torch.nn.functional.mse_loss(output, batch["target"])\n'
    )


def _scalar(loss: object, where: str) -> Tensor:
    if isinstance(loss, Tensor) and loss.dim() == 0:
        return loss
    raise UsageError(f"{where} returned {_describe(loss)}, not a scalar; end it with .mean() or .sum()")


def _describe(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    # While tracing, the batch size is a symbol.
    return f"a tensor of shape ({', '.join(str(d) if isinstance(d, int) else 'batch' for d in value.shape)})"
