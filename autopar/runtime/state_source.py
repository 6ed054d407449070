"""Starting weights that exist already: a state dict, a file of one, safetensors, a folder of
torch.distributed.checkpoint.

Whatever it is, a tensor is read when it is asked for, and of a file only the part that is copied.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from autopar.errors import UsageError, closest_match
from autopar.runtime import checkpoint_folders
from autopar.runtime.safetensors_file import read_places

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

Given = Mapping[str, Tensor] | str | Path
"""What ``init`` may be besides a way to draw."""

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PLAIN = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool})
_OF_THE_MODEL = (
    "give the weights of the model that build_model() makes; where a library renames them while it loads, its"
    " loaded model's state_dict()"
)


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """A tensor that can be had.

    Attributes:
        shape: of the whole tensor; fused parts may be a dim of their own.
        dtype: as it is stored.
        read: gives it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class StateSource:
    """Tensors by the names of a model's ``state_dict``.

    Attributes:
        place: for messages.
        entries: by name.
        may_hold_more: whether names that the model does not have are passed over.
        may_be_fused: whether fused parts may be a dim of their own.
    """

    place: str
    entries: Mapping[str, SourceEntry]
    may_hold_more: bool = False
    may_be_fused: bool = False

    def read(self, names: tuple[str, ...]) -> Tensor:
        """The value of a tensor that is there under at least one of its names.

        Raises:
            UsageError: it has different values under two of them.
        """
        first, *others = (name for name in names if name in self.entries)
        value = self.entries[first].read()
        for other in others:
            again = self.entries[other].read()
            if again.data_ptr() != value.data_ptr() and not torch.equal(again, value):
                raise UsageError(
                    f"{self.place} has different values for '{first}' and '{other}', which are one tensor in"
                    " the model; leave one of them out, or build the model without tying them"
                )
        return value

    def check(self, wanted: Mapping[tuple[str, ...], Tensor], others: frozenset[str]) -> None:
        """Compares with a model.

        Args:
            wanted: all names of a tensor -> the tensor, with whatever values.
            others: names that may be there, but are not read.

        Raises:
            UsageError: a tensor is missing, has another shape or a kind of number that it cannot be made
                from, or is not the model's.
        """
        known = {name for names in wanted for name in names}
        surplus = [name for name in self.entries if name not in known and name not in others]
        for names, tensor in wanted.items():
            found = [name for name in names if name in self.entries]
            if not found:
                near = closest_match(names[0], surplus)
                raise UsageError(f"{self.place} has no '{names[0]}'{near}; {_OF_THE_MODEL}")
            for name in found:
                self._check_form(name, self.entries[name], tensor)
        if surplus and not self.may_hold_more:
            near = closest_match(surplus[0], known)
            raise UsageError(
                f"{self.place} holds '{surplus[0]}', which the model does not have{near}; {_OF_THE_MODEL}"
            )

    def _check_form(self, name: str, entry: SourceEntry, tensor: Tensor) -> None:
        shape = tuple(tensor.shape)
        if entry.shape != shape and not (self.may_be_fused and _agree(entry.shape, shape)):
            raise UsageError(
                f"'{name}' has shape {entry.shape} in {self.place} and {shape} in the model; build the model"
                " with the arguments that it was trained with"
            )
        is_odd = tensor.is_floating_point() and entry.dtype not in _PLAIN
        if is_odd or (entry.dtype.is_complex and not tensor.is_complex()):
            raise UsageError(
                f"'{name}' is {entry.dtype} in {self.place} and {tensor.dtype} in the model, and would come"
                " without scales or imaginary parts; convert the weights (dequantise them) to float32 or"
                " bfloat16"
            )


def open_source(given: Given) -> StateSource:
    """The source that ``init`` names.

    Raises:
        UsageError: it is none.
    """
    if isinstance(given, Mapping):
        return _of_mapping(given, "the state dict given as init")
    if not isinstance(given, (str, Path)):
        raise UsageError(
            f"init is a {type(given).__name__}; give 'seeded' or 'exact', a state dict (model.state_dict()),"
            " or the path of weights"
        )
    path = Path(given)
    if path.is_file():
        if path.suffix == ".safetensors":
            return _of_safetensors([path], str(path), may_hold_more=False)
        return _of_file(path)
    if (path / _INDEX).is_file():
        return _of_index(path)
    if (path / _SINGLE).is_file():
        return _of_safetensors([path / _SINGLE], str(path), may_hold_more=True)
    place = checkpoint_folders.find_checkpoint(path)
    if place is not None:
        return _of_checkpoint(place, path)
    if path.is_dir():
        raise UsageError(
            f"init='{path}' holds neither {_SINGLE}, nor {_INDEX}, nor a checkpoint;"
            f" {checkpoint_folders.explain_missing(path)}"
        )
    raise UsageError(
        f"init='{path}' is not known: it is no file or folder; use 'seeded' or 'exact', a state dict, or the"
        " path of weights"
    )


def load_alone(state: dict[str, Any], checkpoint: Path) -> None:
    """Reads entries of a folder of torch.distributed.checkpoint in place, without the other ranks."""
    from torch.distributed.checkpoint import load  # type: ignore[attr-defined]

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it shall be
        load(state, checkpoint_id=checkpoint, no_dist=True)


def _agree(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether one shape is the other, with some dims in two parts."""
    if math.prod(found) != math.prod(wanted):
        return False
    rest = list(found)
    for size in wanted:
        if not rest:
            return False
        own = rest.pop(0)
        if own != size and rest:
            own *= rest.pop(0)
        if own != size:
            return False
    return not rest


def _of_mapping(given: Mapping[str, Any], place: str) -> StateSource:
    wrong = next((name for name, value in given.items() if not isinstance(value, Tensor)), None)
    if wrong is not None:
        raise UsageError(
            f"{place} holds '{wrong}', a {type(given[wrong]).__name__} and no tensor; give the model's"
            " state_dict() alone"
        )
    empty = next((name for name, x in given.items() if x.is_meta or x.layout is not torch.strided), None)
    if empty is not None:
        kind = "on the device meta, without values" if given[empty].is_meta else f"{given[empty].layout}"
        raise UsageError(f"{place} holds '{empty}', which is {kind}; give dense tensors with values")
    entries = {
        name: SourceEntry(tuple(value.shape), value.dtype, lambda value=value: value.detach())  # type: ignore[misc]
        for name, value in given.items()
    }
    return StateSource(place, entries)


def _of_file(path: Path) -> StateSource:
    try:
        found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are none of its own
        first_line = next(iter(str(error).splitlines()), "")
        raise UsageError(f"init='{path}' cannot be read as a state dict: {first_line}") from error
    if not isinstance(found, Mapping):
        raise UsageError(f"init='{path}' holds a {type(found).__name__}; save the model's state_dict()")
    return _of_mapping(found, f"'{path}'")


def _of_safetensors(paths: list[Path], place: str, may_hold_more: bool) -> StateSource:
    places = {name: found for path in paths for name, found in read_places(path).items()}
    entries = {name: SourceEntry(found.shape, found.dtype, found.read) for name, found in places.items()}
    return StateSource(f"'{place}'", entries, may_hold_more)


def _of_index(folder: Path) -> StateSource:
    index = folder / _INDEX
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({folder / file for file in names.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"'{index}' is no index of safetensors files: {error!r}") from error
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UsageError(f"'{index}' names '{missing[0]}', which is not there; fetch all of its files")
    return _of_safetensors(files, str(folder), may_hold_more=True)


def _of_checkpoint(place: Path, path: Path) -> StateSource:
    # Here, since most runs read no such folder and can spare the memory of its modules.
    from torch.distributed.checkpoint import FileSystemReader  # type: ignore[attr-defined]
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    saved = FileSystemReader(place).read_metadata().state_dict_metadata
    ours = any(key.startswith("training.") for key in saved)
    # Others save {"model": state_dict}, whose keys come out with that in front, or the state dict itself.
    entries = {}
    for key, value in saved.items():
        if isinstance(value, TensorStorageMetadata):
            entry = SourceEntry(tuple(value.size), value.properties.dtype, _reader(place, key, value))
            if not ours:
                entries[key] = entry
            if key.startswith("model."):
                entries.setdefault(key.removeprefix("model."), entry)
    return StateSource(f"the checkpoint '{path}'", entries, may_hold_more=not ours, may_be_fused=ours)


def _reader(place: Path, key: str, value: TensorStorageMetadata) -> Callable[[], Tensor]:
    def read() -> Tensor:
        state = {key: torch.empty(value.size, dtype=value.properties.dtype)}
        load_alone(state, place)
        return state[key]

    return read
