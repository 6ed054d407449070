"""Whole tensors of a parallel model, one at a time: parameters, gradients, buffers under their own names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from autopar.runtime.assemble import Assembly
from autopar.runtime.gather import gather
from autopar.runtime.mesh import RankMesh
from autopar.runtime.storage import on_device


class WholeState:
    """Gathers what the ranks hold.

    Args:
        trained: this rank's parameters as the optimiser changes them.
    """

    def __init__(
        self, assembly: Assembly, mesh: RankMesh, trained: Callable[[], Mapping[str, nn.Parameter]]
    ) -> None:
        self._assembly = assembly
        self._mesh = mesh
        self._trained = trained

    def parameters(self) -> Iterator[tuple[str, Tensor | None]]:
        """Whole parameters, to be consumed by all ranks alike."""
        return self._whole(self._trained().get)

    def gradients(self) -> Iterator[tuple[str, Tensor | None]]:
        """Whole gradients (None where there is none), to be consumed by all ranks alike."""
        own = self._trained()
        return self._whole(lambda name: own[name].grad)

    def buffers(self) -> Iterator[tuple[str, Tensor | None]]:
        """Whole persistent buffers, to be consumed by all ranks alike."""
        ranks, own = self._assembly.buffer_ranks, self.own_buffers()
        names = [name for name in ranks if name in self._assembly.persistent]
        return gather(names, ranks, self._assembly.buffer_forms, own.get, self._mesh)

    def entries(self) -> Iterator[tuple[str, Tensor]]:
        """A state dict, entry by entry, to be consumed by all ranks alike; of tied parameters the first."""
        for values in (self.parameters(), self.buffers()):
            for name, value in values:
                assert value is not None
                yield name, value

    def own_buffers(self) -> dict[str, Tensor]:
        """This rank's pieces of the persistent buffers."""
        forms = self._assembly.buffer_forms
        return {
            name: forms[name].wrap(value, self._mesh.tensor_mesh).detach()
            for name, value in self._assembly.stages.named_state().items()
            if name in self._assembly.persistent
        }

    def _whole(self, piece: Callable[[str], Tensor | None]) -> Iterator[tuple[str, Tensor | None]]:
        ranks, computing = self._assembly.parameter_ranks, dict(self._assembly.stages.named_originals())

        def reachable(name: str) -> Tensor | None:
            found = piece(name)
            like = computing.get(name)
            mesh = like.device_mesh if isinstance(like, DTensor) else None
            return None if found is None else on_device(found.detach(), self._mesh.device, mesh)

        return gather(list(ranks), ranks, self._assembly.stages.forms(), reachable, self._mesh)
