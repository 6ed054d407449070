"""A plain full state dict as a file, one whole tensor in memory at a time: ``torch.save``'s or safetensors.

A ``.safetensors`` file holds tied parameters once, as Hugging Face's do; any other file is what
``torch.save`` makes of the plain model's ``state_dict()``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from autopar.capture.model_graph import TensorSpec
from autopar.errors import UsageError
from autopar.runtime import checkpoint_folders
from autopar.runtime.safetensors_file import read_places, write_tensors
from autopar.runtime.state_source import load_alone, open_source

LAYOUT_KEY = "training.layout"
"""Of a checkpoint: original shapes and tied names, as JSON."""


@dataclass(frozen=True, slots=True)
class StateLayout:
    """What the plain model's state dict holds.

    Attributes:
        specs: of parameters (of tied ones, of the first name) and persistent buffers.
        aliases: name -> the other names of the same tensor.
    """

    specs: Mapping[str, TensorSpec]
    aliases: Mapping[str, tuple[str, ...]]

    def to_json(self) -> str:
        """As text, for a checkpoint."""
        shapes = {name: spec.shape for name, spec in self.specs.items()}
        tied = {name: names for name, names in self.aliases.items() if names}
        return json.dumps({"shapes": shapes, "aliases": tied})


def write_state_dict(path: Path, layout: StateLayout, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Writes a state dict; what stood at ``path`` is replaced when all of it is there.

    Args:
        tensors: in the order of ``layout.specs``.
    """
    partial = path.with_name(f".{path.name}.partial")
    forms = {name: (spec.shape, spec.dtype) for name, spec in layout.specs.items()}
    try:
        write_tensors(partial, forms, tensors)
        if path.suffix != ".safetensors":
            _rewrite(partial, layout.aliases)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def export_checkpoint(checkpoint: str | Path, path: str | Path) -> None:
    """Writes the weights of a checkpoint as a plain full state dict, in one process.

    Args:
        checkpoint: folder that ``save`` wrote, under whatever plan.
        path: of the file; ``.safetensors`` for that format, in which tied parameters have their first name
            alone (load it with ``strict=False``); else as ``torch.save`` writes it, with all names.

    Raises:
        UsageError: there is no complete checkpoint.
    """
    place = checkpoint_folders.find_checkpoint(checkpoint)
    if place is None:
        raise UsageError(checkpoint_folders.explain_missing(checkpoint))
    source = open_source(checkpoint)
    described = {LAYOUT_KEY: ""}
    try:
        load_alone(described, place)
    except RuntimeError as error:
        raise UsageError(
            f"the checkpoint '{checkpoint}' does not say which shapes its tensors had; load it under a plan"
            " and call export()"
        ) from error
    layout = json.loads(described[LAYOUT_KEY])
    entries = source.entries
    shapes = {name: tuple(shape) for name, shape in layout["shapes"].items() if name in entries}
    specs = {name: TensorSpec(shape, entries[name].dtype) for name, shape in shapes.items()}
    aliases = {name: tuple(names) for name, names in layout["aliases"].items()}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, spec in specs.items():
            yield name, entries[name].read().reshape(spec.shape)

    write_state_dict(Path(path), StateLayout(specs, aliases), tensors())


def _rewrite(path: Path, aliases: Mapping[str, tuple[str, ...]]) -> None:
    """Makes of a safetensors file one of ``torch.save``, through mappings of its tensors."""
    state: dict[str, Tensor] = {}
    for name, place in read_places(path).items():
        tensor = place.read()
        state.update(dict.fromkeys((name, *aliases.get(name, ())), tensor))
    saved = path.with_name(f"{path.name}.pt")
    try:
        torch.save(state, saved)
        saved.replace(path)
    finally:
        saved.unlink(missing_ok=True)
