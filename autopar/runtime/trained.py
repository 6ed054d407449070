"""This rank's parameters as the optimiser changes them, which are not always those that compute."""

from __future__ import annotations

import torch
from torch import nn

from autopar.errors import UsageError
from autopar.runtime.assemble import Assembly
from autopar.runtime.storage import local_tensor
from autopar.runtime.views import version


class TrainedParameters:
    """The parameters of one rank for its optimiser."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._seen_versions: tuple[int, ...] | None = None
        self._trains = {name: parameter.requires_grad for name, parameter in self.named().items()}

    def named(self) -> dict[str, nn.Parameter]:
        """By canonical name; masters in host memory where the optimiser is offloaded."""
        parameters = dict(self._assembly.stages.named_originals())
        masters = self._assembly.masters
        return parameters if masters is None else {**parameters, **masters.parameters}

    def check_frozen(self) -> None:
        """Refuses what was frozen, or set free, since the model was built.

        The programs compute the gradients that the model wanted then; ranks that share a parameter wait for
        one another's.

        Raises:
            UsageError: names a parameter.
        """
        for name, parameter in self.named().items():
            if parameter.requires_grad != self._trains[name]:
                change = "was frozen" if self._trains[name] else "was set free to train"
                raise UsageError(
                    f"'{name}' {change} after parallelize(), which its programs do not follow; set"
                    " requires_grad in build_model(), or leave the parameter out of the optimiser"
                )

    def take_over(self) -> None:
        """Lets the stages compute with what the optimiser has made of the parameters."""
        if self._assembly.masters is not None:
            self._assembly.masters.give_values()
        self._assembly.stages.refresh_guests()
        self._assembly.copies.refresh(dict(self._assembly.stages.named_originals()))

    def take_over_changes(self) -> None:
        """As ``take_over``, unless nothing has changed: a graph may wait for its backward pass."""
        with torch.no_grad():  # of a DTensor, the optimiser writes to the whole, others to the piece
            found = tuple(version(x) for p in self.named().values() for x in (p, local_tensor(p)))
        if found != self._seen_versions:
            self.take_over()
            self._seen_versions = found

    def forget(self) -> None:
        """Whatever was seen, the next look finds a change."""
        self._seen_versions = None
