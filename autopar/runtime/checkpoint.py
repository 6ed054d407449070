"""Saving and loading through torch.distributed.checkpoint: original names, so that any plan loads what any
plan saved.

Keys: ``model.<parameter or buffer>``, ``optimizer.<parameter>.<state>`` (``exp_avg``, ``step``, ...), and
``training.step``, ``training.optimizer_classes`` (their names), ``training.optimizer_groups`` (learning rates
and the like; ``optimizer_groups.py``), of fp16 runs ``training.loss_scale``, and ``training.layout``
(original shapes, tied names).
Parameters with fused parts are stored as ``(g, n/g, ...)`` at every degree.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader, load, save  # type: ignore[attr-defined]
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from autopar.errors import AutoparError, DistributedError, UsageError, closest_match
from autopar.runtime import checkpoint_folders
from autopar.runtime.export import LAYOUT_KEY, StateLayout
from autopar.runtime.optimizer_groups import Options, describe_groups, options_to_restore, restore_options
from autopar.runtime.same_outcome import same_outcome
from autopar.runtime.state_source import load_alone
from autopar.units import format_bytes

_STEP = "training.step"
_LOSS_SCALE = "training.loss_scale"
_GROUPS = "training.optimizer_groups"
_CLASSES = "training.optimizer_classes"


def save_checkpoint(
    path: str | Path,
    parameters: Mapping[str, nn.Parameter],
    buffers: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    step: int,
    layout: StateLayout,
    group: dist.ProcessGroup,
    loss_scale: Tensor | None = None,
) -> None:
    """Writes a checkpoint, which takes the place of one at ``path`` when it is complete; a collective of all
    ranks.

    Args:
        parameters: of this rank's stage, by canonical name.
        buffers: that this rank is to write, by original name.
        optimizers: whose state is written, too; of none, none is.
        step: optimiser steps done.
        layout: of the plain model's state dict.
        group: of all ranks; its time-out is that of every wait.
        loss_scale: state of the loss scale, if the run has one.

    Raises:
        UsageError: the optimiser holds other parameters, or the folder cannot be used.
        DistributedError: a rank could not write; names it. What was saved before is left as it was.
    """
    path, is_first = Path(path), dist.get_rank() == 0
    state: dict[str, Any] = _model_state(parameters, buffers)
    state[_STEP] = torch.tensor(step)
    state[LAYOUT_KEY] = layout.to_json()
    if loss_scale is not None:
        state[_LOSS_SCALE] = loss_scale
    with same_outcome(f"prepare the checkpoint '{path}'", group):
        names = names_of_parameters(parameters, optimizers)
    if optimizers:
        # As texts: a list of dicts would be cut into one entry for each of its leaves.
        state[_GROUPS] = describe_groups(optimizers, names, group)
        state[_CLASSES] = json.dumps([type(optimizer).__name__ for optimizer in optimizers])
    with same_outcome(f"prepare the checkpoint '{path}'", group):
        if is_first:
            checkpoint_folders.begin(path)
    partial = checkpoint_folders.partial_folder(path)
    with same_outcome(f"prepare the checkpoint '{path}'", group):
        if not partial.is_dir():
            raise UsageError(
                f"rank {dist.get_rank()} does not see the folder '{partial}' that rank 0 has made; save to a"
                " file system that all nodes share"
            )
    for optimizer in optimizers:
        for parameter in _held(optimizer):
            for key, value in optimizer.state.get(parameter, {}).items():
                state[f"optimizer.{names[parameter]}.{key}"] = value
    try:
        with _named_failures(f"write the checkpoint '{path}'", "free space or save elsewhere", path.parent):
            save(state, checkpoint_id=partial, process_group=group)
        with same_outcome(f"complete the checkpoint '{path}'", group):
            if is_first:
                checkpoint_folders.commit(path, step)
    except AutoparError:
        if is_first:
            checkpoint_folders.abandon(path)
        raise


def load_checkpoint(
    path: str | Path,
    parameters: Mapping[str, nn.Parameter],
    buffers: Mapping[str, Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    group: dist.ProcessGroup,
    loss_scale: Tensor | None = None,
) -> int:
    """Reads a checkpoint into parameters, buffers and optimiser state, in place; a collective of all ranks.

    Args:
        optimizers: in the order in which they were saved.
        group: of all ranks; its time-out is that of every wait.
        loss_scale: is filled if the checkpoint has one; that of a run in another precision has none.

    Returns:
        Optimiser steps done when it was saved.

    Raises:
        UsageError: there is no checkpoint, or it belongs to another model or to optimisers of other classes.
    """
    state: dict[str, Any] = _model_state(parameters, buffers)
    optimizer_state: dict[nn.Parameter, dict[str, Any]] = {}
    options: list[Options] = []
    names: dict[nn.Parameter, str] = {}
    place = checkpoint_folders.find_checkpoint(path)
    with same_outcome(f"read the checkpoint '{path}'", group):
        if place is None:
            raise UsageError(checkpoint_folders.explain_missing(path))
        saved = FileSystemReader(place).read_metadata().state_dict_metadata
        for key, value in state.items():
            _check_entry(str(path), key, value, saved)
        if optimizers:
            if _GROUPS not in saved:
                raise UsageError(
                    f"the checkpoint '{path}' holds no optimiser state; load it without an optimiser"
                )
            if _CLASSES in saved:
                _check_classes(str(path), place, optimizers)
            names = names_of_parameters(parameters, optimizers)
            for parameter, name in names.items():
                optimizer_state[parameter] = _empty_state(name, parameter, saved)
            described = {_GROUPS: ""}
            load_alone(described, place)
            options = options_to_restore(described[_GROUPS], optimizers, names)
    state[_STEP] = torch.tensor(0)
    if loss_scale is not None and _LOSS_SCALE in saved:
        state[_LOSS_SCALE] = loss_scale
    for parameter, entries in optimizer_state.items():
        state.update({f"optimizer.{names[parameter]}.{key}": value for key, value in entries.items()})
    with _named_failures(f"read the checkpoint '{path}'", "load an earlier one"):
        load(state, checkpoint_id=place, process_group=group)
    for optimizer in optimizers:
        for parameter in (p for p in _held(optimizer) if p in optimizer_state):
            optimizer.state[parameter] = {
                key: state[f"optimizer.{names[parameter]}.{key}"] for key in optimizer_state[parameter]
            }
    restore_options(optimizers, options)
    return int(state[_STEP])


@contextmanager
def _named_failures(action: str, remedy: str, disk: Path | None = None) -> Iterator[None]:
    """Turns what torch.distributed.checkpoint raises, on every rank, into a message that names the rank.

    Args:
        disk: whose free space is told: torch does not always pass on that there was none.
    """
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        first_line = next(iter(str(cause).splitlines()), "")
        room = "" if disk is None else f"; {format_bytes(shutil.disk_usage(disk).free)} are free there"
        raise DistributedError(
            f"rank {rank} could not {action}: {type(cause).__name__}: {first_line}{room}; {remedy}"
        ) from error


def names_of_parameters(
    parameters: Mapping[str, nn.Parameter], optimizers: Sequence[torch.optim.Optimizer]
) -> dict[nn.Parameter, str]:
    """Names of what optimisers hold.

    Raises:
        UsageError: one holds parameters that are not the model's own, or another's.
    """
    names = {parameter: name for name, parameter in parameters.items()}
    found: dict[nn.Parameter, str] = {}
    for optimizer in optimizers:
        held = _held(optimizer)
        foreign = sum(parameter not in names for parameter in held)
        if foreign:
            raise UsageError(
                f"{foreign} of the {len(held)} parameters of {type(optimizer).__name__} are not parameters of"
                " the parallel model; make the optimiser from model.parameters() after parallelize()"
            )
        twice = next((names[parameter] for parameter in held if parameter in found), None)
        if twice is not None:
            raise UsageError(f"two optimisers hold '{twice}'; give every parameter to one of them")
        found |= {parameter: names[parameter] for parameter in held}
    return found


def _held(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Its parameters, but for empty ones, which stand in for those of a stage that has none."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.numel()]


def _model_state(parameters: Mapping[str, nn.Parameter], buffers: Mapping[str, Tensor]) -> dict[str, Any]:
    state: dict[str, Any] = {f"model.{name}": p.detach() for name, p in parameters.items()}
    state.update({f"model.{name}": value for name, value in buffers.items()})
    return state


def _check_entry(path: str, key: str, value: Tensor, saved: Mapping[str, Any]) -> None:
    if key not in saved:
        raise UsageError(
            f"the checkpoint '{path}' has no '{key}'{closest_match(key, saved)}; it was saved from another"
            " model"
        )
    size = tuple(saved[key].size)
    if size != tuple(value.shape):
        raise UsageError(
            f"'{key}' has shape {size} in the checkpoint '{path}' and {tuple(value.shape)} in the model;"
            " build the model with the arguments it was saved with"
        )


def _check_classes(path: str, place: Path, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Refuses state and options that would mean something else, if anything, to another optimiser."""
    described = {_CLASSES: ""}
    load_alone(described, place)
    classes: list[str] = json.loads(described[_CLASSES])
    if len(classes) != len(optimizers):
        raise UsageError(
            f"the checkpoint '{path}' holds the state of {len(classes)} optimisers ({', '.join(classes)}),"
            f" and {len(optimizers)} were given; give as many, in the same order"
        )
    for saved, optimizer in zip(classes, optimizers, strict=True):
        given = type(optimizer).__name__
        if saved != given:
            raise UsageError(
                f"the checkpoint '{path}' holds the state of {saved}, and {given} was given, which would go"
                f" on with the learning rate and state of another method; give {saved}, or load it without"
                " an optimiser"
            )


def _empty_state(name: str, parameter: nn.Parameter, saved: Mapping[str, Any]) -> dict[str, Any]:
    prefix = f"optimizer.{name}."
    entries: dict[str, Any] = {}
    for key, metadata in saved.items():
        # A name can be the beginning of another one: 'a.b' of 'a.b.c'. State keys have no dot.
        if not key.startswith(prefix) or "." in key[len(prefix) :]:
            continue
        if not isinstance(metadata, TensorStorageMetadata):
            entries[key[len(prefix) :]] = None
        elif tuple(metadata.size) == tuple(parameter.shape):
            like = torch.zeros_like(parameter, dtype=metadata.properties.dtype)
            entries[key[len(prefix) :]] = like.detach()
        else:
            # Scalars (AdamW's step) live on the CPU, as the optimisers themselves keep them.
            entries[key[len(prefix) :]] = torch.zeros(metadata.size, dtype=metadata.properties.dtype)
    return entries
