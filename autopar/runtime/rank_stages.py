"""The stages of one rank as one module: one set of parameters and buffers, under the model's own names.

A parameter that several stages of a rank read is one tensor where FSDP shards none of them. FSDP manages
every stage by itself: there the later stages hold guests, which take over the values of the first one's
parameter before a step and give their gradients to it afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from autopar.runtime.stage import StageModule
from autopar.runtime.storage import StoredParameter, local_tensor


class RankStages(nn.Module):
    """What one rank holds.

    Args:
        stages: by index over the whole pipeline, ascending; sharded already, where they are.
    """

    def __init__(self, stages: Mapping[int, StageModule]) -> None:
        super().__init__()
        self._by_index = dict(stages)
        self.stages = nn.ModuleList(self._by_index.values())
        # Now, for while FSDP has gathered them the modules hold whole parameters in their place.
        self._originals = {index: dict(stage.named_originals()) for index, stage in stages.items()}

    def items(self) -> Iterator[tuple[int, StageModule]]:
        """Stages by index, ascending."""
        yield from self._by_index.items()

    def named_originals(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters under their canonical names, each once."""
        seen: set[str] = set()
        for originals in self._originals.values():
            for name, parameter in originals.items():
                if name not in seen:
                    seen.add(name)
                    yield name, parameter

    def forms(self) -> dict[str, StoredParameter]:
        """Stored forms of the parameters."""
        return {
            name: self._by_index[index].stored(name)
            for index, originals in self._originals.items()
            for name in originals
        }

    def named_state(self) -> Mapping[str, Tensor]:
        """Buffers under their original names."""
        return {
            name: value for stage in self._by_index.values() for name, value in stage.named_state().items()
        }

    def refresh_guests(self) -> None:
        """Takes over the values of the parameters that the optimiser changes."""
        with torch.no_grad():
            for parameter, guest in self._guests():
                local_tensor(guest).copy_(local_tensor(parameter))

    def collect_gradients(self) -> None:
        """Adds the gradients of the guests to those of their parameters."""
        for parameter, guest in self._guests():
            if guest.grad is None:
                continue
            if parameter.grad is None:
                parameter.grad = guest.grad
            else:
                local_tensor(parameter.grad).add_(local_tensor(guest.grad))
            guest.grad = None

    def _guests(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        first: dict[str, nn.Parameter] = {}
        for originals in self._originals.values():
            for name, parameter in originals.items():
                if first.setdefault(name, parameter) is not parameter:
                    yield first[name], parameter
