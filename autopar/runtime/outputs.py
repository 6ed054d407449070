"""The forward pass alone: what the user's module returns, in the structure in which it returns it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autopar.capture.model_graph import ModelGraph
from autopar.capture.module_output import ModuleOutput, OutputTensor
from autopar.errors import UsageError
from autopar.runtime.assemble import Assembly
from autopar.runtime.batches import count_micro_batches, split_batch
from autopar.runtime.driving import Driving
from autopar.runtime.gather import from_stage
from autopar.runtime.mesh import RankMesh
from autopar.runtime.not_computed import NotComputed
from autopar.runtime.output_passes import OutputPass, computable, is_held, mark_name
from autopar.runtime.seeds import Seeds

_CALLER = "model()"


class ModelOutputs:
    """Outputs of one rank's model.

    Args:
        driving: of passes with gradient.
    """

    def __init__(self, graph: ModelGraph, assembly: Assembly, mesh: RankMesh, driving: Driving) -> None:
        self._graph = graph
        self._assembly = assembly
        self._mesh = mesh
        self._driving = driving

    def compute(
        self,
        batch: Mapping[str, Tensor],
        seeds_of: Callable[[int], Seeds],
        on_every_rank: bool,
        label: str,
    ) -> Any:
        """The output for a batch of any number of micro-batches; see ``ParallelModel.forward``.

        Args:
            seeds_of: number of micro-batches -> seeds of their random operators.
        """
        graph, has_graph = self._graph, torch.is_grad_enabled()
        if has_graph and self._mesh.pipeline > 1:
            raise UsageError(
                f"{_CALLER}: a plan with a pipeline has no backward pass of its own: train with step(batch),"
                " or call the model under torch.no_grad() for its outputs"
            )
        tensors = computable(graph.output, batch)
        wanted = [tensor for tensor in tensors if tensor is not None]
        used = self._assembly.passes.of(wanted)
        keys = used.batch_keys | {tensor.batch_key for tensor in wanted if tensor.batch_key}
        count = count_micro_batches({key: batch[key] for key in batch if key in keys}, graph, _CALLER)
        batches = split_batch(batch, graph, count, self._mesh.device, _CALLER, keys)
        for tensor in wanted:
            _check_joinable(tensor, count)
        if has_graph:
            values = self._driving.compute(used, batches, seeds_of(count))
        else:
            values = used.executor.compute(batches, seeds_of(count), label)
            for replicas in self._assembly.replicas:
                replicas.after_evaluation()
        found = [None if tensor is None else _joined(tensor, values, batches) for tensor in tensors]
        if has_graph:
            found = self._driving.hand_out(found, f"backward after {label}")
        elif self._mesh.pipeline > 1:
            found = self._bring_together(tensors, found, used, on_every_rank)
            if not on_every_rank and self._mesh.here.pipeline != self._last_rank:
                return None
        assert graph.output is not None
        return graph.output.form.rebuild(_with_what_is_lost(graph.output, found))

    @property
    def _last_rank(self) -> int:
        """Position on the pipeline axis of the last stage."""
        executor = self._assembly.executor
        return executor.rank_of(executor.num_stages - 1)

    def _bring_together(
        self,
        tensors: Sequence[OutputTensor | None],
        found: Sequence[Tensor | None],
        used: OutputPass,
        on_every_rank: bool,
    ) -> list[Tensor | None]:
        """What stages have computed, on the rank of the last one, or on every rank."""
        complete = list(found)
        for index, tensor in enumerate(tensors):
            if tensor is None or not tensor.value:
                continue
            owner = used.ranks[tensor.value]
            if on_every_rank or owner != self._last_rank:
                complete[index] = from_stage(found[index], owner, self._mesh)
        return complete


def _with_what_is_lost(output: ModuleOutput, found: Sequence[Tensor | None]) -> list[Any]:
    pairs = zip(output.tensors, found, strict=True)
    return [value if is_held(tensor) else NotComputed(tensor.label) for tensor, value in pairs]


def _check_joinable(tensor: OutputTensor, count: int) -> None:
    if count == 1 or tensor.batch_dim is not None or tensor.is_loss:
        return
    raise UsageError(
        f"{_CALLER}: it is not known which dim of the output{tensor.label} counts samples, so that those of"
        f" {count} micro-batches cannot be joined; call the model with one micro-batch at a time"
    )


def _joined(
    tensor: OutputTensor, values: Mapping[tuple[str, int], Tensor], batches: Sequence[Mapping[str, Tensor]]
) -> Tensor | None:
    """A tensor of the output for all micro-batches, where this rank has computed it."""
    if tensor.batch_key:
        pieces = [batch[tensor.batch_key] for batch in batches]
    elif (mark_name(tensor.value), 0) in values:
        pieces = [values[mark_name(tensor.value), index] for index in range(len(batches))]
    else:
        return None
    if len(pieces) == 1:
        return pieces[0]
    if tensor.batch_dim is None:  # a mean over the samples
        return torch.stack(pieces).mean()
    return torch.cat(pieces, tensor.batch_dim)
