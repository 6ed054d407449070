"""What the user's module returns, and where the captured graph computes it.

The graph ends in the loss. Tensors of the output are marked in it by name, so that whoever drives the model
by himself gets them in the structure that the module gives them: a tensor, tuples, dicts, dataclasses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import TreeSpec, keystr, tree_flatten, tree_flatten_with_path, tree_unflatten

_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor of a module's output.

    Attributes:
        label: place in the output, for people: ``.logits``, ``[0]``; empty where the output is one tensor.
        value: global name of the value; empty where the captured graph does not compute it, because the loss
            does not depend on it.
        batch_key: the entry of the batch that is handed through, in the place of ``value``.
        batch_dim: the dim that counts samples; None where there is none, or it is not known.
        needs: entries of the batch that it depends on.
        is_loss: whether it is the loss.
    """

    label: str
    value: str
    batch_key: str
    batch_dim: int | None
    needs: frozenset[str]
    is_loss: bool


@dataclass(frozen=True, slots=True)
class OutputForm:
    """The structure of a module's output.

    Attributes:
        structure: of all leaves.
        leaves: for each, the position of its tensor among the distinct tensors, or what it is. Objects that
            are neither tensors nor plain values (caches) are None.
        labels: of the distinct tensors.
    """

    structure: TreeSpec
    leaves: tuple[tuple[int, Any], ...]
    labels: tuple[str, ...]

    def rebuild(self, tensors: Sequence[Any]) -> Any:
        """The output with other tensors, or with what stands in their place."""
        found = [tensors[index] if index >= 0 else plain for index, plain in self.leaves]
        return tree_unflatten(found, self.structure)


@dataclass(frozen=True, slots=True)
class ModuleOutput:
    """The output of the user's module.

    Attributes:
        form: its structure.
        tensors: its distinct tensors.
    """

    form: OutputForm
    tensors: tuple[OutputTensor, ...]


def describe_output(output: Any) -> tuple[OutputForm, tuple[torch.Tensor, ...]]:
    """The structure of an output and its distinct tensors."""
    leaves, structure = tree_flatten(output)
    positions: dict[int, int] = {}
    tensors: list[torch.Tensor] = []
    labels: list[str] = []
    found: list[tuple[int, Any]] = []
    for leaf, label in zip(leaves, _labels(output, len(leaves)), strict=True):
        if not isinstance(leaf, torch.Tensor):
            found.append((-1, leaf if isinstance(leaf, _PLAIN) else None))
            continue
        if id(leaf) not in positions:
            positions[id(leaf)] = len(tensors)
            tensors.append(leaf)
            labels.append(label)
        found.append((positions[id(leaf)], None))
    return OutputForm(structure, tuple(found), tuple(labels)), tuple(tensors)


def _labels(output: Any, count: int) -> list[str]:
    try:
        return [keystr(path) for path, _ in tree_flatten_with_path(output)[0]]
    except ValueError:  # of a class that does not say what its parts are called
        return [f"[{index}]" for index in range(count)]
