"""A resolved plan run block by block on threads, and the plain blocks run in order, with all gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from autopar.capture.model_graph import Block, InputKind, ModelGraph
from autopar.lower.block import lower_block
from autopar.lower.resolve import ResolvedPlan
from autopar.sharding.placement import REPLICATE, Placement
from tests.lower.pieces import combine, scatter
from tests.lower.ranks import ThreadedAxis, run_on_ranks


@dataclass(frozen=True)
class StepResult:
    """Loss, gradients by parameter name, and buffers after the step."""

    loss: Tensor
    gradients: dict[str, Tensor | None]
    buffers: dict[str, Tensor]


def run_plain(graph: ModelGraph, state: dict[str, Tensor], batch: dict[str, Tensor]) -> StepResult:
    """One forward and backward of the blocks' own graphs."""
    own = leaves(graph, {name: tensor.detach().clone() for name, tensor in state.items()})
    modules = [fx.GraphModule(nn.Module(), block.graph) for block in graph.blocks]
    loss = forward(graph, modules, own, batch, None)
    loss.backward()
    return StepResult(
        loss.detach(), {name: own[name].grad for name in graph.parameters}, {n: own[n] for n in graph.buffers}
    )


def run_sharded(
    resolved: ResolvedPlan,
    state: dict[str, Tensor],
    batch: dict[str, Tensor],
    change: Callable[[fx.GraphModule], fx.GraphModule] = lambda program: program,
) -> StepResult:
    """One forward and backward of the lowered (and changed) blocks on every rank, put together again."""
    graph, size = resolved.graph, resolved.plan.mesh.tensor
    assert size is not None
    lowered = [change(lower_block(decision.block, decision.sharding).graph) for decision in resolved.blocks]
    placements = state_placements(resolved)
    local = {name: scatter(state[name], placement, size) for name, placement in placements.items()}

    def rank(axis: ThreadedAxis) -> StepResult:
        own = leaves(graph, {name: pieces[axis.rank].clone() for name, pieces in local.items()})
        loss = forward(graph, lowered, own, batch, axis)
        loss.backward()
        gradients = {name: own[name].grad for name in graph.parameters}
        return StepResult(
            loss.detach(), gradients, {name: own[name] for name in graph.buffers if name in own}
        )

    ranks = run_on_ranks(size, rank)
    gradients: dict[str, Tensor | None] = {}
    for name in graph.parameters:
        pieces = [result.gradients[name] for result in ranks]
        assert len({piece is None for piece in pieces}) == 1, name
        gradients[name] = (
            None if pieces[0] is None else combine([p for p in pieces if p is not None], placements[name])
        )
    buffers = {
        name: combine([result.buffers[name] for result in ranks], placements[name])
        for name in ranks[0].buffers
    }
    return StepResult(combine([result.loss for result in ranks], REPLICATE), gradients, buffers)


def state_placements(resolved: ResolvedPlan) -> dict[str, Placement]:
    """Placement of every parameter and buffer that a block reads; all its readers must agree."""
    found: dict[str, Placement] = {
        name: resolved.parameter_placements[name] for name in resolved.graph.parameters
    }
    for decision in resolved.blocks:
        for entry in decision.block.inputs:
            if entry.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                placement = decision.sharding.placement_of(entry.placeholder)
                assert found.setdefault(entry.source, placement) == placement, entry.source
    return found


def leaves(graph: ModelGraph, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, spec in graph.parameters.items():
        tensors[name].requires_grad_(spec.requires_grad)
    return tensors


def forward(
    graph: ModelGraph,
    modules: list[fx.GraphModule],
    state: dict[str, Tensor],
    batch: dict[str, Tensor],
    axis: ThreadedAxis | None,
) -> Tensor:
    values: dict[str, Tensor] = {}
    for block, module in zip(graph.blocks, modules, strict=True):
        inputs = [argument(graph, block, index, values, state, batch) for index in range(len(block.inputs))]
        results = module(*inputs) if axis is None else module(axis, *inputs)
        values |= dict(zip(block.outputs, results, strict=True))
    return values[graph.loss]


def argument(
    graph: ModelGraph,
    block: Block,
    index: int,
    values: dict[str, Tensor],
    state: dict[str, Tensor],
    batch: dict[str, Tensor],
) -> Tensor:
    entry = block.inputs[index]
    match entry.kind:
        case InputKind.ACTIVATION:
            return values[entry.source]
        case InputKind.BATCH:
            return batch[entry.source]
        case InputKind.CONSTANT:
            return graph.constants[entry.source]
        case _:
            return state[entry.source]


def assert_same(found: StepResult, wanted: StepResult, tolerance: float) -> None:
    """Loss, every gradient and every buffer, relative to the largest gradient of the model."""
    torch.testing.assert_close(found.loss, wanted.loss, rtol=tolerance, atol=tolerance)
    largest = max(float(g.abs().max()) for g in wanted.gradients.values() if g is not None)
    for name, gradient in wanted.gradients.items():
        other = found.gradients[name]
        assert (other is None) == (gradient is None), name
        if gradient is not None and other is not None:
            error = float((other - gradient).abs().max()) / largest
            assert error <= tolerance, f"{name}: gradient differs by {error:.1e} of the largest"
    for name, buffer in found.buffers.items():
        error = float((buffer - wanted.buffers[name]).abs().max()) if buffer.numel() else 0.0
        assert error <= 1e-9, f"{name}: buffer differs by {error:.1e}"
