"""The module that is exported and that verify's reference runs: batch entries in, scalar loss out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from autopar.errors import UsageError, closest_match

MODULE_PREFIX = "module."  # names inside the wrapper are the user's names behind this prefix


class LossModule(nn.Module):
    """The user's module and loss as one module; made by :func:`wrap_model`.

    Attributes:
        module: the user's module.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Any, dict[str, Tensor]], Tensor] | None,
        keys: tuple[str, ...],
        forward_keys: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.module = module
        self._loss = loss
        self._keys = keys
        self._forward_keys = forward_keys

    def compute(self, batch: dict[str, Tensor]) -> Tensor:
        """The scalar loss of one micro-batch."""
        output = self.module(**{key: batch[key] for key in self._forward_keys})
        if self._loss is not None:
            return self._loss(output, batch)
        return _loss_of(output, type(self.module).__name__)


def wrap_model(
    model: nn.Module, loss: Callable[[Any, dict[str, Tensor]], Tensor] | None, keys: Sequence[str]
) -> LossModule:
    """Wraps ``model`` so that ``forward(<keys>)`` returns the scalar loss.

    The module is given the batch entries that its forward names (all of them, if it takes ``**kwargs``).
    ``torch.export`` makes the batch dynamic only for named arguments, hence the explicit signature.

    Raises:
        UsageError: the module's forward wants something that the batch does not hold.
    """
    keys = tuple(keys)

    def forward(self: LossModule, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.compute({**dict(zip(keys, args, strict=False)), **kwargs})

    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *keys)
    ]
    cast(Any, forward).__signature__ = inspect.Signature(parameters)
    wrapper = type("LossModule", (LossModule,), {"forward": forward, "__module__": __name__})
    return cast(LossModule, wrapper(model, loss, keys, _forward_keys(model, keys)))


def _forward_keys(model: nn.Module, keys: tuple[str, ...]) -> tuple[str, ...]:
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return keys
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for parameter in parameters:
        required = parameter.default is parameter.empty and parameter.name in named
        if required and parameter.name not in keys:
            raise UsageError(
                f"{type(model).__name__}.forward() needs '{parameter.name}', which example_batch() does not give"
                f"{closest_match(parameter.name, keys)} (it gives: {', '.join(keys)})"
            )
    return tuple(key for key in keys if key in named)


def _loss_of(output: object, model_name: str) -> Tensor:
    candidate = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", output)
    if isinstance(candidate, Tensor) and candidate.dim() == 0:
        return candidate
    shape = f" of shape {tuple(candidate.shape)}" if isinstance(candidate, Tensor) else ""
    raise UsageError(
        f"{model_name} returned {type(candidate).__name__}{shape}, not a scalar loss, and there is no loss() function; "
        "add one to the model file, for example:\n\n"
        "    def loss(output, batch):\n"
        '        return torch.nn.functional.mse_loss(output, batch["target"])\n'
    )
