"""Does the optimiser that is stepped hold the parallel model's parameters, and can it do with them?"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from autopar.errors import UsageError


class OptimizerWatch:
    """Notices updates of a model's parameters, and of others' in their place.

    Args:
        parameters: those of the model.
        approve: refuses an optimiser that is about to be stepped, if it is unfit.
        updated: is called after each of their updates.
    """

    def __init__(
        self,
        parameters: Callable[[], Iterable[nn.Parameter]],
        approve: Callable[[torch.optim.Optimizer], None],
        updated: Callable[[], None],
    ) -> None:
        self._parameters = parameters
        self._approve = approve
        self._updated = updated
        self._foreign = ""
        self._is_updated = True
        self._approved: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._hooks = (
            register_optimizer_step_pre_hook(self._look),
            register_optimizer_step_post_hook(self._note),
        )

    def begin(self) -> None:
        """Gradients have come: an update is due."""
        self._is_updated = False
        self._foreign = ""

    def settle(self) -> None:
        """No update is due."""
        self._is_updated = True

    def check(self) -> None:
        """Refuses to go on where gradients have come and another optimiser was stepped.

        Raises:
            UsageError: says how to make the optimiser.
        """
        if self._foreign and not self._is_updated and any(p.grad is not None for p in self._parameters()):
            raise UsageError(
                f"{self._foreign} was stepped, but holds none of the parallel model's parameters; make the"
                " optimiser from model.parameters() after parallelize()"
            )

    def close(self) -> None:
        """Ends the watch."""
        for hook in self._hooks:
            hook.remove()

    def _look(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if optimizer not in self._approved:
            self._approve(optimizer)
            self._approved.add(optimizer)

    def _note(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        own = {id(parameter) for parameter in self._parameters()}
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if own & held:
            self._is_updated = True
            self._updated()
        else:
            self._foreign = type(optimizer).__name__
