"""What of a parallel model comes as whole tensors, as the plain model holds them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from torch import Tensor

from autopar.runtime.assemble import Assembly
from autopar.runtime.export import write_state_dict
from autopar.runtime.mesh import RankMesh
from autopar.runtime.placed_module import PlacedModule
from autopar.runtime.same_outcome import same_outcome
from autopar.runtime.whole_state import WholeState


class WholeTensors(PlacedModule):
    """A module that gathers its state from all ranks; every method is a collective of theirs."""

    _assembly: Assembly
    _mesh: RankMesh
    _whole: WholeState

    def export(self, path: str | Path) -> None:
        """Writes the plain model's full state dict to a file: as ``torch.save`` does, or, if ``path`` ends in
        ``.safetensors``, in that format.

        Of tied parameters, a ``.safetensors`` file holds the first name alone, as Hugging Face's do: load it
        with ``load_state_dict(safetensors.torch.load_file(path), strict=False)`` into a model that ties them.
        Any other file holds all names.

        A collective of all ranks; rank 0 writes, one whole tensor in memory at a time. Buffers are those of
        data rank 0.

        Raises:
            DistributedError: rank 0 could not write.
        """
        group = self._mesh.world_group
        with self._guard_together(f"export to {path}"), same_outcome(f"write '{path}'", group):
            entries = self._whole.entries()
            try:
                if self._mesh.rank == 0:
                    write_state_dict(Path(path), self._assembly.layout, entries)
            finally:
                for _ in entries:  # the others' part, also where writing has failed
                    pass

    def full_state_dict(self) -> dict[str, Tensor]:
        """Whole parameters and persistent buffers as the plain model's ``load_state_dict`` takes them, on
        every rank: copies, which training does not change.

        A collective of all ranks. Buffers are those of data rank 0.
        """
        found: dict[str, Tensor] = {}
        with self._guard_together("full_state_dict"):
            for name, value in self._whole.entries():
                names = (name, *self._assembly.layout.aliases.get(name, ()))
                found.update(dict.fromkeys(names, value.clone()))
        return found

    def full_gradients(self) -> dict[str, Tensor]:
        """Whole gradients by canonical parameter name, on every rank, as copies; parameters without one are
        left out.

        A collective of all ranks.
        """
        with self._guard_together("full_gradients"):
            return {name: value.clone() for name, value in self._whole.gradients() if value is not None}

    def whole_parameters(self) -> Iterator[tuple[str, Tensor | None]]:
        """Whole parameters one at a time, to be consumed by all ranks alike."""
        return self._guarded("whole_parameters", self._whole.parameters())

    def whole_gradients(self) -> Iterator[tuple[str, Tensor | None]]:
        """Whole gradients one at a time (None where there is none), to be consumed by all ranks alike."""
        return self._guarded("whole_gradients", self._whole.gradients())

    def whole_buffers(self) -> Iterator[tuple[str, Tensor | None]]:
        """Whole persistent buffers one at a time, to be consumed by all ranks alike."""
        return self._guarded("whole_buffers", self._whole.buffers())

    def _guard(self, label: str) -> AbstractContextManager[None]:
        """Around whatever the user calls that other ranks take part in."""
        raise NotImplementedError

    def _guard_together(self, label: str) -> AbstractContextManager[None]:
        """As ``_guard``, once all ranks have come to the same call."""
        raise NotImplementedError

    def _guarded(
        self, label: str, values: Iterator[tuple[str, Tensor | None]]
    ) -> Iterator[tuple[str, Tensor | None]]:
        """Watches each collective, but not what the user does between them."""
        while True:
            with self._guard(label):
                entry = next(values, None)
            if entry is None:
                return
            yield entry
