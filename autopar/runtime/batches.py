"""Checking a data rank's batch against the captured model, and cutting it into micro-batches."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from autopar.capture.model_graph import ModelGraph, TensorSpec
from autopar.errors import UsageError, closest_match
from autopar.runtime.marked_sum import MarkedSum
from autopar.runtime.mesh import RankMesh


def split_batch(
    batch: Mapping[str, Tensor],
    graph: ModelGraph,
    num_micro_batches: int,
    device: torch.device,
    caller: str = "step()",
    needed: Collection[str] | None = None,
) -> list[dict[str, Tensor]]:
    """Cuts this data rank's share of a step into micro-batches on its device.

    Args:
        caller: for messages.
        needed: the entries that are read; default: all. The others may be missing.

    Raises:
        UsageError: an entry is missing, unknown, or of another shape or dtype than the model was captured
            with.
    """
    expected = ", ".join(
        f"'{key}' {_shape(key, spec, graph, num_micro_batches)}" for key, spec in graph.batch.items()
    )
    _check_is_dict(batch, graph, caller)
    for key in batch:
        if key not in graph.batch:
            raise UsageError(
                f"{caller}: the batch holds '{key}', which the model does not"
                f" read{closest_match(key, graph.batch)};"
                f" it wants: {expected}"
            )
    pieces: list[dict[str, Tensor]] = [{} for _ in range(num_micro_batches)]
    for key, spec in graph.batch.items():
        if needed is not None and key not in needed:
            continue
        if key not in batch:
            raise UsageError(f"{caller}: the batch lacks '{key}'; it must hold: {expected}")
        value = batch[key]
        if not isinstance(value, Tensor):
            raise UsageError(
                f"{caller}: batch['{key}'] is a {type(value).__name__}, not a tensor; wanted: {expected}"
            )
        if tuple(value.shape) != _shape(key, spec, graph, num_micro_batches):
            raise UsageError(
                f"{caller}: batch['{key}'] has shape {tuple(value.shape)}; this data rank's share of a step"
                f" is {num_micro_batches} micro-batches of {graph.micro_batch} samples: {expected}"
            )
        if value.dtype != spec.dtype and not (value.is_floating_point() and spec.dtype.is_floating_point):
            raise UsageError(
                f"{caller}: batch['{key}'] is {value.dtype}; the model was captured with {spec.dtype}"
            )
        moved = value.to(device=device, dtype=spec.dtype)
        if moved.is_inference():  # which autograd could not save for the backward pass
            moved = moved.clone()
        dim = graph.batch_dims.get(key, 0)
        parts = [moved] * num_micro_batches if dim is None else moved.chunk(num_micro_batches, dim)
        for piece, part in zip(pieces, parts, strict=True):
            piece[key] = part
    return pieces


def _shape(key: str, spec: TensorSpec, graph: ModelGraph, num_micro_batches: int) -> tuple[int, ...]:
    shape = list(spec.shape)
    dim = graph.batch_dims.get(key, 0)
    if dim is not None:
        shape[dim] *= num_micro_batches
    return tuple(shape)


def count_micro_batches(batch: Mapping[str, Tensor], graph: ModelGraph, caller: str) -> int:
    """Number of micro-batches that a batch of any size makes.

    Raises:
        UsageError: it holds none of the model's entries, or is no multiple of the micro-batch.
    """
    _check_is_dict(batch, graph, caller)
    for key, value in batch.items():
        dim = graph.batch_dims.get(key, 0)
        if key not in graph.batch or not isinstance(value, Tensor) or dim is None:
            continue
        num_samples = value.shape[dim] if dim < value.dim() else 0
        if not num_samples or num_samples % graph.batch[key].shape[dim]:
            raise UsageError(
                f"{caller}: batch['{key}'] has shape {tuple(value.shape)}; dim {dim} must be a multiple of"
                f" the plan's micro-batch {graph.batch[key].shape[dim]}: drop or pad the last samples"
            )
        return num_samples // graph.batch[key].shape[dim]
    raise UsageError(f"{caller}: the batch holds none of the model's entries {', '.join(graph.batch)}")


def check_counts(count: int, mesh: RankMesh, call: str) -> None:
    """Refuses an evaluation of more micro-batches on some ranks than on others; a collective of all ranks.

    Their losses would count alike in the mean, and ranks that hold pieces of one another's parameters would
    wait for those with fewer.

    Args:
        count: micro-batches of this rank.
        call: what the ranks do, with the step.

    Raises:
        UsageError: ranks differ; on every rank.
    """
    if mesh.size == 1:
        return
    total = MarkedSum(mesh, f"{call}, micro-batches")
    total.begin(torch.tensor(float(count), dtype=total.dtype, device=mesh.device))
    mean = float(total.wait()) / mesh.size
    spread = MarkedSum(mesh, f"{call}, differing")
    spread.begin(torch.tensor(float(count != mean), dtype=spread.dtype, device=mesh.device))
    if float(spread.wait()):
        raise UsageError(
            f"eval_step(): this rank gives {count} micro-batches, and the ranks give {mean:.2f} on average:"
            " the mean would not be that of all samples; give as many on every rank: drop or pad the last"
            " samples"
        )


def _check_is_dict(batch: object, graph: ModelGraph, caller: str) -> None:
    if not isinstance(batch, Mapping):
        names = ", ".join(f"'{key}'" for key in graph.batch)
        raise UsageError(
            f"{caller} takes a dict of tensors, not a {type(batch).__name__}: give {names} by name, as"
            " example_batch() does"
        )
